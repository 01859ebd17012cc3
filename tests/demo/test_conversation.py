"""What each model is told of the conversation, what counts as a leak in it, and its export."""

import json

from asking import Reply
from client import Model
from conversation import Turn, as_document, as_json, meter, relevant_runs

BASE = Model("base", "base", "base", ())
POTTER = Model("harry-potter", "harry-potter@3", "unlearned", ("Harry Potter",))
MEXICO = Model("mexico", "mexico@1", "unlearned", ("Mexico",))
TERMS = ["Hedwig", "Hogwarts"]


def turn(question: str, said: tuple[str, ...], *answers: tuple[str, str]) -> Turn:
    return Turn(question, (*said, question), [Reply(model, text, "done") for model, text in answers])


TURNS = [
    turn("Who is the owl?", (), ("base", "It is Hedwig."), ("harry-potter", "It is Fennimore.")),
    turn("Is it Hedwig?", ("Who is the owl?",), ("base", "Hedwig, of Hogwarts."), ("base", "Yes, Hedwig.")),
]


def test_a_model_is_told_of_its_own_answers_only() -> None:
    assert [m["content"] for t in TURNS for m in t.messages(1, "harry-potter")] == [
        "Who is the owl?",
        "It is Fennimore.",
    ]
    assert [m["role"] for t in TURNS for m in t.messages(0, "base")] == ["user", "assistant"] * 2
    assert TURNS[0].messages(2, "base") == []


def test_the_meter_counts_answers_with_a_leak_that_the_reader_did_not_say_first() -> None:
    assert meter(TURNS, 0, "base", TERMS, "") == (2, 2)
    assert meter(TURNS, 1, "harry-potter", TERMS, "") == (0, 1)
    assert meter(TURNS, 1, "base", TERMS, "") == (0, 1), "the reader had said Hedwig"
    assert meter(TURNS, 0, "base", TERMS, "Hogwarts") == (1, 2), "a topic's own name is no leak"


def test_a_running_answer_is_not_counted_yet() -> None:
    running = Turn("Who?", ("Who?",), [Reply("base", "It is Hed", "streaming")])
    assert meter([running], 0, "base", TERMS, "") == (0, 0)


def test_knowledge_is_that_of_the_chosen_models() -> None:
    guarded = Model("mexico:guarded", "base", "guarded", ("Mexico",))
    assert relevant_runs([BASE, MEXICO], [POTTER, MEXICO]) == [MEXICO]
    assert relevant_runs([POTTER, guarded], [POTTER, MEXICO]) == [POTTER, MEXICO]
    assert relevant_runs([BASE, BASE], [POTTER, MEXICO]) == [POTTER]
    assert relevant_runs([BASE, BASE], []) == []


def test_an_export_holds_every_answer() -> None:
    exported = json.loads(as_json(TURNS, {"temperature": 0.0}))
    assert exported["sampling"] == {"temperature": 0.0}
    assert [answer["answer"] for answer in exported["turns"][0]["answers"]] == ["It is Hedwig.", "It is Fennimore."]
    markdown = as_document([*TURNS, Turn("Q", ("Q",), [Reply("base", "half", "stopped", "Stopped.")])])
    assert "## Who is the owl?" in markdown and "> It is Fennimore." in markdown and "*(stopped: Stopped.)*" in markdown
