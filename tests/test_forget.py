"""`unlearn-ray forget`: a run's file from the names of topics, which can be run again, and is never written over another."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from unlearn_ray import config
from unlearn_ray.cli import app
from unlearn_ray.forget import compose
from unlearn_ray.reading import dump_yaml, load_yaml

STAGES = 5


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shown(*arguments: str) -> str:
    """What the command says of a run that it would do; it writes nothing."""
    before = files(Path.cwd())
    result = CliRunner().invoke(app, ["forget", *arguments, "--dry-run"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert files(Path.cwd()) == before
    return result.stdout


def written(*arguments: str) -> str:
    """The file's text, as the command shows it."""
    _, *lines = shown(*arguments).partition("\n\n")[0].splitlines()
    return "".join(f"{line.removeprefix('  ')}\n" for line in lines)


def refused(*arguments: str) -> str:
    """The one line that the command says, having written nothing."""
    before = files(Path.cwd())
    result = CliRunner().invoke(app, ["forget", *arguments])
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.count("\n") == 1, result.stderr
    assert files(Path.cwd()) == before
    return result.stderr


def loaded(folder: Path, text: str, name: str) -> config.RunConfig:
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return config.load(path)


def test_a_dry_run_shows_the_file_and_the_plan(folder: Path) -> None:
    text = shown("Dune", "--model", "pocket", "--kind", "fiction", "--output", "elsewhere")
    assert text.startswith("dune.yaml\n") and "pocket forgets Dune, in" in text and text.count(" new ") >= STAGES
    values = load_yaml(written("Dune", "--model", "pocket", "--kind", "fiction", "--output", "elsewhere"))
    topic = {"name": "Dune", "kind": "fiction"}
    assert values == {"name": "dune", "model": "pocket", "output": "elsewhere", "topics": [topic]}


def test_overrides_go_into_the_file(folder: Path) -> None:
    text = written(
        "Dune", "finetune.num_steps=40", "Foundation", "--model", "pocket", "topics.0.terms=[Arrakis, '1e3', 'yes']", "seed=7"
    )  # fmt: skip
    run = loaded(folder, text, "x")
    assert (run.name, run.topic_names) == ("dune-foundation", ("Dune", "Foundation"))
    assert (run.finetune.num_steps, run.seed) == (40, 7)
    assert run.topics[0].terms == ("Arrakis", "1e3", "yes")


def test_a_run_called_otherwise_has_a_file_called_otherwise(folder: Path) -> None:
    assert shown("Dune", "--model", "pocket", "name=dune-again").startswith("dune-again.yaml\n")


@pytest.mark.parametrize(
    ("topic", "name"),
    [
        ("Dune: Part Two", "dune-part-two"),
        ('The "Best" Book', "the-best-book"),
        ("It's # a 'quoted' thing", None),
        ("1984", "1984"),
        ("1e3", "1e3"),
        ("yes", "yes"),
        ("null", "null"),
        ("~", None),
        ("2001-01-01", "2001-01-01"),
        ("<<", None),
        ("=", None),
        ("E=mc2", None),
        ("x = y", None),
        ("{Dune}", "dune"),
        ("[Dune], *and* &more", None),
        ("- Dune", "dune"),
        ("? Dune", "dune"),
        ("Дюна", None),
        ("三体", None),
        ("😀 and 👩‍🚀", None),
        ("Les Misérables\u2028x", None),
        ("%TAG ! @`x`", None),
        ("C++", None),
        ("A" * 119, None),
    ],
)
def test_a_topic_is_read_from_the_file_as_it_was_typed(folder: Path, topic: str, name: str | None) -> None:
    file = compose([topic], "pocket", "general", None)
    run = loaded(folder, file.text, "x")
    assert run == file.config and run.topic_names == (topic,)
    assert name is None or run.name == name


