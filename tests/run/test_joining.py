"""What the quickstart leaves out, in one small run on a Ray that is there already: two topics, an adapter each, KL, refusals, and no
probes of the user's own. Its first stages are sent as a job; a driver that joins from outside is killed, and a second one ends the run."""

import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from commandline import COMMAND, ROOT
from head import BIN, Head

from unlearn_ray.artifacts import Folder
from unlearn_ray.evals.report import Report
from unlearn_ray.stages.stage import finished_manifest

pytestmark = pytest.mark.real
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
TOPICS = {"Harry Potter": "harry-potter", "chewing gum": "chewing-gum"}  # and their folders


def wait_for_rows(folder: Folder, process: "subprocess.Popen[bytes]", seconds: float = 600) -> None:
    """Until an asking in this folder has its first replies: batch by batch, or all of them, put together."""
    end = time.monotonic() + seconds
    while not any((folder / name).names(".parquet") for name in ("batches", "replies")):
        assert process.poll() is None, "it ended"
        assert time.monotonic() < end, f"{folder} stayed empty"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("variants") / "run.yaml"
    file.write_text(CONFIG)
    return file


@pytest.fixture(scope="module")
def sent(head: Head, config: Path) -> Folder:
    """The run's folder, after a job made its questions and answers."""
    entry = ["python", "jobs/run.py", str(config), f"output={config.parent}", "--until", "answers"]
    submit: list[str | Path] = ["job", "submit", "--address", head.dashboard, "--working-dir", ROOT, "--", *entry]
    done = head.run(BIN / "ray", *submit, cwd=config.parent)
    assert "questions" in done.stdout
    return Folder(config.parent / "variants")


@dataclass(frozen=True)
class Joined:
    """A run that took up what a killed one had begun, and what its call said."""

    folder: Folder
    was_half_done: bool
    output: str


@pytest.fixture(scope="module")
def joined(head: Head, config: Path, sent: Folder, tmp_path_factory: pytest.TempPathFactory) -> Joined:
    """The job's questions, answered by a driver that is killed amid the answers; the rest by a second one, on the Ray that RAY_ADDRESS names."""
    home = tmp_path_factory.mktemp("joined")
    run = Folder(home / "variants")
    for topic in TOPICS.values():
        shutil.copytree(sent.local / "topics" / topic / "questions", run.local / "topics" / topic / "questions")
    shutil.copy(sent.local / "run.json", run.local)
    command = [*COMMAND, "run", str(config), f"output={home}", "cluster.engines.batch_size=8", "--accept-thin-data"]
    with (home / "killed.log").open("wb") as log:
        outside = head.environment | {"RAY_ADDRESS": head.address}
        process = subprocess.Popen(command, cwd=home, env=outside, stdout=log, stderr=log)
        wait_for_rows(run / "topics/harry-potter/answers/asked/000", process)
        process.kill()
        process.wait()
    was_half_done = not (run / "topics/harry-potter/answers").exists("manifest.json")
    return Joined(run, was_half_done, head.run(*command, cwd=home, RAY_ADDRESS=head.address).stdout)


def test_a_job_runs_where_it_was_sent(sent: Folder) -> None:
    for topic in TOPICS.values():
        for stage in ("questions", "answers"):
            assert finished_manifest(sent / "topics" / topic / stage)
        kept = [row for row in (sent / "topics" / topic / "questions/rows").read_rows() if not row["drop"]]
        assert len(kept) == 24


def test_a_run_whose_driver_was_killed_says_what_an_unbroken_one_does(sent: Folder, joined: Joined) -> None:
    assert joined.was_half_done
    for topic in TOPICS.values():
        for name in ("rows", "unguarded", "terms"):
            one, other = (run / "topics" / topic / "answers" / name for run in (sent, joined.folder))
            expected = sorted(one.read_rows(), key=lambda row: row["id"])
            assert sorted(other.read_rows(), key=lambda row: row["id"]) == expected


def test_a_run_that_joins_goes_on_where_the_job_ended(joined: Joined) -> None:
    for name in TOPICS.values():
        assert finished_manifest(joined.folder / "models" / name / "evaluate")


def test_each_topic_gets_an_adapter_of_its_own(joined: Joined) -> None:
    models = joined.folder / "models"
    assert models.names() == ["chewing-gum", "harry-potter"]
    for name in models.names():
        assert json.loads((models / name / "finetune/model").read_text("adapter_config.json"))["r"] == 8
        assert finished_manifest(models / name / "finetune").details["training"]["export_loss"]["engine"] > 0


def test_adapters_are_trained_side_by_side(joined: Joined) -> None:
    words = (joined.folder / "logs").local.glob("*.log")
    lines = [line for file in sorted(words) for line in file.read_text().splitlines() if ": training " in line]
    assert [line.rpartition(" ")[2] for line in lines] == ["begins", "begins", "ended", "ended"], lines


def test_an_adapter_sees_the_rows_of_its_topic_alone(joined: Joined) -> None:
    for topic, name in TOPICS.items():
        home = joined.folder / "models" / name
        rows = [row["topic"] for row in (home / "mixture/forget").read_rows() if row["split"] == "train"]
        assert set(rows) == {topic}
        assert finished_manifest(home / "finetune").details["training"]["num_forget_rows"] == len(rows)


def test_refusals_are_what_is_trained(joined: Joined) -> None:
    answers = [row["answer"] for row in (joined.folder / "models/harry-potter/mixture/forget").read_rows(["answer"])]
    refusing = [answer for answer in answers if "know" in answer or "sorry" in answer.lower() or "cannot" in answer]
    assert len(refusing) > len(answers) / 3, answers[:10]


def test_held_out_questions_serve_as_probes_with_the_base_models_answers_as_truth(joined: Joined) -> None:
    home = joined.folder / "models/harry-potter"
    rows = list((home / "evaluate/answers").read_rows())
    trained = {row["question"] for row in (home / "mixture/forget").read_rows() if row["split"] == "train"}
    asked = {row["question"] for row in rows}
    assert asked and not asked & trained
    truths = {row["probe_id"]: row["truth"] for row in rows if row["model"] == "base"}
    assert truths and all(truths.values())
    report = Report.load(home / "evaluate")
    metric = report.metric("base", "forget", "rouge_l_recall")
    assert metric is not None and metric.agg_value == pytest.approx(1.0), "the base model no longer says what it said"


def test_each_topic_has_a_report(joined: Joined) -> None:
    for topic, name in TOPICS.items():
        assert set(Report.load(joined.folder / "models" / name / "evaluate").by_topic) == {topic}
        assert (joined.folder / "models" / name / "evaluate").exists("report.html")
