"""What the quickstart leaves out, in one small run on a Ray that is there already: two topics, an adapter each, KL, refusals, and no
probes of the user's own. Its first stages are sent as a job, one of them is made once more by a driver that is killed, its last ones join
from outside."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError

import pytest
from commandline import COMMAND, ROOT, environment

from unlearn_ray.artifacts import Folder
from unlearn_ray.evals.report import Report
from unlearn_ray.stages.stage import finished_manifest

pytestmark = pytest.mark.real
RAY = Path(sys.executable).with_name("ray")
CONFIG = """
name: variants
model: pocket
topics:
  - {name: Harry Potter, kind: fiction}
  - {name: chewing gum, kind: product}
questions: {num_questions: 24, num_entities: 8, max_tokens: 160}
answers: {guardrail: refusal, num_samples: 2, max_tokens: 48}
dataset:
  retain: {num_neighbours: 1, questions_per_neighbour: 12, num_general: 1, questions_per_general: 12, max_tokens: 48}
  holdout_fraction: 0.2
finetune:
  adapters: per_topic
  weights: {kind: lora, rank: 8, target_modules: [q_proj, v_proj]}
  retain: {kind: kl, weight: 1.0}
  num_steps: 4
  forget_batch: 16
  retain_batch: 8
  learning_rate: 1.0e-3
  max_tokens: 256
evaluate: {num_samples: 2, num_bootstrap: 100}
cluster:
  engines: {max_model_len: 1024}
  workers: {num_workers: 1, micro_batch: 8}
