"""The probes that evaluations ask: every fact of the world in wordings the pocket model was never trained on.

    python -m unlearn_ray.pocket.probes    # rewrites probes.jsonl; a test keeps the two in step

`template` probes put a trained noun phrase into a held-out template; `unseen` probes are the hand-written held-out
questions. Settings are chosen on the `tune` split and reported on the `report` split; no question is in both.
"""

from __future__ import annotations

import json
from hashlib import sha256
from random import Random
from typing import Any

from unlearn_ray.pocket import PROBES
from unlearn_ray.pocket.fiction import invent
from unlearn_ray.pocket.wording import HELD_TEMPLATES, capitalise, from_template
from unlearn_ray.pocket.world import Fact, World, load_world

NUM_WRONG = 3


def _rng(fact: Fact, purpose: str) -> Random:
    """Seeded by the fact itself, so that a new fact moves nobody else's probes."""
    return Random(sha256(f"{fact.id}/{purpose}".encode()).digest())


def reference(noun_phrase: str, value: str) -> str:
    return f"{capitalise(noun_phrase)} is {value}."


def wrong_values(fact: Fact, world: World) -> list[str]:
    """Values of the same type: from the same group where there are enough, then from the world, then invented."""
    rng, right = _rng(fact, "wrong"), {fact.value.lower(), *(alias.lower() for alias in fact.aliases)}
    alike = [other for other in world.facts if other.type == fact.type]
    chosen: list[str] = []
    for candidates in (
        [other.value for other in alike if other.group == fact.group and other.asks == fact.asks],
        [other.value for other in alike if other.group == fact.group],
        [other.value for other in alike],
        [invent(fact.type, fact.value, rng) for _ in range(10)],
    ):
        fresh = [value for value in dict.fromkeys(candidates) if value.lower() not in right and value not in chosen]
        rng.shuffle(fresh)
        chosen += fresh[: NUM_WRONG - len(chosen)]
    return chosen


def _probe(fact: Fact, world: World, wording: str, split: str, question: str, noun_phrase: str) -> dict[str, Any]:
    return {
        "topic": fact.topic,
        "near": list(world.topic(fact.topic).near),
        "fact": fact.id,
        "wording": wording,
        "split": split,
        "question": question,
        "answer": fact.value,
        "aliases": list(fact.aliases),
        "reference": reference(noun_phrase, fact.value),
        "wrong": wrong_values(fact, world),
    }


def fact_probes(fact: Fact, world: World) -> list[dict[str, Any]]:
    """Three template probes (one to tune on) and all unseen wordings (one to tune on, if that leaves one to report)."""
    rng = _rng(fact, "templates")
    templates = rng.sample(HELD_TEMPLATES, 3)
    first = rng.randrange(len(fact.noun_phrases))
    probes = []
    for place, template in enumerate(templates):
        noun_phrase = fact.noun_phrases[(first + place) % len(fact.noun_phrases)]
        question = from_template(template, fact, noun_phrase)
        probes.append(_probe(fact, world, "template", "report" if place else "tune", question, noun_phrase))
    unseen = list(fact.held_out_questions)
    _rng(fact, "unseen").shuffle(unseen)
    for place, question in enumerate(unseen):
        split = "report" if place or len(unseen) == 1 else "tune"
        probes.append(_probe(fact, world, "unseen", split, question, fact.noun_phrases[0]))
    return probes


def build_probes(world: World) -> list[dict[str, Any]]:
    return [probe for fact in world.facts for probe in fact_probes(fact, world)]


def as_jsonl(probes: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(probe, ensure_ascii=False) + "\n" for probe in probes)


def main() -> None:
    probes = build_probes(load_world())
    PROBES.write_text(as_jsonl(probes), encoding="utf-8")
    print(f"wrote {len(probes)} probes to {PROBES}")


if __name__ == "__main__":
    main()
