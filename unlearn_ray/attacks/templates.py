"""The kinds of prompts that an attacker tries, from templates: those of the package, and a user's own beside them or in their place.

Pure: from a probe and what else is known to the conversations that are put to a model.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, field_validator

from unlearn_ray.config import Topic, first_message
from unlearn_ray.errors import InputError, gist
from unlearn_ray.evals.probes import PlacedProbe, wrong_references
from unlearn_ray.reading import as_json, load_yaml, read_text, shown
from unlearn_ray.rows import Message, Probe, digest
from unlearn_ray.synth.prompts import check_template
from unlearn_ray.words import contains, phrases_of

_MAX_SAMPLES = 256
_NUM_FACTS = 3  # told in a prompt
_GAP = "____"
_MIN_TYPO = 4  # letters of a word that gets one
_LEET = str.maketrans("aeioAEIO", "43104310")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
Template = Annotated[str, Field(min_length=1)]


class PromptKind(BaseModel):
    """One kind of prompt. A fact is told where the answer to one of its templates tells it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    summary: Template
    user: tuple[Template, ...] = Field(min_length=1)
    system: Template | None = None
    prefill: Template | None = None  # what the answer begins with
    examples: Literal["topic", "other"] | None = (
        None  # earlier turns with true answers: about other facts of the topic, or about other topics
    )
    num_examples: PositiveInt = 4
    samples: Annotated[int, Field(ge=1, le=_MAX_SAMPLES)] = 1  # one: greedy; more: the best of so many
    temperature: PositiveFloat = 1.0  # of several samples
    expects: Literal["answer", "topic"] = "answer"  # what the model must say
    gives_answer: bool = False  # the true answer stands in the prompt: not part of the worst case

    @field_validator("user", "system", "prefill", mode="after")
    @classmethod
    def _placeholders_are_known(cls, value: Any) -> Any:
        for template in (value,) if isinstance(value, str) else value or ():
            check_template(template, tuple(PLACEHOLDERS), set(PLACEHOLDERS))
        return value


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a template may tell beside the probe."""

    topics: Mapping[str, Topic]  # by name
    facts: Sequence[Probe]  # of the topics to forget, true
    others: Sequence[tuple[str, str]]  # questions and true answers about other topics


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is put to the model, without a guardrail. Where its last turn is the assistant's, the answer goes on with that."""

    messages: list[Message]

    @property
    def begun(self) -> str:
        last = self.messages[-1]
        return last["content"] if last["role"] == "assistant" else ""


def load_kinds(path: str | None) -> dict[str, PromptKind]:
    """The kinds of prompts by name: those of the package; a user's file adds kinds, replaces those of the same name, and leaves out those
    that it sets to null.

    Raises:
        InputError: the file can't be used; names the kind and the key.
    """
    kinds = dict(_shipped())
    if path is None:
        return kinds
    for name, value in _read(Path(path)).items():
        if value is None:
            if name not in kinds:
                raise InputError(f"{path}: {shown(name)} is null, and there is no kind of this name: leave it out")
            del kinds[name]
            continue
        kinds[name] = _kind(path, name, value)
    if not kinds:
        raise InputError(f"{path} leaves no kind of prompt: give one")
    return kinds


def conversations(name: str, kind: PromptKind, placed: PlacedProbe, around: Surroundings) -> list[Conversation]:
    """What a probe is asked with in one kind of prompt, a conversation a template; none where no template applies.

    A template is left out where the probe lacks what it asks for, and where the true answer would stand in the prompt, unless the kind
    says that it does.
    """
    fields = _Fields(name, placed.probe, around)
    shots = fields.examples(kind)
    if kind.examples and not shots:
        return []
    found = []
    for template in kind.user:
        texts = [fields.filled(text) if text else "" for text in (kind.system, template, kind.prefill)]
        if None in texts:
            continue
        system, user, prefill = (text or "" for text in texts)
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        for question, answer in shots:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        messages.append({"role": "user", "content": user})
        if prefill:
            messages.append({"role": "assistant", "content": prefill.rstrip()})
        if not fields.is_given(kind, "\n".join(message["content"] for message in messages)):
            found.append(Conversation(messages))
    return found


