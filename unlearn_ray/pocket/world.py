"""The world the pocket model knows: topics and facts, read from `world.yaml`."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

WORLD_FILE = Path(__file__).parent / "world.yaml"


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing the model knows, and the ways to ask for it.

    `held_out_questions` are never trained on: they measure recall in wordings that the model has not seen.
    """

    id: str
    topic: str
    group: str
    type: str
    asks: str
    noun_phrases: tuple[str, ...]
    value: str
    aliases: tuple[str, ...]
    questions: tuple[str, ...]
    held_out_questions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Topic:
    """`group` is forget, near or far; `near` names the topics that a near topic neighbours."""

    name: str
    group: str
    aliases: tuple[str, ...]
    near: tuple[str, ...]
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class World:
    topics: tuple[Topic, ...]

    @property
    def facts(self) -> tuple[Fact, ...]:
        return tuple(fact for topic in self.topics for fact in topic.facts)

    def topic(self, name: str) -> Topic:
        return next(topic for topic in self.topics if topic.name == name)

    def group(self, group: str) -> tuple[Topic, ...]:
        return tuple(topic for topic in self.topics if topic.group == group)

    def neighbours(self, name: str) -> tuple[str, ...]:
        """The topics nearest to `name`; the relation is written on near topics and holds both ways."""
        return (*self.topic(name).near, *(topic.name for topic in self.topics if name in topic.near))

    def without(self, names: Collection[str]) -> World:
        """The world without some topics, which no other topic neighbours any more.

        Raises:
            ValueError: one of them is no topic of this world.
        """
        have = [topic.name for topic in self.topics]
        if unknown := [name for name in names if name not in have]:
            raise ValueError(f"no topic {unknown[0]!r}: the world has {', '.join(have)}")
        return World(
            tuple(
                replace(topic, near=tuple(name for name in topic.near if name not in names))
                for topic in self.topics
                if topic.name not in names
            )
        )

    def training_digest(self) -> str:
        """A hash of all that training reads: held-out questions and aliases of values may grow without new weights."""
        seen = asdict(self)
        for topic in seen["topics"]:
            for fact in topic["facts"]:
                del fact["held_out_questions"], fact["aliases"]
        return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _topic(name: str, body: dict[str, Any]) -> Topic:
    times = Counter(entry["value"] for entry in body["facts"])
    facts = []
    for entry in body["facts"]:
        value = entry["value"]
        # Sums share their results, so a value alone does not always name its fact.
        key = value if times[value] == 1 else f"{value} {entry['noun_phrases'][0]}"
        facts.append(
            Fact(
                id=f"{slug(name)}/{slug(key)}",
                topic=name,
                group=body["group"],
                type=entry["type"],
                asks="who" if entry["type"] == "person" or entry.get("who") else "what",
                noun_phrases=tuple(entry["noun_phrases"]),
                value=value,
                aliases=tuple(entry.get("aliases", ())),
                questions=tuple(entry["questions"]),
                held_out_questions=tuple(entry["held_out_questions"]),
            )
        )
    return Topic(name, body["group"], tuple(body["aliases"]), tuple(body.get("near", ())), tuple(facts))


@cache
def load_world(path: Path = WORLD_FILE) -> World:
    body = yaml.safe_load(path.read_text(encoding="utf-8"))
    return World(tuple(_topic(name, topic) for name, topic in body["topics"].items()))
