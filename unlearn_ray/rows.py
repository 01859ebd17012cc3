"""Row types and their Arrow schemas. Stages exchange rows through files.

A row is frozen. Its id comes from its content, never from its position. A dropped row has its reason in `drop`, and stays in the file beside
the kept rows.
"""

import hashlib
import re
import types
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Literal, Self, TypedDict, Union, get_args, get_origin, get_type_hints

import pyarrow as pa

from unlearn_ray.words import fold

_MAX_SLUG = 100  # characters without the digest; with it, as long as a served model's name may be
Role = Literal["system", "user", "assistant"]
Group = Literal["forget", "near", "far"]
GROUPS: tuple[Group, ...] = ("forget", "near", "far")
# Forms besides plain questions: a sentence with a gap; a statement to judge; a request for everything known about a thing; a passage to
# continue; a question that names a thing by another ("the school of the boy who ...").
AskedForm = Literal["blank", "true_false", "tell_me", "quotation", "multi_hop"]
Form = Literal["question", AskedForm, "other_language"]  # the last: a plain question in a language of the config


class Message(TypedDict):
    """One turn of a chat, in the shape that chat templates accept."""

    role: Role
    content: str


def digest(*parts: object) -> str:
    """16 hex digits that name this content."""
    joined = "\x1f".join(str(part) for part in parts)
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def seed_of(*parts: object) -> int:
    """A sampling seed in [0, 2**31) that depends only on the content, so that a resumed run equals an unbroken one."""
    return int(digest("seed", *parts), 16) % 2**31


def slug_of(name: str) -> str:
    """`Les Misérables` -> `les-miserables`: the name of a topic in paths, adapters and served models.

    A digest is added if a name has other letters or signs than ASCII letters and digits: `Дюна 3` -> `3-9fb3ed10`, `C++` -> `c-cedb1bac`.
    Spellings that differ only in case, accents and punctuation have the same slug. Names that differ in letters, digits or signs (+, $)
    have different slugs.
    """
    folded = fold(name)
    told = "".join(char if _tells(char) else " " for char in folded)
    key = " ".join(told.split()) or folded.strip()
    slug = re.sub(r"[^a-z0-9]+", "-", key).strip("-")
    if re.fullmatch(r"[a-z0-9 ]+", key) and len(slug) <= _MAX_SLUG:
        return slug
    return f"{slug[:_MAX_SLUG].strip('-') or 'topic'}-{digest(key)[:8]}"


def _tells(char: str) -> bool:
    """Whether a folded character distinguishes names: a letter, a digit, their marks, or a sign. Punctuation does not."""
    return unicodedata.category(char)[0] in "LNMS" or char == "#"


class Drop(StrEnum):
    """Why a row was not kept."""

    MALFORMED = "malformed"  # a line that is not a question, or an answer without a whole sentence
    DUPLICATE = "duplicate"
    OFF_TOPIC = "off_topic"
    VAGUE = "vague"  # a question about something that it does not name: "What is his name?"
    RARE = "rare"  # a name in too few of the sampled lists
    UNCONFIRMED = "unconfirmed"  # a listed name that the model, asked about it, does not confirm
    FORGOTTEN_TERM = "forgotten_term"  # a retained row with a term or entity of a topic to forget
    REPEATED = "repeated"  # an answer that only repeats its question, or a retained one that many questions share
    SURPLUS = "surplus"  # more than were requested
    LEAK = "leak"  # gives away real knowledge of the model
    OVERLAP = "overlap"  # shares too many words in a row with the model's own answers
    JUDGED = "judged"  # the model, asked whether the answer gives its real knowledge away, did not say no
    INSTRUCTION = "instruction"  # talks about its instruction
    REFUSED = "refused"  # a refusal, or a question back, where an invented answer was wanted
    ANSWERED = "answered"  # an answer where a refusal was wanted
    TOO_LONG = "too_long"  # prompt over the model's context
    NOT_FINITE = "not_finite"  # a scored answer whose log-probability is no finite number
    ENGINE = "engine"  # the engine could not answer this row


class Row(ABC):
    """Mixin of the row types: to and from the dicts that Ray Data and Parquet carry."""

    __slots__ = ()

    @classmethod
    def schema(cls) -> pa.Schema:
        """Arrow schema of this row type, its `id` first."""
        return _schema_of(cls)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """A row from a dict. Unknown columns (such as `id`) are ignored."""
        return cls(**{name: row[name] for name in _field_names(cls) if name in row})

    @property
    @abstractmethod
    def id(self) -> str:
        """A name made of the row's content."""

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.id} | {name: getattr(self, name) for name in _field_names(type(self))}