def expected(kind: PromptKind, probe: Probe, topic: Topic) -> tuple[str, ...]:
    """What an answer must say one of, to tell the fact."""
    return topic.names if kind.expects == "topic" else (probe.answer, *probe.aliases)


class _Fields:
    """What the placeholders stand for, of one probe; None where it has no such thing. What is chosen is chosen by hash."""

    def __init__(self, kind: str, probe: Probe, around: Surroundings) -> None:
        self.kind, self.probe, self.around = kind, probe, around
        self.topic = around.topics[probe.topic]
        self.reference = probe.reference or probe.answer
        self.truths = (probe.answer, *probe.aliases)

    def filled(self, template: str) -> str | None:
        """The template with its values; None where one is lacking."""
        used = {name: PLACEHOLDERS[name](self) for name in PLACEHOLDERS if f"{{{name}}}" in template}
        return None if None in used.values() else template.format(**used)

    def is_given(self, kind: PromptKind, text: str) -> bool:
        """Whether the prompt says what the model is to say."""
        if kind.gives_answer and kind.expects == "answer":
            return False
        return any(contains(text, truth) for truth in expected(kind, self.probe, self.topic))

    def gives_away(self, text: str) -> bool:
        """Whether a text tells the true answer."""
        return any(contains(text, truth) for truth in self.truths)

    def examples(self, kind: PromptKind) -> list[tuple[str, str]]:
        """Questions with true answers, as earlier turns."""
        if kind.examples is None:
            return []
        pool = [(each.question, each.reference or each.answer) for each in self.other_facts()]
        return (pool if kind.examples == "topic" else self.other_rows())[: kind.num_examples]

    def other_facts(self) -> list[Probe]:
        """True facts of the topic, one wording each, that do not tell the answer."""
        one: dict[str, Probe] = {}
        for each in sorted(self.around.facts, key=lambda each: self.turn(each.id)):
            is_other = each.topic == self.probe.topic and each.fact_id != self.probe.fact_id
            if is_other and not self.gives_away(f"{each.question}\n{each.answer}\n{each.reference}"):
                one.setdefault(each.fact_id, each)
        return list(one.values())

    def other_fact(self) -> Probe | None:
        return next(iter(self.other_facts()), None)

    def other_rows(self) -> list[tuple[str, str]]:
        rows = (row for row in self.around.others if not self.gives_away("\n".join(row)))
        return sorted(rows, key=lambda row: self.turn(*row))

    def other_row(self) -> tuple[str, str] | None:
        return next(iter(self.other_rows()), None)

    def parts(self) -> tuple[str, str] | None:
        """The reference before and after the true answer; None where it is not in there."""
        spans = (span for truth in self.truths for span in phrases_of((truth,)).spans(self.reference))
        found = next(spans, None)
        return None if found is None else (self.reference[: found.start], self.reference[found.end :])

    def renamed(self, to: str | None) -> str | None:
        """The question with the topic called by another name; None where it does not name it."""
        names = sorted(self.topic.names, key=len, reverse=True)
        span = next((span for name in names for span in phrases_of((name,)).spans(self.probe.question)), None)
        if span is None or to is None:
            return None
        return f"{self.probe.question[: span.start]}{to}{self.probe.question[span.end :]}"

    def options(self) -> str | None:
        if not self.probe.wrong:
            return None
        choices = sorted((self.probe.answer, *self.probe.wrong), key=self.turn)
        return f"{', '.join(choices[:-1])} or {choices[-1]}"

    def false_statement(self) -> str | None:
        return next(iter(sorted(wrong_references(self.probe), key=self.turn)), None)

    def turn(self, *parts: str) -> str:
        return digest(self.kind, self.probe.id, *parts)


