"""What stopped a topic or a model stays told until it is tried again; and the page and the exit code of a run say of it, however the run ended."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scripted_run import Engines, config_of, silent_about, with_own
from typer.testing import CliRunner

from unlearn_ray import pipeline
from unlearn_ray.artifacts import Folder
from unlearn_ray.cli import app
from unlearn_ray.config import RunConfig
from unlearn_ray.engines.protocols import TrainJob, TrainResult
from unlearn_ray.engines.scripted_trainer import ScriptedTrainer
from unlearn_ray.errors import ArtifactError, PartialError
from unlearn_ray.plan import claimed
from unlearn_ray.reading import dump_yaml
from unlearn_ray.runs import FAILED, states
from unlearn_ray.stages.table import COMMANDS
from unlearn_ray.train.log import LOG
from unlearn_ray.train.metrics import METRICS, StepMetrics


def finish(config: RunConfig, steps: Sequence[str], engines: Engines | None = None) -> Engines:
    engines = engines or Engines()
    with claimed(config):
        pipeline.run(config, engines, steps)
    return engines


def told(home: Folder) -> tuple[str, str]:
    said = json.loads(home.read_text(FAILED))
    return said["stage"], said["reason"]


def test_a_later_step_alone_keeps_why_a_topic_failed_and_does_not_try_it(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Dune", "Ubik")
    home = config.folder / "topics/ubik"
    with pytest.raises(PartialError, match="no usable question about 'Ubik'"):
        finish(config, ["questions"], Engines(silent_about("Ubik")))
    before = told(home)
    engines = Engines()
    with pytest.raises(PartialError, match="no usable question about 'Ubik'"):
        finish(config, ["answers"], engines)
    assert told(home) == before and before[0] == "questions"
    assert engines.asked_about() == {"Dune"} and home.names() == [FAILED, "questions"]
    finish(with_own(config, "Ubik", kind="fiction"), ["questions"])
    assert not home.exists(FAILED)


def test_an_earlier_step_alone_keeps_what_stopped_a_later_one(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Dune", "Ubik", finetune={"adapters": "per_topic"})
    thin = with_own(config, "Ubik", dataset={"floors": {"forget_rows": 9_999}})
    topic, model = config.folder / "topics/ubik", config.folder / "models/dune"
    with pytest.raises(PartialError, match="rows to forget 'Ubik'"):
        finish(thin, COMMANDS[:4], Engines(fail_at=["dune"]))
    stopped = told(topic), told(model)
    assert [stage for stage, _ in stopped] == ["dataset", "finetune"]
    assert finish(thin, ["questions", "answers"]).num_asked == 0
    assert (told(topic), told(model)) == stopped
    assert {each.label for each in states(config.folder) if each.state == "failed"} == {"Ubik", "dune"}
    with pytest.raises(PartialError):
        finish(thin, ["evaluate"])
    assert (told(topic), told(model)) == stopped, "no step before it was tried"
    finish(config, COMMANDS[:4])
    assert not topic.exists(FAILED) and not model.exists(FAILED)


def test_a_step_alone_says_why_the_one_topic_failed(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Ubik")
    with pytest.raises(pipeline.UnlearnError):
        finish(config, COMMANDS, Engines(silent_about("Ubik")))
    for steps in (["answers"], ["finetune"]):
        with pytest.raises(ArtifactError, match="no usable question about 'Ubik'"):
            finish(config, steps)
        assert not (config.folder / "models").exists()


def ran(config: RunConfig, engines: Engines, monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[int, str]:
    """Exit code and page of a run from the command line, over these engines."""

    class Scripted:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.chat, self.generator, self.evaluator, self.trainer = (
                getattr(engines, name) for name in ("chat", "generator", "evaluator", "trainer")
            )

        def connect(self) -> None:
            """They are there."""

    monkeypatch.setattr("unlearn_ray.engines.run_engines.RunEngines", Scripted)
    file = Path(config.output) / "run.yaml"
    file.write_text(dump_yaml(config.model_dump(mode="json")))
    result = CliRunner().invoke(app, ["run", str(file), *options])
    return result.exit_code, config.folder.read_text("index.html")


def test_the_page_is_written_where_all_topics_fail_or_the_first_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every, first = (config_of(tmp_path / name, "Dune", "Ubik") for name in ("every", "first"))
    code, page = ran(every, Engines(lambda request: "No."), monkeypatch, "--until", "questions")
    assert code == 2 and "2 failed" in page and "no usable question about" in page
    code, page = ran(first, Engines(silent_about("Ubik")), monkeypatch, "--until", "questions", "--fail-fast")
    assert code == 2 and "failed" in page and "no usable question about &#39;Ubik&#39;" in page


def test_a_topic_that_fails_beside_others_is_exit_code_3_though_no_joint_model_comes_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, "Dune", "Ubik")
    code, page = ran(config, Engines(silent_about("Ubik"), fail_at=["joint"]), monkeypatch, "--until", "finetune")
    assert code == 3 and "2 failed" in page


class Logging(ScriptedTrainer):
    """A trainer whose trainings leave a log, and metrics."""

    def outcomes(self, jobs: Sequence[TrainJob]) -> dict[str, TrainResult | Exception]:
        for job in jobs:
            job.watched.write_lines(LOG, [f"step {step} of {job.name}" for step in range(30)] + ["[red]it burns"])
            job.watched.write_lines(METRICS, [STEP.to_json()])
        return super().outcomes(jobs)


STEP = StepMetrics(36, 80, 0.43, 0.4, None, 1e-3, 0.1, False, 2400, 1200.0, 2.0, 1.4, 0.0)


def test_a_failed_training_leaves_the_end_of_its_log_in_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, "Dune", "Ubik", finetune={"adapters": "per_topic"})
    engines = Engines()
    engines.trainer = Logging(fail_at=["dune"])
    code, _ = ran(config, engines, monkeypatch)
    assert code == 3
    said = json.loads((config.folder / "models/dune").read_text(FAILED))["log"]
    assert len(said) == 10 and said[0] == "step 21 of dune" and said[-1] == "[red]it burns"
    page = config.folder.read_text("index.html")
    assert "step 29 of dune" in page and "[red]it burns" in page and "of ubik" not in page
    state = next(each for each in states(config.folder) if each.label == "dune")
    assert (state.state, list(state.log)) == ("failed", said)
    shown = CliRunner().invoke(app, ["status", str(config.folder.local)]).output
    assert "the log of dune, finetune ends with:" in shown and "    [red]it burns" in shown
    assert "step 37/80" not in shown, "it is not under way"
    finish(config, COMMANDS[:4])
    assert not (config.folder / "models/dune").exists(FAILED)


def test_a_training_under_way_shows_its_last_step(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Dune")
    finish(config, COMMANDS[:3])
    (config.folder / "models/joint/finetune").write_lines(METRICS, [STEP.to_json()])
    shown = CliRunner().invoke(app, ["status", str(config.folder.local)]).output
    assert "joint, finetune: step 37/80, loss 0.43, 1,200 tokens/s, forget 0.4, " in " ".join(shown.split())
    finish(config, COMMANDS[:4])
    assert "step 37/80" not in CliRunner().invoke(app, ["status", str(config.folder.local)]).output
