"""Whatever a user's file holds, it is rows or one line that names file and place."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unlearn_ray import config as configs
from unlearn_ray.config import DatasetConfig, QuestionsConfig, RetainRows, Topic
from unlearn_ray.errors import ConfigError, InputError, UnlearnError
from unlearn_ray.evals.probes import read_probes
from unlearn_ray.reading import MAX_LINE, read_rows, read_user_rows
from unlearn_ray.serving.keys import read_keys
from unlearn_ray.stages.questions import user_questions
from unlearn_ray.stages.retaining import user_retained
from unlearn_ray.synth.prompts import load_prompts

GOOD = b'{"topic": "T", "question": "Why?", "answer": "So."}\n'
READERS: dict[str, Callable[[Path], Any]] = {
    "questions": lambda path: list(user_questions(QuestionsConfig(file=path), [Topic(name="T")])),
    "retain": lambda path: list(user_retained(DatasetConfig(retain=RetainRows(file=path)))),
    "probes": lambda path: list(read_probes(str(path))),
}


def line_of(path: Path, read: Callable[[Path], Any]) -> str:
    """What the reader says of a bad file: one line, with the file's name."""
    with pytest.raises(UnlearnError) as caught:
        read(path)
    message = str(caught.value)
    assert path.name in message and "\n" not in message
    message.encode()  # can be printed
    return message


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("second", "message"),
    [
        (rb'{"topic": "T", "question": "Smile \ud83d?", "answer": "So."}', r"line 2: column 'question' has half of a character, \ud83d"),
        (rb'{"topic": "T", "question": "A \u0000?", "answer": "So."}', "line 2: column 'question' has a NUL"),
        (b'{"topic": "T", "question": "A \x00?", "answer": "So."}', "line 2: has a NUL"),
        (b'{"topic": "T", "question": "Caf\xe9?", "answer": "So."}', "line 2: is not UTF-8 text"),
        (b'{"topic": "T", "question": "\xed\xa0\xbd?", "answer": "So."}', "line 2: is not UTF-8 text"),
        (b'{"topic": "T", "question": NaN, "answer": "So."}', "line 2: is not valid JSON (NaN is not JSON"),
        (b'{"topic": "T", "question": ' + b"[" * 100_000 + b"}", "line 2: is not valid JSON"),
        (b'{"topic": "T", "question": ' + b"9" * 5_000 + b"}", "line 2: is not valid JSON"),
        (b'["T"]', "line 2: a row must be an object"),
        (b'{"topic": "T", "question": "A?", "question": "B?", "answer": "So."}', "line 2: key 'question' is given twice"),
        (b'{"topic": "T", "question": "A?", "answer": "So.", "near": {"a": 1, "a": 2}}', "line 2: key 'a' is given twice"),
        ('{"topic": "T", "question": "?!\u2026 \u200b", "answer": "So."}'.encode(), "line 2: "),
        ('{"topic": "T", "question": "\u200b\u2060\ufeff", "answer": "So."}'.encode(), "line 2: "),
        ('{"topic": "T", "question": "\u3164\u2800", "answer": "So."}'.encode(), "line 2: "),
        (b'{"topic": "T"', "line 2: is not valid JSON"),
        (b'{"topic": "T", "question": "' + b"x" * MAX_LINE + b'"}', "line 2: is longer than"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_bad_line_is_named(tmp_path: Path, reader: str, second: bytes, message: str, end: bytes) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(GOOD.rstrip() + end + second + end)
    assert message in line_of(path, READERS[reader])


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD.decode().encode("utf-16"), "UTF-16"),
        (GOOD.decode().encode("utf-16-le"), "UTF-16"),
        (GOOD.decode().encode("utf-32"), "is UTF-32"),
        (b"\0\0\xfe\xff" + GOOD.decode().encode("utf-32-be"), "is UTF-32"),
        (b"", "has no row"),
        (b"\n \n", "has no row"),
    ],
)
def test_a_file_that_holds_no_rows_is_named(tmp_path: Path, reader: str, content: bytes, message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    assert message in line_of(path, READERS[reader])


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_of_ours_is_named(tmp_path: Path, reader: str) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    assert "is not a file" in line_of(tmp_path / "folder.jsonl", READERS[reader])
    assert "is not there" in line_of(tmp_path / "none.jsonl", READERS[reader])
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    assert "can't be used" in line_of(tmp_path / "rows.xlsx", READERS[reader])
    locked = tmp_path / "locked.jsonl"
    locked.write_bytes(GOOD)
    locked.chmod(0)
    if not os.access(locked, os.R_OK):  # root reads everything
        assert "can't be read" in line_of(locked, READERS[reader])


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_byte_order_marks_and_blank_lines_are_no_fault(tmp_path: Path, mark: bytes) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(mark + b"\n" + GOOD)
    assert [line for line, _ in read_rows(path)] == [2]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"topic": ["T"], "question": [3], "answer": ["So."]}, "must"),
        ({"topic": ["T"], "question": [b"Why?"], "answer": ["So."]}, "must"),
        ({"topic": ["T"], "question": [["Why?"]], "answer": ["So."]}, "must"),
        ({"topic": ["T"], "question": ["A\0?"], "answer": ["So."]}, "line 1: column 'question' has a NUL"),
        ({"topic": pa.array([], pa.string()), "question": pa.array([], pa.string())}, "has no row"),
    ],
)
@pytest.mark.parametrize("reader", READERS)
def test_a_parquet_file_of_other_types_is_named(tmp_path: Path, table: dict, message: str, reader: str) -> None:
    path = tmp_path / "mine.parquet"
    pq.write_table(pa.table(table), path)
    assert message in line_of(path, READERS[reader])


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    for content in (b"", b"PAR1", b"PAR1" + b"x" * 40 + b"PAR1"):
        (tmp_path / "mine.parquet").write_bytes(content)
        assert "can't be read" in line_of(tmp_path / "mine.parquet", lambda path: list(read_rows(path)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topic,question,question\nT,a,b\n", "line 1: column 'question' is given twice"),
        ("topic,text\nT,a\n", "line 1: column 'question' is missing"),
        ('topic,question\nT,"a\nb"\nT,\n', "line 4: column 'question' must hold text"),
        ("topic,question\n\nT,Who, where?\n", "line 3: has 3 cells for 2 columns"),
        ('topic,question\nT,"a\nb\nc\n', "line 2: is not valid CSV"),
        ('topic,question\nT,"' + ("x" * 2**20 + "\n") * 17 + '"\n', "line 2: is not valid CSV (field larger"),
        ("topic,question\nT," + "x" * MAX_LINE + "\n", "line 2: is longer than"),
        ("", "has no row"),
        ("topic,question\n", "has no row"),
    ],
    ids=range(9),
)
def test_a_bad_csv_record_is_named_by_its_first_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text, encoding="utf-8")
    assert message in line_of(path, lambda path: list(read_user_rows(path, ("topic", "question"))))


