"""Runs on a cluster that starts its nodes when they are asked for: from none to some and back, or refused at once."""

import json
import re
import shutil
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from autoscaling import growing
from commandline import COMMAND, ROOT
from head import Head

from unlearn_ray.artifacts import Folder
from unlearn_ray.stages.stage import finished_manifest

pytestmark = [pytest.mark.real, pytest.mark.long(waits=True), pytest.mark.xdist_group("growing")]
CONFIG = """
name: scaled
model: pocket
topics: [{name: Harry Potter, kind: fiction}]
questions: {num_questions: 6, num_entities: 2, max_rounds: 1, max_tokens: 120}
answers: {guardrail: refusal, num_samples: 1, max_tokens: 32}
dataset:
  retain: {num_neighbours: 1, questions_per_neighbour: 4, num_general: 1, questions_per_general: 4, max_tokens: 32}
  holdout_fraction: 0.4
finetune:
  weights: {kind: lora, rank: 8, target_modules: [q_proj]}
  num_steps: 2
  forget_batch: 4
  retain_batch: 2
evaluate: {num_samples: 1, num_bootstrap: 10}
cluster:
  engines: {num_engines: 2, num_cpus: 2, max_model_len: 1024}
  workers: {num_workers: 1, micro_batch: 4}
"""
# Holds CPUs of the cluster until it is ended.
HOLDER = """
    import sys, time, ray
    ray.init(address=sys.argv[1], log_to_driver=False)
    hold = ray.remote(num_cpus=int(sys.argv[3]), scheduling_strategy="SPREAD")(lambda: time.sleep(600))
    held = [hold.remote() for _ in range(int(sys.argv[2]))]
    left = (4 - int(sys.argv[3])) * len(held)
    while ray.available_resources().get("CPU", 0) != left or ray.cluster_resources().get("CPU", 0) < 4 * len(held):
        time.sleep(0.5)
    print("held", flush=True)
    time.sleep(600)
"""
ASKING = """
    import logging, sys, time
    import ray
    from unlearn_ray.config import ClusterConfig, EngineResources
    from unlearn_ray.engines import capacity, session
    from unlearn_ray.errors import UnlearnError

    class Huge:
        pass

    logging.basicConfig(filename=sys.argv[2])
    with session.connect(ClusterConfig(address=sys.argv[1])):
        print(session.device_of(ClusterConfig()))
        print(session.num_engines(ClusterConfig(engines=EngineResources(tensor_parallel_size=4))))
        try:
            session.require(ClusterConfig(engines=EngineResources(tensor_parallel_size=4, num_engines=3)))
        except UnlearnError as error:
            print(error)
        shape = {"CPU": 1.0, "GPU": 64.0}
        print(capacity.is_refused(shape))
        huge = ray.remote(Huge).options(num_cpus=1, num_gpus=64).remote()
        began = time.monotonic()
        while not capacity.is_refused(shape) and time.monotonic() < began + 60:
            time.sleep(0.5)
        print(capacity.is_refused(shape), capacity.is_refused({"CPU": 1.0, "GPU": 8.0}))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Head]:
    """Three nodes of four CPUs at most; none to begin with."""
    with growing({"small": {"resources": {"CPU": 4}, "max_workers": 3}}, max_workers=3, idle_seconds=12) as head:
        yield head


def unlearn(
    head: Head, cwd: Path, *overrides: str, command: str = "run", timeout: float = 900
) -> "subprocess.CompletedProcess[str]":
    config = cwd / "run.yaml"
    config.write_text(CONFIG)
    return subprocess.run(
        [*COMMAND, command, str(config), f"cluster.address={head.address}", *overrides, "--accept-thin-data"],
        cwd=cwd,
        env=head.environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@contextmanager
def full(head: Head, num_cpus: int = 4) -> Iterator[None]:
    """Somebody else has all nodes that there can be, and so many of each one's four CPUs."""
    holder = python(head, HOLDER, head.address, "3", str(num_cpus))
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        yield
    finally:
        holder.kill()
        holder.wait()


def python(head: Head, script: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        env=head.environment | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def nodes_up(head: Head) -> int:
    """Beside the head."""
    with urllib.request.urlopen(f"{head.dashboard}/api/v0/nodes", timeout=30) as answer:
        nodes = json.load(answer)["data"]["result"]["result"]
    return sum(node["state"] == "ALIVE" and not node["is_head_node"] for node in nodes)


def wait_for_no_nodes(head: Head, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while nodes_up(head):
        assert time.monotonic() < end, "nodes stayed up"
        time.sleep(1)


def log_of(run: Path) -> str:
    return "".join(file.read_text() for file in sorted((run / "logs").glob("*.log")))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("cluster.workers.num_cpus=1000", "cluster.workers.num_cpus"),
        ("cluster.engines.num_engines=64", "cluster.engines.num_engines"),
        ("cluster.engines.num_cpus=5", "cluster.engines.num_cpus"),
        ("cluster.accelerator=cuda", "cluster.accelerator: cpu"),
    ],
)
def test_what_the_cluster_can_never_hold_ends_at_once(cluster: Head, tmp_path: Path, override: str, key: str) -> None:
    done = unlearn(cluster, tmp_path, override)
    assert done.returncode == 2 and key in done.stderr and done.stderr.count("\n") == 1, done.stdout + done.stderr
    assert "can grow to" in done.stderr or "room for" in done.stderr
    assert "waiting" not in done.stdout
    assert nodes_up(cluster) == 0
    assert not (tmp_path / "runs").exists()


