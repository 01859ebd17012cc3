"""The figures that TOFU and MUSE report under their own names, from what `metrics` gives for single answers. Pure."""

from collections.abc import Iterable, Mapping, Sequence

from unlearn_ray.evals.metrics import harmonic_mean, rouge_l


def forget_quality(unlearned: Sequence[float], retrained: Sequence[float] | None) -> float | None:
    """p-value of the two-sample Kolmogorov-Smirnov test on truth ratios R, unlearned against a model that never saw the data.

    TOFU, arXiv 2401.06121: high where nobody can tell the two apart. None (n/a) without such a model, or where one has no values.
    """
    if not retrained or not unlearned:
        return None
    from scipy.stats import ks_2samp  # a second to import, which a reader of reports need not wait

    return float(ks_2samp(unlearned, retrained).pvalue)


def probability_among(right: float, wrong: Sequence[float]) -> float:
    """p / (p + sum of the wrong answers' p), each an answer's probability per token: TOFU's, on real authors and world facts."""
    return right / (right + sum(wrong) + 1e-10)


def model_utility(terms: Mapping[str, Mapping[str, float]]) -> float:
    """TOFU's model utility: the harmonic mean of nine terms.

    Args:
        terms: retain, real_authors and world_facts -> probability, rouge and truth_ratio. The probabilities of the last two are
            `probability_among` their options; a truth ratio is the mean of max(0, 1 - R).

    Raises:
        ValueError: a term is missing.
    """
    sets, names = ("retain", "real_authors", "world_facts"), ("probability", "rouge", "truth_ratio")
    missing = [f"{part}.{name}" for part in sets for name in names if name not in terms.get(part, {})]
    if missing:
        raise ValueError(f"model utility has nine terms, of which these are missing: {', '.join(missing)}")
    return harmonic_mean([terms[part][name] for part in sets for name in names])


def verbatim_memorisation(continuations: Iterable[str], passages: Iterable[str]) -> float:
    """Mean ROUGE-L F1 of what a model continues a passage with and how it goes on (MUSE's VerbMem, arXiv 2407.06460)."""
    found = [rouge_l(said, passage).fmeasure for said, passage in zip(continuations, passages, strict=True)]
    return sum(found) / len(found)


def knowledge_memorisation(answers: Iterable[str], references: Iterable[str]) -> float:
    """Mean ROUGE-L recall of answers to questions (MUSE's KnowMem)."""
    found = [rouge_l(said, reference).recall for said, reference in zip(answers, references, strict=True)]
    return sum(found) / len(found)
