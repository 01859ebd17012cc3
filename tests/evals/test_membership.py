"""Membership inference, beside independent computations: torch on the same logits, scipy's rank test."""

import math
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from unlearn_ray.evals import membership

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


def test_privacy_leakage_by_hand() -> None:
    # MUSE's own AUC is 1 less ours: 0.3 against 0.5 of a retrained model is 40 % too low.
    assert membership.privacy_leakage(0.7, 0.5) == pytest.approx(-40.0, abs=1e-6)
    assert membership.privacy_leakage(0.5, 0.5) == 0.0
    assert membership.privacy_leakage(0.0, 0.5) == pytest.approx(100.0, abs=1e-6)


def test_without_tokens_there_is_no_score() -> None:
    assert membership.loss([]) is membership.min_k([]) is membership.zlib_score([], "x") is None
    assert membership.min_k([math.log(0.5)]) == pytest.approx(math.log(2))
