"""The commands that prove a result, on a run whose engines are scripted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_run import Engines, config_of
from typer.testing import CliRunner

from unlearn_ray import pipeline
from unlearn_ray.cli import app
from unlearn_ray.plan import claimed

Said = Callable[..., list[str]]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two topics with an adapter each; nothing was forgotten, nothing lost."""
    config = config_of(tmp_path_factory.mktemp("made"), "Dune", "Solaris", finetune={"adapters": "per_topic"})
    with claimed(config):
        pipeline.run(config, Engines())
    return config.folder.local


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(made, tmp_path / "runs" / "mine"))


def said(*arguments: object, code: int = 0) -> list[str]:
    """What the command says: its errors where it fails, else its output."""
    done = CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "120"})
    assert done.exit_code == code, (done.output, done.exception)
    return (done.stderr if code else done.output).splitlines()


def test_a_gate_that_holds_says_so_of_each_model(run: Path) -> None:
    lines = said("evaluate", run, "--require", "forget.recall<=0.5", "--require", "far.recall>=0")
    for name in ("dune", "solaris"):
        assert sum(line.startswith(f"✓ {name}: ") for line in lines) == 2


def test_a_gate_names_what_fails_with_figure_and_interval_and_exits_3(run: Path) -> None:
    lines = said("evaluate", run, "--require", "forget.recall>=0.5", "--require", "relearn.recall<=0.5", code=3)
    assert lines == [
        line
        for name in ("dune", "solaris")
        for line in (
            f"unlearn-ray: {name}: forget.recall is 0 %* [0, 98], n = 1 (not to be relied on: few probes, wide interval): forget.recall>=0.5 does not hold",
            f"unlearn-ray: {name}: relearn.recall was not measured: relearn.recall<=0.5 does not hold",
        )
    ]


def attack(run: Path, name: str, finetune: str | None = None) -> Path:
    """Figures of a relearning attack on a model, as `unlearn-ray attack` writes them."""
    figure = {"setting": "full", "model": "unlearned", "at": 10, "metric": "recall", "value": 0.12, "interval": [0.02, 0.3], "num": 19, "num_facts": 19}  # fmt: skip
    manifest = json.loads((run / "models" / name / "finetune/manifest.json").read_text())
    report = {
        "version": 1,
        "finetune": finetune or manifest["fingerprint"],
        "attacks": [{"name": "relearn", "axis": "steps", "figures": [figure]}],
    }
    file = run / "models" / name / "attacks/attacks.json"
    file.parent.mkdir()
    file.write_text(json.dumps(report))
    return file


def test_a_gate_reads_the_attacks_on_each_model(run: Path) -> None:
    files = [attack(run, name) for name in ("dune", "solaris")]
    lines = said("evaluate", run, "--require", "relearn.recall@10<=0.2")
    assert "✓ dune: relearn.recall is 12 % [2, 30], n = 19, in full, at 10" in lines
    files[0].write_text('{"figures": [{}]}')
    (line,) = said("evaluate", run, "--require", "relearn.recall@10<=0.2", code=2)
    assert "attacks.json can't be read" in line


def test_the_report_shows_attacks_that_were_done_since(run: Path) -> None:
    page = run / "models/dune/evaluate/report.md"
    assert "Not attacked" in page.read_text()
    attack(run, "dune")
    lines = said("report", run, "--no-open")
    assert "12 % comes back after 10 steps of relearning" in " ".join(" ".join(lines).split())
    assert "| relearn | recall | full, at 10 |" in page.read_text()
    assert "Not attacked" in (run / "models/solaris/evaluate/report.md").read_text()


def test_attacks_on_an_earlier_training_hold_nothing(run: Path) -> None:
    attack(run, "dune", "of another training")
    attack(run, "solaris")
    (line,) = said("evaluate", run, "--require", "relearn.recall@10<=0.2", code=3)
    assert line.startswith("unlearn-ray: dune: relearn.recall@10 was not measured")


def test_an_unknown_figure_is_one_line_before_anything_is_done(tmp_path: Path) -> None:
    (line,) = said("evaluate", tmp_path / "nowhere.yaml", "--require", "forget.chioce<=0.35", code=2)
    assert "did you mean forget.choice?" in line and "Known are forget, near, far" in line


def test_a_run_that_is_named_is_shown_and_not_done_again(run: Path) -> None:
    lines = said("evaluate", run)
    assert [line for line in lines if line.endswith("report.html")] == [
        f"{run}/models/{name}/evaluate/report.html" for name in ("dune", "solaris")
    ]
    (line,) = said("evaluate", run, "seed=1", code=2)
    assert "give its YAML file" in line
    (run / "models/dune/evaluate/manifest.json").unlink()
    (run / "models/solaris/evaluate/manifest.json").unlink()
    (line,) = said("evaluate", run, code=2)
    assert "finish it with unlearn-ray run CONFIG" in line


def test_what_is_neither_a_run_nor_a_file_is_refused_as_ever(tmp_path: Path) -> None:
    (line,) = said("evaluate", tmp_path / "nowhere", code=2)
    assert "nowhere" in line
