"""From the figures of single answers to those of a report: means, worst cases, shares of the base model's, each with its interval."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import EvaluateConfig
from unlearn_ray.evals.floors import by_chance
from unlearn_ray.evals.forgetting import Recall, chance_of, forgetting_of
from unlearn_ray.evals.known import known_only
from unlearn_ray.evals.membership import auc_interval
from unlearn_ray.evals.metrics import harmonic_mean
from unlearn_ray.evals.probes import Selection
from unlearn_ray.evals.report import (
    LEAST_ROOM,
    TRAINED,
    UNTRAINED,
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
    metric_words,
)
from unlearn_ray.evals.scoring import MODELS, ModelName, Score
from unlearn_ray.evals.statistics import Estimate, difference_interval, mean_interval, ratio_interval
from unlearn_ray.evals.table import MEASURES, Measure, per_answer
from unlearn_ray.rows import GROUPS, Group, seed_of

_SOURCES = {
    None: "what the base model says each time it is asked, or to held-out questions",
    "pocket": "the pocket model's probes",
    "facts": "facts that are true for everybody, of which those count that the base model knows",
}
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
    trained: Collection[tuple[str, str]] | None = None,
) -> Report:
    """The report of a run from the scores of its answers and what else is known of it; `notes` are what its files made doubtful.

    Args:
        trained: topic and fact of the probes whose fact a training row asks for; None where that is not known.
    """
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
        metrics=metric_words(),
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
        by_training={} if trained is None else tally.by_training(trained),
        against_prefix=tally.against_prefix(recall),
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
        self.base = {score.probe_id: score.texts for score in scores if score.model == "base"}
        self.seed = seed_of(seed, "bootstrap")  # one for all figures: models are compared on the same resamples

    def models(self) -> ByModel:
        return self._by_model(self.scores, with_values=True)

    def by_wording(self) -> dict[str, ByModel]:
        return self._split(lambda score: score.wording)

    def by_topic(self, topics: Sequence[str]) -> dict[str, ByModel]:
        found = self._split(lambda score: score.served_topic)
        return {topic: found[topic] for topic in topics if topic in found}

    def by_training(self, trained: Collection[tuple[str, str]]) -> dict[str, ByModel]:
        """Facts that a training row asks for, and those that none does."""
        return self._split(lambda score: TRAINED if score.cluster in trained else UNTRAINED)

    def against_prefix(self, recall: Recall) -> Scores:
        """How much better the unlearned model is than the prefix, in the headline's figures: positive is better, over the same probes."""
        guarded = {score.probe_id: score for score in self.scores if score.model == "guarded"}
        pairs = [(s, guarded[s.probe_id]) for s in self.scores if s.model == "unlearned" and s.probe_id in guarded]
        other = {"fact_recall", "rouge_l_recall"} - {recall}
        named = [row for row in per_answer() if row.is_share and (row.short or row.column) and row.name not in other]
        found: Scores = {}
        for group in GROUPS:
            for row in named:
                both = [pair for pair in pairs if pair[0].group == group and all(row.name in s.values for s in pair)]
                if both and row.direction == "knowledge":
                    found.setdefault(group, {})[row.name] = self._gain(row.name, both, is_low_good=group == "forget")
        return found

    def _gain(self, name: str, pairs: Sequence[tuple[Score, Score]], is_low_good: bool) -> Metric:
        ours, theirs = ([score.values[name] for score in scores] for scores in zip(*pairs, strict=True))
        clusters = [score.cluster for score, _ in pairs]
        lower, higher = (ours, theirs) if is_low_good else (theirs, ours)
        return _metric(name, difference_interval(lower, higher, clusters, self.num_bootstrap, self.seed))

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
        """Harmonic mean of probability, ROUGE-L recall and max(0, 1 - truth ratio) over near and far.

        After TOFU (arXiv 2401.06121), whose model utility has nine terms: the same three on its sets of retained, real-author and
        world facts, with the probabilities of the last two among their options.
        """
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
        scores = list(scores)
        floors = {group: _floors([each for each in scores if each.group == group]) for group in GROUPS}
        by_model = self._without_floors(scores, with_values)
        for group, floor in floors.items():
            base = by_model["base"].get(group, {})
            for found in by_model.values():
                if group in found:
                    found[group] = {name: _floored(name, each, floor, base) for name, each in found[group].items()}
        return by_model

    def _without_floors(self, scores: Iterable[Score], with_values: bool) -> ByModel:
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
        for measure in per_answer():
            having = [score for score in scores if measure.name in score.values]
            if having:
                found[measure.name] = self._figure(measure, having, group, with_values)
        for measure in MEASURES.values():
            if measure.per == "fact" and (worst := self._per_fact(measure, scores, group, with_values)):
                found[measure.name] = worst
            if measure.per == "texts" and with_values and (figure := self._familiar(measure, scores)):
                found[measure.name] = figure
        return {name: found[name] for name in MEASURES if name in found}

    def _familiar(self, measure: Measure, scores: Sequence[Score]) -> Metric | None:
        """How often a reference looks more familiar than a wrong answer; None where nothing was scored."""
        found: dict[str, tuple[float, ...]] = {}
        for score in scores:
            if measure.name in score.texts:
                found[score.probe_id] = score.texts[measure.name]
            elif score.model != "base" and measure.needs[0] in score.texts:  # a model is no reference for itself
                ours, base = score.texts[measure.needs[0]], self.base.get(score.probe_id, {}).get(measure.needs[0], ())
                if len(ours) == len(base):
                    found[score.probe_id] = tuple(map(measure.function, ours, base))  # type: ignore[arg-type]
        having = [score for score in scores if len(found.get(score.probe_id, ())) > 1]
        if not having:
            return None
        members = [found[score.probe_id][0] for score in having]
        others = [(other, score.cluster) for score in having for other in found[score.probe_id][1:]]
        clusters = [score.cluster for score in having]
        estimate = auc_interval(
            members,
            [other for other, _ in others],
            clusters,
            [cluster for _, cluster in others],
            self.num_bootstrap,
            self.seed,
        )
        named = {score.probe_id: value for score, value in zip(having, members, strict=True)}
        metric = _metric(measure.name, replace(estimate, num=len(having)), named)
        return metric.model_copy(update={"floor": 0.5})

    def _figure(self, measure: Measure, having: Sequence[Score], group: Group, with_values: bool) -> Metric:
        name = measure.name
        values = [measure.in_group(score.values[name], group) for score in having]
        clusters = [score.cluster for score in having]
        estimate = mean_interval(values, clusters, self.num_bootstrap, self.seed, is_share=measure.is_share)
        named = {score.probe_id: score.values[name] for score in having} if with_values else None
        return _metric(name, estimate, named, chance_of(having) if measure.floor is by_chance else None)

    def _per_fact(self, measure: Measure, scores: Sequence[Score], group: Group, with_values: bool) -> Metric | None:
        """A figure per fact; None where no fact has several wordings, for it would be that of the probes again."""
        (name,) = measure.needs
        by_fact: dict[tuple[str, str], list[float]] = {}
        for score in scores:
            if name in score.values:
                by_fact.setdefault(score.cluster, []).append(score.values[name])
        if all(len(values) == 1 for values in by_fact.values()):
            return None
        found = {fact: float(measure.function(values, group) or 0.0) for fact, values in by_fact.items()}
        estimate = mean_interval(
            list(found.values()), list(found), self.num_bootstrap, self.seed, is_share=measure.is_share
        )
        named = {f"{topic}: {fact}": value for (topic, fact), value in found.items()}
        return _metric(measure.name, estimate, named if with_values else None)

    def _shares(self, pairs: Sequence[tuple[Score, Score]]) -> Metrics:
        found: Metrics = {}
        for name in (measure.name for measure in MEASURES.values() if measure.is_kept):
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


