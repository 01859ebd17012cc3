"""Copies are found by an index, and results follow from the rows alone."""

import random

import pytest

from unlearn_ray.engines.protocols import RowDict
from unlearn_ray.stages import ledger
from unlearn_ray.stages.ledger import Ledger
from unlearn_ray.synth.dedup import question_key

# Statement -> the index that leads to its rows: what it would read else grows with all candidates of a topic.
INDICES = {
    ledger._MARK_COPIES: ("by_round (round=?)", "by_key (topic=? AND key=?"),
    ledger._MARK: ("by_key (topic=? AND key=?)",),
    ledger._CAP: ("by_fate (topic=? AND dropped=?",),
    ledger._NUM_KEPT: ("by_fate (topic=? AND dropped=?)",),
    ledger._FRESH: ("by_round (round=?)",),
    ledger._ALL: ("PRIMARY KEY (topic=?)",),
}


def row(place: int, text: str, topic: str = "t", drop: str | None = None) -> RowDict:
    return {"topic": topic, "number": place // 6, "place": place % 6, "text": text, "source": "topic", "drop": drop}


@pytest.mark.parametrize("statement", INDICES)
def test_every_statement_is_led_by_an_index(statement: str) -> None:
    with Ledger() as candidates:
        steps = candidates._database.execute("EXPLAIN QUERY PLAN " + statement, (1,) * statement.count("?")).fetchall()
    plan = [step[3] for step in steps]
    for index in INDICES[statement]:
        assert any(index in step for step in plan), plan
    assert not any(step.startswith("SCAN") for step in plan), plan


def test_copies_are_those_that_come_later_in_round_place_and_number() -> None:
    rng = random.Random(0)
    rounds = [
        [row(place, f"What is number {rng.randrange(60)}?", rng.choice("ab"), rng.choice((None, None, "malformed"))) for place in range(120)]
        for _ in range(3)
    ]  # fmt: skip
    with Ledger() as candidates:
        for round_, rows in enumerate(rounds, 1):
            candidates.add(rng.sample(rows, len(rows)), round_)
        found = list(candidates.rows(["a", "b"]))
    expected = []
    for topic in "ab":
        ordered = sorted(
            ((n, r["place"], r["number"], r) for n, rows in enumerate(rounds, 1) for r in rows if r["topic"] == topic),
            key=lambda item: item[:3],
        )
        seen: set[str] = set()
        for round_, _, _, each in ordered:
            key = question_key(each["text"])
            expected.append((topic, each["text"], round_, each["drop"] or ("duplicate" if key in seen else None)))
            if not each["drop"]:
                seen.add(key)
    assert [(q.topic, q.text, q.round, q.drop) for q in found] == expected


def steps_of(num_rows: int, num_texts: int) -> int:
    """The work of SQLite's machine on a topic's candidates, from their arrival to the last of them read: in steps, which no busy machine changes."""
    count = 0

    def counted() -> int:
        nonlocal count
        count += 1
        return 0

    texts = [f"What is number {place % num_texts}?" for place in range(num_rows)]
    with Ledger() as candidates:
        candidates._database.set_progress_handler(counted, 1)
        for round_, start in enumerate(range(0, num_rows, num_rows // 4), 1):
            part = range(start, start + num_rows // 4)
            candidates.add([row(place, texts[place]) for place in part], round_)
            candidates.mark(("t", texts[place], "off_topic") for place in part if place % 3 == 0)
            candidates.cap("t", num_rows // 2)
            candidates.num_kept("t")
        assert len(list(candidates.rows(["t"]))) == num_rows
    return count


@pytest.mark.parametrize("share_of_texts", [1.0, 0.1], ids=["all differ", "mostly copies"])
def test_four_times_the_candidates_are_less_than_five_times_the_work(share_of_texts: float) -> None:
    few, many = (steps_of(number, int(number * share_of_texts)) for number in (1_000, 4_000))
    assert 3 * few < many < 5 * few
