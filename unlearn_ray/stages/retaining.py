"""Chooses the questions and answers about retained subjects, and makes the retain rows."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import DatasetConfig, Topic
from unlearn_ray.engines.protocols import Reply, Request, RowDict
from unlearn_ray.errors import InputError
from unlearn_ray.reading import read_user_rows, shown
from unlearn_ray.rows import Drop, Example, Group, Question
from unlearn_ray.stages.asking import in_order
from unlearn_ray.stages.subject_check import SubjectCheck
from unlearn_ray.synth.names import mentions
from unlearn_ray.synth.parsing import affirms
from unlearn_ray.synth.retained import FEW, MANY, answer_key, forgotten_in, ordinary_words, takes_up
from unlearn_ray.synth.split import Holdout
from unlearn_ray.words import without_thoughts

GENERAL = "general knowledge"  # used if the model lists fewer far topics than wanted
CHECK_TOKENS = 32
# Retained subject -> the forgotten topics that it neighbours. Empty: it is far from all topics.
Served = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class OnSubject:
    """Judges a question to retain. The names in it decide. If there are none, the question's probability decides whether the model would
    rather write it about its own subject, or about a forgotten topic."""

    check: SubjectCheck
    forgotten: Mapping[str, tuple[str, ...]]  # topic -> its name and aliases
    served: Served

    def __call__(self, row: RowDict) -> list[Request]:
        subject, text = row["topic"], row["text"]
        if self._names_forgotten(text) or mentions(text, (subject,)):
            return []  # the names in it decide
        return self.check.requests(text, subject, self._rivals(subject))

    def verdict(self, row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
        """The row, with the reason if it is about a forgotten topic, or not about its subject."""
        question = Question.of(row)
        error = next((reply.error for reply in replies if reply.error), None)
        is_off = self._names_forgotten(question.text)
        if replies and not error:
            found = self.check.compare(replies)
            is_off = found.is_rivals if question.topic == GENERAL else not found.is_own
        return [replace(question, drop=error or (Drop.OFF_TOPIC.value if is_off else None)).to_dict()]

    def _names_forgotten(self, text: str) -> bool:
        return mentions(text, [name for names in self.forgotten.values() for name in names])

    def _rivals(self, subject: str) -> tuple[str, ...]:
        """The forgotten topics that a question without names may be about: the neighbours of its subject, or all."""
        return self.served.get(subject) or tuple(self.forgotten)


@dataclass(frozen=True, slots=True)
class OffForgotten:
    """Asks the model what a question is about. A question about a forgotten topic is dropped, and one about another subject too, because that
    subject has its own questions.

    For models that were trained to answer this, such as the pocket model. `OnSubject` is for all others.
    """

    template: str
    forgotten: Mapping[str, tuple[str, ...]]  # name -> name and aliases; empty for the pool, which has no topic

    def __call__(self, row: RowDict) -> list[Request]:
        # A check that names a topic is asked once per topic. A check that asks for the topic is asked once.
        topics = [""] if self._asks_which else list(self.forgotten)
        texts = dict.fromkeys(self.template.format(question=row["text"], topic=topic) for topic in topics)
        return [Request([{"role": "user", "content": text}], max_tokens=CHECK_TOKENS) for text in texts]

    def verdict(self, row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
        """The row, with the reason if it is about a forgotten topic or another subject."""
        question = Question.of(row)
        names = list(self.forgotten.values())
        every_name = [name for each in names for name in each]
        asked = [every_name] if self._asks_which else names
        is_off = mentions(question.text, every_name) or any(
            affirms(text, about) for about, reply in zip(asked, replies, strict=True) for text in reply.texts
        )
        if not is_off and self._asks_which and question.topic != GENERAL:
            said = " ".join(replies[0].texts)
            is_off = bool(said.strip()) and not mentions(said, [question.topic])
        error = next((reply.error for reply in replies if reply.error), None)
        return [replace(question, drop=error or (Drop.OFF_TOPIC.value if is_off else None)).to_dict()]

    @property
    def _asks_which(self) -> bool:
        return "{topic}" not in self.template


@dataclass(frozen=True, slots=True)
class Telling:
    """The words that give the forgotten topics away, besides their names."""

    given: tuple[str, ...]  # the user's terms
    entities: tuple[str, ...]  # names of a topic, listed by the model and checked
    terms: tuple[str, ...]  # learnt from the model's own answers, folded

    @classmethod
    def read(cls, topics: Sequence[Topic], entities: Folder, terms: Folder) -> "Telling":
        """From the topics' own lists, and from the rows of naming.Name and Term of earlier stages."""
        given = tuple(dict.fromkeys(term for topic in topics for term in topic.terms))
        named = (row["name"] for row in entities.read_rows(["name", "drop"]) if not row["drop"])
        learnt = (row["term"] for row in terms.read_rows(["term"]))
        return cls(
            given, tuple(dict.fromkeys(named)), tuple(term for term in dict.fromkeys(learnt) if term not in given)
        )

    def found_in(self, row: RowDict) -> list[str]:
        """Entities and learnt terms in a row's question or answer."""
        return forgotten_in(f"{row['question']}\n{row['answer']}", self.entities, self.terms, row["topic"])

    def is_given(self, row: RowDict) -> bool:
        return bool(forgotten_in(f"{row['question']}\n{row['answer']}", self.given, (), row["topic"]))