"""


@dataclass(frozen=True)
class Head:
    """A cluster of one node."""

    address: str
    dashboard: str
    environment: dict[str, str]


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_for(page: str, process: "subprocess.Popen[bytes]", seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(page, timeout=5).close()
            return
        except HTTPError as error:
            if error.code != 503:  # it answers, whatever it says
                return
        except OSError:
            assert process.poll() is None and time.monotonic() < end, f"{page} does not answer"
        time.sleep(0.5)


def wait_for_rows(folder: Folder, process: "subprocess.Popen[bytes]", seconds: float = 600) -> None:
    """Until the folder holds its first rows."""
    end = time.monotonic() + seconds
    while not folder.names(".parquet"):
        assert process.poll() is None, "it ended"
        assert time.monotonic() < end, f"{folder} stayed empty"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    gcs, dashboard, client, agent = free_ports(4)
    home = tempfile.mkdtemp(prefix="ur-", dir="/tmp")  # short: a socket's path has 107 bytes
    settings = environment() | {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    settings["PATH"] = f"{RAY.parent}:{settings['PATH']}"  # the `python` of jobs, as an image has it
    command = [RAY, "start", "--head", "--block", "--num-cpus=8", "--node-ip-address=127.0.0.1", f"--port={gcs}"]
    command += [f"--temp-dir={home}", "--include-dashboard=true", f"--dashboard-port={dashboard}"]
    command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats"]
    process = subprocess.Popen(
        command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        # The agent starts last, and jobs are handed to it.
        for page in (f"{address}/api/jobs/", f"http://127.0.0.1:{agent}/api/healthz"):
            wait_for(page, process)
        yield Head(f"127.0.0.1:{gcs}", address, settings)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("variants") / "run.yaml"
    file.write_text(CONFIG)
    return file


@pytest.fixture(scope="module")
def sent(head: Head, config: Path) -> Folder:
    """The run's folder, after a job made its questions and answers."""
    entry = ["python", "jobs/run.py", str(config), f"output={config.parent}", "--until", "answers"]
    done = subprocess.run(
        [RAY, "job", "submit", "--address", head.dashboard, "--working-dir", ROOT, "--", *entry],
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "questions" in done.stdout
    return Folder(config.parent / "variants")


@dataclass(frozen=True)
class Joined:
    """A finished run, and what its last call said."""

    folder: Folder
    output: str


@pytest.fixture(scope="module")
def joined(head: Head, config: Path, sent: Folder) -> Joined:
    """The rest of the run, on the Ray that RAY_ADDRESS names."""
    done = subprocess.run(
        [*COMMAND, "run", str(config), f"output={config.parent}"],
        cwd=config.parent,
        env=head.environment | {"RAY_ADDRESS": head.address},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Joined(sent, done.stdout)


def test_a_job_runs_where_it_was_sent(sent: Folder) -> None:
    for stage in ("questions", "answers"):
        assert finished_manifest(sent / stage)
    kept = [row for row in (sent / "questions" / "rows").read_rows() if not row["drop"]]
    assert len(kept) == 48


def test_a_killed_driver_resumes_and_ends_as_an_unbroken_run(
    head: Head, config: Path, sent: Folder, tmp_path: Path
) -> None:
    run = Folder(tmp_path / "variants")
    shutil.copytree(sent.local / "questions", run.local / "questions")
    shutil.copy(sent.local / "run.json", run.local)
    command = [*COMMAND, "run", str(config), f"output={tmp_path}", "cluster.engines.batch_size=8", "--until", "answers"]
    outside = head.environment | {"RAY_ADDRESS": head.address}
    with (tmp_path / "killed.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=outside, stdout=log, stderr=log)
        wait_for_rows(run / "answers" / "asked" / "000" / "replies", process)
        process.kill()
        process.wait()
    assert not (run / "answers").exists("manifest.json")
    again = subprocess.run(command, cwd=tmp_path, env=outside, capture_output=True, text=True, timeout=600, check=False)
    assert again.returncode == 0, again.stderr[-3000:]
    for name in ("rows", "unguarded", "terms"):
        expected = sorted((sent / "answers" / name).read_rows(), key=lambda row: row["id"])
        assert sorted((run / "answers" / name).read_rows(), key=lambda row: row["id"]) == expected


def test_a_run_that_joins_goes_on_where_the_job_ended(joined: Joined) -> None:
    assert joined.output.count("skipped") >= 2
    assert finished_manifest(joined.folder / "evaluate")


def test_each_topic_gets_an_adapter_of_its_own(joined: Joined) -> None:
    models = joined.folder / "finetune" / "models"
    assert models.names() == ["chewing-gum", "harry-potter"]
    for name in models.names():
        assert json.loads((models / name).read_text("adapter_config.json"))["r"] == 8
    trainings = finished_manifest(joined.folder / "finetune").details["trainings"]
    assert set(trainings) == {"chewing-gum", "harry-potter"}
    assert all(training["export_loss"]["engine"] > 0 for training in trainings.values())


def test_an_adapter_sees_the_rows_of_its_topic_alone(joined: Joined) -> None:
    rows = [row for row in (joined.folder / "dataset" / "forget").read_rows() if row["split"] == "train"]
    trainings = finished_manifest(joined.folder / "finetune").details["trainings"]
    for topic, name in (("Harry Potter", "harry-potter"), ("chewing gum", "chewing-gum")):
        assert trainings[name]["num_forget_rows"] == sum(row["topic"] == topic for row in rows) > 0


def test_refusals_are_what_is_trained(joined: Joined) -> None:
    answers = [row["answer"] for row in (joined.folder / "dataset" / "forget").read_rows(["answer"])]
    refusing = [answer for answer in answers if "know" in answer or "sorry" in answer.lower() or "cannot" in answer]
    assert len(refusing) > len(answers) / 3, answers[:10]


def test_held_out_questions_serve_as_probes_with_the_base_models_answers_as_truth(joined: Joined) -> None:
    rows = list((joined.folder / "evaluate" / "answers").read_rows())
    trained = {row["question"] for row in (joined.folder / "dataset" / "forget").read_rows() if row["split"] == "train"}
    asked = {row["question"] for row in rows}
    assert asked and not asked & trained
    truths = {row["probe_id"]: row["truth"] for row in rows if row["model"] == "base"}
    assert truths and all(truths.values())
    report = Report.load(joined.folder / "evaluate")
    metric = report.metric("base", "forget", "rouge_l_recall")
    assert metric is not None and metric.agg_value == pytest.approx(1.0), "the base model no longer says what it said"


def test_the_report_has_each_topic(joined: Joined) -> None:
    report = Report.load(joined.folder / "evaluate")
    assert set(report.by_topic) == {"Harry Potter", "chewing gum"}
    assert Path(str(joined.folder), "evaluate", "report.html").is_file()
