"""Whether anything was forgotten: what the unlearned model lost of the base model's figures, and whether that is more than chance."""

from collections.abc import Sequence
from typing import Literal

from unlearn_ray.evals.report import Forgetting, Metric, Metrics, doubts_of
from unlearn_ray.evals.scoring import TELLS, Score
from unlearn_ray.evals.statistics import difference_interval, mean_interval

Recall = Literal["fact_recall", "rouge_l_recall"]


def forgetting_of(scores: Sequence[Score], recall: Recall, num_bootstrap: int, seed: int) -> Forgetting:
    """What was lost on the forget probes, in recall and in choice.

    For each of the two the difference base less unlearned is taken probe by probe, over those that both answered, and its 95 % interval is
    drawn from facts resampled whole, both models together (a paired bootstrap; Efron & Tibshirani 1993, chapter 16), or exact where few
    facts or none that differ leave a bootstrap nothing to draw from. Pairs matter: the interval of a difference is narrower than those of
    the two figures, for both models find the same probes hard.

        forgotten      an interval lies above 0: recall, choice or both fell by more than chance explains
        no_forgetting  none does
        not_measured   there was nothing to lose: the base model tells none of the answers, and prefers them no more often than a model
                       without knowledge would
    """
    forget = [score for score in scores if score.group == "forget"]
    base = {score.probe_id: score for score in forget if score.model == "base"}
    pairs = [(s, base[s.probe_id]) for s in forget if s.model == "unlearned" and s.probe_id in base]
    lost: Metrics = {}
    for name in (recall, "choice"):
        both = [(ours, theirs) for ours, theirs in pairs if name in ours.values and name in theirs.values]
        if not both:
            continue
        found = difference_interval(
            [ours.values[name] for ours, _ in both],
            [theirs.values[name] for _, theirs in both],
            [ours.cluster for ours, _ in both],
            num_bootstrap,
            seed,
        )
        interval = (found.low, found.high)
        lost[name] = Metric(
            agg_value=found.value, num=found.num, interval=interval, doubts=doubts_of(name, found.num, interval)
        )
    if not _knows([theirs for _, theirs in pairs], recall, num_bootstrap, seed):
        return Forgetting(verdict="not_measured", num=len(pairs), lost=lost)
    has_lost = any(metric.interval[0] > 0 for metric in lost.values())
    return Forgetting(verdict="forgotten" if has_lost else "no_forgetting", num=len(pairs), lost=lost)


def _knows(base: Sequence[Score], recall: Recall, num_bootstrap: int, seed: int) -> bool:
    """Whether the base model has something to forget."""
    if any(score.values.get(recall, 0.0) >= TELLS for score in base):
        return True
    chosen = [score for score in base if "choice" in score.values]
    if not chosen:
        return False
    clusters = [score.cluster for score in chosen]
    found = mean_interval([score.values["choice"] for score in chosen], clusters, num_bootstrap, seed, is_share=True)
    return found.low > chance_of(chosen)


def chance_of(scores: Sequence[Score]) -> float:
    """Choice of a model without knowledge: the mean of 1 / (1 + number of wrong answers)."""
    return sum(1 / (1 + score.num_wrong) for score in scores) / len(scores)
