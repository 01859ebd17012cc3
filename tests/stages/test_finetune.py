"""The finetune stage over a scripted trainer: which jobs it asks for, and what it leaves."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from staging import performed

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.chat import ChatFormat
from unlearn_ray.config import FinetuneConfig, GradDiff, Idk, Lora, Npo, RetainTerm, Topic
from unlearn_ray.engines.protocols import TrainJob, TrainResult
from unlearn_ray.engines.scripted_trainer import ScriptedTrainer
from unlearn_ray.errors import ArtifactError, EngineError
from unlearn_ray.rows import Contrast, Example
from unlearn_ray.stages.finetune import finetune_identity, finish, job_of
from unlearn_ray.stages.stage import StageRun

CHAT = ChatFormat(prefix_role="user", end_of_turn="<end>", stop_token_ids=(7,))
POTTER, GUM = Topic(name="Harry Potter"), Topic(name="chewing gum")


def example(topic: str, number: int, split: str = "train") -> Example:
    return Example(topic, "forget", topic, f"Question {number}?", "An answer.", split=split)  # type: ignore[arg-type]


def mixture_of(home: Path, forget: Sequence[Example], retain: Sequence[Example] = ()) -> Folder:
    folder = Folder(home / "mixture")
    (folder / "forget").write_rows(forget, Example.schema())
    (folder / "retain").write_rows(retain, Example.schema())
    return folder


def run(
    home: Path,
    mixture: Folder,
    trainer: ScriptedTrainer,
    config: FinetuneConfig,
    topics: Sequence[Topic] = (POTTER, GUM),
) -> Manifest:
    def work(opened: StageRun) -> Manifest:
        job = job_of(opened, config, "joint", topics, mixture, model_path="/m", chat=CHAT, seed=7)
        result = trainer.outcomes([job])["joint"]
        if isinstance(result, Exception):
            raise result
        return finish(opened, job, result)

    return performed(Folder(home / "finetune"), work, finetune_identity(config, "m", 7))


@pytest.fixture
def both(tmp_path: Path) -> Folder:
    rows = [example(POTTER.name, 1), example(POTTER.name, 2, "holdout"), example(GUM.name, 1), example(GUM.name, 2)]
    return mixture_of(tmp_path, rows, [Example("", "far", "general", "A?", "B.")])


def test_a_model_is_exported_with_its_losses_and_without_its_checkpoints(tmp_path: Path, both: Folder) -> None:
    trainer = ScriptedTrainer()
    manifest = run(tmp_path, both, trainer, FinetuneConfig(num_steps=3))
    (job,) = trainer.jobs
    assert (job.name, job.topics) == ("joint", ("Harry Potter", "chewing gum"))
    out = Folder(tmp_path / "finetune")
    assert out.names() == ["losses.jsonl", "manifest.json", "model", "started.json"]
    assert [json.loads(line)["step"] for line in out.read_text("losses.jsonl").splitlines()] == [0, 1, 2]
    assert manifest.num_rows == {"models": 1, "steps": 3, "forget": 3, "retain": 1}
    assert manifest.details["training"]["name"] == "joint"


def test_a_finished_stage_trains_nothing(tmp_path: Path, both: Folder) -> None:
    first = run(tmp_path, both, ScriptedTrainer(), FinetuneConfig(num_steps=3))
    again = ScriptedTrainer()
    assert run(tmp_path, both, again, FinetuneConfig(num_steps=3, checkpoint_every=2)) == first
    assert not again.jobs


def test_a_failed_training_leaves_its_checkpoints_to_the_next_run(tmp_path: Path, both: Folder) -> None:
    with pytest.raises(EngineError, match="the script ends here"):
        run(tmp_path, both, ScriptedTrainer(fail_at=["joint"]), FinetuneConfig(num_steps=3))
    out = Folder(tmp_path / "finetune")
    assert (out / "checkpoints").exists() and not out.exists("manifest.json")
    assert run(tmp_path, both, ScriptedTrainer(), FinetuneConfig(num_steps=3)).num_rows["steps"] == 3


def test_what_lowers_the_truth_is_trained_on_what_tells_it(tmp_path: Path, both: Folder) -> None:
    config = FinetuneConfig(num_steps=3, objective=Npo())
    (both / "contrasts").write_rows([Contrast(POTTER.name, "A?", "Hedwig.", "Bellan.")], Contrast.schema())
    with pytest.raises(
        ArtifactError, match="contrasts has no training rows about chewing gum: rerun with --from answers"
    ):
        run(tmp_path, both, ScriptedTrainer(), config)
    trainer = ScriptedTrainer()
    run(tmp_path, both, trainer, config, [POTTER])
    assert trainer.jobs[0].forget.path == (both / "contrasts").path
    assert finetune_identity(config, "m", 7) != finetune_identity(FinetuneConfig(num_steps=3), "m", 7)
    refused = ScriptedTrainer()
    run(tmp_path / "idk", both, refused, FinetuneConfig(num_steps=3, objective=Idk()))
    assert refused.jobs[0].forget.path == (both / "forget").path


def test_a_scale_that_is_asked_for_is_another_training_and_one_that_is_not_is_the_training_of_before_there_was_the_key() -> (
    None
):
    identity, _ = finetune_identity(FinetuneConfig(), "m", 7)
    assert "rslora" not in identity["weights"]
    assert finetune_identity(FinetuneConfig(weights=Lora(rslora=True)), "m", 7)[0] != identity


def test_skipped_steps_are_warned_of(tmp_path: Path, both: Folder) -> None:
    class Skipping(ScriptedTrainer):
        def outcomes(self, jobs: Sequence[TrainJob]) -> dict[str, TrainResult | Exception]:
            ended = super().outcomes(jobs)
            return {name: replace(result, num_skipped_steps=2) for name, result in ended.items()}  # type: ignore[type-var]

    warnings = run(tmp_path, both, Skipping(), FinetuneConfig(num_steps=3)).details["warnings"]
    assert warnings == ["2 of 3 steps were skipped, their gradient was not finite"]


def test_a_topic_without_training_rows_is_refused_by_name(tmp_path: Path) -> None:
    dataset = mixture_of(tmp_path, [example(POTTER.name, 1), example(GUM.name, 1, "holdout")])
    trainer = ScriptedTrainer()
    with pytest.raises(ArtifactError, match="no training rows about chewing gum"):
        run(tmp_path, dataset, trainer, FinetuneConfig(num_steps=3))
    assert not trainer.jobs


def test_training_without_a_retain_term_is_warned_of(tmp_path: Path) -> None:
    dataset = mixture_of(tmp_path, [example(POTTER.name, 1)])
    without_rows = run(tmp_path, dataset, ScriptedTrainer(), FinetuneConfig(num_steps=3), [POTTER])
    assert "no retain rows" in without_rows.details["warnings"][0]
    config = FinetuneConfig(num_steps=3, retain=RetainTerm(kind="none"))
    assert "is none" in run(tmp_path, dataset, ScriptedTrainer(), config, [POTTER]).details["warnings"][0]


@pytest.mark.parametrize(
    "retain", [[], [Example("", "far", "general", "A?", "B.", split="holdout")], [example(GUM.name, 1)]]
)
def test_nothing_to_retain_is_said_before_anything_starts(
    retain: list[Example], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mixture, trainer = mixture_of(tmp_path, [example(POTTER.name, 1)], retain), ScriptedTrainer(fail_at=["joint"])
    with pytest.raises(EngineError):
        run(tmp_path, mixture, trainer, FinetuneConfig(retain=RetainTerm(kind="kl")), [POTTER])
    assert "retain has no training rows, so it is trained without its retain term" in caplog.text
    caplog.clear()
    with pytest.raises(EngineError):
        run(tmp_path / "none", mixture, trainer, FinetuneConfig(retain=RetainTerm(kind="none")), [POTTER])
    assert not caplog.text
    (mixture / "contrasts").write_rows([Contrast(POTTER.name, "A?", "Hedwig.", "Bellan.")], Contrast.schema())
    difference, asked = FinetuneConfig(objective=GradDiff()), len(trainer.jobs)
    with pytest.raises(ArtifactError, match="retain has no training rows, which grad_diff needs: rerun with --from"):
        run(tmp_path / "difference", mixture, trainer, difference, [POTTER])
    assert len(trainer.jobs) == asked


def test_how_often_it_is_saved_is_no_part_of_its_identity() -> None:
    plain = finetune_identity(FinetuneConfig(), "m", 0)
    saved_otherwise = FinetuneConfig(checkpoint_every=7, keep_checkpoints=3, max_failures=0)
    assert plain == finetune_identity(saved_otherwise, "m", 0)
    assert plain != finetune_identity(FinetuneConfig(num_steps=7), "m", 0)


def test_what_is_exported_by_default_is_no_other_training() -> None:
    """So that a finished one of an earlier version is still what its config asks for."""
    lora, full = FinetuneConfig(), FinetuneConfig.model_validate({"weights": {"kind": "full"}})

    def known_by(config: FinetuneConfig, **more: object) -> object:
        return finetune_identity(config.model_copy(update=more), "m", 7)

    assert "export" not in known_by(lora)[0]  # type: ignore[index]
    assert known_by(lora) == known_by(lora, export="adapter")
    assert known_by(full) == known_by(full, export="merged")
    assert known_by(lora) != known_by(lora, export="merged") != known_by(lora, export="both")
