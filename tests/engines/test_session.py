"""Ray for one run: joined or started, sized, refused in one line, and gone at the end."""

import os
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
import yaml

from unlearn_ray.config import ClusterConfig, EngineResources, WorkerResources
from unlearn_ray.engines import capacity, session
from unlearn_ray.engines.capacity import Growth, NodeKind
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


@pytest.mark.real
def test_what_ray_says_of_a_lost_worker_is_in_the_log_and_not_on_the_console(tmp_path: Path) -> None:
    script = """
        import logging, os, sys, time
        import ray
        from unlearn_ray.config import ClusterConfig
        from unlearn_ray.engines.session import connect

        logging.basicConfig(filename=sys.argv[1], level=logging.INFO)
        with connect(ClusterConfig()):
            ray.wait([ray.remote(lambda: os._exit(1)).options(max_retries=0).remote()])
            time.sleep(3)
    """
    out, err = driver(script, str(tmp_path / "log")).communicate(timeout=300)
    assert out == err == ""
    assert "A worker died or was killed" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("cluster", "key"),
    [
        (ClusterConfig(engines=EngineResources(num_engines=1000)), "cluster.engines.num_engines: 1000 engines"),
        (ClusterConfig(accelerator="cuda"), "tensor_parallel_size: .* the cluster has 0: set cluster.accelerator: cpu"),
        (ClusterConfig(workers=WorkerResources(num_workers=1000)), "cluster.workers.num_workers: 1000 workers"),
        (ClusterConfig(workers=WorkerResources(num_cpus=1000)), "cluster.workers.num_cpus: 1 worker of 1000 CPUs"),
        (ClusterConfig(engines=EngineResources(num_cpus=9)), "cluster.engines.num_cpus: 1 engine of 9 CPUs"),
        (
            ClusterConfig(engines=EngineResources(num_engines=8)),
            "num_engines: 8 engines of 1 CPUs and 1 beside ask for 9, the cluster has 8: lower it, or add nodes",
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


def test_no_autoscaler_runs_on_a_machine_of_our_own(ray_session: None) -> None:
    assert capacity.growth() is None
    assert capacity.capacity("CPU") == 8 and capacity.places({"CPU": 3}) == 2


@pytest.mark.long
@pytest.mark.real
def test_nodes_are_counted_one_by_one_and_told_in_the_log(tmp_path: Path) -> None:
    """Four nodes with a GPU each, as `ray start` makes them: no engine spans two. One is lost meanwhile."""
    script = """
        import logging, sys, threading, time
        import ray
        from ray.cluster_utils import Cluster
        from unlearn_ray.config import ClusterConfig, EngineResources, WorkerResources
        from unlearn_ray.engines import session
        from unlearn_ray.errors import ClusterError

        logging.basicConfig(filename=sys.argv[1], level=logging.INFO)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "temp_dir": sys.argv[2]})
        nodes = [cluster.add_node(num_cpus=8, num_gpus=1) for _ in range(4)]

        def told(text):  # a loaded machine takes its time, to look at the nodes as to miss one
            for _ in range(240):
                if text in open(sys.argv[1]).read():
                    return
                time.sleep(0.5)

        def tried(config):
            try:
                session.require(config)
            except ClusterError as error:
                print(error)

        with session.connect(ClusterConfig(address=cluster.address)):
            print(session.device_of(ClusterConfig()), session.num_engines(ClusterConfig()))
            tried(ClusterConfig(engines=EngineResources(tensor_parallel_size=2)))
            tried(ClusterConfig(workers=WorkerResources(num_cpus=9)))
            told("nodes: ")
            cluster.remove_node(nodes[0], allow_graceful=False)
            told("was lost")
            cluster.add_node(num_cpus=3)
            told("joined")
            ray.data.range(2).take_all()
            print([each.name for each in threading.enumerate() if "usage" in each.name])
        cluster.shutdown()
    """
    home = tempfile.mkdtemp(prefix="ur-", dir="/tmp")
    process = driver(script, str(tmp_path / "log"), home, RAY_AUTH_MODE="disabled")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    first, gpus, cpus, threads = out.splitlines()
    assert first == "cuda 4"
    assert threads == "[]"  # Ray Data's own would go on logging after Ray has closed its log files
    beginning = (
        "cluster.engines.tensor_parallel_size: 1 engine of 2 GPUs ask for 2, the cluster has 4 in nodes with room for 0"
    )
    assert gpus.startswith(beginning)
    assert cpus.startswith(
        "cluster.workers.num_cpus: 1 worker of 9 CPUs ask for 9, the cluster has 34 in nodes with room"
    )
    text = (tmp_path / "log").read_text()
    assert re.search(r"node \S+ at \S+ \(8 CPUs, 1 GPUs\) was lost: \S+", text)
    assert re.search(r"node \S+ at \S+ \(3 CPUs\) joined", text)


@pytest.mark.long
@pytest.mark.real
def test_what_an_autoscaler_reports_itself_is_believed(tmp_path: Path) -> None:
    """As hosted ones do: Ray's own does not."""
    script = """
        import ray
        from ray._raylet import GcsClient
        from ray.core.generated.autoscaler_pb2 import ClusterConfig as Reported
        from unlearn_ray.config import ClusterConfig, EngineResources
        from unlearn_ray.engines import session

        with session.connect(ClusterConfig()):
            reported = Reported()
            reported.node_group_configs.add(max_count=4, resources={"CPU": 16, "GPU": 4})
            client = GcsClient(ray.get_runtime_context().gcs_address)
            client.report_cluster_config(reported.SerializeToString())
            cluster = ClusterConfig(engines=EngineResources(tensor_parallel_size=2, num_cpus=4))
            print(session.device_of(cluster), session.num_engines(cluster))
            session.require(cluster)
    """
    out, err = driver(script).communicate(timeout=300)
    assert (out, err) == ("cuda 8\n", "")


def test_the_shipped_clusters_tell_what_they_may_grow_to() -> None:
    grown = capacity.growth_from(yaml.safe_load((ROOT / "cluster" / "aws.yaml").read_text()))
    assert grown.most(lambda resources: capacity.holds(resources, {"GPU": 4, "CPU": 8})) == 4
    for name in ("raycluster", "rayjob"):
        found = yaml.safe_load((ROOT / "cluster" / "kuberay" / f"{name}.yaml").read_text())
        found = {
            "metadata": {"name": name, "namespace": "default"},
            "spec": found["spec"].get("rayClusterSpec", found["spec"]),
        }
        of_pods = capacity.of_ray_cluster(found)
        assert of_pods is not None and not of_pods.unknown
        assert of_pods.most(lambda resources: resources.get("GPU", 0)) == 16
        found["spec"]["enableInTreeAutoscaling"] = False
        assert capacity.of_ray_cluster(found) is None


def test_kinds_of_nodes_share_the_limit_of_all_workers() -> None:
    kinds = NodeKind({"CPU": 4.0}, 5), NodeKind({"CPU": 8.0, "GPU": 8.0}, 2)
    grown = Growth(kinds, max_workers=4)
    assert grown.most(lambda resources: resources.get("GPU", 0)) == 16
    assert grown.most(lambda resources: resources.get("CPU", 0)) == 2 * 8 + 2 * 4
