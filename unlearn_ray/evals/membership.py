"""Membership inference: whether a model shows that it was trained on texts, from how likely it finds their tokens.

Each attack gives a text a score, low where it looks like one that was trained on. The figure is the area under the ROC curve of texts to
forget against texts that nobody trained on: 1 where each of the first looks more familiar, 0.5 where nobody can tell. The conventions
are open-unlearning's (arXiv 2506.12618), so that figures compare. Min-K % and Min-K++ take the lowest 40 % of the tokens, as MUSE does.
"""

import math
import zlib
from collections.abc import Hashable, Sequence

import numpy as np

from unlearn_ray.evals.statistics import CONFIDENCE, FEW_FACTS, Estimate, exact_interval

MIN_K = 0.4  # of the tokens: MUSE (arXiv 2407.06460) and open-unlearning's configs
_LEAST_VARIANCE = 1e-6
_EPSILON = 1e-10
_CHUNK = 200_000  # texts drawn at a time: bounds the memory of large probe sets


def loss(logprobs: Sequence[float]) -> float | None:
    """Mean of -log p(token) (Yeom et al. 2018, arXiv 1709.01604). None without tokens, here and below."""
    return -math.fsum(logprobs) / len(logprobs) if logprobs else None


def zlib_score(logprobs: Sequence[float], text: str) -> float | None:
    """The mean loss over the bytes of the text, compressed (Carlini et al. 2021, arXiv 2012.07805): a plain text is likely to any model."""
    found = loss(logprobs)
    return None if found is None else found / len(zlib.compress(text.encode()))


def min_k(logprobs: Sequence[float], share: float = MIN_K) -> float | None:
    """Mean of -log p over the `share` least likely tokens, one at least (Shi et al. 2024, arXiv 2310.16789)."""
    return loss(sorted(logprobs)[: max(1, int(len(logprobs) * share))])


def min_k_plus_plus(
    logprobs: Sequence[float], means: Sequence[float], variances: Sequence[float], share: float = MIN_K
) -> float | None:
    """As `min_k`, of (log p(token) - mean) / standard deviation of log p over the vocabulary (Zhang et al. 2025, arXiv 2404.02936).

    Args:
        means, variances: of log p under the model's own distribution at each token, as `moments` gives.
    """
    normed = [
        (logp - mean) / math.sqrt(max(variance, _LEAST_VARIANCE))
        for logp, mean, variance in zip(logprobs, means, variances, strict=True)
    ]
    return min_k(normed, share)


def moments(logprobs_LV: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Mean and variance of log p over the vocabulary, at each token."""
    logprobs = np.asarray(logprobs_LV, float)  # L: length, V: vocabulary
    weights = np.exp(logprobs)
    means = (weights * logprobs).sum(-1)
    return means.tolist(), ((weights * logprobs**2).sum(-1) - means**2).tolist()


def against_reference(score: float, reference: float) -> float:
    """The loss less that of a model that is known not to have been trained on the text (Carlini et al. 2021)."""
    return score - reference


def auc(members: Sequence[float], others: Sequence[float]) -> float:
    """The share of pairs in which the member's score is lower, ties counting half: the area under the ROC curve (Hanley & McNeil 1982)."""
    ours, theirs = np.asarray(members, float), np.sort(np.asarray(others, float))
    return float(_lower(ours, theirs).sum() / 2 / (len(ours) * len(theirs)))


def auc_interval(
    members: Sequence[float],
    others: Sequence[float],
    member_clusters: Sequence[Hashable],
    other_clusters: Sequence[Hashable],
    num_resamples: int,
    seed: int,
) -> Estimate:
    """`auc` with its 95 % interval: a bootstrap that draws whole clusters, such as facts, whose texts are members, others or both.

    From a few clusters, or where all say the same, it is the exact interval of a share of them, as for other figures (statistics.py).
    By ranks, in memory of the texts' number: as a matrix, the pairs of 10,000 members and 30,000 others would take gigabytes.
    """
    number = {cluster: place for place, cluster in enumerate(dict.fromkeys([*member_clusters, *other_clusters]))}
    rows, columns = (np.array([number[each] for each in clusters]) for clusters in (member_clusters, other_clusters))
    ours, theirs = np.asarray(members, float), np.asarray(others, float)
    order = np.argsort(theirs)
    first, last = (np.searchsorted(theirs[order], ours, side=side) for side in ("left", "right"))
    rng, shares, left = np.random.default_rng(seed), [], num_resamples
    while left:
        size = min(left, max(1, _CHUNK // (len(ours) + len(theirs))))
        left -= size
        drawn = rng.multinomial(len(number), [1 / len(number)] * len(number), size=size)  # B: resamples
        times_BM, times_BO = drawn[:, rows], drawn[:, columns[order]]
        below_BO = np.concatenate([np.zeros((size, 1), int), np.cumsum(times_BO, axis=1)], axis=1)
        num_B = below_BO[:, -1]
        wins_B = (times_BM * (2 * num_B[:, None] - below_BO[:, first] - below_BO[:, last])).sum(axis=1) / 2
        pairs_B = times_BM.sum(axis=1) * num_B
        shares.append(wins_B[pairs_B > 0] / pairs_B[pairs_B > 0])
    found, value = np.concatenate([*shares, np.empty(0)]), auc(members, others)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(found, [tail, 1 - tail]) if found.size else (value, value)
    estimate = Estimate(value, float(min(low, value)), float(max(high, value)), len(members) + len(others))
    if len(number) < FEW_FACTS or estimate.has_no_width:
        low, high = exact_interval(value * len(number), len(number))
        return Estimate(value, low, high, estimate.num)
    return estimate


def privacy_leakage(unlearned_auc: float, retrained_auc: float) -> float:
    """100 x ((1 - AUC) - (1 - AUC of a retrained model)) / (1 - AUC of a retrained model) (MUSE, arXiv 2407.06460, as open-unlearning computes it).

    Its AUC is 1 less ours. Near 0: like a model that never saw the texts; far below: they are still recognised; far above: they stand out
    as texts that the model was made to dislike.
    """
    leaked, reference = 1 - unlearned_auc, 1 - retrained_auc
    return (leaked - reference) / (reference + _EPSILON) * 100


def _lower(members: "np.ndarray", others: "np.ndarray") -> "np.ndarray":
    """Of each member, twice the number of others whose score is higher, ties counting once.

    Args:
        others: sorted.
    """
    return 2 * len(others) - np.searchsorted(others, members, "left") - np.searchsorted(others, members, "right")
