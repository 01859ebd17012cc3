"""Chooses the candidate questions that become probes: those whose short answers agree. Pure: rows in, rows with reasons out."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from unlearn_ray.rows import Group, Probe, Row, digest
from unlearn_ray.synth.facts import (
    NUM_WRONG,
    Alternative,
    Fact,
    agreed,
    asks_same,
    kind_of,
    opening_of,
    same,
    subject_words,
    wrong_answers,
)
from unlearn_ray.synth.short_answers import NoAnswer, short_answer
from unlearn_ray.words import contains, num_words, phrases_of

MAX_QUESTIONS = 3  # per fact
MAX_REFERENCE_WORDS = 25
FRESH, REWORDED = (
    "generated",
    "reworded",
)  # wordings of probes, by whether a training question asks for the fact in other words


class Unfit(StrEnum):
    """Why a candidate is not a probe, besides the reasons of `rows.Drop` and `NoAnswer`."""

    OPEN = "open_question"  # has many right answers, or asks for an opinion
    TRAINED_ON = "trained_on"
    OFF_TOPIC = "off_topic"  # does not name its topic, or names a topic to forget
    DUPLICATE = "duplicate"
    DUPLICATE_FACT = "duplicate_fact"  # enough other questions ask for the same fact
    DISAGREED = "disagreed"
    CONTRADICTED = "contradicted"  # the user's own answer differs
    NO_WRONG = "no_wrong_answers"  # fewer than three wrong answers of its kind
    SURPLUS = "surplus"


@dataclass(frozen=True, slots=True)
class Candidate(Row):
    """A question that may become a probe."""

    topic: str
    question: str
    group: Group
    near: tuple[str, ...] = ()  # topics that its topic neighbours
    source: str = "held_out"  # or "asked": written by the model as a probe
    round: int = 0
    truth: str = ""  # the user's own answer
    drop: str | None = None

    @property
    def id(self) -> str:
        return digest(self.topic, self.question)


@dataclass(frozen=True, slots=True)
class Replied(Row):
    """A candidate with the replies to all its askings. `error`: the engine could not answer."""

    topic: str
    question: str
    group: Group
    near: tuple[str, ...]
    source: str
    round: int
    truth: str
    replies: tuple[str, ...]  # greedy ones first, one per wording
    truncated: tuple[bool, ...]
    sentence: str = ""  # a greedy answer in a sentence, requested if the greedy short answers agree
    error: str | None = None

    @property
    def id(self) -> str:
        return digest(self.topic, self.question)


@dataclass(frozen=True, slots=True)
class Judged(Row):
    """A candidate with the fact in its short answers, and the reason if it is not a probe."""

    topic: str
    question: str
    group: Group
    source: str
    round: int
    short_answers: tuple[str, ...]
    num_asked: int
    num_agreed: int = 0
    answer: str = ""
    aliases: tuple[str, ...] = ()
    kind: str = ""
    fact: str = ""  # name of the fact; questions for the same fact share it
    near: tuple[str, ...] = ()
    truth: str = ""
    drop: str | None = None

    @property
    def id(self) -> str:
        return digest(self.topic, self.question)


def judge_replies(row: Replied, names: Sequence[str], share: float) -> Judged:
    """Judge a single candidate: more than `share` of its askings must agree, and its sentence too.

    Args:
        names: the names of its topic.
    """
    shorts: list[str] = []
    reasons: Counter[str] = Counter()
    for reply, is_truncated in zip(row.replies, row.truncated, strict=True):
        found = short_answer(row.question, reply, names, is_truncated=is_truncated)
        if isinstance(found, NoAnswer):
            reasons[found.value] += 1
        else:
            shorts.append(found.text)
    judged = Judged(
        row.topic,
        row.question,
        row.group,
        row.source,
        row.round,
        tuple(shorts),
        len(row.replies),
        near=row.near,
        truth=row.truth,
    )
    if row.error:
        return replace(judged, drop=row.error)
    fact = agreed(row.question, shorts, len(row.replies), share, row.sentence)
    if fact is None:
        is_mute = len(shorts) <= share * len(row.replies)
        return replace(judged, drop=reasons.most_common(1)[0][0] if is_mute else Unfit.DISAGREED.value)
    if row.sentence and not confirms(row.question, row.sentence, fact):
        return replace(judged, drop=Unfit.DISAGREED.value)
    judged = replace(judged, num_agreed=fact.num_agreed, answer=fact.answer, aliases=fact.aliases, kind=fact.kind)
    if row.truth and not any(contains(row.truth, form) for form in fact.forms):
        return replace(judged, drop=Unfit.CONTRADICTED.value)
    return judged


def confirms(question: str, sentence: str, fact: Fact) -> bool:
    """Whether a sentence states the fact and does not take it back, as in "It is Neptune, but actually it is Uranus"."""
    said = short_answer(question, sentence)
    return said not in (NoAnswer.HEDGED, NoAnswer.REFUSED) and any(contains(sentence, form) for form in fact.forms)


def told_apart(rows: Iterable[Judged], names: Mapping[str, Sequence[str]]) -> list[Judged]:
    """The rows in their order, with a name for each fact. At most `MAX_QUESTIONS` questions per fact are kept.

    Args:
        names: the names of each topic.
    """
    facts: dict[str, list[tuple[Judged, frozenset[str], list[int]]]] = {}
    found = []
    for row in rows:
        if row.drop:
            found.append(row)
            continue
        words = subject_words(row.question, names.get(row.topic, (row.topic,)))
        known = next(
            (
                each
                for each in facts.get(row.topic, [])
                if same(row.answer, each[0].answer) and asks_same(words, each[1])
            ),
            None,
        )
        if known is None:
            row = replace(row, fact=digest("fact", row.topic, row.question))
            facts.setdefault(row.topic, []).append((row, words, [1]))
        elif known[2][0] >= MAX_QUESTIONS:
            row = replace(row, drop=Unfit.DUPLICATE_FACT.value)
        else:
            known[2][0] += 1
            row = replace(row, fact=known[0].fact)
        found.append(row)
    return found


def probes_of(
    rows: Sequence[Judged], sentences: Mapping[str, str], taught: frozenset[str]
) -> tuple[list[Probe], list[Judged]]:
    """The probes of the kept rows, and all rows. A row without three wrong answers of its kind is dropped.

    Args:
        sentences: row id -> an answer in a sentence.
        taught: facts that a training question asks for in other words.
    """
    pool = list(_pool(rows))
    probes, judged = [], []
    for row in rows:
        if row.drop:
            judged.append(row)
            continue
        fact = Fact(row.answer, row.aliases, row.num_agreed, row.kind)  # type: ignore[arg-type]  # Parquet knows no Literal
        wrong = wrong_answers(row.question, fact, row.group, pool)
        if len(wrong) < NUM_WRONG:
            judged.append(replace(row, drop=Unfit.NO_WRONG.value))
            continue
        judged.append(row)
        probes.append(
            Probe(
                row.topic,
                row.question,
                row.answer,
                fact=row.fact,
                wording=REWORDED if row.fact in taught else FRESH,
                near=row.near,
                aliases=row.aliases,
                reference=reference_of(fact.answer, sentences.get(row.id, "")),
                wrong=tuple(wrong),
            )
        )
    return probes, judged


def reference_of(answer: str, sentence: str) -> str:
    """The sentence, if it contains the answer exactly once in the same form. Otherwise the answer alone."""
    if num_words(sentence) <= MAX_REFERENCE_WORDS and sentence.count(answer) == 1 and contains(sentence, answer):
        return sentence
    return answer


def taught_facts(
    rows: Iterable[Judged], trained: Iterable[tuple[str, str, str]], names: Mapping[str, Sequence[str]]
) -> frozenset[str]:
    """The facts that a training question asks for in other words: it is about the same subject, and its own answer states the fact.

    Args:
        trained: topic, question and the model's own answer of the training rows; streamed once.
    """
    by_topic: dict[str, dict[str, list[tuple[str, frozenset[str]]]]] = {}
    for row in rows:
        if not row.drop:
            words = subject_words(row.question, names.get(row.topic, (row.topic,)))
            for form in (row.answer, *row.aliases):
                by_topic.setdefault(row.topic, {}).setdefault(form, []).append((row.fact, words))
    found: set[str] = set()
    for topic, question, answer in trained:
        forms = by_topic.get(topic)
        if not forms:
            continue
        told = phrases_of(tuple(forms)).found_in(f"{question}\n{answer}")
        if told:
            words = subject_words(question, names.get(topic, (topic,)))
            found.update(fact for form in told for fact, asked in forms[form] if asks_same(asked, words))
    return frozenset(found)


def _pool(rows: Iterable[Judged]) -> Iterator[Alternative]:
    """The model's answers to other questions: the fact, or the commonest short answer if there is no fact."""
    for row in rows:
        is_fact = bool(row.answer) and row.drop in (None, Unfit.SURPLUS, Unfit.DUPLICATE_FACT)
        if is_fact:
            yield Alternative(row.answer, row.kind, row.group, opening_of(row.question), is_fact=True)  # type: ignore[arg-type]
        elif row.drop == Unfit.DISAGREED and row.short_answers:
            guess = Counter(row.short_answers).most_common(1)[0][0]
            yield Alternative(guess, kind_of(guess), row.group, opening_of(row.question), is_fact=False)
