"""The guard of `make test-fast`, tried on tests of its own: a process that is called as Ray's is stands for a Ray."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import subprocess, time, pytest

@pytest.fixture(scope="session")
def ray():
    with subprocess.Popen(["./gcs_server", "60"]) as process:
        yield
        process.kill()

def test_starts_nothing(): ...

def test_starts_one_and_ends_it():
    subprocess.run(["./gcs_server", "1"], check=True)

@pytest.mark.long
def test_says_that_it_starts_one():
    subprocess.run(["./gcs_server", "1"], check=True)

def test_takes_one_without_saying_so(ray): ...

def test_runs_beside_one(): ...
"""


@pytest.mark.long  # by its process's name it starts a Ray
def test_a_test_that_starts_a_ray_without_saying_so_fails(tmp_path: Path) -> None:
    sleep = shutil.which("sleep")
    assert sleep is not None
    shutil.copy(sleep, tmp_path / "gcs_server")
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text(
        f"import sys; sys.path.append({str(Path(__file__).parent)!r})\n"
        "from fast import Guard\n"
        "def pytest_configure(config): config.pluginmanager.register(Guard())\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-rE", "-p", "no:xdist", "-W", "ignore"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    failed = {line.split("::")[1].split(" ")[0] for line in done.stdout.splitlines() if line.startswith("ERROR ")}
    assert failed == {"test_starts_one_and_ends_it", "test_takes_one_without_saying_so"}, done.stdout
    assert "mark the test `real`" in done.stdout and "5 passed" in done.stdout


def test_messages_are_heard_where_an_import_takes_the_root_loggers_handlers(caplog: pytest.LogCaptureFixture) -> None:
    root, log = logging.getLogger(), logging.getLogger("unlearn_ray.any")
    log.warning("once")
    kept, root.handlers = root.handlers, []
    try:
        log.warning("then")
    finally:
        root.handlers = kept
    assert caplog.messages == ["once", "then"]
