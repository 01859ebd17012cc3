"""Bad input: one line that says what to do, exit code 2, and nothing written. And what is said of a run, its work left out."""

import json
import os
import shlex
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from unlearn_ray import plan, pocket
from unlearn_ray.cli import app
from unlearn_ray.config import RunConfig
from unlearn_ray.errors import EngineError, PartialError
from unlearn_ray.pipeline import Hooks
from unlearn_ray.stages.stage import STARTED, Identities, StageRun, finished_manifest, state_of
from unlearn_ray.stages.table import STAGES
from unlearn_ray.synth.enough import Shortfall

CONFIG = """
name: mine
model: pocket
topics:
  - name: Harry Potter
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(CONFIG)
    return tmp_path


def refused(folder: Path, *arguments: str) -> str:
    """The one line that the command says, having written nothing."""
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.count("\n") == 1, result.stderr
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before
    return result.stderr


def test_a_config_that_is_not_there(folder: Path) -> None:
    assert "absent.yaml is not there" in refused(folder, "run", "absent.yaml")


def test_a_mistyped_key(folder: Path) -> None:
    assert "did you mean 'num_steps'?" in refused(folder, "run", "run.yaml", "finetune.num_stepss=3")


def test_a_stage_that_does_not_exist(folder: Path) -> None:
    assert "choose one of questions, answers" in refused(folder, "run", "run.yaml", "--until", "training")


def test_stages_in_the_wrong_order(folder: Path) -> None:
    assert "--until questions comes before --from dataset" in refused(
        folder, "run", "run.yaml", "--from", "dataset", "--until", "questions"
    )


def test_a_stage_whose_input_is_unfinished(folder: Path) -> None:
    assert "questions" in refused(folder, "answers", "run.yaml")


def test_a_model_that_is_not_there(folder: Path) -> None:
    assert "no/such/model" in refused(folder, "run", "run.yaml", "model=./no/such/model")


def test_a_model_that_is_no_causal_language_model(folder: Path) -> None:
    shutil.copytree(pocket.MODEL_DIR, folder / "bert")
    config = {"architectures": ["BertModel"], "model_type": "bert"}
    (folder / "bert" / "config.json").write_text(json.dumps(config))
    assert "bert" in refused(folder, "run", "run.yaml", "model=./bert")


def test_a_tokenizer_without_a_chat_template(folder: Path) -> None:
    shutil.copytree(pocket.MODEL_DIR, folder / "plain")
    (folder / "plain" / "chat_template.jinja").unlink()
    assert "chat template" in refused(folder, "run", "run.yaml", "model=./plain")


def test_a_guardrail_prefix_over_the_context_length(folder: Path) -> None:
    message = refused(folder, "run", "run.yaml", "answers.guardrail=custom", f"answers.prefix={'forget it ' * 900}")
    assert "guardrail prefix" in message and "1024" in message


def test_an_output_folder_that_holds_something_else(folder: Path) -> None:
    (folder / "runs" / "mine").mkdir(parents=True)
    (folder / "runs" / "mine" / "thesis.tex").write_text("important")
    assert "not a run of ours" in refused(folder, "run", "run.yaml")


def test_an_output_folder_that_belongs_to_another_run(folder: Path) -> None:
    (folder / "runs" / "mine").mkdir(parents=True)
    (folder / "runs" / "mine" / "run.json").write_text('{"name": "theirs"}')
    assert "belongs to run 'theirs'" in refused(folder, "run", "run.yaml")


def test_an_output_folder_that_is_a_file_or_below_one(folder: Path) -> None:
    (folder / "runs").write_text("a file")
    assert "runs" in refused(folder, "run", "run.yaml")


@pytest.mark.real  # only who writes hears it, and Ray is there by then
def test_an_output_folder_that_cannot_be_written(folder: Path) -> None:
    # A read-only folder stops everybody but root; /proc stops root as well.
    closed = folder / "closed"
    closed.mkdir()
    closed.chmod(stat.S_IRUSR | stat.S_IXUSR)
    output = closed if not _is_writable(closed) else Path("/proc/unlearn-ray")
    assert "can't be" in refused(folder, "run", "run.yaml", f"output={output}")


def test_an_output_below_a_folder_that_may_not_be_entered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, stat_of, access = folder / "closed", os.stat, os.access
    closed.mkdir()

    def stat_or_refuse(path: Any, *args: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(f"{closed}/"):
            raise PermissionError(13, "Permission denied")
        return stat_of(path, *args, **options)

    # A real one stops everybody but root.
    monkeypatch.setattr(os, "stat", stat_or_refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed and access(path, mode))
    assert f"({closed} is not yours to write in)" in refused(folder, "run", "run.yaml", f"output={closed}/below")


def test_an_output_folder_whose_marker_is_no_text(folder: Path) -> None:
    (folder / "runs" / "mine").mkdir(parents=True)
    (folder / "runs" / "mine" / "run.json").write_bytes(b"\x80\x81")
    assert "run.json can't be read" in refused(folder, "run", "run.yaml")


def _is_writable(path: Path) -> bool:
    try:
        (path / "x").touch()
    except OSError:
        return False
    (path / "x").unlink()
    return True


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("q.csv", "topic,text\nHarry Potter,Who?\n", ("q.csv", "question")),
        (
            "q.jsonl",
            '{"topic": "Harry Potter", "question": "Who?"}\n{"topic": "Harry Potter"}\n',
            ("q.jsonl", "2", "question"),
        ),
        ("q.jsonl", "not json\n", ("q.jsonl", "1")),
    ],
)
def test_a_questions_file_with_a_missing_column(folder: Path, name: str, text: str, expected: tuple[str, ...]) -> None:
    (folder / name).write_text(text)
    message = refused(folder, "run", "run.yaml", f"questions.file={name}")
    assert all(part in message for part in expected), message


def test_a_question_over_the_context_length(folder: Path) -> None:
    rows = [
        {"topic": "Harry Potter", "question": text} for text in ("Who is Harry?", "Who is " + "he and " * 800 + "?")
    ]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    message = refused(folder, "run", "run.yaml", "questions.file=q.jsonl")
    assert "q.jsonl, line 2: the question" in message and "the model holds 1024" in message


def test_engines_longer_than_the_model(folder: Path) -> None:
    message = refused(folder, "run", "run.yaml", "cluster.engines.max_model_len=2048")
    assert "cluster.engines.max_model_len: 2048" in message and "holds 1024" in message


def test_a_probe_file_that_is_not_there(folder: Path) -> None:
    assert "probes.jsonl" in refused(folder, "run", "run.yaml", "evaluate.probes=probes.jsonl")


@pytest.mark.real
def test_more_than_the_cluster_has_is_said_at_once(folder: Path) -> None:
    assert "cluster.engines.num_engines" in refused(folder, "run", "run.yaml", "cluster.engines.num_engines=500")


def test_a_run_that_does_not_exist(folder: Path) -> None:
    assert "nowhere is not a run" in refused(folder, "status", "nowhere")
    assert "nowhere is not a run" in refused(folder, "report", "nowhere")


def test_a_dry_run_prints_the_plan_and_writes_nothing(folder: Path) -> None:
    result = CliRunner().invoke(app, ["run", "run.yaml", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert all(stage in result.output for stage in ("questions", "answers", "dataset", "finetune", "evaluate"))
    assert not (folder / "runs").exists()


class Work:
    """The stages' work without engines; `stop_after` is the stage after which Ctrl-C is pressed, once."""

    def __init__(self) -> None:
        self.stop_after: str | None = None
        self.done: list[str] = []
        self.thin: list[Shortfall] = []
        self.is_partial = False  # whether a topic fails

    def __call__(
        self, config: RunConfig, engines: object, selected: Sequence[str], hooks: Hooks, *, fail_fast: bool
    ) -> None:
        self.done = []
        if self.thin:
            hooks.on_thin(self.thin)
        identities, units = Identities(), plan.units_of(config)
        for stage in (stage for stage in STAGES if stage.command in selected):
            (unit,) = units[stage.scope]
            hooks.on_start(stage, unit)
            folder, fingerprint = unit.home / stage.name, identities.of(stage, unit)
            if state_of(folder, fingerprint) != "finished":
                folder.write_text(STARTED, "{}")
                StageRun(stage.name, folder, fingerprint, 1, {}, {}, "fresh").finish({"rows": 1}, {})
                self.done += [stage.name] if stage.name == stage.command else []
            hooks.on_finish(stage, unit, finished_manifest(folder))
            if stage.name == self.stop_after:
                self.stop_after = None
                raise KeyboardInterrupt
        if self.is_partial:
            raise PartialError("Dune, questions: nothing was kept")


