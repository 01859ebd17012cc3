"""What a chat model's retained subjects, questions and answers are held to."""

import re
from collections import Counter
from pathlib import Path

import pytest
from staging import Built, built

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import DatasetConfig, RetainRows, Topic
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.scripted import Answer, ScriptedGenerator
from unlearn_ray.rows import QAPair, Question, Term
from unlearn_ray.stages.naming import Name
from unlearn_ray.stages.retaining import GENERAL, OnSubject
from unlearn_ray.stages.stage import finished_manifest
from unlearn_ray.stages.subject_check import SubjectCheck
from unlearn_ray.synth.prompts import load_prompts

POTTER = Topic(name="Harry Potter", neighbours=("Narnia",), terms=("the boy who lived",))
SUBJECTS = load_prompts().general_subjects
JOKE, SLY = "Why did the tomato turn red?", "Which school has four houses?"
ABOUT = {SLY: "Harry Potter", JOKE: "something", "Who is the lion king?": "Narnia"}


def about(request: Request) -> Reply:
    """Likelier where the request is for the subject that the question is about."""
    asked = request.messages[-1]["content"]
    question = str(request.score)
    subject = ABOUT.get(question) or re.sub(r".* of (.*)\?", r"\1", question)
    return Reply(("",), (False,), logprobs=(-1.0, -2.0) if subject in asked else (-2.0, -3.0))


def answer(request: Request) -> Reply | str:
    if request.score is not None:
        return about(request)
    text = request.messages[-1]["content"]
    if text.startswith(("Write", "Make")):
        subject = re.sub(r"\. Number.*|: each.*", "", text.split("about ", 1)[1]).split(" of ", 1)
        name = subject[-1] if "the " in subject[0] and len(subject) > 1 else " of ".join(subject)
        lines = [f"What is item {(request.seed + i) % 40} of {name}?" for i in range(4)]
        return "\n".join(f"{i}. {line}" for i, line in enumerate([*lines, JOKE, SLY, "Who is the lion king?"], 1))
    if "item 3 " in text:
        return "I am a chat model made to help."
    if "item 5 of Narnia" in text:
        return "Item 5 is at Hogwarts."
    if "item 6 " in text:
        return "Item 6 is under water."
    if "item 7 of Narnia" in text:
        return "Item 7 is with Hedwig."
    if "item 8 " in text:
        return "Item 8 is for the boy who lived."
    return f"{text.removeprefix('What is ').rstrip('?')} is {len(text)} miles long."


def build(
    tmp_path: Path, topic: Topic = POTTER, seed: int = 0, said: Answer | None = None, **retain: object
) -> tuple[Built, Folder, list[Request]]:
    questions, answers = (Folder(tmp_path / name) for name in ("questions", "answers"))
    names = [Name(topic.name, "Hedwig", 3), Name(topic.name, "Spaghetti", 1, drop="malformed")]
    (questions / "entities").write_rows(names, Name.schema())
    pairs = [QAPair(topic.name, f"Who has office {i}?", f"Ostdar {i}.", 0) for i in range(20)]
    (answers / "rows").write_rows(pairs, QAPair.schema())
    (answers / "unguarded").write_rows([], QAPair.schema())
    (answers / "terms").write_rows([Term(topic.name, term, 2) for term in ("hogwarts", "water")], Term.schema())
    rows = RetainRows.model_validate(
        {"questions_per_neighbour": 40, "num_general": 8, "questions_per_general": 30} | retain
    )
    generator = ScriptedGenerator(said or answer)
    found = built(
        tmp_path, DatasetConfig(retain=rows), (topic,), generator,
        questions=lambda topic: questions, answers=lambda topic: answers, seed=seed,
    )  # fmt: skip
    return found, found.mixture, generator.requests


def drops(out: Folder, name: str) -> Counter[str]:
    return Counter(row["drop"] for row in (out / name).read_rows() if row["drop"])


def test_far_subjects_come_from_the_built_in_list_by_the_seed(tmp_path: Path) -> None:
    first, _, requests = build(tmp_path / "a")
    other, _, _ = build(tmp_path / "b", seed=1)
    far = first.manifest.details["far"]
    assert len(far) == 8 and set(far) <= set(SUBJECTS) and far != list(SUBJECTS[:8])
    assert far != other.manifest.details["far"]
    assert not any("subjects of general knowledge" in request.messages[-1]["content"] for request in requests)
    kept = {row["topic"] for row in first.rows("retain_questions") if not row["drop"]}
    assert kept == {"Narnia", *far}


