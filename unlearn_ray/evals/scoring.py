"""From a probe to a scored answer: the row that is asked, the row that comes back, and every metric of one answer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import pyarrow as pa

from unlearn_ray.evals.probes import PlacedProbe, wrong_references
from unlearn_ray.evals.table import MEASURES, Measure, per_answer, per_texts
from unlearn_ray.rows import Group, Row, digest
from unlearn_ray.words import leaked

ModelName = Literal["base", "guarded", "unlearned"]
MODELS: tuple[ModelName, ...] = ("base", "guarded", "unlearned")
_OF_ASK = ("model", "probe_id", "topic", "served_topic", "group", "wording", "fact", "question", "truth", "aliases")
_FLOOR = "floor_"  # begins the columns of floors
TELLS = 0.5  # recall from which an answer counts as telling the truth: where no short fact decides, ROUGE-L's


@dataclass(frozen=True, slots=True)
class Ask(Row):
    """One probe put to one model."""

    model: ModelName
    probe_id: str
    topic: str
    served_topic: str  # whose prefix and adapter answer it
    group: Group
    wording: str
    fact: str
    question: str
    truth: str
    aliases: tuple[str, ...]
    reference: str
    wrong: tuple[str, ...]  # in the form of the reference
    prefix: str = ""  # the guardrail, as system message
    adapter: str = ""  # folder of the adapter; "" = none

    @property
    def id(self) -> str:
        return digest(self.model, self.probe_id)


@dataclass(frozen=True, slots=True)
class Said:
    """What one model said to one probe, and how likely it found its answers: what metrics take, by these names.

    `logprobs` and `wrong_logprobs` are of the tokens of the reference and of each wrong answer with the end of turn, `argmax` without it
    whether each token of the reference was the most probable one; empty where an answer was not scored.
    """

    group: Group
    answer: str  # greedy
    samples: Sequence[str]
    leaks: Sequence[Sequence[str]]  # terms that each sample gives away; none where there are no terms
    truths: Sequence[str]
    reference: str
    scored: str  # what `logprobs` are of: the reference
    wrong: Sequence[str]
    logprobs: Sequence[float]
    wrong_logprobs: Sequence[Sequence[float]]
    argmax: Sequence[bool]
    wrong_argmax: Sequence[Sequence[bool]]

    @property
    def num_wrong(self) -> int:
        return len(self.wrong)

    def with_wrong(self, index: int) -> "Said":
        """The same, had the model said the wrong answer, and had that one been scored as the reference."""
        text, empty = self.wrong[index], ()
        return replace(
            self,
            answer=text,
            scored=text,
            samples=[text] * len(self.samples),
            logprobs=self.wrong_logprobs[index] if index < len(self.wrong_logprobs) else empty,
            argmax=self.wrong_argmax[index] if index < len(self.wrong_argmax) else empty,
        )


@dataclass(frozen=True, slots=True)
class Answer(Row):
    """What one model said to one probe."""

    model: ModelName
    probe_id: str
    topic: str
    served_topic: str
    group: Group
    wording: str
    fact: str
    question: str
    truth: str
    aliases: tuple[str, ...]
    answer: str  # greedy
    samples: tuple[str, ...]
    leaked_terms: tuple[str, ...]  # by any of the samples
    num_wrong: int = 0  # wrong answers that were scored: those that `choice` is among
    is_truncated: bool = False
    drop: str | None = None  # the engine could not answer: counted, and in no metric

    @property
    def id(self) -> str:
        return digest(self.model, self.probe_id)


@dataclass(frozen=True, slots=True)
class Answered(Answer):
    """An answer with its value in every metric of the table, a column each; None where it does not apply.

    `floors` has, for rows of the base model alone, what a model without knowledge gets: columns that begin with `floor_`.
    """

    values: Mapping[str, float | None] = field(default_factory=dict)
    floors: Mapping[str, float | None] = field(default_factory=dict)
    texts: Mapping[str, Sequence[float]] = field(default_factory=dict)  # of the reference, then of each wrong answer

    @classmethod
    def schema(cls) -> pa.Schema:
        names = [*(measure.name for measure in per_answer()), *(_FLOOR + name for name in _with_floor())]
        lists = [(measure.name, pa.list_(pa.float64())) for measure in per_texts()]
        return pa.schema([*Answer.schema(), *((name, pa.float64()) for name in names), *lists])

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Answered":
        values = {measure.name: row.get(measure.name) for measure in per_answer()}
        floors = {name: row.get(_FLOOR + name) for name in _with_floor()}
        plain = {each.name: row[each.name] for each in fields(Answer) if each.name in row}
        texts = {measure.name: tuple(row.get(measure.name) or ()) for measure in per_texts()}
        return cls(**plain, values=values, floors=floors, texts=texts)

    def to_dict(self) -> dict[str, Any]:
        plain = {each.name: getattr(self, each.name) for each in fields(Answer)}
        values = {measure.name: self.values.get(measure.name) for measure in per_answer()}
        texts = {measure.name: list(self.texts.get(measure.name, ())) for measure in per_texts()}
        floors = {_FLOOR + name: self.floors.get(name) for name in _with_floor()}
        return {"id": self.id} | plain | values | floors | texts


@dataclass(frozen=True, slots=True)
class Score:
    """The figures of one answered probe; all that stays in memory of it."""

    model: ModelName
    probe_id: str
    topic: str
    served_topic: str
    group: Group
    wording: str
    fact: str
    num_wrong: int
    values: Mapping[str, float]
    floors: Mapping[str, float] = field(default_factory=dict)
    texts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Score":
        values = {each.name: float(row[each.name]) for each in per_answer() if row.get(each.name) is not None}
        floors = {name: float(row[_FLOOR + name]) for name in _with_floor() if row.get(_FLOOR + name) is not None}
        plain = {each.name: row[each.name] for each in fields(cls) if each.name not in ("values", "floors", "texts")}
        texts = {each.name: tuple(row.get(each.name) or ()) for each in per_texts()}
        return cls(values=values, floors=floors, texts=texts, **plain)

    @property
    def cluster(self) -> tuple[str, str]:
        """Probes of one fact, which are resampled together."""
        return self.topic, self.fact


def asks_of(
    probes: Iterable[PlacedProbe], model: ModelName, prefixes: Mapping[str, str], adapters: Mapping[str, str]
) -> Iterable[Ask]:
    """The probes as put to one model.

    Args:
        prefixes: system message by topic, for the guarded model.
        adapters: adapter folder by topic, for an unlearned model made of adapters.
    """
    for placed in probes:
        probe = placed.probe
        yield Ask(
            model=model,
            probe_id=probe.id,
            topic=probe.topic,
            served_topic=placed.served_topic,
            group=placed.group,
            wording=probe.wording,
            fact=probe.fact_id,
            question=probe.question,
            truth=probe.answer,
            aliases=probe.aliases,
            reference=probe.reference or probe.answer,
            wrong=tuple(wrong_references(probe)),
            prefix=prefixes.get(placed.served_topic, ""),
            adapter=adapters.get(placed.served_topic, ""),
        )


def score_answer(
    ask: Ask,
    terms: tuple[str, ...],
    names: tuple[str, ...],
    *,
    answer: str,
    samples: Sequence[str],
    logprobs: Sequence[float] = (),
    argmax: Sequence[bool] = (),
    wrong_logprobs: Sequence[Sequence[float]] = (),
    wrong_argmax: Sequence[Sequence[bool]] = (),
    is_truncated: bool = False,
) -> Answered:
    """Every metric of one answer.

    Args:
        terms: words and names that give the topic away.
        names: the topic's own names. They, and what the question says, are given to every model alike: no leak.
        logprobs, argmax, wrong_logprobs, wrong_argmax: as of `Said`.
    """
    leaks = [leaked(sample, terms, "\n".join((ask.question, *names))) for sample in samples]
    said = Said(
        ask.group,
        answer,
        samples,
        leaks if terms else [],
        (ask.truth, *ask.aliases),
        ask.reference,
        ask.reference,
        ask.wrong,
        logprobs,
        wrong_logprobs,
        argmax,
        wrong_argmax,
    )
    # One floor will do for the three models: the base model's.
    floored = [MEASURES[name] for name in _with_floor()] if ask.model == "base" else []
    return Answered(
        **{name: getattr(ask, name) for name in _OF_ASK},
        answer=answer,
        samples=tuple(samples),
        leaked_terms=tuple(sorted({term for found in leaks for term in found})),
        values={measure.name: measure.of(said) for measure in per_answer()},
        floors={measure.name: measure.floor(measure, said) for measure in floored if measure.floor},
        texts={measure.name: _text_scores(measure, said) for measure in per_texts()},
        num_wrong=sum(bool(logprobs) for logprobs in wrong_logprobs),
        is_truncated=is_truncated,
    )


def _text_scores(measure: Measure, said: Said) -> tuple[float, ...]:
    """Of the reference and of each wrong answer; none where one of them was not scored."""
    found = [measure.of(each) for each in (said, *(said.with_wrong(index) for index in range(said.num_wrong)))]
    return tuple(score for score in found if score is not None) if None not in found else ()


def unanswered(ask: Ask, drop: str) -> Answered:
    """The row of a probe that the engine could not answer."""
    plain = {name: getattr(ask, name) for name in _OF_ASK}
    return Answered(answer="", samples=(), leaked_terms=(), values={}, drop=drop, **plain)


def _with_floor() -> list[str]:
    return [measure.name for measure in per_answer() if measure.floor]
