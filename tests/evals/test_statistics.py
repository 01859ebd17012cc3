"""Intervals: seeded, clustered, paired, and those of scipy where the two do the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from unlearn_ray.evals.statistics import difference_interval, exact_interval, mean_interval, ratio_interval


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
    base = list(np.random.default_rng(0).random(30))  # from hard to easy
    ours = [value * (0.49 + 0.02 * (i % 2)) for i, value in enumerate(base)]
    found = ratio_interval(ours, base, list(range(30)), 200, seed=0)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5), abs=0.01)
    assert ratio_interval([1.0], [0.0], ["a"], 10, seed=0) is None


def test_many_values_are_resampled_within_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    values, clusters = list(np.linspace(0, 1, 100)), list(range(100))
    whole = mean_interval(values, clusters, 50, seed=0)
    monkeypatch.setattr("unlearn_ray.evals.statistics._CHUNK", 700)
    assert mean_interval(values, clusters, 50, seed=0) == whole


@given(st.integers(1, 200), st.data())
def test_the_exact_interval_is_scipys(num: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, num))
    theirs = stats.binomtest(hits, num).proportion_ci(0.95, method="exact")
    assert exact_interval(hits, num) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_share_of_nothing_or_all_has_an_exact_interval_over_its_facts(value: float) -> None:
    facts = [i // 2 for i in range(74)]  # two probes a fact
    found = mean_interval([value] * 74, facts, 500, seed=0, is_share=True)
    theirs = stats.binomtest(int(37 * value), 37).proportion_ci(0.95, method="exact")
    assert (found.low, found.high, found.num) == (pytest.approx(theirs.low), pytest.approx(theirs.high), 74)
    assert found.high - found.low > 0.09


def test_facts_that_are_all_alike_have_an_interval_too() -> None:
    values, facts = [1.0, 0.0] * 30, [i // 2 for i in range(60)]  # each fact is told in one of its two wordings
    found = mean_interval(values, facts, 500, seed=0, is_share=True)
    assert (found.low, found.high) == pytest.approx(exact_interval(15, 30))


def test_from_fewer_than_ten_facts_the_interval_is_exact() -> None:
    nine, ten = ([1.0] * 3 + [0.0] * (num - 3) for num in (9, 10))
    found = mean_interval(nine, list(range(9)), 500, seed=0, is_share=True)
    assert (found.low, found.high) == pytest.approx(exact_interval(3, 9))
    found = mean_interval(ten, list(range(10)), 500, seed=0, is_share=True)
    assert (found.low, found.high) != pytest.approx(exact_interval(3, 10))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(1, 12))
def test_an_exact_interval_holds_the_share(values: list[float], num_facts: int) -> None:
    found = mean_interval(values, [i % num_facts for i in range(len(values))], 50, seed=1, is_share=True)
    assert 0 <= found.low <= found.value + 1e-9 and found.value - 1e-9 <= found.high <= 1


def test_all_of_the_base_kept_is_no_proof_that_all_is_kept() -> None:
    base, facts = [1.0] * 20 + [0.0] * 10, list(range(30))
    kept, lost = (ratio_interval(ours, base, facts, 200, seed=0) for ours in (base, [0.0] * 30))
    assert kept is not None and lost is not None
    assert (kept.value, kept.low, kept.high) == pytest.approx((1.0, *exact_interval(20, 20)))
    assert (lost.value, lost.low, lost.high) == pytest.approx((0.0, *exact_interval(0, 20)))


def test_more_than_the_base_had_keeps_its_interval() -> None:
    found = ratio_interval([1.0] * 4, [1.0, 0.0, 1.0, 0.0], list(range(4)), 200, seed=0)
    assert found is not None and found.value == 2.0 and found.low <= 2.0 <= found.high


def test_a_difference_is_paired() -> None:
    """Both models find the same probes hard: the difference is known far better than either figure."""
    rng = np.random.default_rng(0)
    base = list((rng.random(200) < 0.5).astype(float))
    ours = [value if i % 10 else 0.0 for i, value in enumerate(base)]
    facts = list(range(200))
    lost = difference_interval(ours, base, facts, 1000, seed=0)
    alone = mean_interval(base, facts, 1000, seed=0)
    assert lost.value == pytest.approx(np.mean(base) - np.mean(ours)) and 0 < lost.low < lost.value < lost.high
    assert lost.high - lost.low < (alone.high - alone.low) / 1.5


@pytest.mark.parametrize(("num", "is_lost"), [(1, False), (3, False), (6, False), (7, True), (12, True)])
def test_a_few_facts_prove_a_loss_only_when_they_are_enough(num: int, is_lost: bool) -> None:
    found = difference_interval([0.0] * num, [1.0] * num, list(range(num)), 200, seed=0)
    assert found.value == 1.0 and (found.low > 0) is is_lost and found.high == 1.0
    found = difference_interval([0.0] * 2 * num, [1.0] * 2 * num, [i // 2 for i in range(2 * num)], 200, seed=0)
    assert (found.low > 0) is is_lost, "wordings of a fact prove no more than one of them"


def test_no_difference_at_all_still_has_an_interval() -> None:
    found = difference_interval([1.0] * 20, [1.0] * 20, list(range(20)), 200, seed=0)
    assert found.value == 0.0 and found.low < -0.1 and found.high > 0.1
