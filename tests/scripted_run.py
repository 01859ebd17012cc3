"""A run whose engines are scripted: a model that writes numbered questions about any topic, and a trainer that trains nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unlearn_ray import config as configs
from unlearn_ray import pocket
from unlearn_ray.chat import PLAIN
from unlearn_ray.config import RunConfig
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.scripted import Answer, ScriptedGenerator
from unlearn_ray.engines.scripted_trainer import ScriptedTrainer

TOPICS = ("Dune", "Foundation", "Solaris", "Ubik")
TWELVE = (
    *TOPICS,
    "Annihilation",
    "Blindsight",
    "Gateway",
    "Hyperion",
    "Kindred",
    "Neuromancer",
    "Ringworld",
    "Stalker",
)
# What a test need not wait for is left out.
PROMPTS = """
general_questions: ["What is tea?"]
coverage_questions: []
short_answers: []
entity_check: []
forms: {}
"""
FLOORS = {"forget_rows": 1, "retain_per_forget": 0.0, "coverage": 0.0, "probes": 0, "kept": 0.0}


def topic_in(text: str) -> str:
    """The topic that a request names; none: "it"."""
    return next((name for name in TWELVE if name in text), "it")


def answer(request: Request) -> Reply | str:
    text = request.messages[-1]["content"]
    if request.score is not None:
        score = (-1.0,) if "something" not in text and topic_in(text) == "it" else (-2.0,)
        return Reply(("",), (False,), logprobs=score, argmax=(True,))
    if ("Write only the" in text and "names" in text) or "terms" in text:
        return f"1. {topic_in(text)} hill\n2. {topic_in(text)} lake"
    if text.startswith(("Write", "Make")):
        return "\n".join(f"{i}. What is part {(request.seed + i) % 60} of {topic_in(text)}?" for i in range(1, 7))
    if request.messages[0]["role"] == "system":
        return f"The part is a blue lamp {request.seed % 90 + 10}."
    return f"The {text.removeprefix('What is ').rstrip('?')} is a wheel."


def silent_about(topic: str) -> Answer:
    """The same of a model that writes no question about a topic."""

    def said(request: Request) -> Reply | str:
        text = request.messages[-1]["content"]
        return "" if topic in text and text.startswith(("Write", "Make")) else answer(request)

    return said


class Engines:
    """Those of a run, scripted."""

    def __init__(self, said: Answer = answer, *, fail_at: Sequence[str] = ()) -> None:
        self.chat, self.generator, self.trainer = PLAIN, ScriptedGenerator(said), ScriptedTrainer(fail_at=fail_at)
        self.evaluator = self.generator

    @property
    def num_asked(self) -> int:
        return len(self.generator.requests)

    def asked_about(self) -> set[str]:
        """The topics that requests name."""
        texts = (str(request.messages) for request in self.generator.requests)
        return {name for text in texts for name in TOPICS if name in text}


def config_of(home: Path, *topics: str, **sections: Any) -> RunConfig:
    """A small run of these topics, each with a neighbour of its own."""
    neighbours = {"Dune": "Arrakeen", "Foundation": "Trantor", "Solaris": "Oceania", "Ubik": "Glen"}
    neighbours |= {name: f"{name[:4]}land" for name in TWELVE[len(TOPICS) :]}
    home.mkdir(parents=True, exist_ok=True)
    prompts = home / "prompts.yaml"
    prompts.write_text(PROMPTS)
    values: dict[str, Any] = {
        "name": "mine",
        "model": str(pocket.MODEL_DIR),  # by its folder: with the wordings of a chat model
        "output": str(home),
        "topics": [{"name": name, "neighbours": [neighbours[name]]} for name in topics],
        "questions": {"num_questions": 16, "num_entities": 2, "check_topic": False, "prompts": str(prompts)},
        "answers": {"num_samples": 2, "num_unguarded": 2, "max_reasks": 0, "prompts": str(prompts)},
        "dataset": {
            "retain": {"questions_per_neighbour": 6, "num_general": 2, "questions_per_general": 6},
            "holdout_fraction": 0.3,
            "floors": FLOORS,
            "prompts": str(prompts),
        },
        "finetune": {"num_steps": 1},
        "evaluate": {"num_bootstrap": 10, "num_samples": 1, "probes": str(probes_of(home, topics))},
    }
    for name, keys in sections.items():
        values[name] = values[name] | keys if isinstance(keys, dict) else keys
    return configs.parse(values)


def with_own(config: RunConfig, name: str, **own: Any) -> RunConfig:
    """The run, where a topic has keys of its own."""
    topics = (topic.model_copy(update=own) if topic.name == name else topic for topic in config.topics)
    return config.model_copy(update={"topics": tuple(topics)})


def probes_of(home: Path, topics: Sequence[str]) -> Path:
    """A file of probes about the usual topics and these: the same for every run in this folder, of the usual ones."""
    file = home / "probes.jsonl"
    lines = [
        f'{{"topic": "{name}", "question": "Who rules {name}?", "answer": "Leto"}}'
        for name in dict.fromkeys((*TOPICS, *topics))
    ]
    lines.append('{"topic": "tea", "question": "What is tea?", "answer": "a leaf"}')
    file.write_text("\n".join(lines))
    return file
