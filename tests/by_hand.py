"""A report whose figures are set by hand, and attacks on its model."""

from unlearn_ray.evals.attacked import AttackFigure
from unlearn_ray.evals.report import Forgetting, Metric, ProbeCounts, Report, doubts_of


def metric(value: float, num: int = 37) -> Metric:
    interval = (max(0.0, value - 0.05), min(1.0, value + 0.05))
    return Metric(agg_value=value, num=num, interval=interval, doubts=doubts_of("recall", num, interval))


def report(**changes: object) -> Report:
    scores = {
        "forget": {"rouge_l_recall": metric(0.4), "fact_recall": metric(0.01), "choice": metric(0.65)},
        "near": {"fact_recall": metric(0.97, 12)},
    }
    values: dict[str, object] = {
        "run": "mine",
        "model": "pocket",
        "topics": ["Harry Potter"],
        "recall": "fact_recall",
        "probes": ProbeCounts(source="a file", split="report", num={"forget": 37}, excluded={}),
        "unanswered": {},
        "models": {"unlearned": scores, "base": {"forget": {"choice": metric(1.0)}}},
        "by_wording": {},
        "by_topic": {},
        "forgetting": Forgetting(verdict="forgotten", num=37, lost={}),
        "forgetting_by_topic": {},
        "retention": {"unlearned": {"near": {"fact_recall": metric(0.98)}}},
        "utility": {"unlearned": 0.6},
        "losses": {},
        "stages": {},
        "notes": [],
    }
    return Report.model_validate(values | changes)


def attack(setting: str, at: float, value: float, model: str = "unlearned") -> AttackFigure:
    return AttackFigure(
        attack="relearn", setting=setting, model=model, at=at, metric="recall", value=value, interval=(0.0, 1.0), num=19
    )
