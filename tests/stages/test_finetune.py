"""The finetune stage over a scripted trainer: which jobs it asks for, and what it leaves."""

import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from unlearn_ray.artifacts import Folder, Manifest, write_manifest
from unlearn_ray.chat import ChatFormat
from unlearn_ray.config import FinetuneConfig, RetainTerm, Topic
from unlearn_ray.engines.protocols import TrainJob, TrainResult, failure_of
from unlearn_ray.engines.scripted_trainer import ScriptedTrainer
from unlearn_ray.errors import ArtifactError, ConfigError, DivergenceError, EngineError, FailedError, PartialError
from unlearn_ray.rows import Example
from unlearn_ray.stages.finetune import finetune, finetune_identity

CHAT = ChatFormat(prefix_role="user", end_of_turn="<end>", stop_token_ids=(7,))
POTTER, GUM = Topic(name="Harry Potter"), Topic(name="chewing gum")


def example(topic: str, number: int, split: str = "train") -> Example:
    return Example(topic, "forget", topic, f"Question {number}?", "An answer.", split=split)  # type: ignore[arg-type]


def dataset_of(home: Path, forget: Sequence[Example], retain: Sequence[Example] = ()) -> Folder:
    folder = Folder(home / "dataset")
    (folder / "forget").write_rows(forget, Example.schema())
    (folder / "retain").write_rows(retain, Example.schema())
    manifest = Manifest(stage="dataset", fingerprint="f1", version=1, config={}, inputs={}, num_rows={}, drops={})
    write_manifest(folder, manifest)
    return folder


def run(
    home: Path,
    dataset: Folder,
    trainer: ScriptedTrainer,
    config: FinetuneConfig,
    topics: Sequence[Topic] = (POTTER, GUM),
) -> Manifest:
    return finetune(
        config, topics, dataset, Folder(home / "finetune"), trainer, model="m:1", model_path="/m", chat=CHAT, seed=7
    )


@pytest.fixture
def both(tmp_path: Path) -> Folder:
    rows = [example(POTTER.name, 1), example(POTTER.name, 2, "holdout"), example(GUM.name, 1), example(GUM.name, 2)]
    return dataset_of(tmp_path, rows, [Example("", "far", "general", "A?", "B.")])


def test_each_topic_gets_its_own_adapter(tmp_path: Path, both: Folder) -> None:
    trainer = ScriptedTrainer()
    manifest = run(tmp_path, both, trainer, FinetuneConfig(adapters="per_topic", num_steps=3))
    assert [(job.name, job.topics) for job in trainer.jobs] == [
        ("harry-potter", ("Harry Potter",)),
        ("chewing-gum", ("chewing gum",)),
    ]
    assert len({job.seed for job in trainer.jobs}) == 2
    assert Folder(tmp_path / "finetune" / "models").names() == ["chewing-gum", "harry-potter"]
    assert manifest.num_rows == {"models": 2, "steps": 6, "forget": 3, "retain": 2}
    assert set(manifest.details["trainings"]) == {"harry-potter", "chewing-gum"}


def test_one_adapter_forgets_all_topics(tmp_path: Path, both: Folder) -> None:
    trainer = ScriptedTrainer()
    run(tmp_path, both, trainer, FinetuneConfig(adapters="joint", num_steps=3))
    assert [(job.name, job.topics) for job in trainer.jobs] == [("joint", ("Harry Potter", "chewing gum"))]
    lines = Folder(tmp_path / "finetune" / "losses").read_text("joint.jsonl").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]


def test_checkpoints_are_removed_once_all_is_trained(tmp_path: Path, both: Folder) -> None:
    run(tmp_path, both, ScriptedTrainer(), FinetuneConfig(num_steps=3))
    assert not Folder(tmp_path / "finetune" / "checkpoints").exists()


def test_a_finished_stage_trains_nothing(tmp_path: Path, both: Folder) -> None:
    first = run(tmp_path, both, ScriptedTrainer(), FinetuneConfig(num_steps=3))
    again = ScriptedTrainer()
    assert run(tmp_path, both, again, FinetuneConfig(num_steps=3, checkpoint_every=2)) == first
    assert not again.jobs


