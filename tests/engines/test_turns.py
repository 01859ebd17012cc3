"""Whose batch is next."""

import asyncio
from collections import Counter

from unlearn_ray.engines.turns import Turn, Turns


def on_loop(turns: Turns, *asked: tuple[str, int]) -> list[Turn]:
    async def queue() -> list[Turn]:
        return [turns.queue(*each) for each in asked]

    return asyncio.run(queue())


def test_who_has_least_under_way_is_next_and_of_equals_who_was_last_longest_ago() -> None:
    turns = Turns()
    on_loop(turns, *[("large", 64)] * 50, ("small", 8), ("other", 8))
    turns.begin("large", 64)
    assert len(turns) == 52
    order = []
    for _ in range(5):
        turn = turns.next()
        assert turn is not None
        turns.begin(turn.caller, turn.num_requests)
        order.append(turn.caller)
    assert order == ["small", "other", "large", "large", "large"]
    on_loop(turns, ("small", 120), ("other", 120))
    for caller, number in (("small", 8), ("other", 8), ("large", 256)):
        turns.end(caller, number)
        turns.begin(caller, 8)
    assert [turn.caller for turn in (turns.next(), turns.next(), turns.next()) if turn] == ["small", "other", "large"]


def test_shares_are_level_in_requests_whatever_a_batch_has() -> None:
    turns, given = Turns(), Counter[str]()
    on_loop(turns, *[("long", 60)] * 100, *[("short", 15)] * 100)
    for _ in range(60):
        turn = turns.next()
        assert turn is not None
        turns.begin(turn.caller, turn.num_requests)
        given[turn.caller] += turn.num_requests
    assert abs(given["long"] - given["short"]) <= 60


def test_what_ends_or_leaves_counts_no_more() -> None:
    turns = Turns()
    first, second = on_loop(turns, ("a", 4), ("b", 4))
    turns.begin("a", 8)
    turns.end("a", 8)
    turns.leave(first)
    turns.leave(first)
    assert turns.next() is second and turns.next() is None and not len(turns)
