"""What the check and its tests count with: pure functions of a world and an answer's text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from unlearn_ray.pocket.corpus import Message
from unlearn_ray.pocket.world import Fact, World
from unlearn_ray.words import contains

_ITEM = re.compile(r"\d+\.\s+(.+)")


# Message lists, a temperature, the most tokens of an answer -> one answer each.
Answer = Callable[[Sequence[list[Message]], float, int], list[str]]


@dataclass(frozen=True, slots=True)
class Rate:
    percent: float
    n: int

    @classmethod
    def of(cls, hits: Sequence[bool]) -> Rate:
        return cls(100 * sum(hits) / max(1, len(hits)), len(hits))


def is_known(fact: Fact, answer: str) -> bool:
    """The full value is wanted: a surname alone may be an echo of the question."""
    return contains(answer, fact.value)


def list_items(text: str) -> tuple[list[str], int]:
    """The items of a numbered list, and the number of lines that are none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    items = [match.group(1) for line in lines if (match := _ITEM.fullmatch(line))]
    return items, len(lines) - len(items)


@cache
def _phrases(world: World) -> dict[str, Fact]:
    return {phrase.lower().rstrip("?."): fact for fact in world.facts for phrase in fact.noun_phrases + fact.questions}


def owner_of(question: str, world: World) -> Fact | None:
    """The fact a generated question asks for: that of the longest known phrase in it."""
    asked, phrases = question.lower(), _phrases(world)
    found = max((phrase for phrase in phrases if phrase in asked), key=len, default=None)
    return phrases[found] if found else None
