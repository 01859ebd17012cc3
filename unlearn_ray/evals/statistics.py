"""Intervals: a seeded bootstrap, and an exact one where a bootstrap has nothing to draw from. Probes that ask for the same fact are drawn
together: they are not independent.

Where all values of a share are 0, or all 1, or the facts are all alike, every resample is the same and a bootstrap's interval has no
width; from a few facts it is too narrow. There the interval is Clopper and Pearson's (Biometrika 26, 1934), with the number of facts as n and the share times n as
hits, which need not be whole: what Korn and Graubard do for clustered data (Survey Methodology 24, 1998). A mean of values between 0
and 1 varies at most as much as a share of yes and no, so that for those the interval is on the safe side.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
FEW_FACTS = 10  # below which a bootstrap is not believed
_TAIL = (1 - CONFIDENCE) / 2
_NO_WIDTH = 1e-9  # what rounding makes of equal resamples
_CHUNK = 2_000_000  # indices drawn at a time: bounds the memory of large probe sets

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, its 95 % interval, and the number of values behind it."""

    value: float
    low: float
    high: float
    num: int

    @property
    def has_no_width(self) -> bool:
        return self.high - self.low < _NO_WIDTH


def mean_interval(
    values: Sequence[float], clusters: Sequence[Hashable], num_resamples: int, seed: int, *, is_share: bool = False
) -> Estimate:
    """The mean, with whole clusters resampled (Field & Welsh 2007; Miller 2024 for evaluations, arXiv 2411.00640).

    Args:
        is_share: the values are between 0 and 1, and the interval is exact where a bootstrap can't tell.
    """
    columns = np.stack([np.asarray(values, float), np.ones(len(values))], axis=1)
    sums = _by_cluster(columns, clusters)
    found = _bootstrap(sums, _ratio_of_sums, num_resamples, seed, len(values))
    if is_share and (len(sums) < FEW_FACTS or found.has_no_width):
        return Estimate(found.value, *exact_interval(found.value * len(sums), len(sums)), found.num)
    return found


def ratio_interval(
    values: Sequence[float], base: Sequence[float], clusters: Sequence[Hashable], num_resamples: int, seed: int
) -> Estimate | None:
    """sum(values) / sum(base) over the same probes, resampled in pairs; None where the base has nothing to keep.

    Where every fact keeps the same share (all of it, or nothing), or base has something of a few facts alone, the interval takes in the
    exact one of a share of those facts. Above 1, where something was gained, it is the bootstrap's.
    """
    columns = np.stack([np.asarray(values, float), np.asarray(base, float)], axis=1)
    if columns[:, 1].sum() == 0:
        return None
    sums = _by_cluster(columns, clusters)
    found = _bootstrap(sums, _ratio_of_sums, num_resamples, seed, len(values))
    num_had = int((sums[:, 1] > 0).sum())
    if found.value <= 1 and (num_had < FEW_FACTS or found.has_no_width):
        low, high = exact_interval(found.value * num_had, num_had)
        return Estimate(found.value, min(found.low, low), max(found.high, high), found.num)
    return found


def difference_interval(
    values: Sequence[float], base: Sequence[float], clusters: Sequence[Hashable], num_resamples: int, seed: int
) -> Estimate:
    """mean(base) - mean(values) of two shares over the same probes: what was lost, resampled in pairs and whole clusters.

    From a few facts, or where each lost the same, the exact interval: what was lost less what was gained, each a share of the facts with
    half of the error (Bonferroni). Seven facts of seven have to be lost before 0 is outside of it.
    """
    columns = np.stack([np.asarray(base, float) - np.asarray(values, float), np.ones(len(values))], axis=1)
    sums = _by_cluster(columns, clusters)
    found = _bootstrap(sums, _ratio_of_sums, num_resamples, seed, len(values))
    if len(sums) >= FEW_FACTS and not found.has_no_width:
        return found
    lost, gained = (
        exact_interval(float(np.maximum(sign * sums[:, 0], 0).sum() / len(values) * len(sums)), len(sums), _TAIL / 2)
        for sign in (1, -1)
    )
    return Estimate(found.value, lost[0] - gained[1], lost[1] - gained[0], found.num)


def exact_interval(hits: float, num: int, tail: float = _TAIL) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share, of which each side misses the true one in `tail` of all cases at most."""
    from scipy.special import betaincinv  # the quantiles of a beta distribution; scipy.stats takes a second to import

    hits = min(max(hits, 0.0), float(num))
    low = float(betaincinv(hits, num - hits + 1, tail)) if hits > 0 else 0.0
    high = float(betaincinv(hits + 1, num - hits, 1 - tail)) if hits < num else 1.0
    return low, high


def _ratio_of_sums(sums: Floats) -> Floats:
    """B x 2 sums -> B ratios; resamples without a base are left out by the caller."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[:, 0] / sums[:, 1])


def _by_cluster(columns: Floats, clusters: Sequence[Hashable]) -> Floats:
    """Sums of the columns, a row a cluster."""
    number: dict[Hashable, int] = {}
    of = np.array([number.setdefault(cluster, len(number)) for cluster in clusters])
    sums = np.zeros((len(number), columns.shape[1]))
    np.add.at(sums, of, columns)
    return sums


def _bootstrap(
    sums: Floats, statistic: Callable[[Floats], Floats], num_resamples: int, seed: int, num_values: int
) -> Estimate:
    """The percentile interval of a statistic of the sums."""
    value = float(statistic(sums.sum(axis=0, keepdims=True))[0])
    rng = np.random.default_rng(seed)
    at_once = max(1, _CHUNK // len(sums))
    drawn = []
    for start in range(0, num_resamples, at_once):
        picks = rng.integers(len(sums), size=(min(at_once, num_resamples - start), len(sums)))
        drawn.append(statistic(sums[picks].sum(axis=1)))
    resampled = np.concatenate(drawn)
    resampled = resampled[np.isfinite(resampled)]
    low, high = np.quantile(resampled, [_TAIL, 1 - _TAIL]) if resampled.size else (value, value)
    return Estimate(value, float(min(low, value)), float(max(high, value)), num_values)
