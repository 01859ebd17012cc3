"""Bad input: one line that says what to do, exit code 2, and nothing written."""

import json
import shutil
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from unlearn_ray import pocket
from unlearn_ray.cli import app

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
    assert "no run of ours" in refused(folder, "run", "run.yaml")


def test_an_output_folder_that_belongs_to_another_run(folder: Path) -> None:
    (folder / "runs" / "mine").mkdir(parents=True)
    (folder / "runs" / "mine" / "run.json").write_text('{"name": "theirs"}')
    assert "belongs to run 'theirs'" in refused(folder, "run", "run.yaml")


def test_an_output_folder_that_is_a_file_or_below_one(folder: Path) -> None:
    (folder / "runs").write_text("a file")
    assert "runs" in refused(folder, "run", "run.yaml")


def test_an_output_folder_that_cannot_be_written(folder: Path) -> None:
    # A read-only folder stops everybody but root; /proc stops root as well.
    closed = folder / "closed"
    closed.mkdir()
    closed.chmod(stat.S_IRUSR | stat.S_IXUSR)
    output = closed if not _is_writable(closed) else Path("/proc/unlearn-ray")
    assert "can't be" in refused(folder, "run", "run.yaml", f"output={output}")


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


def test_a_probe_file_that_is_not_there(folder: Path) -> None:
    assert "probes.jsonl" in refused(folder, "run", "run.yaml", "evaluate.probes=probes.jsonl")


def test_more_than_the_cluster_has_is_said_at_once(folder: Path) -> None:
    assert "cluster.engines.num_engines" in refused(folder, "run", "run.yaml", "cluster.engines.num_engines=500")


def test_a_run_that_does_not_exist(folder: Path) -> None:
    assert "nowhere is no run" in refused(folder, "status", "nowhere")
    assert "nowhere is no run" in refused(folder, "report", "nowhere")


def test_a_dry_run_prints_the_plan_and_writes_nothing(folder: Path) -> None:
    result = CliRunner().invoke(app, ["run", "run.yaml", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert all(stage in result.output for stage in ("questions", "answers", "dataset", "finetune", "evaluate"))
    assert not (folder / "runs").exists()