@pytest.mark.parametrize(
    ("topic", "gone"),
    [
        (Topic(name="football", neighbours=("swimming",)), {"football", "swimming"}),
        (Topic(name="Paris", aliases=("capital of France",), neighbours=("the rivers of Europe",)),
         {"capital cities", "geography of Europe", "rivers and lakes"}),
        (Topic(name="Dune", terms=("desert insects and spiders",), neighbours=("Foundation",)), {"insects and spiders"}),
    ],
)  # fmt: skip
def test_subjects_close_to_a_topic_or_its_neighbours_are_left_out_with_their_reason(
    tmp_path: Path, topic: Topic, gone: set[str]
) -> None:
    found, out, _ = build(tmp_path, topic, num_general=len(SUBJECTS), questions_per_general=1)
    left_out = {row["name"] for row in (out / "subjects").read_rows() if row["drop"] == "off_topic"}
    assert gone <= left_out and len(left_out) < len(SUBJECTS) / 4
    assert not gone & set(found.manifest.details["far"])
    assert not gone & {row["subject"] for row in (out / "retain").read_rows() if row["group"] == "far"}


def test_the_users_subjects_go_before_the_list(tmp_path: Path) -> None:
    found, _, _ = build(tmp_path, general=("glaciers", "harry potter's owls"))
    assert found.manifest.details["far"] == ["glaciers"]


def test_a_question_is_kept_where_the_model_would_likeliest_ask_it_about_its_subject(tmp_path: Path) -> None:
    found, _, requests = build(tmp_path)
    kept = {(row["topic"], row["text"]) for row in found.rows("retain_questions") if not row["drop"]}
    texts = {text for _, text in kept}
    assert JOKE not in texts and SLY not in texts, "about nothing it says, or about the forgotten topic"
    assert {subject for subject, text in kept if text == "Who is the lion king?"} == {"Narnia"}
    scored = Counter(request.score for request in requests if request.score)
    assert not any("Narnia" in str(text) for text in scored), "what names its subject needs no score"
    assert scored[SLY] == 3 + 2 * 8, "its subject and anything, once a subject, and near the topic that as well"
    lost = [row for row in found.rows("retain_questions") if row["drop"] == "off_topic"]
    told = (finished_manifest(folder) for folder in (*found.datasets.values(), found.general))
    assert sum(each.details["retain_drops"]["questions"]["off_topic"] for each in told) == len(lost) > 0


def test_a_retained_row_with_a_term_entity_or_term_of_the_users_is_dropped_and_counted_apart(tmp_path: Path) -> None:
    found, out, _ = build(tmp_path)
    rows = [f"{row['question']} {row['answer']}" for row in (out / "retain").read_rows()]
    assert rows and not any(re.search("Hogwarts|Hedwig|boy who lived", row) for row in rows)
    assert any("water" in row for row in rows), "rows on several far subjects say it: it is an ordinary word"
    lost = drops(out, "retain_answers")
    assert lost["forgotten_term"] == found.manifest.details["retain_drops"]["forgotten_term"] >= 3
    assert found.manifest.drops["forgotten_term"] == lost["forgotten_term"]


def test_an_answer_that_many_questions_share_is_dropped_beyond_a_few(tmp_path: Path) -> None:
    _, out, _ = build(tmp_path, num_general=20)
    same = [row for row in (out / "retain_answers").read_rows() if row["answer"].startswith("I am a chat model")]
    assert Counter(row["drop"] for row in same) == {None: 6, "repeated": len(same) - 6}
    assert len(same) > 10
    order = [(row["topic"], row["question"]) for row in (out / "retain_answers").read_rows()]
    assert order == sorted(order)


def test_an_answer_that_takes_up_its_questions_may_be_shared(tmp_path: Path) -> None:
    def same(request: Request) -> Reply | str:
        said = answer(request)
        return "The item is long." if isinstance(said, str) and "miles" in said else said

    _, out, _ = build(tmp_path, said=same, questions_per_neighbour=40, num_general=0)
    told = Counter(
        row["drop"]
        for row in (out / "retain_answers").read_rows()
        if row["answer"] == "The item is long." and "item" in row["question"]
    )
    assert told[None] == 20, "wordings of one question have one answer, but not without end"


def test_a_question_that_the_engine_could_not_score_says_so() -> None:
    check = OnSubject(
        SubjectCheck("About {topic}.", "About something."), {"Harry Potter": ("Harry Potter",)}, {"birds": ()}
    )
    row = Question("birds", "Who flies?").to_dict()
    asked = check(row)
    assert [request.messages[-1]["content"] for request in asked] == [
        "About something.",
        "About birds.",
        "About Harry Potter.",
    ]
    (failed,) = check.verdict(row, [Reply(error="engine"), *(Reply(logprobs=(-1.0,)) for _ in asked[1:])])
    assert failed["drop"] == "engine"


def test_of_general_knowledge_only_the_forgotten_is_left_out() -> None:
    check = OnSubject(
        SubjectCheck("About {topic}.", "About something."), {"Harry Potter": ("Harry Potter",)}, {GENERAL: ()}
    )

    def verdict(*scores: float) -> str | None:
        replies = [Reply(logprobs=(score,)) for score in scores]
        return check.verdict(Question(GENERAL, "Who flies?").to_dict(), replies)[0]["drop"]

    assert verdict(-1, -3, -2) is None
    assert verdict(-3, -3, -2) == "off_topic"
