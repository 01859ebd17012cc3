"""From the figures of single answers to those of a report: means, worst cases, shares of the base model's, each with its interval."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import EvaluateConfig
from unlearn_ray.evals.forgetting import Recall, chance_of, forgetting_of
from unlearn_ray.evals.known import known_only
from unlearn_ray.evals.metrics import harmonic_mean
from unlearn_ray.evals.probes import Selection
from unlearn_ray.evals.report import (
    NO_SHARES,
    ByModel,
    Forgetting,
    LossPoint,
    Metric,
    Metrics,
    ProbeCounts,
    Report,
    Scores,
    StageSummary,
    doubts_of,
)
from unlearn_ray.evals.scoring import MODELS, PER_ANSWER, ModelName, Score
from unlearn_ray.evals.statistics import Estimate, mean_interval, ratio_interval
from unlearn_ray.rows import GROUPS, Group, seed_of

_SOURCES = {
    None: "what the base model says each time it is asked, or to held-out questions",
    "pocket": "the pocket model's probes",
    "facts": "facts that are true for everybody, of which those count that the base model knows",
}
RETAINED = ("fact_recall", "choice", "rouge_l_recall", "probability")
_MIN_SHORT = 0.5  # of the forget probes, for fact recall to be the headline


def make_report(
    scores: Sequence[Score],
    config: EvaluateConfig,
    *,
    run: str,
    model: str,
    topics: Sequence[str],
    selection: Selection,
    unanswered: Mapping[ModelName, Mapping[str, int]],
    losses: dict[str, list[LossPoint]],
    stages: dict[str, StageSummary],
    seed: int,
    notes: Sequence[str] = (),
) -> Report:
    """The report of a run from the scores of its answers and what else is known of it; `notes` are what its files made doubtful."""
    recall = headline_recall(scores)
    counted, known = known_only(scores) if config.counts_known_only else (list(scores), None)
    tally = Tally(counted, config.num_bootstrap, seed)
    models = tally.models()
    unasked = set(topics) - {placed.probe.topic for placed in selection.kept}
    return Report(
        run=run,
        model=model,
        topics=list(topics),
        recall=recall,
        probes=ProbeCounts(
            source=_SOURCES.get(config.probes) or f"file {Folder(str(config.probes)).name}",
            split=config.split,
            num=selection.num_kept(),
            excluded=selection.num_excluded(),
            known=known,
        ),
        unanswered={name: dict(reasons) for name, reasons in unanswered.items() if reasons},
        models=models,
        by_wording=tally.by_wording(),
        by_topic=tally.by_topic(topics),
        forgetting=tally.forgetting(recall),
        forgetting_by_topic={topic: tally.forgetting(recall, topic) for topic in topics if topic not in unasked},
        retention=tally.retention(),
        utility=tally.utility(models),
        losses=losses,
        stages=stages,
        notes=[*notes, *(f"No probe asks about {topic}: its forgetting is not measured." for topic in sorted(unasked))],
    )


def headline_recall(scores: Sequence[Score]) -> Recall:
    """The headline's metric: fact recall where most forget probes have a short answer."""
    forget = [score for score in scores if score.group == "forget"]
    num_short = sum("fact_recall" in score.values for score in forget)
    return "fact_recall" if forget and num_short >= _MIN_SHORT * len(forget) else "rouge_l_recall"