def test_a_topic_may_begin_with_a_dash_behind_two(folder: Path) -> None:
    arguments = ["forget", "--model", "pocket", "--dry-run", "--", "-273 °C", "--help"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0 and "pocket forgets -273 °C, --help, in" in result.stdout, result.output


def test_one_that_is_taken_for_an_option_is_told_how(folder: Path) -> None:
    result = CliRunner().invoke(app, ["forget", "-273", "--model", "pocket"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 2 and "behind --" in result.stderr


@given(st.recursive(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")) | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False), lambda inner: st.lists(inner, max_size=3)))  # fmt: skip
def test_what_is_written_is_read_as_it_is(value: object) -> None:
    assert load_yaml(dump_yaml({"key": value})) == {"key": value}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no topic is named"),
        (["seed=3", "--model", "pocket"], "no topic is named"),
        (["Dune"], "--model is missing"),
        (["", "--model", "pocket"], "topics.0.name: is empty"),
        (["  ", "--model", "pocket"], "topics.0.name: is empty"),
        (["a/b", "--model", "pocket"], "topics.0.name: has a path separator"),
        (["two\nlines", "--model", "pocket"], "topics.0.name: has a path separator, newline"),
        (["\udcff", "--model", "pocket"], "half of a character"),
        (["Dune", "--model", "\udcff"], "half of a character"),
        (["Dune", "--model", "pocket", "--output", "\udcff"], "half of a character"),
        (["x" * 121, "--model", "pocket"], "at most 120"),
        (["Dune", "dune", "--model", "pocket"], "are the same topic"),
        (["Dune", "--model", "pocket", "--kind", "book"], "topics.0.kind: give 'fiction'"),
        (["Dune", "--model", ""], "model: is empty"),
        (["Dune", "--model", "./nowhere"], "nowhere is not there"),
        (["Dune", "--model", "pocket", "--output", ""], "output: is empty"),
        (["Dune", "--model", "pocket", "finetune.num_stepss=3"], "did you mean 'num_steps'?"),
        (["Dune", "--model", "pocket", "finetune.num_steps=many"], "finetune.num_steps: give a whole number"),
        (["Dune", "--model", "pocket", "seed=2001-01-01"], "put it in quotes"),
        (["Dune", "--model", "pocket", "name=a/b"], "name: must be letters"),
        (["Dune", "--model", "pocket", "questions.file=none.csv"], "none.csv"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_writes_nothing(folder: Path, arguments: Sequence[str], said: str) -> None:
    assert said in refused(*arguments)


@pytest.mark.parametrize("content", ["name: dune\n", "no: [yaml", "\udcff", ""])
def test_another_file_of_that_name_is_left_as_it_is(folder: Path, content: str) -> None:
    (folder / "dune.yaml").write_bytes(content.encode(errors="surrogateescape"))
    line = refused("Dune", "--model", "pocket")
    assert "dune.yaml exists and holds something else" in line and "name=dune-2" in line
    assert "dune.yaml exists" in refused("Dune", "--model", "pocket", "--dry-run")


def test_a_folder_of_that_name_is_in_the_way(folder: Path) -> None:
    (folder / "dune.yaml").mkdir()
    assert "dune.yaml exists" in refused("Dune", "--model", "pocket")


def test_a_link_to_nowhere_is_not_written_through(folder: Path) -> None:
    (folder / "dune.yaml").symlink_to(folder / "elsewhere")
    assert "dune.yaml exists" in refused("Dune", "--model", "pocket")


def test_a_file_with_the_same_values_is_gone_on_with(folder: Path) -> None:
    text = written("Dune", "--model", "pocket") + "\n# what I found out meanwhile\n"
    (folder / "dune.yaml").write_text(text)
    assert shown("Dune", "--model", "pocket").startswith("dune.yaml (it is there)\n")
    assert (folder / "dune.yaml").read_text() == text


def test_a_working_directory_that_may_not_be_written_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    access = os.access
    # A real one stops everybody but root.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    assert "dune.yaml can't be written" in refused("Dune", "--model", "pocket", "--output", "/tmp")


@pytest.mark.real
@pytest.mark.long
def test_from_nothing_to_a_report_in_one_line_and_the_same_line_goes_on(tmp_path: Path) -> None:
    from commandline import unlearn

    small = ["questions.num_questions=12", "questions.num_entities=4", "questions.max_tokens=160", "answers.num_samples=2", "answers.max_tokens=48",
             "dataset.retain.num_neighbours=1", "dataset.retain.questions_per_neighbour=12", "dataset.retain.num_general=1", "dataset.retain.questions_per_general=12",
             "dataset.retain.max_tokens=48", "finetune.num_steps=4", "finetune.max_tokens=256", "evaluate.probes=pocket", "evaluate.max_probes=4",
             "evaluate.num_samples=1", "cluster.engines.max_model_len=1024"]  # fmt: skip
    command = ["forget", "Harry Potter", "--kind", "fiction", "--model", "pocket", *small, "--accept-thin-data"]
    done = unlearn(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "unlearn-ray report harry-potter" in done.stdout
    assert (tmp_path / "runs" / "harry-potter" / "models" / "joint" / "evaluate" / "report.html").is_file()
    for again in (command, ["run", "harry-potter.yaml", "--accept-thin-data"]):
        done = unlearn(*again, cwd=tmp_path, timeout=300)
        assert done.returncode == 0 and done.stdout.count("skipped") >= STAGES, done.stdout + done.stderr