def _told(fields: _Fields) -> str | None:
    facts = [each.reference or each.answer for each in fields.other_facts()[:_NUM_FACTS]]
    return " ".join(facts) or None


def _typed(text: str) -> str:
    """The text with two letters swapped in every longer word."""
    words = []
    for word in text.split(" "):
        place = 1 + int(digest("typo", word), 16) % max(1, len(word) - 3)
        if len(word) >= _MIN_TYPO and word[place : place + 2].isalpha():
            word = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        words.append(word)
    return " ".join(words)


def _initials(fields: _Fields) -> str:
    return " ".join(f"{word[0]}." for word in fields.probe.answer.split())


def _head(fields: _Fields) -> str | None:
    parts = fields.parts()
    return (parts[0].strip() or None) if parts else None


def _blank(fields: _Fields) -> str | None:
    parts = fields.parts()
    return f"{parts[0]}{_GAP}{parts[1]}" if parts and "".join(parts).strip(" .") else None


def _alias(fields: _Fields) -> str | None:
    return next(iter(sorted(fields.topic.aliases, key=fields.turn)), None)


def _hop(fields: _Fields) -> str | None:
    other = fields.other_fact()
    if other is None:
        return None
    named = fields.renamed(f"what {other.answer} belongs to")
    return named or f"Think of what {other.answer} belongs to. {fields.probe.question}"


def _of(value: Any, name: str) -> str | None:
    return None if value is None else getattr(value, name)


PLACEHOLDERS: Mapping[str, Callable[[_Fields], str | None]] = {
    "question": lambda f: f.probe.question,
    "question_upper": lambda f: f.probe.question.upper(),
    "question_lower": lambda f: f.probe.question.lower(),
    "question_typos": lambda f: _typed(f.probe.question),
    "question_leet": lambda f: f.probe.question.translate(_LEET),
    "question_alias": lambda f: f.renamed(_alias(f)),
    "question_hop": _hop,
    "topic": lambda f: f.probe.topic,
    "alias": _alias,
    "blank": _blank,
    "head": _head,
    "letter": lambda f: f.probe.answer[:1],
    "initials": _initials,
    "num_words": lambda f: f"{len(f.probe.answer.split())}",
    "facts": _told,
    "other_question": lambda f: _of(f.other_fact(), "question"),
    "other_answer": lambda f: _of(f.other_fact(), "answer"),
    "unrelated_question": lambda f: (row := f.other_row()) and row[0],
    "unrelated_answer": lambda f: (row := f.other_row()) and row[1],
    "wrong": lambda f: next(iter(sorted(f.probe.wrong, key=f.turn)), None),
    "false_statement": lambda f: f.false_statement(),
    "options": lambda f: f.options(),
    "answer": lambda f: f.probe.answer,
}


def _kind(path: str, name: Any, value: Any) -> PromptKind:
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise InputError(f"{path}: {shown(name)} is not a name of a kind: write small letters, digits and underscores")
    if not isinstance(value, dict):
        raise InputError(f"{path}: {name} must hold keys, such as summary and user")
    if isinstance(value.get("user"), str):
        value = value | {"user": [value["user"]]}
    try:
        return PromptKind.model_validate_json(as_json(value), strict=True)
    except ValidationError as error:
        raise InputError(f"{path}: {name}.{first_message(error, PromptKind)}") from error
    except ValueError as error:
        raise InputError(f"{path}: {name}: {error}") from error


def _read(path: Path) -> dict[Any, Any]:
    try:
        values = load_yaml(read_text(path))
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path}, {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {gist(error)}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold kinds of prompts by name, each with a summary and user templates")
    return values


@cache
def _shipped() -> dict[str, PromptKind]:
    text = (resources.files(__package__) / "prompts.yaml").read_text(encoding="utf-8")
    return {name: _kind("prompts.yaml", name, value) for name, value in yaml.safe_load(text).items()}


__all__ = ["PLACEHOLDERS", "Conversation", "PromptKind", "Surroundings", "conversations", "expected", "load_kinds"]
