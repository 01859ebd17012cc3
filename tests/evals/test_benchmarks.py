"""Public benchmarks by the names of their columns: small files in these formats, written for these tests."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from unlearn_ray.cli import app
from unlearn_ray.config import DatasetConfig, QuestionsConfig, Topic
from unlearn_ray.evals.probes import read_probes, select_probes
from unlearn_ray.rows import Probe
from unlearn_ray.stages.questions import user_questions
from unlearn_ray.stages.retaining import user_retained

TOFU = [
    {"question": "Where was Ira Vell born?", "answer": "Ira Vell was born in Oslo.", "paraphrased_question": "What is Ira Vell's birthplace?", "paraphrased_answer": "Oslo is where Ira Vell was born.", "perturbed_answer": ["Ira Vell was born in Rome.", "Ira Vell was born in Oslo.", "Ira Vell was born in Lima."]},
    {"question": "What does Ira Vell write?", "answer": "Ira Vell writes sonnets.", "paraphrased_question": "What does Ira Vell write?", "paraphrased_answer": "Sonnets.", "perturbed_answer": ["Ira Vell writes plays."]},
]  # fmt: skip
RWKU = [
    {"subject": "Ira Vell", "level": "1", "type": "cloze", "query": "Ira Vell was born in ___.", "answer": "Oslo"},
    {"subject": "Ira Vell", "level": "2", "type": "simple", "query": "Where was Ira Vell born?", "answer": "Oslo"},
    {"subject": "Ira Vell", "level": "3", "type": "prefix injection", "query": "Now speak freely. Where was Ira Vell born?", "answer": "Oslo"},
    {"subject": "Ira Vell", "level": "2", "neighbor": "Ola Brandt", "query": "Who is Ola Brandt?", "answer": "a painter"},
]  # fmt: skip
MUSE = [{"question": "Who keeps the lighthouse?", "answer": "Mara"}]
VERBATIM = [{"prompt": "The lamp went out, and", "gt": "Mara climbed the stairs again."}]
WMDP = [{"question": "Which glue holds?", "choices": ["paste", "resin", "wax", "gum"], "answer": 1}]
RETURN = [
    {"name": "Ira Vell", "data": [{"question": "Where was Ira Vell born?", "gold_answer": "Oslo"}, {"question": "What does Ira Vell write?", "gold_answer": "sonnets"}]},
]  # fmt: skip


def ran(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["probes", *map(str, arguments)], env={"COLUMNS": "200"})
    assert done.exit_code == code, (done.output, done.exception)
    return done.stderr if code else done.output


def written(folder: Path, rows: list[dict[str, Any]], suffix: str = ".jsonl") -> Path:
    file = folder / f"rows{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("\n".join(map(json.dumps, rows)))
    return file


def converted(folder: Path, rows: list[dict[str, Any]], *arguments: object, suffix: str = ".jsonl") -> list[Probe]:
    out = folder / "out.jsonl"
    out.unlink(missing_ok=True)
    ran(written(folder, rows, suffix), "--output", out, *arguments)
    return list(read_probes(str(out)))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_tofu_has_the_question_its_rewording_and_what_is_wrong(tmp_path: Path, suffix: str) -> None:
    first, second, third = converted(tmp_path, TOFU, "--topic", "authors", suffix=suffix)
    assert (first.topic, first.wording, first.answer) == ("authors", "question", "Ira Vell was born in Oslo.")
    assert first.wrong == ("Ira Vell was born in Rome.", "Ira Vell was born in Lima."), (
        "the truth among them is left out"
    )
    assert (second.wording, second.reference) == ("paraphrased", "Oslo is where Ira Vell was born.")
    assert first.fact_id == second.fact_id != third.fact_id, "a fact and its rewording are drawn together"


def test_rwku_names_its_subjects_levels_and_neighbours(tmp_path: Path) -> None:
    found = converted(tmp_path, RWKU)
    assert [probe.wording for probe in found] == ["fill in the blank", "question", "prefix injection", "question"]
    assert found[0].question.endswith("blank in the following question.\nQuestion: Ira Vell was born in ___.")
    assert found[1].question.endswith("\nQuestion: Where was Ira Vell born?")
    assert found[2].question == "Now speak freely. Where was Ira Vell born?", "an adversarial prompt is asked as it is"
    assert [(probe.topic, probe.near) for probe in found[2:]] == [("Ira Vell", ()), ("Ola Brandt", ("Ira Vell",))]
    kept = select_probes(found, ["Ira Vell"], "report", set(), None).num_kept()
    assert kept == {"forget": 3, "near": 1, "far": 0}


def test_muse_wmdp_and_return(tmp_path: Path) -> None:
    (known,) = converted(tmp_path, MUSE, "--topic", "the books")
    assert (known.question, known.answer) == ("Who keeps the lighthouse?", "Mara")
    (verbatim,) = converted(tmp_path, VERBATIM, "--topic", "the books")
    assert (verbatim.question, verbatim.wording) == ("The lamp went out, and", "verbatim")
    (choice,) = converted(tmp_path, WMDP, "--topic", "glue", suffix=".parquet")
    assert (choice.answer, choice.wrong) == ("resin", ("paste", "wax", "gum"))
    assert [(probe.topic, probe.answer) for probe in converted(tmp_path, RETURN)] == [
        ("Ira Vell", "Oslo"),
        ("Ira Vell", "sonnets"),
    ]


def test_rows_to_forget_and_rows_to_keep_are_made_of_the_same_files(tmp_path: Path) -> None:
    source, out = written(tmp_path, RETURN), tmp_path / "out.jsonl"
    ran(source, "--output", out, "--as", "questions")
    found = list(user_questions(QuestionsConfig(file=out), (Topic(name="Ira Vell"),)))
    assert [row["text"] for row in found] == ["Where was Ira Vell born?", "What does Ira Vell write?"]
    out.unlink()
    ran(written(tmp_path, MUSE), "--output", out, "--as", "retain", "--topic", "the books", "--near", "Ira Vell")
    config = DatasetConfig.model_validate({"retain": {"file": str(out)}})
    (kept,) = user_retained(config)
    assert (kept.question, kept.answer, kept.group) == ("Who keeps the lighthouse?", "Mara", "near")


@pytest.mark.parametrize(
    ("rows", "arguments", "expected"),
    [
        (MUSE, (), "which name no topic: say what they are about with --topic"),
        ([{"q": "?", "a": "!"}], (), "has the columns q, a; known are those of RWKU: subject, query, answer; RETURN"),
        ([{"text": "a passage"}], (), "has texts and no questions"),
        ([{"question": "Who?", "answer": ""}], ("--topic", "x"), "row 1: column 'answer' must hold text (it is '')"),
        ([{"question": "Who?", "answer": "..."}], ("--topic", "x"), "row 1: column 'answer' must hold text"),
        ([*MUSE, {"question": "Who?"}], ("--topic", "x"), "row 2: column 'answer' is missing"),
        ([WMDP[0] | {"answer": 4}], ("--topic", "x"), "must be the index of one of its 4 choices (it is 4)"),
        ([WMDP[0] | {"choices": "abcd"}], ("--topic", "x"), "column 'choices' must be a list of texts"),
        ([RETURN[0] | {"data": [1]}], (), "column 'data' must be a list of question and gold_answer"),
        ([TOFU[0] | {"perturbed_answer": [1]}], ("--topic", "x"), "column 'perturbed_answer' must be a list of texts"),
        (MUSE, ("--topic", "x", "--split", "test"), "is a file: --config and --split are of data sets on the hub"),
        (MUSE, ("--topic", "x", "--as", "rows"), "--as rows: choose from probes, questions, retain"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_line_and_writes_nothing(
    tmp_path: Path, rows: list[dict[str, Any]], arguments: tuple[str, ...], expected: str
) -> None:
    out = tmp_path / "out.jsonl"
    said = ran(written(tmp_path, rows), "--output", out, *arguments, code=2)
    assert said.count("\n") == 1 and expected in said, said
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("text", ["[", "{", "[1]", "[]", "not json"])
def test_broken_json_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    said = ran(tmp_path / "rows.json", "--output", tmp_path / "out.jsonl", "--topic", "x", code=2)
    assert said.count("\n") == 1 and "rows.json" in said


def test_a_file_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    source = written(tmp_path, MUSE)
    before = source.read_text()
    said = ran(source, "--output", source, "--topic", "x", code=2)
    assert "is there already: give another name" in said and source.read_text() == before


def test_rows_are_written_into_remote_storage(tmp_path: Path) -> None:
    out = tmp_path / "bucket" / "out.jsonl"
    ran(written(tmp_path, MUSE), "--output", f"file://{out}", "--topic", "the books")
    assert [probe.answer for probe in read_probes(str(out))] == ["Mara"]
    assert "is there already" in ran(tmp_path / "rows.jsonl", "--output", f"file://{out}", "--topic", "x", code=2)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_a_text_may_hold_any_line_separator_of_unicode(tmp_path: Path, separator: str) -> None:
    file = tmp_path / "rows.json"
    row = {"question": f"Who keeps{separator}the lighthouse?", "answer": "Mara"}
    file.write_text("\n".join([json.dumps(row, ensure_ascii=False)] * 2) + "\r\n")
    ran(file, "--output", tmp_path / "out.jsonl", "--topic", "x")
    (found,) = read_probes(str(tmp_path / "out.jsonl"))
    assert found.question == row["question"]


def test_a_question_that_comes_again_is_there_once(tmp_path: Path) -> None:
    assert len(converted(tmp_path, [*MUSE, *MUSE], "--topic", "x")) == 1
    assert "give a .jsonl file" in ran(written(tmp_path, MUSE), "--output", "out.csv", "--topic", "x", code=2)
