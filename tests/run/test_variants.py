"""What the quickstart leaves out, in one small run: two topics, an adapter each, KL, refusals, and no probes of the user's own."""

import json
from pathlib import Path

import pytest
from commandline import Run, unlearn

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


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Run:
    cwd = tmp_path_factory.mktemp("variants")
    (cwd / "run.yaml").write_text(CONFIG)
    done = unlearn("run", "run.yaml", cwd=cwd)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Run(cwd, Folder(cwd / "runs" / "variants"), ["run", "run.yaml"], done.stdout)


def test_each_topic_gets_an_adapter_of_its_own(variants: Run) -> None:
    models = variants.folder / "finetune" / "models"
    assert models.names() == ["chewing-gum", "harry-potter"]
    for name in models.names():
        assert json.loads((models / name).read_text("adapter_config.json"))["r"] == 8
    trainings = finished_manifest(variants.folder / "finetune").details["trainings"]
    assert set(trainings) == {"chewing-gum", "harry-potter"}
    assert all(training["export_loss"]["engine"] > 0 for training in trainings.values())


def test_an_adapter_sees_the_rows_of_its_topic_alone(variants: Run) -> None:
    rows = [row for row in (variants.folder / "dataset" / "forget").read_rows() if row["split"] == "train"]
    trainings = finished_manifest(variants.folder / "finetune").details["trainings"]
    for topic, name in (("Harry Potter", "harry-potter"), ("chewing gum", "chewing-gum")):
        assert trainings[name]["num_forget_rows"] == sum(row["topic"] == topic for row in rows) > 0


def test_refusals_are_what_is_trained(variants: Run) -> None:
    answers = [row["answer"] for row in (variants.folder / "dataset" / "forget").read_rows(["answer"])]
    refusing = [answer for answer in answers if "know" in answer or "sorry" in answer.lower() or "cannot" in answer]
    assert len(refusing) > len(answers) / 3, answers[:10]


def test_held_out_questions_serve_as_probes_with_the_base_models_answers_as_truth(variants: Run) -> None:
    rows = list((variants.folder / "evaluate" / "answers").read_rows())
    trained = {
        row["question"] for row in (variants.folder / "dataset" / "forget").read_rows() if row["split"] == "train"
    }
    asked = {row["question"] for row in rows}
    assert asked and not asked & trained
    truths = {row["probe_id"]: row["truth"] for row in rows if row["model"] == "base"}
    assert truths and all(truths.values())
    report = Report.load(variants.folder / "evaluate")
    metric = report.metric("base", "forget", "rouge_l_recall")
    assert metric is not None and metric.agg_value == pytest.approx(1.0), "the base model no longer says what it said"


def test_the_report_has_each_topic(variants: Run) -> None:
    report = Report.load(variants.folder / "evaluate")
    assert set(report.by_topic) == {"Harry Potter", "chewing gum"}
    assert Path(str(variants.folder), "evaluate", "report.html").is_file()
