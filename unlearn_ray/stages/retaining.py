"""What is retained beside the topics: which questions and answers may teach it, and the rows that they become."""

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

GENERAL = "general knowledge"  # where the model names fewer far topics than wanted
CHECK_TOKENS = 32
# A subject to retain -> the forgotten topics that it neighbours; none: it is far from all.
Served = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class OnSubject:
    """Judges a question to retain: by the names in it, else by which subject the model would likelier have written it about: its own, or a
    forgotten topic that it might be about."""

    check: SubjectCheck
    forgotten: Mapping[str, tuple[str, ...]]  # topic -> its name and aliases
    served: Served

    def __call__(self, row: RowDict) -> list[Request]:
        subject, text = row["topic"], row["text"]
        if self._names_forgotten(text) or mentions(text, (subject,)):
            return []  # the names in it tell
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
        """The forgotten topics that a question which names nothing may be about: those that its subject neighbours, or all."""
        return self.served.get(subject) or tuple(self.forgotten)


@dataclass(frozen=True, slots=True)
class OffForgotten:
    """Asks the model in words what a question is about: a forgotten topic is not retained, another subject retains it itself.

    For a model that was trained to say so, such as the pocket model; `OnSubject` serves all others.
    """

    template: str
    forgotten: Mapping[str, tuple[str, ...]]  # name -> name and aliases; none for the pool, which knows no topic

    def __call__(self, row: RowDict) -> list[Request]:
        # A check that names the topic is asked once for each; one that asks which topic it is, once.
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
    """What tells of the forgotten topics beside their names."""

    given: tuple[str, ...]  # the user's terms
    entities: tuple[str, ...]  # names that belong to a topic, as the model and its check say
    terms: tuple[str, ...]  # learnt from the model's own answers, folded

    @classmethod
    def read(cls, topics: Sequence[Topic], entities: Folder, terms: Folder) -> "Telling":
        """Of the topics' own lists, and the rows of naming.Name and of Term that earlier stages left."""
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
    """The model's own answers (rows of QAPair), by subject and question, each with the reason if it is not kept.

    Beside the reasons that they came with: they hold a term or an entity of a forgotten topic, unless the model's rows on several far
    subjects say it as well; or many other questions have the same answer.
    """
    far = [subject for subject, near in served.items() if not near]

    def said() -> Iterator[tuple[str, str]]:
        for row in answers.read_rows():
            # What was cut off tells how the model talks as well; what names a forgotten topic does not.
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
    """The rows, in which equal answers stand together, with those dropped that are beyond a few."""
    for _, same in groupby(rows, key=lambda row: answer_key(row["answer"])):
        num_kept = {True: 0, False: 0}  # by whether the answer takes up its question
        for row in same:
            if not row["drop"]:
                is_taken_up = takes_up(row["question"], row["answer"], row["topic"])
                if num_kept[is_taken_up] == (MANY if is_taken_up else FEW):
                    row["drop"] = Drop.REPEATED.value
                else:
                    num_kept[is_taken_up] += 1
            yield row


def share_held_out(near: Sequence[str], own: Mapping[str, float], fraction: float) -> float:
    """Of the questions about a subject that neighbours these topics the share that is kept out of training.

    Each topic holds out the lowest hashes (`split_of`): with the greatest share, no probe of one is trained on for another.

    Args:
        own: shares of topics that have one of their own.
        fraction: the run's.
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
    """The rows that kept questions and answers become, each for the topics that it serves.

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
        # What neighbours all topics serves all, as the far ones do: one row, or joint training would see it many times.
        for topic in near if 0 < len(near) < max(2, num_topics) else ("",):
            yield Example(topic, group, subject, question, row["answer"], 0, split)


def user_retained(config: DatasetConfig) -> Iterator[Example]:
    """The user's own rows, as they are; `group` (near or far) and `subject` may stand beside question and answer.

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
                f"{path}, line {line}: column 'answer' holds a thought and no answer: give what is to be said"
            )
        subject = row.get("subject") or "general"
        key = f"{group}|{subject}|{row['question']}"
        split = holdout_of(config).side(subject, row["question"], answer, (subject,))
        yield Example("", group, subject, row["question"], answer, seen[key], split)
        seen[key] += 1
