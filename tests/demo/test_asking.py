"""Answers that come at the same time, and a service that fails in every way that it can."""

import time

import pytest
from asking import Answers, Question
from client import Cut, Down, Full, Refused, Sampling, Service
from scripted_service import FACTS, Failure, ScriptedService, answer

OWL = FACTS[0][1]


def question(model: str = "base", text: str = OWL) -> Question:
    return Question(model, [{"role": "user", "content": text}], Sampling())


def watched(answers: Answers, seconds: float = 20.0) -> Answers:
    end = time.monotonic() + seconds
    while answers.is_running and time.monotonic() < end:
        answers.watch(0.05)
    return answers


def test_answers_stream_at_the_same_time(scripted: ScriptedService) -> None:
    scripted.seconds = 0.1
    answers = Answers(
        Service(scripted.url), [question("base"), question("harry-potter"), question("harry-potter:guarded")]
    )
    num_growing = 0
    while answers.is_running:
        before = [reply.text for reply in answers.replies]
        time.sleep(0.25)
        answers.watch(0.1)
        grown = [reply.text != text for reply, text in zip(answers.replies, before, strict=True)]
        num_growing = max(num_growing, sum(grown))
    assert num_growing == 3
    assert [reply.text for reply in answers.replies] == [answer(reply.model, OWL) for reply in answers.replies]


@pytest.mark.parametrize(
    ("failure", "kind", "says"),
    [
        ("full", Full, "full"),
        ("down", Down, "being started again"),
        ("cut", Cut, "the stream broke"),
        ("error", Cut, "the engine was lost"),
        ("endless", Cut, "ended early"),
    ],
)
def test_every_failure_is_told_apart_and_asked_again(
    scripted: ScriptedService, failure: Failure, kind: type[Exception], says: str
) -> None:
    scripted.failures.append(failure)
    with pytest.raises(kind, match=says):
        list(Service(scripted.url).stream("base", [{"role": "user", "content": OWL}], Sampling()))
    scripted.failures.append(failure)
    answers, notes = Answers(Service(scripted.url), [question()]), set()
    while answers.is_running:
        answers.watch(0.05)
        notes.add(answers.replies[0].note)
    assert any(says in note and "Trying again" in note for note in notes)
    assert answers.replies[0].state == "done" and answers.replies[0].text == answer("base", OWL)


def test_a_full_service_is_asked_again_when_it_says(scripted: ScriptedService) -> None:
    scripted.failures.append("full")
    started = time.monotonic()
    watched(Answers(Service(scripted.url), [question()]))
    assert time.monotonic() - started >= 1.0


def test_an_answer_that_is_always_cut_is_given_up_and_says_so(
    scripted: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cut, "retry_seconds", 0.05)
    scripted.failures.extend(["error"] * 4)
    reply = watched(Answers(Service(scripted.url), [question()])).replies[0]
    assert reply.state == "cut" and "the engine was lost" in reply.note and reply.text


def test_a_service_that_is_away_is_asked_until_it_is_back(
    scripted: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Down, "retry_seconds", 0.1)
    scripted.stop()
    answers = Answers(Service(scripted.url), [question()])
    end = time.monotonic() + 1
    while time.monotonic() < end:
        answers.watch(0.1)
    assert answers.replies[0].state in ("waiting", "retrying")
    scripted.restart()
    assert watched(answers).replies[0].state == "done"


def test_a_refused_question_is_not_asked_again(scripted: ScriptedService) -> None:
    reply = watched(Answers(Service(scripted.url), [question("absent")])).replies[0]
    assert reply.state == "failed" and "there is no model absent" in reply.note and len(scripted.asked) == 1


def test_stop_keeps_what_has_come(scripted: ScriptedService) -> None:
    scripted.seconds = 0.1
    answers = Answers(Service(scripted.url), [question(), question("harry-potter")], num_at_once=1)
    while not answers.replies[0].text:
        answers.watch(0.05)
    answers.stop()
    assert not answers.is_running and [reply.state for reply in answers.replies] == ["stopped", "stopped"]
    assert answer("base", OWL).startswith(answers.replies[0].text) and answers.replies[0].text
    time.sleep(0.3)
    assert len(scripted.asked) == 1, "a stopped question was asked all the same"


def test_a_slow_service_is_noticed(scripted: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asking.SLOW_SECONDS", 0.3)
    scripted.failures.append("silent")
    answers = Answers(Service(scripted.url), [question()])
    end = time.monotonic() + 0.8
    while time.monotonic() < end:
        answers.watch(0.1)
    assert answers.replies[0].silent_seconds >= 0.3
    answers.stop()
    assert answers.replies[0].silent_seconds == 0


def test_a_key_is_sent_and_a_missing_one_is_said(scripted: ScriptedService) -> None:
    scripted.api_key = "secret"
    assert Service(f"{scripted.url}/v1/", "secret").models()[0].id == "base"
    with pytest.raises(Refused, match="UNLEARN_RAY_API_KEY"):
        Service(scripted.url).models()
