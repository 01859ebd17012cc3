"""Ray for one run: joined or started, sized, refused in one line, and gone at the end."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from unlearn_ray.config import ClusterConfig, EngineResources, WorkerResources
from unlearn_ray.engines import session
from unlearn_ray.errors import ClusterError

ROOT = Path(__file__).parents[2]
# Starts a Ray of its own, lets Ray Data work, says which folder is Ray's, and waits to be ended.
DRIVER = """
    import sys, time
    import ray
    from pathlib import Path
    from unlearn_ray.config import ClusterConfig
    from unlearn_ray.engines.session import connect

    def speak(row):
        print("a worker's own words", flush=True)
        return row

    with connect(ClusterConfig(), logs=Path(sys.argv[1])):
        rows = ray.data.from_items([{"n": n} for n in range(8)]).map(speak).take_all()
        home = Path(ray._private.worker._global_node.get_session_dir_path()).parents[1]
        print(len(rows), home, flush=True)
        time.sleep(300)
"""


def driver(script: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=variables | environment,
    )


def processes_of(home: str) -> list[str]:
    """Command lines that name Ray's folder: its head, agents and workers all do."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if home in line:
            found.append(line)
    return found


@pytest.mark.long
@pytest.mark.real
def test_a_run_that_is_ended_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    """By SIGTERM; Ctrl-C: run/test_interruptions.py."""
    process = driver(DRIVER, str(tmp_path))
    assert process.stdout is not None and process.stderr is not None
    num_rows, home = process.stdout.readline().split()
    assert num_rows == "8" and processes_of(home)
    process.terminate()
    out, err = process.communicate(timeout=300)
    assert process.returncode != 0
    deadline = time.monotonic() + 60
    while processes_of(home) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_of(home) == []
    assert not Path(home).exists()
    assert out == err == ""  # what workers say is in the run's logs
    assert any("own words" in file.read_text() for file in (tmp_path / "ray").iterdir())


@pytest.mark.long
@pytest.mark.real
def test_a_run_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    with driver(DRIVER, str(tmp_path)) as process:
        assert process.stdout is not None
        home = process.stdout.readline().split()[1]
        process.kill()
        deadline = time.monotonic() + 120
        while processes_of(home) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert processes_of(home) == []


@pytest.mark.real
def test_an_address_that_no_cluster_answers_at_is_refused_soon() -> None:
    script = """
        from unlearn_ray.config import ClusterConfig
        from unlearn_ray.engines.session import connect
        from unlearn_ray.errors import ClusterError
        try:
            with connect(ClusterConfig(address="127.0.0.1:1")):
                print("connected")
        except ClusterError as error:
            print(error)
    """
    out, err = driver(script).communicate(timeout=300)
    assert out.startswith("the Ray cluster at 127.0.0.1:1 can't be reached") and out.count("\n") == 1
    assert err == ""


@pytest.mark.parametrize(
    ("cluster", "key"),
    [
        (ClusterConfig(engines=EngineResources(num_engines=1000)), "cluster.engines.num_engines"),
        (ClusterConfig(accelerator="cuda"), "cluster.engines.num_engines"),
        (ClusterConfig(workers=WorkerResources(num_workers=1000)), "cluster.workers.num_workers"),
        (
            ClusterConfig(engines=EngineResources(num_engines=8)),
            "num_engines: 8 engines of 1 CPUs and 1 beside ask for 9",
        ),
    ],
)
def test_a_config_beyond_the_cluster_is_one_line_that_names_its_key(
    ray_session: None, cluster: ClusterConfig, key: str
) -> None:
    with pytest.raises(ClusterError, match=key) as raised:
        session.require(cluster)
    assert "\n" not in str(raised.value)


def test_the_default_config_fits_a_small_machine(ray_session: None) -> None:
    session.require(ClusterConfig())
    assert session.num_engines(ClusterConfig()) == 1
    assert session.device_of(ClusterConfig()) == "cpu"


def test_an_autoscaling_cluster_counts_the_gpus_it_can_grow_to(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private.state import state
    from ray.core.generated import autoscaler_pb2

    grown = autoscaler_pb2.ClusterConfig()
    grown.node_group_configs.add(max_count=4, resources={"CPU": 16, "GPU": 4})
    monkeypatch.setattr(state, "get_cluster_config", lambda: grown)
    cluster = ClusterConfig(engines=EngineResources(tensor_parallel_size=2, num_cpus=4))
    assert session.device_of(cluster) == "cuda"
    assert session.num_engines(cluster) == 8
    session.require(cluster)
    with pytest.raises(ClusterError, match="18"):
        session.require(ClusterConfig(engines=EngineResources(tensor_parallel_size=2, num_engines=9)))


def test_an_engine_spans_no_two_nodes(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}] * 4
    monkeypatch.setattr(session, "capacity", lambda: {"CPU": 32.0, "GPU": 4.0})
    monkeypatch.setattr(session.ray, "nodes", lambda: nodes)
    assert session.num_engines(ClusterConfig()) == 4
    with pytest.raises(ClusterError, match="1 engine of 2 GPUs ask for 2, the cluster has 4 in nodes with room for 0"):
        session.require(ClusterConfig(engines=EngineResources(tensor_parallel_size=2)))
    with pytest.raises(ClusterError, match="1 worker of 9 CPUs ask for 9, the cluster has 32 in nodes with room for 0"):
        session.require(ClusterConfig(workers=WorkerResources(num_cpus=9)))
