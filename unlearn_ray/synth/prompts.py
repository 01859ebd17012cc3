"""The templates of all requests to the model: one file of the package. A user's file may override any part of it."""

import json
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from unlearn_ray.config import Text, first_message, prompts_path
from unlearn_ray.errors import InputError, gist
from unlearn_ray.reading import as_json, load_yaml, read_text, shown
from unlearn_ray.rows import AskedForm, digest

Wordings = Annotated[tuple[str, ...], Field(min_length=1)]
Kind = Literal["fiction", "product", "person", "general"]
Guardrail = Literal["fictional", "refusal", "discourage"]
AnswerStyle = Literal["sentence", "paragraph", "free"]

# The allowed placeholders of each template. All are required, except {count}, and {topic} if the question names it.
_PLACEHOLDERS: Mapping[str, tuple[str, ...]] = {
    "questions": ("topic", "count"),
    "angle_questions": ("topic", "count", "angle"),
    "entity_questions": ("topic", "count", "entity"),
    "entity_angle_questions": ("topic", "count", "entity", "angle"),
    "coverage_questions": ("topic", "count", "entity"),
    "language_questions": ("topic", "count", "language"),
    "entities": ("topic", "count"),
    "topic_check": ("question", "topic"),
    "question_about": ("topic",),
    "question_about_anything": (),
    "neighbours": ("topic", "count"),
    "neighbour_check": ("entity",),
    "general_topics": ("count",),
    "styles": ("question",),
    "short_answers": ("question",),
    "probe_questions": ("topic", "count"),
    "guardrails": ("topic",),
    "leak_judge": ("question", "truth", "answer", "topic"),
}
_OPTIONAL = {"count"}
# Optional steps. null or an empty list switches them off.
_LISTS = ("coverage_questions", "entity_check", "forms", "language_questions", "unrelated")


class FormPrompts(BaseModel):
    """The templates of one form of question: a request for lines, and the wordings that turn a line into a question. Without a request, the
    names of entities are used as lines."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests: tuple[str, ...] = ()
    questions: Wordings = ("{line}",)

    @model_validator(mode="after")
    def _placeholders_are_known(self) -> "FormPrompts":
        for template in self.requests:
            check_template(template, ("topic", "count", "entity"), {"count", "entity"})
        for template in self.questions:
            if self.requests:
                check_template(template, ("line", "topic"), {"topic"})
            else:
                check_template(template, ("entity",))
        if self.requests and not self.asking(has_entity=False):
            raise ValueError("requests: give one without {entity}, for a topic without known entities")
        return self

    def asking(self, has_entity: bool) -> tuple[str, ...]:
        """The requests for lines about an entity, or about the topic as a whole."""
        about = tuple(template for template in self.requests if ("{entity}" in template) == has_entity)
        return about if about or not has_entity else self.asking(has_entity=False)


class Choice(BaseModel):
    """A question about a name, and an answer that names its topic. The probability of that answer is scored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str
    answer: str


