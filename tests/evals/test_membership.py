"""Membership inference, beside independent computations: torch on the same logits, scipy's rank test."""

import math
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from unlearn_ray.evals import membership
from unlearn_ray.evals.statistics import exact_interval

LOGPROBS = st.lists(st.floats(-30, -1e-6), min_size=1, max_size=40)


def logits(length: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(length, 50, dtype=torch.float64) * 3, torch.randint(0, 50, (length,))


@pytest.mark.parametrize("length", [1, 2, 5, 33])
def test_scores_are_those_of_torch_on_the_same_logits(length: int) -> None:
    scores_LV, targets_L = logits(length, seed=length)
    logprobs_LV = torch.log_softmax(scores_LV, -1)
    picked_L = logprobs_LV.gather(1, targets_L[:, None])[:, 0]
    means, variances = membership.moments(logprobs_LV.tolist())
    ours = picked_L.tolist()
    mean_loss = torch.nn.functional.cross_entropy(scores_LV, targets_L).item()
    assert membership.loss(ours) == pytest.approx(mean_loss, abs=1e-9)
    assert membership.zlib_score(ours, "the owl") == pytest.approx(mean_loss / len(zlib.compress(b"the owl")), abs=1e-9)
    num = max(1, int(0.4 * length))
    lowest = torch.topk(picked_L, num, largest=False).values.mean().item()
    assert membership.min_k(ours) == pytest.approx(-lowest, abs=1e-9)
    model = torch.distributions.Categorical(logits=scores_LV)
    probabilities = model.probs
    mean_L = -model.entropy()
    variance_L = (probabilities * (logprobs_LV - mean_L[:, None]) ** 2).sum(-1)  # the definition, not E[x^2] - E[x]^2
    normed_L = (picked_L - mean_L) / variance_L.sqrt()
    expected = -torch.topk(normed_L, num, largest=False).values.mean().item()
    assert membership.min_k_plus_plus(ours, means, variances) == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_auc_is_the_rank_tests_share_of_pairs(members: list[int], others: list[int]) -> None:
    """Members score low: the statistic of the others over all pairs."""
    statistic = mannwhitneyu(others, members, method="asymptotic").statistic
    assert membership.auc(members, others) == pytest.approx(statistic / (len(members) * len(others)), abs=1e-12)


@given(LOGPROBS)
def test_the_least_likely_tokens_are_no_likelier_than_all(logprobs: list[float]) -> None:
    least, mean = membership.min_k(logprobs), membership.loss(logprobs)
    assert least is not None and mean is not None and least >= mean - 1e-9
    assert membership.min_k(logprobs, 1.0) == pytest.approx(mean)


def test_an_interval_draws_facts_whole() -> None:
    """Twenty facts, ten of which tell themselves; four texts each that say the same: no surer than one text each."""
    scores = [0.0] * 10 + [1.0] * 10
    facts = [f"f{number}" for number in range(20)]
    others = [0.5] * 20
    one = membership.auc_interval(scores, others, facts, facts, 2000, 0)
    four = membership.auc_interval(scores * 4, others * 4, facts * 4, facts * 4, 2000, 0)
    assert one.value == four.value == 0.5
    assert (one.low, one.high) == pytest.approx((four.low, four.high), abs=1e-9)
    assert 0.2 < one.low < 0.4 and 0.6 < one.high < 0.8  # 0.5 +- 1.96 * sqrt(0.25 / 20) = 0.28 to 0.72


def test_an_interval_is_that_of_the_texts_drawn_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "_CHUNK", 100)  # several draws, of which the last is smaller
    rng = np.random.default_rng(5)
    facts = rng.integers(0, 12, 30)
    others = [(round(float(each), 1), fact) for fact in facts for each in rng.normal(0.5, size=2)]
    members = [round(float(each), 1) for each in rng.normal(size=30)]
    found = membership.auc_interval(
        members, [score for score, _ in others], list(facts), [fact for _, fact in others], 200, 3
    )
    places = {fact: place for place, fact in enumerate(dict.fromkeys(facts))}
    aucs = []
    for times in np.random.default_rng(3).multinomial(len(places), [1 / len(places)] * len(places), size=200):
        ours = [score for score, fact in zip(members, facts, strict=True) for _ in range(times[places[fact]])]
        theirs = [score for score, fact in others for _ in range(times[places[fact]])]
        aucs.append(np.mean([[(a < b) + (a == b) / 2 for b in theirs] for a in ours]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(aucs, [0.025, 0.975])), abs=1e-12)


def test_an_interval_of_many_texts_needs_no_matrix_of_their_pairs() -> None:
    members, others = [float(number % 97) for number in range(3_000)], [float(number % 89) for number in range(9_000)]
    tracemalloc.start()
    try:
        membership.auc_interval(members, others, range(3_000), [number // 3 for number in range(9_000)], 20, 0)
        assert tracemalloc.get_traced_memory()[1] < 30 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("num_facts", [3, 40])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_facts_that_all_say_the_same_have_an_exact_interval(num_facts: int, value: float) -> None:
    members, others, facts = [1 - value] * num_facts, [0.5] * num_facts, list(range(num_facts))
    found = membership.auc_interval(members, others, facts, facts, 100, 0)
    assert (found.value, found.low, found.high) == pytest.approx((value, *exact_interval(value * num_facts, num_facts)))
    assert found.high - found.low > 0.05


def test_a_few_facts_have_an_exact_interval() -> None:
    """A bootstrap of three facts is too narrow, as with every other figure."""
    found = membership.auc_interval([0.0, 0.0, 1.0], [0.5] * 3, "abc", "abc", 1000, 0)
    assert (found.low, found.high) == pytest.approx(exact_interval(2, 3))


def test_privacy_leakage_by_hand() -> None:
    # MUSE's own AUC is 1 less ours: 0.3 against 0.5 of a retrained model is 40 % too low.
    assert membership.privacy_leakage(0.7, 0.5) == pytest.approx(-40.0, abs=1e-6)
    assert membership.privacy_leakage(0.5, 0.5) == 0.0
    assert membership.privacy_leakage(0.0, 0.5) == pytest.approx(100.0, abs=1e-6)


def test_without_tokens_there_is_no_score() -> None:
    assert membership.loss([]) is membership.min_k([]) is membership.zlib_score([], "x") is None
    assert membership.min_k([math.log(0.5)]) == pytest.approx(math.log(2))
