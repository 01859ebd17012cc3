"""The texts that the model is asked with: one template file of the package, any part of which a user's file overrides."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from unlearn_ray.config import Text, first_message, prompts_path
from unlearn_ray.errors import InputError, gist
from unlearn_ray.reading import as_json, load_yaml, read_text, shown
from unlearn_ray.rows import digest

Wordings = Annotated[tuple[str, ...], Field(min_length=1)]
Kind = Literal["fiction", "product", "person", "general"]
Guardrail = Literal["fictional", "refusal", "discourage"]
AnswerStyle = Literal["sentence", "paragraph", "free"]

# What each template may hold; it must hold all of them but {count}, and but {topic} where a question says it.
_PLACEHOLDERS: Mapping[str, tuple[str, ...]] = {
    "questions": ("topic", "count"),
    "angle_questions": ("topic", "count", "angle"),
    "entity_questions": ("topic", "count", "entity"),
    "entity_angle_questions": ("topic", "count", "entity", "angle"),
    "entities": ("topic", "count"),
    "topic_check": ("question", "topic"),
    "neighbours": ("topic", "count"),
    "general_topics": ("count",),
    "styles": ("question",),
    "guardrails": ("topic",),
    "leak_judge": ("question", "truth", "answer", "topic"),
}
_OPTIONAL = {"count"}


class Prompts(BaseModel):
    """All templates; each list holds wordings of one request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    questions: Wordings
    angle_questions: Wordings
    entity_questions: Wordings
    entity_angle_questions: Wordings
    angles: dict[Kind, Annotated[tuple[Text, ...], Field(min_length=1)]]
    entities: Wordings
    topic_check: str
    neighbours: Wordings
    general_topics: Wordings
    styles: dict[AnswerStyle, str]
    guardrails: dict[Guardrail, str]
    leak_judge: str | None  # None: the model can't be asked
    general_questions: tuple[Text, ...]  # none: answers are compared with no pool

    @field_validator(*_PLACEHOLDERS, mode="after")
    @classmethod
    def _placeholders_are_known(cls, value: Any, info: Any) -> Any:
        templates = [value] if isinstance(value, str) else list(value.values()) if isinstance(value, dict) else value
        for template in templates or ():
            optional = _OPTIONAL | ({"topic"} if info.field_name in ("topic_check", "leak_judge") else set())
            check_template(template, _PLACEHOLDERS[info.field_name], optional)
        return value

    @property
    def fingerprint(self) -> str:
        return digest(json.dumps(self.model_dump(mode="json"), sort_keys=True))


def check_template(template: str, allowed: Sequence[str], optional: set[str] | frozenset[str] = frozenset()) -> None:
    """Raise ValueError unless `template` holds the allowed placeholders, and only these: bare, without a conversion (!r) or format (:d)."""
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
        raise ValueError(f"{shown(template)} has no {{{sorted(missing)[0]}}}: put it where that belongs")


def load_prompts(override: Path | str | None = None) -> Prompts:
    """The package's templates, with what another file overrides.

    Args:
        override: a user's file, or "pocket".

    Raises:
        InputError: the file can't be read, or a template in it can't be used; names the file and the key.
    """
    if override is None:
        return _default()
    override = prompts_path(override)
    try:
        values = load_yaml(read_text(override))
    except OSError as error:
        raise InputError(f"{override} can't be read: {error.strerror or error}") from error
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
        nested = isinstance(merged.get(key), dict) and isinstance(value, dict)
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