class Prompts(BaseModel):
    """All templates. A list holds several wordings of one request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    questions: Wordings
    angle_questions: Wordings
    entity_questions: Wordings
    entity_angle_questions: Wordings
    angles: dict[Kind, Annotated[tuple[Text, ...], Field(min_length=1)]]
    forms: dict[AskedForm, FormPrompts | None]
    coverage_questions: tuple[str, ...]
    language_questions: tuple[str, ...]
    entities: Wordings
    entity_check: tuple[Choice, ...]
    topic_check: str
    unrelated: tuple[Text, ...]
    question_about: str | None
    question_about_anything: str | None
    neighbours: Wordings
    neighbour_check: str | None
    general_topics: Wordings
    general_subjects: tuple[Text, ...]
    styles: dict[AnswerStyle, str]
    short_answers: tuple[str, ...]  # empty: probes use one greedy answer as the truth
    probe_questions: tuple[str, ...]  # empty: only held-out questions become probes
    guardrails: dict[Guardrail, str]
    leak_judge: str | None  # None: the model is not asked
    general_questions: tuple[Text, ...]  # empty: answers are not compared with a pool

    @field_validator(*_PLACEHOLDERS, mode="after")
    @classmethod
    def _placeholders_are_known(cls, value: Any, info: Any) -> Any:
        templates = (
            [value] if isinstance(value, str) else list(value.values()) if isinstance(value, dict) else value or ()
        )
        for template in templates:
            optional = _OPTIONAL | ({"topic"} if info.field_name in ("topic_check", "leak_judge") else set())
            check_template(template, _PLACEHOLDERS[info.field_name], optional)
        return value

    @field_validator("entity_check", mode="after")
    @classmethod
    def _choices_name_their_topic(cls, value: tuple[Choice, ...]) -> tuple[Choice, ...]:
        for each in value:
            check_template(each.question, ("entity",))
            check_template(each.answer, ("entity", "topic"), {"entity"})
        return value

    @model_validator(mode="after")
    def _requests_are_compared(self) -> "Prompts":
        if (self.question_about is None) != (self.question_about_anything is None):
            raise ValueError("question_about and question_about_anything are compared: give both, or null for both")
        return self

    def part(self, *keys: str) -> "Prompts":
        """Only the keys that a stage reads. The part has no other attribute, and its fingerprint covers only these keys.

        Args:
            keys: names of fields, or of one entry of a mapping (`angles.fiction`), or of no entry (`forms.`).
        """
        found: dict[str, Any] = {}
        for key in keys:
            name, is_mapping, entry = key.partition(".")
            value = getattr(self, name)
            found[name] = found.get(name, {}) | ({entry: value[entry]} if entry else {}) if is_mapping else value
        return Prompts.model_construct(**found)

    @property
    def fingerprint(self) -> str:
        return digest(json.dumps(self.model_dump(mode="json"), sort_keys=True))


def check_template(template: str, allowed: Sequence[str], optional: set[str] | frozenset[str] = frozenset()) -> None:
    """Raise ValueError unless `template` has the allowed placeholders and no others, without a conversion (!r) or a format (:d)."""
    if not template.strip():
        raise ValueError("is empty: give a text, or leave the key out")
    try:
        fields = [(name, form, mark) for _, name, form, mark in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(
            f"{shown(template)} has an unpaired brace ({error}): write {{{{ or }}}} for a plain one"
        ) from error
    found = {name for name, _, _ in fields}
    if unknown := found - set(allowed):
        names = ", ".join(f"{{{name}}}" for name in allowed)
        raise ValueError(f"{shown(template)} has an unknown placeholder {{{min(unknown)[:60]}}}: it may hold {names}")
    if dressed := next((name for name, form, conversion in fields if form or conversion), None):
        raise ValueError(f"{shown(template)} has more than a name in {{{dressed}}}: write {{{dressed}}} alone")
    if missing := set(allowed) - found - set(optional):
        raise ValueError(f"{shown(template)} has no {{{sorted(missing)[0]}}}: put it where its text belongs")


def load_prompts(override: Path | str | None = None) -> Prompts:
    """The package's templates, overridden by those in another file.

    Args:
        override: a user's file, or "pocket".

    Raises:
        InputError: the file can't be read, or a template in it can't be used; names the file and the key.
    """
    if override is None:
        return _default()
    path = prompts_path(override)
    try:
        text = read_text(path)
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path}, {error}") from error
    return _merged(path, text)


@lru_cache(maxsize=16)  # every stage of every topic asks for it
def _merged(override: Path, text: str) -> Prompts:
    try:
        values = load_yaml(text)
    except ValueError as error:
        raise InputError(f"{override}, {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{override} is not valid YAML: {gist(error)}") from error
    if not isinstance(values, dict):
        raise InputError(
            f"{override} must hold keys and templates, such as {', '.join(list(Prompts.model_fields)[:3])}"
        )
    merged = _default().model_dump(mode="json")
    for key, value in values.items():
        if value is None and key in _LISTS:
            value = type(merged[key])()
        nested = isinstance(merged.get(key), dict) and isinstance(value, dict) and value  # {} switches a step off
        merged[key] = merged[key] | value if nested else value
    try:
        return Prompts.model_validate_json(as_json(merged), strict=True)
    except ValidationError as error:
        raise InputError(f"{override}: {first_message(error, Prompts)}") from error
    except ValueError as error:
        raise InputError(f"{override}: {error}") from error


@cache
def _default() -> Prompts:
    text = (resources.files("unlearn_ray.synth") / "prompts.yaml").read_text(encoding="utf-8")
    return Prompts.model_validate_json(json.dumps(yaml.safe_load(text)), strict=True)
