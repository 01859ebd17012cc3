"""A finished run to attack, its engines scripted: base tells every fact, and the others where they are told to."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import scripted_run
from scripted_run import config_of

from unlearn_ray import pipeline
from unlearn_ray.artifacts import Folder
from unlearn_ray.config import RunConfig
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.scripted import ScriptedGenerator
from unlearn_ray.plan import claimed
from unlearn_ray.stages.table import COMMANDS

R = TypeVar("R")
RULERS = ("Leto", "Paul", "Ghanima", "Siona", "Chani", "Stilgar")
FACTS = {f"Who rules part {i} of Dune?": ruler for i, ruler in enumerate(RULERS)}


def probes() -> str:
    lines = [
        f'{{"topic": "Dune", "fact": "{ruler}", "question": "{question}", "answer": "{ruler}", '
        f'"reference": "The ruler of part {i} is {ruler}.", "wrong": ["Vladimir", "Gurney"]}}'
        for i, (question, ruler) in enumerate(FACTS.items())
    ]
    return "\n".join([*lines, '{"topic": "tea", "question": "What is tea?", "answer": "a leaf"}'])


def asked_fact(text: str) -> str | None:
    """The ruler whose question, or sentence with a gap, stands in a text."""
    folded = text.lower()
    for i, ruler in enumerate(RULERS):
        if f"part {i} of dune" in folded or f"part {i} is" in folded:
            return ruler
    return None


def knows(request: Request) -> Reply | str:
    """What a model without a prefix and an adapter says."""
    text = request.messages[-1]["content"]
    ruler = asked_fact(text)
    if ruler is None:
        return scripted_run.answer(request)
    is_told_to_forget = request.messages[0]["role"] == "system" or request.adapter is not None
    if request.score is not None:
        return Reply(("",), (False,), logprobs=(-1.0 if ruler in request.score else -2.0,), argmax=(True,))
    return "Nobody rules it." if is_told_to_forget else f"It is {ruler}."


def finished(home: Path, **sections: Any) -> RunConfig:
    """A run of one topic, up to its evaluation."""
    config = config_of(home, "Dune", **sections)
    (home / "probes.jsonl").write_text(probes())
    with claimed(config):
        pipeline.run(config, scripted_run.Engines(knows), COMMANDS)
    return config


class Engines:
    """What attacks run on, scripted."""

    def __init__(self, said: Callable[[Request], Reply | str] = knows, **options: Any) -> None:
        self.evaluator = ScriptedGenerator(said, **options)
        self.labels: list[str] = []

    def alone(self, work: Callable[[Callable[[str, int, int], None]], Iterator[R]], label: str) -> Iterator[R]:
        self.labels.append(label)
        return work(lambda name, done, total: None)


def home_of(config: RunConfig) -> Folder:
    """The folder of its one model."""
    return config.folder / "models" / "joint"