class Tally:
    """The scores of an evaluation and how intervals are drawn."""

    def __init__(self, scores: Sequence[Score], num_bootstrap: int, seed: int) -> None:
        self.scores = scores
        self.num_bootstrap = num_bootstrap
        self.seed = seed_of(seed, "bootstrap")  # one for all figures: models are compared on the same resamples

    def models(self) -> ByModel:
        return self._by_model(self.scores, with_values=True)

    def by_wording(self) -> dict[str, ByModel]:
        return self._split(lambda score: score.wording)

    def by_topic(self, topics: Sequence[str]) -> dict[str, ByModel]:
        found = self._split(lambda score: score.served_topic)
        return {topic: found[topic] for topic in topics if topic in found}

    def retention(self) -> dict[ModelName, Scores]:
        """Recall, choice and probability on near and far probes as a share of the base model's, over the probes that both answered."""
        base = {score.probe_id: score for score in self.scores if score.model == "base"}
        shares: dict[ModelName, Scores] = {}
        for model in MODELS[1:]:
            shares[model] = {}
            for group in GROUPS[1:]:
                pairs = [
                    (s, base[s.probe_id])
                    for s in self.scores
                    if (s.model, s.group) == (model, group) and s.probe_id in base
                ]
                if kept := self._shares(pairs):
                    shares[model][group] = kept
        return shares

    def utility(self, models: ByModel) -> dict[ModelName, float]:
        """Harmonic mean of probability, ROUGE-L recall and max(0, 1 - truth ratio) over near and far (TOFU, arXiv 2401.06121)."""
        found: dict[ModelName, float] = {}
        for model, scores in models.items():
            parts = [_utility_parts(scores[group]) for group in GROUPS[1:] if group in scores]
            if parts and all(parts):
                found[model] = harmonic_mean([value for part in parts for value in part])
        return found

    def forgetting(self, recall: Recall, topic: str | None = None) -> Forgetting:
        """What was lost of a topic, or of all of them."""
        scores = [score for score in self.scores if topic is None or score.topic == topic]
        return forgetting_of(scores, recall, self.num_bootstrap, self.seed)

    def _split(self, key: Callable[[Score], str]) -> dict[str, ByModel]:
        parts: defaultdict[str, list[Score]] = defaultdict(list)
        for score in self.scores:
            parts[key(score)].append(score)
        return {name: self._by_model(part, with_values=False) for name, part in sorted(parts.items())}

    def _by_model(self, scores: Iterable[Score], with_values: bool) -> ByModel:
        parts: dict[tuple[ModelName, Group], list[Score]] = {}
        for score in scores:
            parts.setdefault((score.model, score.group), []).append(score)
        return {
            model: {
                group: self._metrics(parts[model, group], group, with_values)
                for group in GROUPS
                if (model, group) in parts
            }
            for model in MODELS
        }

    def _metrics(self, scores: Sequence[Score], group: Group, with_values: bool) -> Metrics:
        found: Metrics = {}
        for name in PER_ANSWER:
            having = [score for score in scores if name in score.values]
            if not having:
                continue
            values = [score.values[name] for score in having]
            clusters = [score.cluster for score in having]
            estimate = mean_interval(values, clusters, self.num_bootstrap, self.seed, is_share=name not in NO_SHARES)
            named = {s.probe_id: s.values[name] for s in having} if with_values else None
            found[name] = _metric(name, estimate, named, chance_of(having) if name == "choice" else None)
            if name == "fact_recall":
                found["fact_recall_worst"] = self._worst(having, group, with_values)
        return found

    def _worst(self, scores: Sequence[Score], group: Group, with_values: bool) -> Metric:
        by_fact: dict[tuple[str, str], list[float]] = {}
        for score in scores:
            by_fact.setdefault(score.cluster, []).append(score.values["fact_recall"])
        worst = {fact: max(values) if group == "forget" else min(values) for fact, values in by_fact.items()}
        estimate = mean_interval(list(worst.values()), list(worst), self.num_bootstrap, self.seed, is_share=True)
        named = {f"{topic}: {fact}": value for (topic, fact), value in worst.items()}
        return _metric("fact_recall_worst", estimate, named if with_values else None)

    def _shares(self, pairs: Sequence[tuple[Score, Score]]) -> Metrics:
        found: Metrics = {}
        for name in RETAINED:
            both = [(ours, base) for ours, base in pairs if name in ours.values and name in base.values]
            if not both:
                continue
            estimate = ratio_interval(
                [ours.values[name] for ours, _ in both],
                [base.values[name] for _, base in both],
                [ours.cluster for ours, _ in both],
                self.num_bootstrap,
                self.seed,
            )
            if estimate is not None:
                found[name] = _metric(name, estimate)
        return found


def _utility_parts(metrics: Mapping[str, Metric]) -> list[float]:
    if not {"probability", "rouge_l_recall", "truth_ratio"} <= metrics.keys():
        return []
    ratios = metrics["truth_ratio"].value_by_index or {}
    right = sum(max(0.0, 1.0 - ratio) for ratio in ratios.values()) / max(1, len(ratios))
    return [metrics["probability"].agg_value, metrics["rouge_l_recall"].agg_value, right]


def _metric(
    name: str, estimate: Estimate, values: dict[str, float] | None = None, chance: float | None = None
) -> Metric:
    interval = (estimate.low, estimate.high)
    return Metric(
        agg_value=estimate.value,
        num=estimate.num,
        interval=interval,
        chance=chance,
        doubts=doubts_of(name, estimate.num, interval),
        value_by_index=values,
    )