def test_a_csv_cell_may_be_as_long_as_a_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("topic,question\nT," + "x" * 200_000 + "\n")
    ((line, row),) = read_user_rows(path, ("topic", "question"))
    assert (line, len(row["question"])) == (2, 200_000)


@pytest.mark.parametrize("text", ["+", "\u20ac", "7", "\U0001f989", "\u6d77", "-1"])
def test_a_sign_or_a_digit_is_an_answer(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"topic": "T", "question": "Which?", "answer": text}))
    for reader in ("retain", "probes"):
        assert [row.answer for row in READERS[reader](path)] == [text]


def test_a_parquet_column_that_is_not_used_may_hold_anything(tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    late = pa.array([2**50], pa.timestamp("s"))  # beyond the last year that Python has
    pq.write_table(pa.table({"topic": ["T"], "question": ["Why?"], "answer": ["So."], "when": late}), path)
    assert len(READERS["questions"](path)) == len(READERS["retain"](path)) == 1
    assert "column 'when' can't be read" in line_of(path, READERS["probes"])
    pq.write_table(pa.table({"topic": ["T"], "when": late}), path)
    assert "column 'question' is missing" in line_of(path, READERS["questions"])


def test_a_huge_topic_is_cut_in_the_message(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"topic": "x" * 5_000, "question": "Why?", "group": "y" * 5_000, "answer": "So."}))
    for reader in ("questions", "retain"):
        assert len(line_of(path, READERS[reader])) < 200 + len(str(path))


def test_a_csv_record_with_line_breaks_counts_from_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes('\ufefftopic,question\r\n\r\nT,"a\r\nb"\r\nT,c\r\n'.encode())
    found = [(line, row["question"]) for line, row in read_user_rows(path, ("topic", "question"))]
    assert found == [(3, "a\r\nb"), (5, "c")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (rb'name: "a\ud83d"', "line 1"),
        (rb'topics: [{name: "\0"}]', "line 1"),
        (b"name: x\ntopics: [{name: caf\xe9}]\n", "line 2: is not UTF-8"),
        ("name: x".encode("utf-16"), "UTF-16"),
        (b"name: x\ntopics: " + b"[" * 50_000, "nested too deep"),
        (b"name: 2024-99-99\n", "can't be read"),
        (b"seed: " + b"9" * 5_000, "can't be read"),
        (b"name: \x00", "NUL"),
        (b"name: [", "not valid YAML"),
        (b"", "must hold keys"),
    ],
)
def test_a_bad_yaml_file_is_one_line_with_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert message in line_of(path, configs.load)
    assert message in line_of(path, load_prompts)


@pytest.mark.parametrize(
    "override", ["name=a\udcff", 'name="\\ud83d"', "na\udcffme=x", "name=\0", "seed=" + "[" * 50_000]
)
def test_a_broken_override_is_one_line(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configs.apply_override({}, override)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


def test_a_key_file_of_another_encoding_is_named_and_odd_bytes_of_the_environment_are_a_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_bytes(b"0123456789abcdef\n\xff" + b"x" * 20)
    assert "line 2: is not UTF-8" in line_of(path, lambda path: read_keys(str(path)))
    assert read_keys(None, {"UNLEARN_RAY_API_KEYS": "0123456789abcdef\udcff"})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.binary(max_size=60), st.sampled_from([".jsonl", ".csv", ".parquet"]))
def test_no_bytes_are_more_than_rows_or_one_line(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(content)
    try:
        for _, row in read_rows(path):
            json.dumps(row, default=str).encode()
    except InputError as error:
        assert "\n" not in str(error)
