"""Which facts count where only what the base model knows does."""

from unlearn_ray.evals.known import known_only
from unlearn_ray.evals.report import KnownCount
from unlearn_ray.evals.scoring import MODELS, ModelName, Score
from unlearn_ray.rows import Group


def score(model: ModelName, fact: str, wording: str, group: Group = "forget", **values: float) -> Score:
    return Score(model, f"{fact}/{wording}", "T", "T", group, wording, fact, 3, values)


def asked(fact: str, *base: dict[str, float], group: Group = "forget") -> list[Score]:
    """A fact in its wordings: by base as given, by the others without knowledge."""
    nothing = {"fact_recall": 0.0, "choice": 0.0}
    return [
        score(model, fact, str(i), group, **(values if model == "base" else nothing))
        for model in MODELS
        for i, values in enumerate(base)
    ]


def said(recall: float, choice: float) -> dict[str, float]:
    return {"fact_recall": recall, "choice": choice}


def test_a_fact_counts_whole_and_for_all_models_alike() -> None:
    told = asked("told", said(1, 0), said(0, 0))  # in one wording
    preferred = asked("preferred", said(0, 1), said(0, 1))
    guessed = asked("guessed", said(0, 1), said(0, 0))  # right in one of two: one in four is, by chance
    unknown = asked("unknown", said(0, 0), said(0, 0))
    kept, counts = known_only([*told, *preferred, *guessed, *unknown])
    assert kept == [*told, *preferred]
    assert counts == {"forget": KnownCount(num_probes=4, of_probes=8, num_facts=2, of_facts=4)}


def test_counts_are_by_group_and_a_group_without_anything_known_is_among_them() -> None:
    near = asked("near", said(0, 0), said(0, 0), group="near")
    far = asked("far", said(1, 1), said(1, 1), group="far")
    kept, counts = known_only([*near, *far])
    assert kept == far
    assert {group: (count.num_facts, count.of_facts) for group, count in counts.items()} == {
        "near": (0, 1),
        "far": (1, 1),
    }


def test_a_wording_that_base_could_not_answer_decides_nothing() -> None:
    whole = asked("fact", said(0, 1), said(0, 1))
    without = [each for each in whole if (each.model, each.wording) != ("base", "1")]
    assert known_only(without)[0] == without
    assert known_only([each for each in whole if each.model != "base"])[0] == []
    assert known_only(asked("fact", {"fact_recall": 0.0}))[0] == [], "without choice, what is not told is not known"
