"""What attacks got out of a model, as figures with intervals: `attacks.json`, as it is written. `evals.attacked` reads it."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from unlearn_ray.attacks.attack import AttackedModel, Hit
from unlearn_ray.evals.attacked import NO_SHARES
from unlearn_ray.evals.statistics import mean_interval

VERSION = 1
LABELS: Mapping[AttackedModel, str] = {
    "base": "base",
    "guarded": "base + prefix",
    "unlearned": "unlearned",
    "twin": "never knew",
}
Key = tuple[str, AttackedModel, float, str]  # setting, model, at, metric


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Strict):
    """One figure of one attack, over all its probes."""

    setting: str
    model: AttackedModel
    at: float
    metric: str
    value: float
    interval: tuple[float, float]  # 95 %
    num: int  # probes
    num_facts: int

    @property
    def is_share(self) -> bool:
        return self.metric not in NO_SHARES


class AttackFigures(_Strict):
    """All figures of one attack."""

    name: str
    summary: str
    axis: str  # what `at` counts: steps, bits, layer
    fingerprint: str
    seconds: float
    figures: list[Figure]
    facts_per_topic: int | None = None  # that were asked for; None: all
    unanswered: dict[str, int] = {}  # what the engines could not answer, by reason

    def beside(self, figure: Figure, model: AttackedModel) -> Figure | None:
        """The same figure of another model."""
        key = (figure.setting, model, figure.at, figure.metric)
        return next((each for each in self.figures if (each.setting, each.model, each.at, each.metric) == key), None)

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(each.metric for each in self.figures))


class AttackReport(_Strict):
    """What a model's attacks got out of it."""

    version: int = VERSION
    run: str
    model: str  # "joint", or the topic's slug
    topics: list[str]
    finetune: str  # fingerprint of the training that was attacked
    evaluate: str
    attacks: list[AttackFigures]

    def of(self, name: str) -> AttackFigures | None:
        return next((each for each in self.attacks if each.name == name), None)


def figures_of(hits: Iterable[Hit], num_resamples: int, seed: int) -> list[Figure]:
    """The mean (of ranks the geometric one) of every setting, model, place on the curve and metric, with the interval of a bootstrap that draws whole facts."""
    found: defaultdict[Key, list[Hit]] = defaultdict(list)
    for hit in hits:
        found[hit.setting, hit.model, hit.at, hit.metric].append(hit)
    return [_figure(key, of, num_resamples, seed) for key, of in found.items()]


def _figure(key: Key, hits: Sequence[Hit], num_resamples: int, seed: int) -> Figure:
    setting, model, at, metric = key
    # Engines and threads finish in any order; intervals must not depend on it.
    ordered = sorted(hits, key=lambda hit: (hit.fact, hit.probe_id))
    facts = [hit.fact for hit in ordered]
    is_share = metric not in NO_SHARES
    # One rank of thousands would hide all others: their mean is geometric.
    values = [hit.value if is_share else math.log(hit.value) for hit in ordered]
    found = mean_interval(values, facts, num_resamples, seed, is_share=is_share)
    value, low, high = (each if is_share else math.exp(each) for each in (found.value, found.low, found.high))
    return Figure(
        setting=setting,
        model=model,
        at=at,
        metric=metric,
        value=value,
        interval=(low, high),
        num=found.num,
        num_facts=len(set(facts)),
    )


__all__ = ["LABELS", "AttackFigures", "AttackReport", "Figure", "figures_of"]
