"""Cutting a step's rows into forward passes by a budget of tokens, and dealing the passes to ranks. Pure. The cost of a pass is its number of tokens
with padding: rows times the longest row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

_NUM_BUDGETS = 24  # tried per step; more give no better result


@dataclass(frozen=True, slots=True)
class Size:
    """Size of rows that must be in the same pass: a row, or a pair."""

    rows: int
    longest: int  # tokens


Cut = tuple[int, int]  # start and stop in the sorted sizes


def cut(sizes: Sequence[Size], budget: int) -> list[Cut]:
    """Cut consecutive sizes into the fewest passes of at most `budget` tokens. A size that is larger by itself is a pass by itself.

    Args:
        sizes: sorted by length, the shortest first.
    """
    cuts, last, rows = [], len(sizes), 0
    for first in range(len(sizes) - 1, -1, -1):
        if first + 1 < last and (rows + sizes[first].rows) * sizes[last - 1].longest > budget:
            cuts.append((first + 1, last))
            last, rows = first + 1, 0
        rows += sizes[first].rows
    return [*cuts, (0, last)] if last else cuts


def num_passes(sizes: Sequence[Size], budget: int, num_ranks: int) -> int:
    """Number of passes per rank that this step needs."""
    return -(-len(cut(sizes, budget)) // num_ranks)


def deal(sizes: Sequence[Size], budget: int, num_ranks: int, count: int) -> list[list[Cut]]:
    """At most `count` passes for each rank, dealt so that the busiest rank has as little as possible. Each rank's passes are sorted by cost, the
    costliest first: sharded ranks wait for each other in every pass, so passes at the same time should be alike.

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
    """Cut further, up to `count` passes. Each cut is the one that saves the most padding."""
    cuts = list(cuts)
    saved = {of: _best_place(of, before, sizes) for of in cuts}
    while len(cuts) < count:
        of = max(cuts, key=lambda of: saved[of][0])
        place = saved[of][1]
        if place == of[0]:
            break  # no pass has more than one size
        cuts.remove(of)
        for part in ((of[0], place), (place, of[1])):
            cuts.append(part)
            saved[part] = _best_place(part, before, sizes)
    return cuts


def _best_place(of: Cut, before: Sequence[int], sizes: Sequence[Size]) -> tuple[int, int]:
    """Tokens that the best further cut saves, and its place; the place `first` means that there is none."""
    first, last = of
    places = range(first + 1, last)
    return max(
        (((before[n] - before[first]) * (sizes[last - 1].longest - sizes[n - 1].longest), n) for n in places),
        default=(-1, first),
    )


def _to_ranks(cuts: Sequence[Cut], cost: Callable[[Cut], int], num_ranks: int, count: int) -> list[list[Cut]]:
    """Deal the costliest pass first, each to the rank with the least cost so far (the LPT rule, Graham 1969)."""
    dealt: list[list[Cut]] = [[] for _ in range(num_ranks)]
    totals = [0] * num_ranks
    for of in sorted(cuts, key=lambda of: (-cost(of), of)):
        rank = min((rank for rank in range(num_ranks) if len(dealt[rank]) < count), key=lambda rank: totals[rank])
        dealt[rank].append(of)
        totals[rank] += cost(of)
    return dealt
