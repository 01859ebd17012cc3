"""The stages in order. Knows what follows what, and what is already there; how a stage works is its own business."""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from unlearn_ray.artifacts import Folder, Manifest, fingerprint_of, read_manifest
from unlearn_ray.config import RunConfig
from unlearn_ray.engines.protocols import Generator, Trainer
from unlearn_ray.errors import ArtifactError, ConfigError
from unlearn_ray.rows import digest
from unlearn_ray.stages import answers, dataset, evaluate, finetune, questions
from unlearn_ray.stages.stage import State, finished_manifest, state_of
from unlearn_ray.synth.guardrails import guardrail_prefixes

STAGES = ("questions", "answers", "dataset", "finetune", "evaluate")
MARKER = "run.json"  # makes a folder ours
LOCK = "run.lock"


class Engines(Protocol):
    """The engines of a run, started when a stage first needs them."""

    @property
    def generator(self) -> Generator: ...

    @property
    def trainer(self) -> Trainer: ...


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One line of the plan."""

    name: str
    state: State
    fingerprint: str
    is_selected: bool  # by --from, --until or a stage's own command
    manifest: Manifest | None  # of finished work


def run(
    config: RunConfig,
    engines: Engines,
    selected: Sequence[str] = STAGES,
    on_start: Callable[[str], None] = lambda stage: None,
    on_finish: Callable[[str, Manifest], None] = lambda stage, manifest: None,
) -> dict[str, Manifest]:
    """Run the selected stages in order; finished ones with the same fingerprint are skipped by the stages themselves."""
    home, topics, seed = config.folder, config.topics, config.seed
    model, path = model_identity(config.model_path), config.model_path
    at = {stage: home / stage for stage in STAGES}
    guardrails = guardrail_prefixes(config.answers, topics)

    steps: dict[str, Callable[[], Manifest]] = {
        "questions": lambda: questions.make_questions(
            config.questions, topics, at["questions"], engines.generator, model=model, seed=seed
        ),
        "answers": lambda: answers.answer_questions(
            config.answers, topics, at["questions"], at["answers"], engines.generator, model=model, seed=seed
        ),
        "dataset": lambda: dataset.build_dataset(
            config.dataset, topics, at["answers"], at["dataset"], engines.generator, model=model, seed=seed
        ),
        "finetune": lambda: finetune.finetune(
            config.finetune, topics, at["dataset"], at["finetune"], engines.trainer, model=model, model_path=path, seed=seed
        ),
        "evaluate": lambda: evaluate.evaluate(
            config.evaluate, topics, at["dataset"], at["answers"], at["finetune"], at["evaluate"], engines.generator,
            model=model, model_path=path, guardrail=guardrails, seed=seed,
        ),
    }  # fmt: skip

    manifests = {}
    for stage in (name for name in STAGES if name in selected):
        on_start(stage)
        manifests[stage] = steps[stage]()
        on_finish(stage, manifests[stage])
    return manifests


def select(only: str | None = None, until: str | None = None, start: str | None = None) -> tuple[str, ...]:
    """The stages a command asks for.

    Raises:
        ConfigError: there is no such stage, or --until comes before --from.
    """
    for name in (only, until, start):
        if name is not None and name not in STAGES:
            raise ConfigError(f"there is no stage {name!r}: choose one of {', '.join(STAGES)}")
    if only:
        return (only,)
    first, last = STAGES.index(start or STAGES[0]), STAGES.index(until or STAGES[-1])
    if last < first:
        raise ConfigError(f"--until {until} comes before --from {start}: name a later stage")
    return STAGES[first : last + 1]


def states(folder: Folder) -> list[tuple[str, str, Manifest | None]]:
    """(stage, finished | unfinished | not begun, manifest) of a run's folder, whatever its config."""
    found = []
    for stage in STAGES:
        manifest = read_manifest(folder / stage)
        state = "finished" if manifest else "unfinished" if (folder / stage).names() else "not begun"
        found.append((stage, state, manifest))
    return found


@contextmanager
def claimed(config: RunConfig) -> Iterator[None]:
    """Make the run's folder ours, for one process at a time.

    Raises:
        ArtifactError: it can't be written, holds something else, or another process is at work in it.
    """
    home = config.folder
    check_owner(config)
    home.make()
    with _locked(home):
        try:
            home.write_text(MARKER, json.dumps({"name": config.name, "config": config.model_dump(mode="json")}, indent=2))
        except OSError as error:
            raise ArtifactError(f"{home} can't be written: {error}") from error
        yield


@contextmanager
def _locked(home: Folder) -> Iterator[None]:
    if not home.is_local:
        yield  # an object store has no locks: a job's submission id keeps two drivers apart
        return
    with open(home.local / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ArtifactError(f"{home} is being written by another run: wait for it, or give this one another name") from error
        yield


def check_owner(config: RunConfig) -> None:
    """Refuse a folder that is not this run's; writes nothing.

    Raises:
        ArtifactError: it holds something else, or belongs to a run of another name.
    """
    home = config.folder
    if home.is_local and home.local.exists() and not home.local.is_dir():
        raise ArtifactError(f"{home} is a file: choose another output or name")
    if home.is_local:
        parent = next(p for p in [home.local, *home.local.parents] if p.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            raise ArtifactError(f"{home} can't be written ({parent} is read-only): choose another output")
    if not home.exists(MARKER):
        if set(home.names()) - {LOCK, "logs"}:
            raise ArtifactError(f"{home} holds something that is no run of ours: choose another output or name")
        return
    try:
        owner = json.loads(home.read_text(MARKER))["name"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ArtifactError(f"{home}/{MARKER} is corrupt: delete the folder, or choose another name") from error
    if owner != config.name:
        raise ArtifactError(f"{home} belongs to run {owner!r}: choose another output or name")


def model_identity(path: str) -> str:
    """A name for a model's content: of a folder its files, of a hub model its name."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    parts = []
    for file in sorted(f for f in folder.iterdir() if f.is_file() and f.suffix in {".json", ".safetensors", ".bin", ".jinja"}):
        with file.open("rb") as stream:
            # The head of a safetensors file is its index; sixteen megabytes tell fine-tunes of one model apart.
            parts.append((file.name, file.stat().st_size, hashlib.sha256(stream.read(16 * 2**20)).hexdigest()))
    return f"{folder.name}:{digest(*parts)}"