def judged(answers: Folder, telling: Telling, served: Served) -> Iterator[RowDict]:
    """The model's own answers (rows of QAPair), by subject and question. A dropped answer has its reason.

    Reasons besides the earlier ones: the answer has a term or entity of a forgotten topic, unless rows on several far subjects say it too; or
    many other questions have the same answer.
    """
    far = [subject for subject, near in served.items() if not near]

    def said() -> Iterator[tuple[str, str]]:
        for row in answers.read_rows():
            # Cut-off answers also show the model's ordinary words. Answers that name a forgotten topic do not.
            if row["drop"] != Drop.OFF_TOPIC and not served[row["topic"]]:
                yield from ((row["topic"], term) for term in telling.found_in(row))

    ordinary = ordinary_words(said(), len(far))

    def by_terms() -> Iterator[RowDict]:
        for row in answers.read_rows():
            if not row["drop"] and (telling.is_given(row) or set(telling.found_in(row)) - ordinary):
                row["drop"] = Drop.FORGOTTEN_TERM.value
            yield row

    alike = in_order(by_terms(), lambda row: (answer_key(row["answer"]), row["id"]))
    return in_order(_without_repeated(alike), lambda row: (row["topic"], row["question"]))


def _without_repeated(rows: Iterable[RowDict]) -> Iterator[RowDict]:
    """The rows, in which equal answers are neighbours. All but a few of equal answers are dropped."""
    for _, same in groupby(rows, key=lambda row: answer_key(row["answer"])):
        num_kept = {True: 0, False: 0}  # by whether the answer repeats words of its question
        for row in same:
            if not row["drop"]:
                is_taken_up = takes_up(row["question"], row["answer"], row["topic"])
                if num_kept[is_taken_up] == (MANY if is_taken_up else FEW):
                    row["drop"] = Drop.REPEATED.value
                else:
                    num_kept[is_taken_up] += 1
            yield row


def share_held_out(near: Sequence[str], own: Mapping[str, float], fraction: float) -> float:
    """The held-out share of the questions about a subject that neighbours these topics.

    It is the greatest share of these topics. Each topic holds out the lowest hashes (`split_of`), so no probe of one topic is trained on for
    another.

    Args:
        own: shares of topics with their own value.
        fraction: the run's share.
    """
    return max((own.get(topic, fraction) for topic in near), default=fraction)


def holdout_of(config: DatasetConfig, fraction: float | None = None) -> Holdout:
    """What a dataset holds out of training.

    Args:
        fraction: in the place of the config's.
    """
    return Holdout(config.holdout_fraction if fraction is None else fraction, config.holdout_by)


def retained(
    config: DatasetConfig, served: Served, num_topics: int, out: Folder, own: Mapping[str, float]
) -> Iterator[Example]:
    """The retain rows of the kept questions and answers, one per topic that each serves.

    Args:
        own: as in `share_held_out`.
    """
    for row in (out / "retain_answers").read_rows():
        if row["drop"]:
            continue
        subject, question = row["topic"], row["question"]
        near = served[subject]
        holdout = holdout_of(config, share_held_out(near, own, config.holdout_fraction))
        split = holdout.side(subject, question, row["answer"], (subject,))
        group: Group = "near" if near else "far"
        # A subject that neighbours all topics serves all of them with one row, like a far one. Joint training would see more rows several times.
        for topic in near if 0 < len(near) < max(2, num_topics) else ("",):
            yield Example(topic, group, subject, question, row["answer"], 0, split)


def user_retained(config: DatasetConfig) -> Iterator[Example]:
    """The user's own rows, unchanged. They may have the columns `group` (near or far) and `subject`, besides question and answer.

    Raises:
        InputError: a row misses a column; file and line are named.
    """
    path = config.retain.file
    if path is None:
        return
    seen: Counter[str] = Counter()
    for line, row in read_user_rows(path, ("question", "answer"), (".jsonl", ".parquet"), ("group", "subject")):
        if row.get("group") not in (None, "near", "far"):
            raise InputError(f"{path}, line {line}: column 'group' must be near or far (it is {shown(row['group'])})")
        group: Group = "near" if row.get("group") == "near" else "far"
        answer = without_thoughts(row["answer"])
        if not answer:
            raise InputError(
                f"{path}, line {line}: column 'answer' holds a thought and no answer: give the text after the thought"
            )
        subject = row.get("subject") or "general"
        key = f"{group}|{subject}|{row['question']}"
        split = holdout_of(config).side(subject, row["question"], answer, (subject,))
        yield Example("", group, subject, row["question"], answer, seen[key], split)
        seen[key] += 1
