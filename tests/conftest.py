"""What tests share, once a test run: a Ray, a vLLM engine on the pocket model, a cluster, a whole run, a service on that run."""

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commandline import KEY, QUICKSTART, Run, Service, serving, unlearn
from fast import Guard
from head import Head, started
from hypothesis import HealthCheck, settings
from real_model import REAL, REDUCED, make_smollm2

from unlearn_ray import pocket
from unlearn_ray.artifacts import Folder
from unlearn_ray.config import ClusterConfig, EngineResources, Lora
from unlearn_ray.serving.settings import KEYS_VARIABLE

if TYPE_CHECKING:
    from storage import Storage

    from unlearn_ray.engines.generation import RayDataGenerator

# float32, to compare with transformers; small batches, so that a few dozen rows are many chunks.
CLUSTER = ClusterConfig(accelerator="cpu", num_cpus=8, engines=EngineResources(dtype="float32", batch_size=16))


# A busy machine is no fault of what is tested.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# Tests that share something big run in one process, so that it is there once; two processes share the rest, module by module.
_SHARED = {
    "service": "service",
    "head": "head",
    "ray_session": "engines",
    "generator": "engines",
    "real_run": "real_run",
}
_REAL = {"quickstart", *_SHARED}
_LONG = {"head", "broken", "tried", "real_run"}  # fixtures that take minutes
# A service with room for what tests ask at once, and no more: a crowd finds it full.
LIMITS = ("scaling.max_ongoing_requests=32", "scaling.max_queued_requests=8", "scaling.target_ongoing_requests=32")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Guard())


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    groups = {}
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        own = vars(getattr(item, "module", object()))  # a module's own service is shared by its tests alone
        shared = [_SHARED[name] for name in fixtures if name in _SHARED and name not in own]
        if _REAL.intersection(fixtures):
            item.add_marker(pytest.mark.real)
        if _LONG.intersection(fixtures):
            item.add_marker(pytest.mark.long)
        groups[item] = shared[0] if shared else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(groups[item]))
    items.sort(key=lambda item: (item.get_closest_marker("late") is not None, _turn(groups[item], item)))


def _turn(group: str, item: pytest.Item) -> int:
    """The longest first, which makes the quickstart's run. What reads that run comes last, when it is there; and just before it what
    has a Ray in this process, which takes a tenth of a core from then on."""
    if group in ("service", "engines"):
        return ("service", "", "engines").index(group)
    return 3 if "quickstart" in getattr(item, "fixturenames", ()) else 1


@contextmanager
def alone(tmp_path_factory: pytest.TempPathFactory, what: str) -> Iterator[Path]:
    """One test process at a time; yields a folder that all of them have."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with (shared / f"{what}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield shared


@pytest.fixture(autouse=True)
def one_long_test_at_a_time(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two that take all cores would each take those of the other: an answer under way took three minutes then. One that mostly waits takes none."""
    mark = request.node.get_closest_marker("long")
    if mark is None or mark.kwargs.get("waits"):
        yield
        return
    with alone(tmp_path_factory, "long"):
        yield


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """pytest's own, which also hears this package where an import takes the root logger's handlers away, as that of ray.serve.llm does."""
    handler, ours = caplog.handler, logging.getLogger("unlearn_ray")

    def is_new(record: logging.LogRecord) -> bool:
        return record not in handler.records[-1:]

    handler.addFilter(is_new)
    ours.addHandler(handler)
    yield caplog
    ours.removeHandler(handler)
    handler.removeFilter(is_new)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[ClusterConfig]:
    """A Ray of the tests' own."""
    from unlearn_ray.engines.session import connect

    with connect(CLUSTER):
        yield CLUSTER


@pytest.fixture(scope="session")
def generator(ray_session: ClusterConfig) -> "Iterator[RayDataGenerator]":
    """vLLM on the pocket model, with room for adapters; its engine starts when it is first asked."""
    from unlearn_ray.engines.generation import RayDataGenerator

    generator = RayDataGenerator(
        str(pocket.MODEL_DIR), ray_session, lora=Lora(rank=8, target_modules=("q_proj", "v_proj"))
    )
    yield generator
    generator.close()


@pytest.fixture(scope="session")
def s3_storage() -> "Iterator[Storage]":
    """Storage that speaks as Amazon's does."""
    from storage import s3

    with s3() as storage:
        yield storage


@pytest.fixture(scope="session")
def head(s3_storage: "Storage") -> Iterator[Head]:
    """A cluster of one node that reaches that storage, with a key for services."""
    with started({**s3_storage.environment, KEYS_VARIABLE: KEY}) as head:
        yield head


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`make quickstart`, in an empty folder. The first test process does it; another has a copy, whose finished stages are skipped, as
    has each of UNLEARN_RAY_TEST_RUN, where that is set."""
    cwd = tmp_path_factory.mktemp("quickstart")
    arguments: list[str | Path] = ["run", QUICKSTART]
    with alone(tmp_path_factory, "quickstart") as shared:
        made = shared / "quickstart-made"  # a link to the first's
        if finished := os.environ.get("UNLEARN_RAY_TEST_RUN") or (made.exists() and made):
            shutil.copytree(finished, cwd / "runs" / "pocket", ignore=shutil.ignore_patterns("logs"))
        done = unlearn(*arguments, cwd=cwd)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        if not made.exists():
            made.symlink_to(cwd / "runs" / "pocket")
    return Run(cwd, Folder(cwd / "runs" / "pocket"), arguments, done.stdout)


@pytest.fixture(scope="session")
def real_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`make real` with few rows, in an empty folder: a real chat model forgets a topic. All tests that read it are in one process.
    UNLEARN_RAY_TEST_REAL_RUN is a finished one to begin with a copy of."""
    make_smollm2()
    cwd = tmp_path_factory.mktemp("real")
    arguments: list[str | Path] = ["run", REAL, *REDUCED, "--accept-thin-data"]
    with alone(tmp_path_factory, "long"):  # beside another long one, each takes the other's cores
        if finished := os.environ.get("UNLEARN_RAY_TEST_REAL_RUN"):
            shutil.copytree(finished, cwd / "runs" / "smollm2", ignore=shutil.ignore_patterns("logs"))
        done = unlearn(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Run(cwd, Folder(cwd / "runs" / "smollm2"), arguments, done.stdout)


@pytest.fixture(scope="session")
def service(quickstart: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`unlearn-ray serve` on the quickstart's run. The last of the late tests ends it."""
    with serving(quickstart.folder.local, tmp_path_factory.mktemp("service"), *LIMITS) as service:
        yield service
