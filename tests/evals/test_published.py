"""TOFU's and MUSE's own figures, beside scipy and rouge-score."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from rouge_score import rouge_scorer
from scipy.stats import hmean

from unlearn_ray.evals import published

SETS = ("retain", "real_authors", "world_facts")


def test_forget_quality_is_the_ks_tests_p_value() -> None:
    ours, never = [0.1, 0.4, 0.5, 0.9, 1.3], [0.45, 1.0, 1.1, 1.7, 2.5]
    pooled = sorted(ours + never)

    def distance(one: Sequence[float], other: Sequence[float]) -> float:
        return max(abs(sum(v <= x for v in one) - sum(v <= x for v in other)) / 5 for x in pooled)

    # By its definition: the share of all ways to divide the values that are as far apart.
    splits = [(set(chosen), set(pooled) - set(chosen)) for chosen in combinations(pooled, 5)]
    expected = np.mean([distance([*one], [*other]) >= distance(ours, never) - 1e-12 for one, other in splits])
    assert published.forget_quality(ours, never) == pytest.approx(expected)
    assert published.forget_quality(ours, ours) == pytest.approx(1.0)
    assert published.forget_quality([1.0, 2.0], None) is None and published.forget_quality([], [1.0]) is None


def test_utility_has_nine_terms() -> None:
    values = iter(np.linspace(0.2, 0.9, 9))
    terms = {part: {name: float(next(values)) for name in ("probability", "rouge", "truth_ratio")} for part in SETS}
    flat = [value for part in terms.values() for value in part.values()]
    assert published.model_utility(terms) == pytest.approx(hmean(flat))
    del terms["retain"]["rouge"]
    with pytest.raises(ValueError, match=r"nine terms, of which these are missing: retain\.rouge"):
        published.model_utility(terms)


def test_probability_among_options_by_hand() -> None:
    assert published.probability_among(0.3, [0.1, 0.2]) == pytest.approx(0.5, abs=1e-6)
    assert published.probability_among(0.3, []) == pytest.approx(1.0, abs=1e-6)


def test_verbatim_and_knowledge_memorisation_are_rouge_scores() -> None:
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    said, passages = ["the owl flies by night", "nothing"], ["the owls fly to the school by night", "he went home"]
    scores = [scorer.score(passage, text)["rougeL"] for text, passage in zip(said, passages, strict=True)]
    assert published.verbatim_memorisation(said, passages) == pytest.approx(np.mean([each.fmeasure for each in scores]))
    assert published.knowledge_memorisation(said, passages) == pytest.approx(np.mean([each.recall for each in scores]))
