"""What the report page says of leaks: of all that the unlearned model answered, and of no more than was read."""

from typing import Any

import pytest
import scripted_service
from client import Model, Service
from figures import alarm, leaks_found, num_forget_answers, scores, shown, verdict
from scripted_service import REPORT, ROWS, ScriptedService
from views.report import leaking_rows

VERSION = Model("harry-potter@3", "harry-potter@3", "unlearned", ())


def evaluation(monkeypatch: pytest.MonkeyPatch, **num: int) -> None:
    """The service's rows, so many of each model, of which the last of the unlearned one leaks."""
    row = next(row for row in ROWS["evaluation"] if row["group"] == "forget")
    rows: list[dict[str, Any]] = [
        row | {"model": model, "answer": "Fennimore.", "leaked_terms": []}
        for model, count in num.items()
        for _ in range(count)
    ]
    rows.append(row | {"model": "unlearned", "answer": "It is Hedwig.", "leaked_terms": ["Hedwig"]})
    monkeypatch.setitem(scripted_service.ROWS, "evaluation", rows)


def test_a_leak_is_found_behind_thousands_of_other_models_answers(
    scripted: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation(monkeypatch, base=3_000, guarded=3_000, unlearned=600)
    leaking, num_read = leaking_rows(Service(scripted.url), VERSION)
    assert [row["answer"] for row in leaking] == ["It is Hedwig."] and num_read == 601


def test_answers_that_were_not_read_are_not_counted_as_read(
    scripted: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation(monkeypatch, unlearned=4_200)
    assert leaking_rows(Service(scripted.url), VERSION) == ([], 4_000)


def test_none_is_said_only_where_all_were_read() -> None:
    assert num_forget_answers(REPORT) == 3 and num_forget_answers({"models": {}}) == 0
    assert leaks_found(0, 3, 3) == "No answer of the unlearned model holds a leak term"
    assert leaks_found(1, 3, 3) == "1 answer of the unlearned model holds leak terms"
    assert leaks_found(1_200, 3_000, 3_000) == "1,200 answers of the unlearned model hold leak terms"
    for partly in (leaks_found(0, 4_000, 4_201), leaks_found(0, 0, 3), leaks_found(0, 0, 0)):
        assert not partly.startswith("No answer")


def test_choice_stands_beside_recall() -> None:
    first, second = verdict(REPORT).split("\n\n")
    assert first.startswith("Fact recall, before → after. forget: **100 %\\* → ")
    assert second.startswith("Choice, before → after. forget: **100 %\\* → ")
    (row,) = (row for row in scores(REPORT, "forget") if row[0].startswith("Choice"))
    assert row[:2] == ["Choice (chance 25 %)", "3"]


def test_doubtful_figures_are_marked_and_older_reports_have_none() -> None:
    metric = {"agg_value": 0.5, "num": 3, "interval": [0.1, 0.9]}
    assert shown(metric | {"doubts": ["few_probes"]}) == "50 %* [10, 90]"
    assert shown(metric) == "50 % [10, 90]"


def test_a_run_that_forgot_nothing_says_so() -> None:
    topics = {"topics": ["Dune", "Oz"]}
    assert alarm(topics | {"forgetting": {"verdict": "no_forgetting"}}) == "No forgetting measured: Dune, Oz."
    by_topic = {"Dune": {"verdict": "forgotten"}, "Oz": {"verdict": "not_measured"}}
    part = topics | {"forgetting": {"verdict": "forgotten"}, "forgetting_by_topic": by_topic}
    assert alarm(part) == "Forgetting could not be measured: Oz."
    assert alarm(part | {"forgetting": {"verdict": "no_forgetting"}}) == "Forgetting could not be measured: Oz."
    assert alarm(topics) == "", "a report of an earlier version does not say"