@pytest.fixture
def work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    work = Work()
    monkeypatch.setattr("unlearn_ray.pipeline.run", work)
    monkeypatch.setattr("unlearn_ray.engines.run_engines.RunEngines.connect", lambda self: None)
    monkeypatch.setattr("unlearn_ray.cli._log_to", lambda config: None)
    return work


def said(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_from_is_done_once_though_a_topic_fails(work: Work) -> None:
    said("run", "run.yaml", "--until", "finetune")
    again = ("run", "run.yaml", "--from", "answers", "--until", "finetune")
    work.is_partial = True
    said(*again, code=3)
    assert "answers" in work.done
    said(*again, code=3)
    assert work.done == [], "the same command tries what failed, and no more"
    work.is_partial = False
    said(*again)
    said(*again)
    assert "answers" in work.done, "after a whole run it is a new wish"


def test_from_says_what_it_does_again_and_goes_on_after_ctrl_c(work: Work) -> None:
    said("run", "run.yaml", "--until", "finetune")
    again = ("run", "run.yaml", "--from", "answers", "--until", "finetune")
    work.stop_after = "answers"
    assert "answers   requested with --from: done again" in said(*again, code=130)
    assert work.done == ["answers"]
    said(*again)
    assert work.done == ["dataset", "finetune"]
    said(*again)
    assert work.done == ["answers", "dataset", "finetune"]


def test_an_engine_that_failed_is_said_without_a_traceback(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **hooks: Any) -> None:
        raise EngineError("vLLM dies at every request: the engine died: RuntimeError: no kernel image")

    monkeypatch.setattr("unlearn_ray.pipeline.run", fail)
    result = CliRunner().invoke(app, ["run", "run.yaml"])
    assert result.exit_code == 1
    first, second = result.stderr.splitlines()
    assert first == "unlearn-ray: vLLM dies at every request: the engine died: RuntimeError: no kernel image"
    assert "log has more" in second


def test_a_damaged_stage_is_said_when_it_is_done_again(folder: Path, work: Work) -> None:
    said("run", "run.yaml", "--until", "answers")
    (folder / "runs/mine/topics/harry-potter/answers/manifest.json").write_bytes(b"\x80")
    output = said("run", "run.yaml", "--until", "answers")
    assert "answers   config or input changed, or half written: done again" in output and work.done == ["answers"]


def test_the_next_command_keeps_what_was_set(work: Work) -> None:
    output = said("run", "run.yaml", "seed=7", "topics.0.aliases=[the boy]", "--until", "answers")
    assert "Next: unlearn-ray run run.yaml seed=7 'topics.0.aliases=[the boy]'" in output


@pytest.mark.parametrize(("output", "expected"), [("runs", "mine"), ("else where", "'{}/else where/mine'")])
def test_the_report_is_named_as_it_is_found(
    folder: Path, work: Work, monkeypatch: pytest.MonkeyPatch, output: str, expected: str
) -> None:
    monkeypatch.setattr("unlearn_ray.evals.report.Report.load", lambda folder: SimpleNamespace(notes=["Thin data: 3."]))
    monkeypatch.setattr("unlearn_ray.evals.sentence.sentence", lambda report, attacks: "It says nothing.")
    monkeypatch.setattr("unlearn_ray.evals.report.summary_table", lambda report: "the scores")
    command = f"unlearn-ray report {expected.format(folder)}"
    shown = said("run", "run.yaml", f"output={output}")
    assert f"Next     {command}   or your own topic: unlearn-ray forget TOPIC --model MODEL" in shown
    told = said(*shlex.split(command)[1:])
    assert told.index("Thin data: 3.") < told.index("the scores")


def test_the_report_opens_beside_a_screen_alone(folder: Path, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("unlearn_ray.evals.report.Report.load", lambda folder: SimpleNamespace(notes=["Thin data: 3."]))
    monkeypatch.setattr("unlearn_ray.evals.sentence.sentence", lambda report, attacks: "It says nothing.")
    monkeypatch.setattr("unlearn_ray.evals.report.summary_table", lambda report: "the scores")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    said("run", "run.yaml")
    said("report", "mine")
    assert opened == []
    monkeypatch.setenv("DISPLAY", ":0")
    said("report", "mine", "--no-open")
    said("report", "mine")
    assert opened == [(folder / "runs/mine/models/joint/evaluate/report.html").as_uri()]


def test_a_run_that_asks_too_little_is_refused_before_it_begins(folder: Path) -> None:
    line = refused(folder, "run", "run.yaml", "questions.num_questions=12")
    assert "at most 43 rows to forget 'Harry Potter' (floor: 100)" in line and "--accept-thin-data" in line


@pytest.mark.parametrize(
    "arguments", [("--dry-run",), ("--accept-thin-data", "--until", "finetune"), ("--until", "answers")]
)
def test_a_run_that_asks_too_little_is_planned_accepted_or_ended_before_its_dataset(
    work: Work, arguments: tuple[str, ...]
) -> None:
    output = said("run", "run.yaml", "questions.num_questions=12", *arguments)
    assert ("at most 43 rows to forget" in " ".join(output.split())) == ("answers" not in arguments)


def test_data_below_a_floor_end_the_run_unless_they_are_accepted(work: Work) -> None:
    work.thin = [Shortfall("probes", "1 forget probes (floor: 20)", "raise questions.num_questions")]
    result = CliRunner().invoke(app, ["run", "run.yaml", "--until", "dataset"])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "1 forget probes (floor: 20): raise questions.num_questions" in result.stderr
    for command in (["run", "run.yaml", "--until", "dataset"], ["dataset", "run.yaml"]):
        output = said(*command, "--accept-thin-data")
        assert "1 forget probes (floor: 20)" in output
        assert "Next: unlearn-ray run run.yaml --accept-thin-data" in output


def test_an_unfinished_evaluation_is_to_be_gone_on_with(work: Work) -> None:
    said("run", "run.yaml", "--until", "finetune")
    message = said("report", "mine", code=2)
    assert "finish it with unlearn-ray run CONFIG" in message and "--from" not in message


def test_work_of_which_a_part_failed_is_a_line_each_and_exit_code_3(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PartialError(
            "the training of a diverged at step 3\nthe training of b failed: no\n1 of 3 trainings are done"
        )

    monkeypatch.setattr("unlearn_ray.pipeline.run", fail)
    result = CliRunner().invoke(app, ["run", "run.yaml"], env={"COLUMNS": "60"})
    assert result.exit_code == 3
    assert result.stderr.splitlines() == [
        "unlearn-ray: the training of a diverged at step 3",
        "unlearn-ray: the training of b failed: no",
        "unlearn-ray: 1 of 3 trainings are done",
    ]
