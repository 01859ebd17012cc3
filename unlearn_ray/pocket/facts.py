"""The facts of the world as probes for any model: natural wordings, a natural sentence for the answer.

    python -m unlearn_ray.pocket.facts    # rewrites facts.jsonl from facts.yaml; a test keeps the two in step

The pocket model's own probes sound like its corpus. These are asked of models that read the world's books instead: both questions of a
fact are reported on, and settings are chosen on the sentence with a blank in the answer's place.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from unlearn_ray.pocket import FACTS
from unlearn_ray.pocket.probes import as_jsonl
from unlearn_ray.pocket.world import Fact, World, load_world

FACTS_FILE = Path(__file__).parent / "facts.yaml"
_ANSWER = re.compile(r"\[(.+)\]")
_WORDINGS = ("first", "second")


@cache
def load_facts(path: Path = FACTS_FILE) -> dict[str, dict[str, Any]]:
    """Topic -> last part of a fact's id -> its wordings."""
    topics: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["topics"]
    return topics


def fact_rows(fact: Fact, world: World, wordings: dict[str, Any]) -> list[dict[str, Any]]:
    """Two questions to report on, and the sentence with a blank to tune on."""
    sentence = wordings["reference"]
    (answer,) = _ANSWER.findall(sentence)
    others = [fact.value, *fact.aliases, *wordings.get("aliases", ())]
    row = {
        "topic": fact.topic,
        "near": list(world.neighbours(fact.topic)),
        "fact": fact.id,
        "answer": answer,
        "aliases": [other for other in dict.fromkeys(others) if other != answer],
        "reference": _ANSWER.sub(answer, sentence),
        "wrong": wordings["wrong"],
    }
    asked = [(name, "report", question) for name, question in zip(_WORDINGS, wordings["questions"], strict=True)]
    asked.append(("blank", "tune", f"Fill in the blank: {_ANSWER.sub('___', sentence)}"))
    return [{**row, "wording": wording, "split": split, "question": question} for wording, split, question in asked]


def build_facts(world: World) -> list[dict[str, Any]]:
    wordings = load_facts()
    return [row for fact in world.facts for row in fact_rows(fact, world, wordings[fact.topic][fact.id.split("/")[1]])]


def main() -> None:
    rows = build_facts(load_world())
    FACTS.write_text(as_jsonl(rows), encoding="utf-8")
    print(f"wrote {len(rows)} probes to {FACTS}")


if __name__ == "__main__":
    main()
