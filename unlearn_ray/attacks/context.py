"""What attacks on a model work with: its probes, its training's rows, its export. Read once from the run's folder; nothing is written."""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from unlearn_ray.artifacts import Folder
from unlearn_ray.attacks.attack import Setup, Target, fact_of
from unlearn_ray.config import Topic, twin_path
from unlearn_ray.engines.protocols import Generator
from unlearn_ray.errors import InputError
from unlearn_ray.evals.probes import PlacedProbe, place
from unlearn_ray.rows import Group, digest
from unlearn_ray.stages.evaluate import PROBE_TOKENS, Export, find_export, probes_of
from unlearn_ray.stages.stage import Unit
from unlearn_ray.train.identity import model_identity

R = TypeVar("R")
NUM_FACTS = 24
_MAX_ROWS = 512  # of each kind of retained rows that an attacker has
OnProgress = Callable[[str, int, int], None]


class AttackEngines(Protocol):
    """What attacks run on."""

    @property
    def evaluator(self) -> Generator:
        """What prompts are put to: it takes adapters."""
        ...

    def alone(self, work: Callable[[OnProgress], Iterator[R]], label: str) -> Iterator[R]:
        """What `work` yields, in one process with a GPU where the cluster has one; nothing else of ours runs beside it.

        Args:
            work: picklable; it is told where to report how far it is.
        """
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """What a user says of attacks."""

    prompts: str | None = None  # file of kinds of prompts
    num_facts: int = NUM_FACTS  # of each topic that prompts ask for
    twin: str | None = (
        None  # folder or hub name of a model that never knew the topics; None: the shipped one, if there is one
    )

    @property
    def twin_identity(self) -> str | None:
        """Its content, wherever its folder lies."""
        return None if self.twin is None else model_identity(self.twin)


@dataclass(frozen=True, slots=True)
class Context:
    """A model of a run, as attacks see it."""

    unit: Unit
    base: str  # path of the base model
    export: Export
    guardrail: Mapping[str, str]  # system message by topic
    probes: Sequence[PlacedProbe]  # of the forgotten topics, those that the evaluation asked; one a fact and wording
    near: Sequence[tuple[str, str]]  # retained rows: question and true answer
    unrelated: Sequence[tuple[str, str]]
    options: Options = field(default_factory=Options)

    @property
    def topics(self) -> tuple[Topic, ...]:
        return self.unit.topics

    @property
    def seed(self) -> int:
        return self.unit.config.seed

    @property
    def few(self) -> list[PlacedProbe]:
        """One probe of each of `num_facts` facts of each topic, all chosen by hash: more facts tell more than more wordings of one."""
        chosen = {fact for facts in self._facts("few").values() for fact in facts[: self.options.num_facts]}
        found: dict[str, PlacedProbe] = {}
        for placed in sorted(self.probes, key=lambda placed: digest("few", placed.probe.id)):
            if (fact := fact_of(placed.probe)) in chosen:
                found.setdefault(fact, placed)
        return list(found.values())

    @property
    def max_tokens(self) -> int:
        """Room for an answer: as in the evaluation."""
        config = self.unit.config
        if config.evaluate.max_tokens is not None:
            return config.evaluate.max_tokens
        if config.evaluate.probes_path is not None:
            return PROBE_TOKENS
        return max(config.answers.max_tokens, config.dataset.retain.max_tokens)

    def setup(self) -> Setup:
        """What attacks in one process get: half of each topic's facts, chosen by hash, is known to the attacker.

        Raises:
            InputError: a topic has one fact alone.
        """
        taught = set()
        for topic, facts in self._facts("taught").items():
            if len(facts) < 2:
                raise InputError(
                    f"attacks need two facts of {topic} at least, one to teach and one to ask for: give evaluate.probes more"
                )
            taught.update(facts[: len(facts) // 2])
        known = [placed.probe for placed in self.probes if fact_of(placed.probe) in taught]
        targets = [
            Target("base", self.base),
            Target("unlearned", self.base, self.export.path)
            if self.export.is_adapter
            else Target("unlearned", self.export.path),
        ]
        if self.options.twin is not None:
            targets.append(Target("twin", self.options.twin))
        return Setup(
            targets=targets,
            probes=self.probes,
            taught=[(probe.question, probe.reference or probe.answer) for probe in known],
            untaught=[placed for placed in self.probes if fact_of(placed.probe) not in taught],
            near=self.near,
            unrelated=self.unrelated,
            seed=self.seed,
            max_tokens=self.max_tokens,
            chat=self.unit.config.chat,
        )

    def _facts(self, purpose: str) -> dict[str, list[str]]:
        """The facts of each topic, in the order of their hashes."""
        found: dict[str, set[str]] = {}
        for placed in self.probes:
            found.setdefault(placed.probe.topic, set()).add(fact_of(placed.probe))
        return {topic: sorted(facts, key=lambda fact: digest(purpose, fact)) for topic, facts in found.items()}


def read_context(unit: Unit, guardrail: Mapping[str, str], options: Options) -> Context:
    """The context of a finished model.

    Raises:
        ArtifactError: a table of the run can't be read.
        InputError: the run's file of probes can't be used, or asks nothing of what the evaluation asked.
    """
    config, home = unit.config, unit.home
    names = [topic.name for topic in unit.topics]
    asked = {
        row["probe_id"]
        for row in (home / "evaluate" / "answers").read_rows(["probe_id", "model", "group", "drop"])
        if row["model"] == "unlearned" and row["group"] == "forget" and not row["drop"]
    }
    every = (place(probe, names) for probe in probes_of(config.evaluate, unit.topics, home / "mixture"))
    probes = _one_a_wording(placed for placed in every if placed.group == "forget" and placed.probe.id in asked)
    if not probes:
        raise InputError(
            f"evaluate.probes has none of the probes that {home / 'evaluate'} asked: evaluate the run again with unlearn-ray run CONFIG"
        )
    twin = options.twin or twin_path(config.model, names)
    rows = list(_retained(home / "mixture" / "retain", ("near", "far")))
    return Context(
        unit,
        config.model_path,
        find_export(home / "finetune"),
        guardrail,
        probes,
        rows[0],
        rows[1],
        replace(options, twin=twin),
    )


def _one_a_wording(probes: Iterable[PlacedProbe]) -> list[PlacedProbe]:
    """A probe of each fact in each wording, by hash."""
    found: dict[tuple[str, str], PlacedProbe] = {}
    for placed in sorted(probes, key=lambda placed: digest("asked", placed.probe.id)):
        found.setdefault((fact_of(placed.probe), placed.probe.wording), placed)
    return sorted(found.values(), key=lambda placed: placed.probe.id)


def _retained(folder: Folder, groups: Sequence[Group]) -> Iterator[list[tuple[str, str]]]:
    """Trained rows of each group, at most `_MAX_ROWS` of them, by hash: the whole is streamed, and never held."""
    for group in groups:
        rows = (
            (row["id"], row["question"], row["answer"])
            for row in folder.read_rows(["id", "group", "split", "question", "answer"])
            if row["group"] == group and row["split"] == "train"
        )
        yield [(question, answer) for _, question, answer in heapq.nsmallest(_MAX_ROWS, rows)]


__all__ = ["NUM_FACTS", "AttackEngines", "Context", "OnProgress", "Options", "read_context"]
