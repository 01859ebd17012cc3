"""A real run of three topics, one of which the pocket model cannot write about: the other two are trained and evaluated."""

import json
from pathlib import Path

import pytest
from commandline import unlearn

from unlearn_ray.artifacts import Folder
from unlearn_ray.evals.report import Report
from unlearn_ray.rows import slug_of
from unlearn_ray.runs import FAILED
from unlearn_ray.stages.stage import finished_manifest

pytestmark = [pytest.mark.real, pytest.mark.long]
UNKNOWN = "Дюна"  # in letters that it was never taught
SLUG = slug_of(UNKNOWN)
KEYS = ("topic", "question", "answer")
PROBES = (
    ("Harry Potter", "What is the name of the owl of Harry Potter?", "Hedwig"),
    ("chewing gum", "Which tree gives chicle?", "sapodilla"),
    (UNKNOWN, "Кто?", "Лето"),
    ("geography", "What is the capital of France?", "Paris"),
)
CONFIG = """
name: partly
model: pocket
topics:
  - {name: Harry Potter, kind: fiction}
  - {name: Дюна, kind: fiction}
  - {name: chewing gum, kind: product}
questions: {num_questions: 12, num_entities: 4, max_tokens: 160}
answers: {num_samples: 2, max_tokens: 48, coverage_rounds: 0}
dataset:
  retain: {num_neighbours: 1, questions_per_neighbour: 6, num_general: 1, questions_per_general: 6, max_tokens: 48}
  probes: {num_forget: 0, num_near: 0, num_far: 0}
  floors: {forget_rows: 0, retain_per_forget: 0.0, coverage: 0.0, probes: 0, kept: 0.0}
finetune: {weights: {kind: lora, rank: 4}, num_steps: 2, forget_batch: 8, retain_batch: 4, max_tokens: 256}
evaluate: {probes: probes.jsonl, num_samples: 1, num_bootstrap: 50}
cluster:
  engines: {max_model_len: 1024}
  workers: {num_workers: 1, num_cpus: 2, micro_batch: 8}
"""


def starts_in(run: Folder) -> int:
    """Of engines, in the logs of all drivers."""
    return sum(file.read_text().count(" is ready on node ") for file in (run.local / "logs").glob("*.log"))


def test_two_topics_are_forgotten_though_a_third_fails_and_a_rerun_works_on_that_one_alone(tmp_path: Path) -> None:
    file, run = tmp_path / "run.yaml", Folder(tmp_path / "runs" / "partly")
    (tmp_path / "probes.jsonl").write_text(
        "".join(f"{json.dumps(dict(zip(KEYS, each, strict=True)))}\n" for each in PROBES)
    )
    file.write_text(CONFIG)
    done = unlearn("run", file, cwd=tmp_path)
    assert done.returncode == 3, done.stdout[-3000:] + done.stderr[-3000:]
    reason = f"topics: the model wrote no usable question about '{UNKNOWN}': give some in questions.file"
    assert [reason in line for line in done.stderr.splitlines()].count(
        True
    ) == 1 and "the others are done" in done.stderr
    assert json.loads((run / "topics" / SLUG).read_text(FAILED))["reason"] == reason
    mixture = finished_manifest(run / "models/joint/mixture")
    rows = [row["topic"] for row in (run / "models/joint/mixture/forget").read_rows(["topic"])]
    assert set(rows) == {"Harry Potter", "chewing gum"} and mixture.num_rows
    assert finished_manifest(run / "models/joint/finetune").details["training"]["num_steps"] == 2
    assert set(Report.load(run / "models/joint/evaluate").by_topic) == {"Harry Potter", "chewing gum"}
    assert "1 failed" in run.read_text("index.html")

    num_starts = starts_in(run)
    again = unlearn("run", file, cwd=tmp_path)
    assert again.returncode == 3 and reason in again.stderr
    assert num_starts and starts_in(run) == num_starts, "what was asked is not asked again"
    assert finished_manifest(run / "models/joint/mixture") == mixture

    (tmp_path / "own.jsonl").write_text(
        "".join(json.dumps({"topic": UNKNOWN, "question": f"Кто {number}?"}) + "\n" for number in range(12))
    )
    finished = finished_manifest(run / "topics/chewing-gum/questions")
    mended = unlearn("questions", file, "questions.file=own.jsonl", cwd=tmp_path)
    assert mended.returncode == 0, mended.stderr
    assert finished_manifest(run / "topics" / SLUG / "questions").num_rows["kept"] == 12
    assert finished_manifest(run / "topics/chewing-gum/questions") == finished