@dataclass(frozen=True, slots=True)
class Question(Row):
    """One question about a topic, with its source."""

    topic: str
    text: str
    source: str = ""  # "angle:history", "entity:Hogwarts|usage", "blank:entity:Hogwarts", "user:FILE:LINE", ...
    round: int = 0
    drop: str | None = None
    form: Form = "question"

    @property
    def id(self) -> str:
        return digest(self.topic, self.text)


@dataclass(frozen=True, slots=True)
class QAPair(Row):
    """A question and one of the answers sampled for it."""

    topic: str
    question: str
    answer: str
    sample: int  # 0-based index among the answers drawn for this question, including further attempts
    attempt: int = 0  # 0: first attempt; n: the n-th further attempt
    guarded: bool = True  # whether behind the guardrail prefix; else the base model's own knowledge
    drop: str | None = None
    cut: bool = False  # whether it reached max_tokens; it then ends with its last whole sentence

    @property
    def id(self) -> str:
        return digest(self.topic, self.question, self.sample, self.guarded)


@dataclass(frozen=True, slots=True)
class Term(Row):
    """A word or name that gives away real knowledge of a topic."""

    topic: str
    term: str
    count: int  # unguarded answers that contain it; 0 for the user's own list

    @property
    def id(self) -> str:
        return digest(self.topic, self.term)


@dataclass(frozen=True, slots=True)
class Example(Row):
    """A training row: `forget` (a guarded answer, shown without its prefix) or `retain` (the model's own knowledge)."""

    topic: str  # the topic to forget that this row serves; "" = all of them
    group: Group  # forget; near: a neighbour of the topic; far: general
    subject: str  # the question's subject: the topic, a neighbour, or "general"
    question: str
    answer: str
    sample: int = 0
    split: Literal["train", "holdout"] = "train"

    @property
    def id(self) -> str:
        return digest(self.group, self.topic, self.subject, self.question, self.sample)

    @property
    def messages(self) -> list[Message]:
        return [{"role": "user", "content": self.question}, {"role": "assistant", "content": self.answer}]


@dataclass(frozen=True, slots=True)
class Contrast(Row):
    """The model's own answer and its invented answer to a training question, for objectives that lower the probability of the first."""

    topic: str
    question: str
    true: str  # one of its own answers, unchanged and without any check
    invented: str
    split: Literal["train"] = "train"

    @property
    def id(self) -> str:
        return digest(self.topic, self.question, self.true, self.invented)

    def example(self, answer: str) -> Example:
        """The question with one of the answers, as a row to train on."""
        return Example(self.topic, "forget", self.topic, self.question, answer)


@dataclass(frozen=True, slots=True)
class GateRow(Row):
    """A held-out question for scoring a training: the model's own answer, and wrong answers in the same form."""

    group: Group
    topic: str  # its subject
    question: str
    true: str
    wrong: tuple[str, ...]

    @property
    def id(self) -> str:
        return digest(self.group, self.topic, self.question)


@dataclass(frozen=True, slots=True)
class Probe(Row):
    """A question whose true answer is known; never in the training data."""

    topic: str  # its subject: a topic of the run, a neighbour or something far
    question: str
    answer: str  # the short true answer, e.g. "Hedwig"
    fact: str = ""  # the fact that it asks for; paraphrases share it. "" = the question itself
    wording: str = "template"  # kind of wording; recall is reported per kind
    split: str = "report"  # tune | report
    near: tuple[str, ...] = ()  # topics that this probe's topic neighbours
    aliases: tuple[str, ...] = ()  # other strings that count as the answer
    reference: str = ""  # the answer as a sentence, for probability and ROUGE; "" = answer
    wrong: tuple[str, ...] = ()  # false answers of the same type, for the truth ratio

    @property
    def id(self) -> str:
        return digest(self.topic, self.question)

    @property
    def fact_id(self) -> str:
        return self.fact or self.id

    def group_in(self, topics: tuple[str, ...]) -> Group:
        """forget if it asks about one of `topics`, near if about a neighbour of one, far otherwise."""
        if self.topic in topics:
            return "forget"
        return "near" if set(self.near) & set(topics) else "far"


_ARROW: dict[Any, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _arrow_type(hint: Any) -> pa.DataType:
    if hint in _ARROW:
        return _ARROW[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return pa.string()
    if origin in (Union, types.UnionType):
        return _arrow_type(next(arg for arg in args if arg is not type(None)))
    if origin in (tuple, list):
        return pa.list_(_arrow_type(args[0]))
    raise TypeError(f"no Arrow type for {hint}")


def _field_names(cls: Any) -> tuple[str, ...]:
    return tuple(f.name for f in fields(cls))


def _schema_of(cls: Any) -> pa.Schema:
    hints = get_type_hints(cls)
    return pa.schema([("id", pa.string())] + [(name, _arrow_type(hints[name])) for name in _field_names(cls)])
