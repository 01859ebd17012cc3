"""What a run must say of itself: forgotten, not forgotten, or not measured; of each topic and of all."""

from collections.abc import Sequence

import pytest

from unlearn_ray.evals.forgetting import forgetting_of
from unlearn_ray.evals.scoring import ModelName, Score


def score(model: ModelName, index: int, **values: float) -> Score:
    return Score(model, f"p{index}", "T", "T", "forget", "first", f"f{index}", 3, values)


def scores(base: Sequence[dict[str, float]], ours: Sequence[dict[str, float]]) -> list[Score]:
    found = [score("base", i, **values) for i, values in enumerate(base)]
    return found + [score("unlearned", i, **values) for i, values in enumerate(ours)]


def said(recall: float, choice: float) -> dict[str, float]:
    return {"fact_recall": recall, "choice": choice}


def verdict(base: Sequence[dict[str, float]], ours: Sequence[dict[str, float]]) -> str:
    return forgetting_of(scores(base, ours), "fact_recall", 300, seed=0).verdict


KNOWN = [said(1, 1)] * 40


def test_a_model_that_says_what_base_says_has_forgotten_nothing() -> None:
    found = forgetting_of(scores(KNOWN, KNOWN), "fact_recall", 300, seed=0)
    assert found.verdict == "no_forgetting" and found.num == 40
    assert {name: metric.agg_value for name, metric in found.lost.items()} == {"fact_recall": 0.0, "choice": 0.0}
    assert all(metric.interval[0] < 0 < metric.interval[1] for metric in found.lost.values())


def test_a_fall_within_chance_is_no_forgetting_and_one_beyond_is() -> None:
    assert verdict(KNOWN, [said(0, 1)] * 2 + KNOWN[2:]) == "no_forgetting"
    assert verdict(KNOWN, [said(0, 1)] * 20 + KNOWN[20:]) == "forgotten"


def test_either_of_recall_and_choice_is_enough() -> None:
    assert verdict(KNOWN, [said(0, 1)] * 40) == "forgotten"  # not said, but still preferred: suppressed
    assert verdict([said(0, 1)] * 40, [said(0, 0)] * 30 + [said(0, 1)] * 10) == "forgotten"  # a weak model


def test_a_model_that_tells_more_than_base_has_forgotten_nothing() -> None:
    assert verdict([said(0, 0)] * 20 + KNOWN[20:], KNOWN) == "no_forgetting"


def test_one_probe_proves_nothing() -> None:
    assert verdict(KNOWN[:1], [said(0, 0)]) == "no_forgetting"


@pytest.mark.parametrize(
    "base",
    [
        [said(0, 0)] * 40,
        [said(0, 1)] * 10 + [said(0, 0)] * 30,  # a quarter: what guessing among four gives
        [{"fact_recall": 0.0}] * 40,
        [],
    ],
)
def test_what_base_does_not_know_cannot_be_measured(base: list[dict[str, float]]) -> None:
    assert verdict(base, [said(0, 0)] * len(base)) == "not_measured"


def test_what_one_model_did_not_answer_is_in_no_pair() -> None:
    answered = scores(KNOWN, [said(0, 0)] * 40)
    found = forgetting_of([each for each in answered if each.probe_id != "p3"], "fact_recall", 300, seed=0)
    assert found.num == 39 and found.lost["choice"].num == 39
    unpaired = [each for each in answered if each.model == "base" or each.probe_id == "p3"]
    assert forgetting_of(unpaired, "fact_recall", 300, seed=0).num == 1


def test_answers_that_are_sentences_are_compared_by_rouge() -> None:
    base, ours = [{"rouge_l_recall": 0.9}] * 40, [{"rouge_l_recall": 0.2}] * 40
    found = forgetting_of(scores(base, ours), "rouge_l_recall", 300, seed=0)
    assert found.verdict == "forgotten" and list(found.lost) == ["rouge_l_recall"]
