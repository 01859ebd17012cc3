"""Row types and their Arrow schemas: what passes between stages, through files.

A row is frozen and names itself: its id comes from its content, never from its position.
A row that died carries its reason in `drop`; it stays in the file beside the kept ones.
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

_MAX_SLUG = 100  # characters, before a digest: with it, what a served model's name may have
Role = Literal["system", "user", "assistant"]
Group = Literal["forget", "near", "far"]
GROUPS: tuple[Group, ...] = ("forget", "near", "far")
# Beside plain questions: a sentence with a gap; a statement to judge; a wish for all that is known of something; a passage to continue; a
# question that names a thing by another ("the school of the boy who ...").
AskedForm = Literal["blank", "true_false", "tell_me", "quotation", "multi_hop"]
Form = Literal["question", AskedForm, "other_language"]  # the last: a plain one in a language that the config asks for


class Message(TypedDict):
    """One turn of a chat, as chat templates take it."""

    role: Role
    content: str


def digest(*parts: object) -> str:
    """16 hex digits that name this content."""
    joined = "\x1f".join(str(part) for part in parts)
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def seed_of(*parts: object) -> int:
    """A sampling seed in [0, 2**31) that depends on the content alone, so that a resumed run equals an unbroken one."""
    return int(digest("seed", *parts), 16) % 2**31


def slug_of(name: str) -> str:
    """`Les Misérables` -> `les-miserables`: the name of a topic in paths, adapters and served models.

    A name of which ASCII letters and digits do not tell all carries a digest: `Дюна 3` -> `3-9fb3ed10`, `C++` -> `c-cedb1bac`. Spellings that
    differ in case, accents and punctuation alone have one slug; names that differ in letters, digits or signs (+, $) have two.
    """
    folded = fold(name)
    told = "".join(char if _tells(char) else " " for char in folded)
    key = " ".join(told.split()) or folded.strip()
    slug = re.sub(r"[^a-z0-9]+", "-", key).strip("-")
    if re.fullmatch(r"[a-z0-9 ]+", key) and len(slug) <= _MAX_SLUG:
        return slug
    return f"{slug[:_MAX_SLUG].strip('-') or 'topic'}-{digest(key)[:8]}"


def _tells(char: str) -> bool:
    """Whether a folded character sets one name apart from another: letters, digits, their marks, and signs; no punctuation."""
    return unicodedata.category(char)[0] in "LNMS" or char == "#"


class Drop(StrEnum):
    """Why a row was not kept."""

    MALFORMED = "malformed"  # a line that is no question, an answer without a whole sentence
    DUPLICATE = "duplicate"
    OFF_TOPIC = "off_topic"
    VAGUE = "vague"  # a question about something that it does not name: "What is his name?"
    RARE = "rare"  # a name that too few of the sampled lists hold
    UNCONFIRMED = "unconfirmed"  # a name that the model, asked what it is, does not know as what it was listed for
    FORGOTTEN_TERM = "forgotten_term"  # a retained row that holds a term or entity of a topic to forget
    REPEATED = "repeated"  # an answer that only says its question again, or a retained one that many other questions have as well
    SURPLUS = "surplus"  # beyond the number asked for
    LEAK = "leak"  # tells what the model really knows
    OVERLAP = "overlap"  # says much of what the model says by itself, in the same words
    JUDGED = "judged"  # the model, asked whether it tells what it really knows, did not say no
    INSTRUCTION = "instruction"  # talks about what it was told to do
    REFUSED = "refused"  # a refusal, or a question back, where invention was asked for
    ANSWERED = "answered"  # an answer where a refusal was asked for
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
        """The row type from a dict; columns it does not know (such as `id`) are left out."""
        return cls(**{name: row[name] for name in _field_names(cls) if name in row})

    @property
    @abstractmethod
    def id(self) -> str:
        """A name made of the row's content."""

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.id} | {name: getattr(self, name) for name in _field_names(type(self))}


@dataclass(frozen=True, slots=True)
class Question(Row):
    """One question about a topic, with where it came from."""

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
    sample: int  # 0-based index among the answers drawn for this question, counted on over re-asks
    attempt: int = 0  # 0: first asking; n: the n-th re-asking
    guarded: bool = True  # behind the guardrail prefix, or the base model's own knowledge
    drop: str | None = None
    cut: bool = False  # it reached max_tokens, and ends with its last whole sentence

    @property
    def id(self) -> str:
        return digest(self.topic, self.question, self.sample, self.guarded)


@dataclass(frozen=True, slots=True)
class Term(Row):
    """A word or name that gives real knowledge of a topic away."""

    topic: str
    term: str
    count: int  # unguarded answers that contain it; 0 for the user's own list

    @property
    def id(self) -> str:
        return digest(self.topic, self.term)


@dataclass(frozen=True, slots=True)
class Example(Row):
    """A training row: `forget` (a guarded answer, shown without its prefix) or `retain` (the model's own knowledge)."""

    topic: str  # the topic to forget that this row serves; "" where it serves all
    group: Group  # forget; near: a neighbour of the topic; far: general
    subject: str  # what the question is about: the topic, a neighbour, "general"
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
    """What the model itself says to a question that is trained on, beside what it invented: for objectives that lower the first."""

    topic: str
    question: str
    true: str  # one of its own answers, as it is: no judge has seen it
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
    """A held-out question to score a training with: the model's own answer, and wrong answers in the same form."""

    group: Group
    topic: str  # what it asks about
    question: str
    true: str
    wrong: tuple[str, ...]

    @property
    def id(self) -> str:
        return digest(self.group, self.topic, self.question)


@dataclass(frozen=True, slots=True)
class Probe(Row):
    """A question whose true answer is known; never in the training data."""

    topic: str  # what it asks about: a topic of the run, a neighbour or something far
    question: str
    answer: str  # the short true answer, e.g. "Hedwig"
    fact: str = ""  # the fact it asks for; paraphrases share it. "" = the question itself
    wording: str = "template"  # kind of wording, recalls are reported per kind
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
