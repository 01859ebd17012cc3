"""Cutting a step's rows into forward passes by a budget of tokens, and dealing the passes to ranks. Pure; a pass costs what it holds when filled
up: its rows times its longest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

_NUM_BUDGETS = 24  # tried per step; more are no better


@dataclass(frozen=True, slots=True)
class Size:
    """Of rows that must be in one pass: a row, or a pair."""

    rows: int
    longest: int  # tokens


Cut = tuple[int, int]  # first, and one past the last, of the sorted sizes


def cut(sizes: Sequence[Size], budget: int) -> list[Cut]:
    """Consecutive sizes in as few passes of at most `budget` tokens as this order allows; what alone is larger is a pass by itself.

    Args:
        sizes: by length, the shortest first.
    """
    cuts, last, rows = [], len(sizes), 0
    for first in range(len(sizes) - 1, -1, -1):
        if first + 1 < last and (rows + sizes[first].rows) * sizes[last - 1].longest > budget:
            cuts.append((first + 1, last))
            last, rows = first + 1, 0
        rows += sizes[first].rows
    return [*cuts, (0, last)] if last else cuts


def num_passes(sizes: Sequence[Size], budget: int, num_ranks: int) -> int:
    """Passes of each rank that this step needs."""
    return -(-len(cut(sizes, budget)) // num_ranks)


def deal(sizes: Sequence[Size], budget: int, num_ranks: int, count: int) -> list[list[Cut]]:
    """`count` or fewer passes for each rank, such that the rank with the most to do has as little as possible. Each rank's come by what they
    cost, the costliest first: sharded ranks, which meet in each pass, have like ones at the same time.

    Args:
        count: at least `num_passes`.
    """
    before = list(accumulate((size.rows for size in sizes), initial=0))

    def cost(of: Cut) -> int:
        return (before[of[1]] - before[of[0]]) * sizes[of[1] - 1].longest

    total = sum(size.rows * size.longest for size in sizes)
    least = min(budget, max(sizes[-1].rows * sizes[-1].longest, total // (num_ranks * count)))
    found: list[tuple[int, list[list[Cut]]]] = []
    for tried in sorted({least + (budget - least) * n // (_NUM_BUDGETS - 1) for n in range(_NUM_BUDGETS)}):
        cuts = cut(sizes, tried)
        if len(cuts) > num_ranks * count:
            continue
        dealt = _to_ranks(_split(cuts, before, sizes, num_ranks * count), cost, num_ranks, count)
        found.append((max(sum(map(cost, each)) for each in dealt), dealt))
    return min(found, key=lambda each: each[0])[1]


def _split(cuts: list[Cut], before: Sequence[int], sizes: Sequence[Size], count: int) -> list[Cut]:
    """As many passes as there may be: each further cut is the one that spares most filling up."""
    cuts = list(cuts)
    saved = {of: _best_place(of, before, sizes) for of in cuts}
    while len(cuts) < count:
        of = max(cuts, key=lambda of: saved[of][0])
        place = saved[of][1]
        if place == of[0]:
            break  # rows by themselves
        cuts.remove(of)
        for part in ((of[0], place), (place, of[1])):
            cuts.append(part)
            saved[part] = _best_place(part, before, sizes)
    return cuts


def _best_place(of: Cut, before: Sequence[int], sizes: Sequence[Size]) -> tuple[int, int]:
    """Tokens that the best further cut spares, and where it is; the first place: there is none."""
    first, last = of
    places = range(first + 1, last)
    return max(
        (((before[n] - before[first]) * (sizes[last - 1].longest - sizes[n - 1].longest), n) for n in places),
        default=(-1, first),
    )


def _to_ranks(cuts: Sequence[Cut], cost: Callable[[Cut], int], num_ranks: int, count: int) -> list[list[Cut]]:
    """The costliest first, each to the rank that has least (Graham 1969's LPT rule)."""
    dealt: list[list[Cut]] = [[] for _ in range(num_ranks)]
    totals = [0] * num_ranks
    for of in sorted(cuts, key=lambda of: (-cost(of), of)):
        rank = min((rank for rank in range(num_ranks) if len(dealt[rank]) < count), key=lambda rank: totals[rank])
        dealt[rank].append(of)
        totals[rank] += cost(of)
    return dealt