def _floors(scores: Sequence[Score]) -> dict[str, float]:
    """Metric -> the mean of its floor over the base model's probes."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for score in scores:
        for name, floor in score.floors.items():
            found[name].append(floor)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _floored(name: str, metric: Metric, floors: Mapping[str, float], base: Metrics) -> Metric:
    """The figure with its floor; doubtful where base's is no better, for then nothing could have been lost."""
    known = (metric.chance, metric.floor, floors.get(name))
    floor = next((each for each in known if each is not None), None)
    if floor is None:
        return metric
    doubts = list(metric.doubts)
    if name in base and is_blind(name, base[name].agg_value, floor):
        doubts.append("blind")
    return metric.model_copy(update={"floor": floor, "doubts": doubts})


def is_blind(name: str, base: float, floor: float) -> bool:
    """Whether what knowing adds to a figure is less than `LEAST_ROOM` of it. Below its floor nothing is known."""
    # Knowing raises all figures but the truth ratio's, which is above its floor on near and far, and below it on forget.
    added = base - floor if MEASURES[name].direction == "knowledge" else abs(base - floor)
    return added < LEAST_ROOM * max(abs(base), abs(floor))


def _utility_parts(metrics: Mapping[str, Metric]) -> list[float]:
    terms = ("probability", "rouge_l_recall", "truth_ratio")
    return [metrics[name].agg_value for name in terms] if metrics.keys() >= set(terms) else []


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