@dataclass(frozen=True)
class Scaled:
    cwd: Path
    done: "subprocess.CompletedProcess[str]"

    @property
    def folder(self) -> Path:
        return self.cwd / "runs" / "scaled"


@pytest.fixture(scope="module")
def scaled(cluster: Head, tmp_path_factory: pytest.TempPathFactory) -> Scaled:
    """A run that found no node up."""
    cwd = tmp_path_factory.mktemp("scaled")
    wait_for_no_nodes(cluster)
    return Scaled(cwd, unlearn(cluster, cwd))


def test_a_run_starts_the_nodes_that_it_needs_and_they_go_again(cluster: Head, scaled: Scaled) -> None:
    assert scaled.done.returncode == 0, scaled.done.stdout[-3000:] + scaled.done.stderr[-3000:]
    assert finished_manifest(Folder(scaled.folder / "models/joint/evaluate")) is not None
    text = log_of(scaled.folder)
    assert re.search(r"node \S+ at \S+ \(4 CPUs\) joined", text)
    assert "engine 0 is ready on node" in text
    assert scaled.done.stderr == ""
    wait_for_no_nodes(cluster)


def test_a_lost_node_is_in_the_runs_log_and_the_run_goes_on(cluster: Head, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "scaled"
    (tmp_path / "run.yaml").write_text(CONFIG)
    arguments = [f"cluster.address={cluster.address}", "cluster.engines.num_engines=1", "--until", "answers"]
    process = subprocess.Popen(
        [*COMMAND, "run", str(tmp_path / "run.yaml"), *arguments],
        env=cluster.environment | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (found := re.search(r"engine 0 is ready on node \S+, process (\d+)", log_of(folder))):
        assert process.poll() is None
        time.sleep(0.2)
    raylet = psutil.Process(int(found[1])).parent()
    assert raylet is not None and "raylet" in raylet.name()
    raylet.kill()
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    text = log_of(folder)
    assert re.search(r"WARNING .*node \S+ at \S+ \(4 CPUs\) was lost: \S+", text)
    assert re.search(r"WARNING .*engine 0 on node \S+, process \d+ was lost: .*; it is restarted", text)
    assert text.count("engine 0 is ready on node") == 2
    assert "raylet" not in out and "Traceback" not in out


def test_a_full_cluster_is_waited_for_aloud_and_not_for_ever(cluster: Head, tmp_path: Path) -> None:
    with full(cluster):
        done = unlearn(cluster, tmp_path, "cluster.start_timeout_seconds=15", "cluster.engines.num_engines=1")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(
        "unlearn-ray: cluster.start_timeout_seconds: no node had room for an engine of 2 CPUs"
    )
    assert done.stderr.count("\n") == 1 and "0 of 12 CPUs are free" in done.stderr
    assert_aloud(done, tmp_path / "runs" / "scaled")


def test_tasks_without_a_cpu_are_waited_for_aloud_and_not_for_ever(cluster: Head, tmp_path: Path) -> None:
    """The engine has room, and those that ask it have none."""
    with full(cluster, num_cpus=3):
        done = unlearn(
            cluster,
            tmp_path,
            "cluster.start_timeout_seconds=15",
            "cluster.engines.num_engines=3",
            "cluster.engines.num_cpus=1",
        )
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("unlearn-ray: cluster.start_timeout_seconds: no node had a CPU for the tasks")
    assert_aloud(done, tmp_path / "runs" / "scaled")


def test_trainings_wait_for_room_aloud_and_not_for_ever(cluster: Head, scaled: Scaled, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "scaled"
    shutil.copytree(scaled.folder, run, ignore=shutil.ignore_patterns("finetune", "evaluate", "logs"))
    with full(cluster):
        done = unlearn(cluster, tmp_path, "cluster.start_timeout_seconds=15", command="finetune")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(
        "unlearn-ray: cluster.start_timeout_seconds: the cluster had no room of 1 CPU for each"
    )
    assert done.stderr.count("\n") == 1
    assert_aloud(done, run)


def assert_aloud(done: "subprocess.CompletedProcess[str]", run: Path) -> None:
    waiting = [line for line in done.stdout.splitlines() if "waiting since" in line]
    assert waiting and all("0 of 12 CPUs are free" in line for line in waiting)
    assert "waiting since" in log_of(run)
    assert len(done.stdout.splitlines()) < 10, done.stdout  # what Ray says of it is in its logs


def test_gpu_nodes_that_are_still_down_count(tmp_path: Path) -> None:
    kinds = {
        "gpus": {"resources": {"CPU": 8, "GPU": 8}, "max_workers": 1},
        "small": {"resources": {"CPU": 4}, "max_workers": 5},
    }
    with growing(kinds, max_workers=5) as head:
        process = python(head, ASKING, head.address, str(tmp_path / "log"))
        out, err = process.communicate(timeout=300)
    device, count, refused, *verdicts = out.splitlines()
    assert (device, count, err) == ("cuda", "2", "")
    assert verdicts == ["False", "True False"]  # the autoscaler's own, of an actor that waits
    assert refused.startswith(
        "cluster.engines.num_engines: 3 engines of 4 GPUs ask for 12, the cluster has, or can grow to, 8"
    )
