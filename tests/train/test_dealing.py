"""Rows dealt by tokens: nothing over the budget, every row once, and ranks that have as much to do."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_ray.train.dealing import Size, cut, deal, num_passes

GROUPS = st.lists(st.tuples(st.integers(1, 2), st.integers(1, 300)), min_size=1, max_size=40)


def sizes_of(groups: list[tuple[int, int]]) -> list[Size]:
    return sorted((Size(*group) for group in groups), key=lambda size: size.longest)


def cost(sizes: list[Size], first: int, last: int) -> int:
    return sum(size.rows for size in sizes[first:last]) * sizes[last - 1].longest


@given(GROUPS, st.integers(1, 600), st.integers(1, 9), st.integers(0, 3))
def test_every_row_is_in_one_pass_and_only_one_alone_may_exceed_the_budget(
    groups: list[tuple[int, int]], budget: int, num_ranks: int, more: int
) -> None:
    sizes = sizes_of(groups)
    count = num_passes(sizes, budget, num_ranks) + more
    dealt = deal(sizes, budget, num_ranks, count)
    assert len(dealt) == num_ranks and max(len(passes) for passes in dealt) <= count
    ordered = sorted(each for passes in dealt for each in passes)
    assert ordered[0][0] == 0 and ordered[-1][1] == len(sizes)
    assert all(one[1] == other[0] for one, other in pairwise(ordered))
    assert all(cost(sizes, first, last) <= budget or last - first == 1 for first, last in ordered)
    assert dealt == deal(sizes, budget, num_ranks, count)


@given(GROUPS, st.integers(1, 600))
def test_a_larger_budget_takes_no_more_passes(groups: list[tuple[int, int]], budget: int) -> None:
    sizes = sizes_of(groups)
    assert len(cut(sizes, budget + 50)) <= len(cut(sizes, budget)) <= len(sizes)


def lognormal(random: np.random.Generator, count: int) -> np.ndarray:
    return np.clip(random.lognormal(4.6, 0.5, count), 20, 1024).astype(int)


def two_kinds(random: np.random.Generator, count: int) -> np.ndarray:
    return np.where(random.random(count) < 0.4, random.integers(30, 60, count), random.integers(150, 260, count))


def efficiency(lengths: list[int], budget: int, count: int) -> float:
    """Real tokens over what eight ranks could have computed while the one with most to do was at work."""
    sizes = [Size(1, length) for length in lengths]
    longest = max(sum(cost(sizes, *each) for each in passes) for passes in deal(sizes, budget, 8, count))
    return sum(lengths) / (8 * longest)


def by_rows(lengths: list[int], micro_batch: int = 4) -> float:
    """The same for passes of equally many rows, as `micro_batch` cuts them."""
    count = -(-len(lengths) // (micro_batch * 8))
    cuts = [len(lengths) * number // (count * 8) for number in range(count * 8 + 1)]
    costs = [(last - first) * lengths[last - 1] for first, last in pairwise(cuts)]
    return sum(lengths) / (8 * max(sum(costs[rank::8]) for rank in range(8)))


@pytest.mark.parametrize("draw", [lognormal, two_kinds])
def test_eight_ranks_are_level(draw: Callable[[np.random.Generator, int], np.ndarray]) -> None:
    """The 80 rows of a step of the shipped 8B configs."""
    random = np.random.default_rng(0)
    steps = [sorted(draw(random, 80).tolist()) for _ in range(20)]
    count = max(num_passes([Size(1, length) for length in lengths], 512, 8) for lengths in steps)
    assert np.mean([efficiency(lengths, 512, count) for lengths in steps]) >= 0.95
    assert np.mean([by_rows(lengths) for lengths in steps]) < 0.8
