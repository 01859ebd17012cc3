"""Intervals: seeded, clustered, paired, and those of scipy where the two do the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from unlearn_ray.evals.statistics import mean_interval, ratio_interval


@given(st.floats(-5, 5), st.integers(1, 40), st.integers(1, 10))
def test_the_interval_of_constant_data_is_its_value(value: float, num: int, num_clusters: int) -> None:
    found = mean_interval([value] * num, [i % num_clusters for i in range(num)], 50, seed=0)
    assert found.low == pytest.approx(value) and found.high == pytest.approx(value) and found.num == num


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_interval_holds_the_mean(values: list[float]) -> None:
    found = mean_interval(values, list(range(len(values))), 100, seed=1)
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(np.mean(values))


def test_without_clusters_it_is_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(0).random(200)
    found = mean_interval(list(values), list(range(200)), 4000, seed=2)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=3).confidence_interval
    assert found.low == pytest.approx(theirs.low, abs=0.004) and found.high == pytest.approx(theirs.high, abs=0.004)


def test_paraphrases_of_one_fact_do_not_narrow_the_interval() -> None:
    facts = [float(i % 2) for i in range(40)]
    once = mean_interval(facts, list(range(40)), 1000, seed=0)
    thrice = mean_interval(facts * 3, list(range(40)) * 3, 1000, seed=0)
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low)
    assert thrice.num == 120


def test_the_same_seed_gives_the_same_interval() -> None:
    values, clusters = [0.1, 0.9, 0.4, 0.7], ["a", "b", "c", "d"]
    assert mean_interval(values, clusters, 200, 5) == mean_interval(values, clusters, 200, 5)


def test_a_share_of_the_base_is_paired() -> None:
    base = [0.2, 0.9, 0.5, 1.0]
    found = ratio_interval([value / 2 for value in base], base, list("abcd"), 200, seed=0)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert ratio_interval([1.0], [0.0], ["a"], 10, seed=0) is None


def test_many_values_are_resampled_within_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    values, clusters = list(np.linspace(0, 1, 100)), list(range(100))
    whole = mean_interval(values, clusters, 50, seed=0)
    monkeypatch.setattr("unlearn_ray.evals.statistics._CHUNK", 700)
    assert mean_interval(values, clusters, 50, seed=0) == whole
