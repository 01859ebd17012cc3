"""Probe files: every mistake is named; what was trained on is never asked."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unlearn_ray.config import EvaluateConfig, Topic
from unlearn_ray.errors import InputError
from unlearn_ray.evals.probes import (
    check_topics,
    near_misses,
    place,
    read_probes,
    select_probes,
    trained_questions,
    with_topics,
    wrong_references,
)
from unlearn_ray.rows import Probe

GOOD = {"topic": "Harry Potter", "question": "Which owl is Harry's?", "answer": "Hedwig"}


def probe(
    index: int, topic: str = "T", wording: str = "template", near: tuple[str, ...] = (), split: str = "report"
) -> Probe:
    return Probe(
        topic,
        f"question {index} of {topic} in {wording}?",
        "answer",
        fact=f"{topic}/{index}",
        wording=wording,
        near=near,
        split=split,
    )


def write(path: Path, *rows: object) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def test_jsonl_and_parquet_give_the_same_probes(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        GOOD | {"aliases": ["owl"], "near": ["x"]},
        GOOD | {"question": "Q2?", "wrong": ["Errol"], "fact": "f"},
    ]
    jsonl = list(read_probes(write(tmp_path / "probes.jsonl", rows[0], "", rows[1])))
    pq.write_table(
        pa.Table.from_pylist([{"fact": None, "wrong": None} | rows[0], rows[1]]), tmp_path / "probes.parquet"
    )
    assert list(read_probes(str(tmp_path / "probes.parquet"))) == jsonl
    assert jsonl[0].aliases == ("owl",) and jsonl[0].near == ("x",) and jsonl[1].wrong == ("Errol",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"topic": "T", "question": "Q?"}, r"line 2: answer is missing or empty"),
        (GOOD | {"question": " "}, r"line 2: question is missing or empty"),
        (GOOD | {"answer": 7}, r"line 2: answer must be a text, not int"),
        (GOOD | {"aliasses": []}, r"line 2: unknown key 'aliasses': did you mean 'aliases'\?"),
        (GOOD | {"aliases": "Hedwig"}, r"line 2: aliases must be a list of texts"),
        (GOOD | {"split": "test"}, r"line 2: split must be tune or report"),
        ("[1]", r"line 2: a row must be an object"),
        ("{", r"line 2: is not valid JSON"),
    ],
)
def test_a_bad_row_names_file_line_and_key(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(InputError, match=rf"probes\.jsonl, {message}"):
        list(read_probes(write(tmp_path / "probes.jsonl", GOOD, row)))


def test_a_file_that_cannot_be_read_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not there"):
        list(read_probes(str(tmp_path / "none.jsonl")))
    with pytest.raises(InputError, match=r"give a \.jsonl or \.parquet file"):
        list(read_probes(write(tmp_path / "probes.csv", "a,b")))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(InputError, match="can't be read"):
        list(read_probes(str(tmp_path / "bad.parquet")))
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(GOOD).encode() + b'\n{"topic": "\xe9"}')
    with pytest.raises(InputError, match="is not UTF-8"):
        list(read_probes(str(tmp_path / "latin.jsonl")))


def test_a_topic_without_probes_is_named_before_anything_runs() -> None:
    with pytest.raises(InputError, match=r"no probe about 'Star Wars' \(its topics: 'T'\)"):
        check_topics([probe(1)], ["T", "Star Wars"], "report", "probes.jsonl")


def test_a_topic_without_probes_of_the_split_is_named_before_anything_runs() -> None:
    probes = [probe(1), probe(1, "S"), probe(2, split="tune")]
    check_topics(probes, ["T"], "tune", "probes.jsonl")
    with pytest.raises(InputError, match=r"no probe of split 'tune' about 'S', only of 'report': .*evaluate\.split"):
        check_topics(probes, ["T", "S"], "tune", "probes.jsonl")


def test_a_huge_value_is_cut_in_the_message(tmp_path: Path) -> None:
    for row in (GOOD | {"split": "x" * 5_000}, GOOD | {"x" * 5_000: 1}):
        with pytest.raises(InputError) as caught:
            list(read_probes(write(tmp_path / "probes.jsonl", row)))
        assert len(str(caught.value)) < 250 + len(str(tmp_path))


POTTER = (Topic(name="Harry Potter", aliases=("HP",)), Topic(name="Дюна 3"))


def test_a_topic_of_a_probe_file_may_be_spelt_in_another_way() -> None:
    written = ["harry potter", "harry-potter", "Hp", "HARRY POTTER", "дюна 3", "Star Wars"]
    probes = [
        Probe(topic=name, question=f"Q{i}?", answer="A", near=("harry potter",)) for i, name in enumerate(written)
    ]
    found = list(with_topics(probes, POTTER))
    assert [p.topic for p in found] == ["Harry Potter"] * 4 + ["Дюна 3", "Star Wars"]
    assert {p.near for p in found} == {("Harry Potter",)}
    assert [p.group_in(("Harry Potter", "Дюна 3")) for p in found] == ["forget"] * 5 + ["near"]


def test_a_misspelt_topic_is_told_and_another_one_is_not() -> None:
    probes = [Probe(topic=name, question="Q?", answer="A") for name in ("Hary Potter", "Дюна 2", "Star Wars", "HP")]
    (note,) = near_misses(probes, POTTER)
    assert "'Hary Potter'" in note and "'Harry Potter'" in note


def test_a_probe_that_was_trained_on_is_left_out_with_its_reason() -> None:
    probes = [probe(1), probe(2), probe(3)]
    trained = trained_questions(probes, [{"question": "QUESTION 2 of T, in template"}, {"question": "something else"}])
    selection = select_probes(probes, ["T"], "report", trained, None)
    assert [placed.probe for placed in selection.kept] == [probes[0], probes[2]]
    assert [(left.question, left.drop) for left in selection.excluded] == [(probes[1].question, "trained_on")]
    assert selection.num_excluded() == {"trained_on": 1}


def test_duplicates_and_the_other_split_are_not_asked() -> None:
    probes = [probe(1), probe(1), probe(2, split="tune")]
    selection = select_probes(probes, ["T"], "report", set(), None)
    assert selection.num_kept() == {"forget": 1, "near": 0, "far": 0}
    assert selection.num_excluded() == {"duplicate": 1}


def test_a_cap_keeps_the_same_facts_in_each_wording() -> None:
    probes = [probe(i, wording=wording) for wording in ("template", "unseen") for i in range(30)]
    selection = select_probes(probes, ["T"], "report", set(), 7)
    facts = {w: {p.probe.fact for p in selection.kept if p.probe.wording == w} for w in ("template", "unseen")}
    assert len(facts["template"]) == 7 and facts["template"] == facts["unseen"]
    assert selection.num_excluded() == {"capped": 46}
    again = select_probes(reversed(probes), ["T"], "report", set(), 7)
    assert {p.probe for p in again.kept} == {p.probe for p in selection.kept}


def test_each_probe_is_served_by_the_topic_it_belongs_to() -> None:
    topics = ["A", "B", "C"]
    assert place(probe(1, "B"), topics).served_topic == "B"
    near = [place(probe(i, "N", near=("A", "C")), topics) for i in range(60)]
    assert {placed.group for placed in near} == {"near"} and {placed.served_topic for placed in near} == {"A", "C"}
    far = [place(probe(i, "F"), topics) for i in range(60)]
    assert {placed.group for placed in far} == {"far"} and {placed.served_topic for placed in far} == {"A", "B", "C"}


def test_wrong_answers_take_the_form_of_the_reference() -> None:
    asked = Probe("T", "Q?", "Hedwig", reference="The owl is Hedwig.", wrong=("Errol", "a rat"))
    assert wrong_references(asked) == ["The owl is Errol.", "The owl is a rat."]
    assert wrong_references(Probe("T", "Q?", "Hedwig", wrong=("Errol",))) == ["Errol"]
    assert wrong_references(Probe("T", "Q?", "Hedwig", reference="Nothing of it.", wrong=("It is Errol.",))) == [
        "It is Errol."
    ]


def test_a_wrong_answer_stands_where_the_true_one_does() -> None:
    asked = Probe("T", "Q?", "Ron", reference="Ron is the patron of it.", wrong=("Neville", "Neville"))
    assert wrong_references(asked) == ["Neville is the patron of it."], "whole words, and each once"
    asked = Probe("T", "Q?", "the owl", reference="The owl it is.", wrong=("a rat", r"the \1 cat"))
    assert wrong_references(asked) == ["A rat it is.", r"The \1 cat it is."]
    asked = Probe("T", "Q?", "海德薇", reference="它叫海德薇。", wrong=("埃罗尔",))
    assert wrong_references(asked) == ["它叫埃罗尔。"]


@pytest.mark.parametrize("wrong", ["Hedwig", "hedwig!", "the snowy owl", "The owl is Hedwig."])
def test_a_wrong_answer_that_is_true_is_refused(tmp_path: Path, wrong: str) -> None:
    row = GOOD | {"aliases": ["The Snowy Owl"], "reference": "The owl is Hedwig.", "wrong": ["Errol", wrong]}
    with pytest.raises(InputError, match=r"line 1: wrong has the true answer, .*: leave it out"):
        list(read_probes(write(tmp_path / "probes.jsonl", row)))


def test_the_shipped_probes_can_be_read() -> None:
    path = EvaluateConfig(probes="pocket").probes_path
    assert path is not None
    probes = list(read_probes(path))
    selection = select_probes(probes, ["Harry Potter"], "report", set(), None)
    assert all(num >= 30 for num in selection.num_kept().values()) and not selection.excluded