def test_a_failed_training_leaves_its_checkpoints_to_the_next_run(tmp_path: Path, both: Folder) -> None:
    config = FinetuneConfig(adapters="per_topic", num_steps=3)
    with pytest.raises(PartialError) as failure:
        run(tmp_path, both, ScriptedTrainer(fail_at=["harry-potter"]), config)
    failed, rest = failure.value.lines
    assert failed == "the training of harry-potter failed: the script ends here"
    assert rest.startswith("1 of 2 trainings are done") and "chewing-gum;" in rest
    out = Folder(tmp_path / "finetune")
    assert (out / "checkpoints" / "harry-potter").exists() and (out / "models").names() == ["chewing-gum"]
    assert not out.exists("manifest.json")
    again = ScriptedTrainer()
    assert run(tmp_path, both, again, config).num_rows == {"models": 2, "steps": 6, "forget": 3, "retain": 2}
    assert [job.name for job in again.jobs] == ["harry-potter"]


def test_a_training_that_fails_alone_fails_with_its_own_error(tmp_path: Path, both: Folder) -> None:
    with pytest.raises(EngineError, match="the script ends here"):
        run(tmp_path, both, ScriptedTrainer(fail_at=["joint"]), FinetuneConfig(num_steps=3))


def test_trainings_that_all_fail_are_a_line_each(both: Folder) -> None:
    jobs = [Mock(name=name) for name in ("a", "b")]
    for job, name in zip(jobs, ("a", "b"), strict=True):
        job.name = name
    mended = failure_of(
        jobs, {"a": ConfigError("finetune.max_tokens:\n raise it"), "b": DivergenceError("the training of b diverged")}
    )
    assert isinstance(mended, FailedError) and mended.exit_code == 2
    assert mended.lines == ["the training of a failed: finetune.max_tokens: raise it", "the training of b diverged"]
    assert isinstance(failure_of(jobs, {"a": ConfigError("x"), "b": EngineError("y")}), EngineError)
    assert pickle.loads(pickle.dumps(mended)).lines == mended.lines


def test_skipped_steps_are_warned_of(tmp_path: Path, both: Folder) -> None:
    class Skipping(ScriptedTrainer):
        def train(self, jobs: Sequence[TrainJob]) -> list[TrainResult]:
            return [replace(result, num_skipped_steps=2) for result in super().train(jobs)]

    warnings = run(tmp_path, both, Skipping(), FinetuneConfig(num_steps=3)).details["warnings"]
    assert warnings == ["joint: 2 of 3 steps were skipped, their gradient was not finite"]


def test_a_topic_without_training_rows_is_refused_by_name(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, [example(POTTER.name, 1), example(GUM.name, 1, "holdout")])
    trainer = ScriptedTrainer()
    with pytest.raises(ArtifactError, match="no training rows about chewing gum"):
        run(tmp_path, dataset, trainer, FinetuneConfig(num_steps=3))
    assert not trainer.jobs


def test_training_without_a_retain_term_is_warned_of(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, [example(POTTER.name, 1)])
    without_rows = run(tmp_path, dataset, ScriptedTrainer(), FinetuneConfig(num_steps=3), [POTTER])
    assert "no retain rows" in without_rows.details["warnings"][0]
    config = FinetuneConfig(num_steps=3, retain=RetainTerm(kind="none"))
    assert "is none" in run(tmp_path, dataset, ScriptedTrainer(), config, [POTTER]).details["warnings"][0]


def test_how_often_it_is_saved_is_no_part_of_its_identity() -> None:
    plain = finetune_identity(FinetuneConfig(), "m", 0, "d")
    assert plain == finetune_identity(FinetuneConfig(checkpoint_every=7, max_failures=0), "m", 0, "d")
    assert plain != finetune_identity(FinetuneConfig(num_steps=7), "m", 0, "d")
