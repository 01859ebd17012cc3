"""What a run would do, and whose folder it does it in: all that is known before anything is written."""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unlearn_ray.artifacts import Folder, Manifest, fingerprint_of, read_manifest
from unlearn_ray.config import SERVED_LENGTH, SERVED_RANK, RunConfig
from unlearn_ray.engines.settings import check_arguments, notes_on
from unlearn_ray.errors import ArtifactError, ConfigError, InputError
from unlearn_ray.evals.probes import near_misses, numbered_probes, place, read_probes, with_topics, wrong_references
from unlearn_ray.lease import leased
from unlearn_ray.rows import digest
from unlearn_ray.stages import answers, dataset, evaluate, finetune, questions, retaining
from unlearn_ray.stages.checking import known_shortfalls
from unlearn_ray.stages.stage import State, state_of
from unlearn_ray.synth.enough import Shortfall
from unlearn_ray.synth.guardrails import guardrail_prefixes, style_of
from unlearn_ray.synth.names import case_note
from unlearn_ray.synth.prompts import load_prompts
from unlearn_ray.train.inspection import Inspected, inspect_model, lora_targets, unreached

STAGES = ("questions", "answers", "dataset", "finetune", "evaluate")
MARKER = "run.json"  # makes a folder ours
LOCK = "run.lock"  # a locked file; in remote storage a folder of leases
_HEAD, _STRIDE, _BLOCK = 16 * 2**20, 4 * 2**20, 64 * 2**10  # bytes of a weights file that tell it from others
_CHAT = " chat:"  # in the identity of a model whose chat format the user changes
Prospect = State | Literal["asked"]  # asked: done again because of --from


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One line of the plan."""

    name: str
    state: Prospect
    fingerprint: str
    is_selected: bool  # by --from, --until or a stage's own command
    rows: str  # how many it makes at most, in words
    engine: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do, and what is worth knowing before it does."""

    stages: list[PlannedStage]
    notes: tuple[str, ...]  # what was adapted to, and what may surprise
    thin: tuple[Shortfall, ...] = ()  # floors of its data that the config asks too little to reach, before a training


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


def plan(config: RunConfig, selected: Sequence[str] = STAGES, redo_from: str | None = None) -> Plan:
    """What a run would do, stage by stage. Reads the user's files, so that what is wrong with them is said here; writes nothing.

    Raises:
        UnlearnError: the model, a file or the folder can't be used, or a stage that is not selected is needed and unfinished.
    """
    check_owner(config)
    model = inspect_model(config.model_path, config.chat)
    check_arguments(config.cluster.engines)
    room = check_model(config, model)
    check_files(config, model, room)
    home, described = config.folder, _describe(config)
    planned = []
    redone = _undone_by(home, redo_from)
    for stage, fingerprint in fingerprints(config).items():
        state: Prospect = state_of(home / stage, fingerprint)
        if stage in redone and state != "fresh":
            state = "asked"
        if stage not in selected and STAGES.index(stage) < STAGES.index(selected[0]) and state != "finished":
            raise ArtifactError(
                f"{home / stage} is unfinished, damaged or of another config: do it first with unlearn-ray {stage} CONFIG"
            )
        planned.append(PlannedStage(stage, state, fingerprint, stage in selected, *described[stage]))
    is_trained = next(stage.state for stage in planned if stage.name == "finetune") == "finished"
    is_about_data = not {"dataset", "finetune"}.isdisjoint(selected)
    thin = tuple(known_shortfalls(config)) if is_about_data and not is_trained else ()
    return Plan(planned, (*_notes(config, model), *(f"dataset: {found}" for found in thin)), thin)


def _notes(config: RunConfig, model: Inspected) -> Iterator[str]:
    yield from model.notes
    yield from notes_on(config)
    yield from filter(None, (case_note(topic.name) for topic in config.topics))
    if config.evaluate.probes_path is not None:
        yield from near_misses(read_probes(config.evaluate.probes_path), config.topics)
        made = config.dataset.probes
        if (made.num_forget or made.num_near or made.num_far) and load_prompts(config.dataset.prompts).short_answers:
            yield "dataset.probes: probes are made of what the model knows, and evaluate.probes asks others: set num_forget, num_near and num_far to 0 to save the time"
    longest = max(
        _num_asked(model, prefix, style_of(config.answers).format(question="?"))
        for prefix in guardrail_prefixes(config.answers, config.topics).values()
    )
    if (length := longest + config.answers.max_tokens) > SERVED_LENGTH:
        yield f"serve/config.yaml takes {SERVED_LENGTH} tokens of prompt and answer, a guarded answer may take {length}: serve this run with a larger engine.max_model_len"
    weights = config.finetune.weights
    if weights.kind != "lora":
        return
    if left := unreached(lora_targets(weights.target_modules, model, config.model), model):
        yield f"finetune.weights.target_modules: LoRA leaves {', '.join(left)} as they are (all-linear reaches them)"
    if weights.rank > SERVED_RANK:
        yield f"serve/config.yaml takes adapters of rank {SERVED_RANK}: serve this run with engine.max_lora_rank: {weights.rank} or more"


def fingerprints(config: RunConfig) -> dict[str, str]:
    """The identity that each stage's result will have, known before anything runs."""
    topics, seed, model = config.topics, config.seed, identity_of(config)
    found: dict[str, str] = {}

    def add(stage: str, version: int, identity: tuple[dict[str, Any], dict[str, str]]) -> None:
        found[stage] = fingerprint_of(stage, version, *identity)

    add("questions", questions.VERSION, questions.questions_identity(config.questions, topics, model, seed))
    add("answers", answers.VERSION, answers.answers_identity(config.answers, topics, found["questions"], model, seed))
    add("dataset", dataset.VERSION, dataset.dataset_identity(config.dataset, topics, found["answers"], model, seed))
    add("finetune", finetune.VERSION, finetune.finetune_identity(config.finetune, model, seed, found["dataset"]))
    add(
        "evaluate",
        evaluate.VERSION,
        evaluate.evaluate_identity(
            config.evaluate,
            topics,
            model=model,
            guardrail=guardrail_prefixes(config.answers, topics),
            seed=seed,
            fingerprints={stage: found[stage] for stage in ("dataset", "answers", "finetune")},
        ),
    )
    return found


def _describe(config: RunConfig) -> dict[str, tuple[str, str]]:
    """Of each stage the rows that it makes, and the engine that makes them."""
    num_topics, rows, finetuned = len(config.topics), config.dataset.retain, config.finetune
    num_questions = num_topics * config.questions.num_questions
    num_retain = (
        num_topics * rows.num_neighbours * rows.questions_per_neighbour + rows.num_general * rows.questions_per_general
    )
    engines, workers = config.cluster.engines, config.cluster.workers
    fleet, asked = engines.in_words, engines.data_in_words
    num_models = num_topics if finetuned.adapters == "per_topic" else 1
    weights = f"LoRA r{finetuned.weights.rank}" if finetuned.weights.kind == "lora" else "full"
    return {
        "questions": (f"{num_questions:,} questions", asked),
        "answers": (f"{num_questions * config.answers.num_samples:,} answers", asked),
        "dataset": ("your own retain rows" if rows.file else f"up to {num_retain:,} retain rows", asked),
        "finetune": (
            f"{num_models} x {finetuned.num_steps} steps",
            f"{weights}, {workers.num_workers} workers, ZeRO-{workers.zero_stage}",
        ),
        "evaluate": (f"probes: {config.evaluate.probes or 'held-out questions'}", fleet),
    }


def states(folder: Folder) -> list[tuple[str, str, Manifest | None]]:
    """(stage, finished | unfinished | not begun, manifest) of a run's folder, whatever its config."""
    found = []
    for stage in STAGES:
        manifest = read_manifest(folder / stage)
        state = "finished" if manifest else "unfinished" if (folder / stage).names() else "not begun"
        found.append((stage, state, manifest))
    return found


@contextmanager
def claimed(
    config: RunConfig, redo_from: str | None = None, on_wait: Callable[[str], None] = lambda text: None
) -> Iterator[None]:
    """Make the run's folder ours, for one process at a time, and undo the stages from `redo_from` on.

    They are undone once: the marker says until the end that they are being done again, so that a job that is sent again, `--from` and
    all, goes on where it was stopped.

    Args:
        on_wait: told what is waited for: in remote storage, whether the last process there still lives.

    Raises:
        ArtifactError: it can't be written, holds something else, or another process is at work in it.
    """
    home = config.folder
    check_owner(config)
    home.make()
    with _locked(home, on_wait):
        for stage in _undone_by(home, redo_from):
            (home / stage).delete()
        _mark(config, redo_from)
        yield
        if redo_from:
            _mark(config, None)


def _mark(config: RunConfig, redo_from: str | None) -> None:
    marker = {"name": config.name, "redo_from": redo_from, "config": config.model_dump(mode="json")}
    config.folder.write_text(MARKER, json.dumps(marker, indent=2))


def _undone_by(home: Folder, redo_from: str | None) -> tuple[str, ...]:
    """The stages that --from undoes: none where the last command here had the same one and was interrupted."""
    if redo_from is None or _read_marker(home).get("redo_from") == redo_from:
        return ()
    return STAGES[STAGES.index(redo_from) :]


def _read_marker(home: Folder) -> dict[str, Any]:
    """What the marker says; nothing where there is none.

    Raises:
        ArtifactError: it is corrupt.
    """
    if not home.exists(MARKER):
        return {}
    try:
        marker: dict[str, Any] = json.loads(home.read_text(MARKER))
        marker["name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{home}/{MARKER} can't be read: delete the folder, or choose another name") from error
    return marker


@contextmanager
def _locked(home: Folder, on_wait: Callable[[str], None]) -> Iterator[None]:
    if not home.is_local:
        with leased(home / LOCK, on_wait):
            yield
        return
    with open(home.local / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ArtifactError(
                f"{home} is being written by another run: wait for it, or give this one another name"
            ) from error
        yield


def check_owner(config: RunConfig) -> None:
    """Refuse a folder that is not this run's; writes nothing.

    Raises:
        ArtifactError: it holds something else, or belongs to a run of another name.
    """
    home = config.folder
    if home.is_local and os.path.isfile(home.local):
        raise ArtifactError(f"{home} is a file: choose another output or name")
    if home.is_local:
        # Of os.path, as that of pathlib raises below a folder that may not be entered.
        parent = next(p for p in [home.local, *home.local.parents] if os.path.exists(p))
        if not os.access(parent, os.W_OK | os.X_OK):
            raise ArtifactError(f"{home} can't be written ({parent} is not yours to write in): choose another output")
    marker = _read_marker(home)
    if not marker and set(home.names()) - {LOCK, "logs"}:
        raise ArtifactError(f"{home} holds something that is no run of ours: choose another output or name")
    owner = marker.get("name", config.name)
    if owner != config.name:
        raise ArtifactError(f"{home} belongs to run {owner!r}: choose another output or name")


def check_model(config: RunConfig, model: Inspected) -> int:
    """Refuse a model that can't be unlearned with this config; returns how many tokens an engine takes.

    Raises:
        ConfigError: its context is shorter than what the config asks for, or than the guardrail prefix; or LoRA would not reach what it
            is told to.
    """
    room = config.cluster.engines.max_model_len or model.max_length
    if room > model.max_length:
        raise ConfigError(
            f"cluster.engines.max_model_len: {room} tokens are asked for, the model holds {model.max_length}: lower it"
        )
    if config.finetune.weights.kind == "lora":
        lora_targets(config.finetune.weights.target_modules, model, config.model)
    for topic, prefix in guardrail_prefixes(config.answers, config.topics).items():
        num_tokens = (
            _num_asked(model, prefix, style_of(config.answers).format(question="?")) + config.answers.max_tokens
        )
        if num_tokens > room:
            raise ConfigError(
                f"answers: the guardrail prefix of {topic!r} and an answer take {num_tokens} tokens, the model holds {room}: shorten it"
            )
    return room


def _num_asked(model: Inspected, prefix: str, question: str) -> int:
    """Tokens of a question as it is asked behind a prefix."""
    return model.num_asked([{"role": "system", "content": prefix}, {"role": "user", "content": question}])


def check_files(config: RunConfig, model: Inspected, room: int) -> None:
    """Read the user's rows to their end, so that a bad one is said before the first stage and not hours later.

    Args:
        room: tokens that an engine takes.

    Raises:
        InputError: a file misses a column, or a row can't be used; file and line are named.
    """
    prefixes, style = guardrail_prefixes(config.answers, config.topics), style_of(config.answers)
    for row in questions.user_questions(config.questions, config.topics):
        asked = style.format(question=row["text"])
        num_tokens = _num_asked(model, prefixes[row["topic"]], asked) + config.answers.max_tokens
        if num_tokens > room:
            raise InputError(
                f"{config.questions.file}, line {row['number']}: the question, its guardrail prefix and an answer take {num_tokens} tokens, the model holds {room}: shorten it"
            )
    for _ in retaining.user_retained(config.dataset):
        continue
    if config.evaluate.probes_path is not None:
        _check_probes(config, model, room, config.evaluate.probes_path, prefixes)


def _check_probes(config: RunConfig, model: Inspected, room: int, path: str, prefixes: Mapping[str, str]) -> None:
    """Refuse a probe of the split that is asked that leaves no room for its answer.

    Raises:
        InputError: names file and line.
    """
    max_tokens = config.evaluate.max_tokens or evaluate.PROBE_TOKENS
    for line, written in numbered_probes(path):
        if written.split != config.evaluate.split:
            continue
        (probe,) = with_topics([written], config.topics)
        given = (probe.reference or probe.answer, *wrong_references(probe))  # scored where an answer stands
        num_tokens = _num_asked(model, prefixes[place(probe, config.topic_names).served_topic], probe.question)
        # After a scored answer, the end of its turn and a token that the engine must sample.
        num_tokens += max(max_tokens, *(model.count_tokens(text) + 2 for text in given))
        if num_tokens > room:
            raise InputError(
                f"{path}, line {line}: the question, its guardrail prefix and an answer take {num_tokens} tokens, the model holds {room}: shorten it"
            )


def identity_of(config: RunConfig) -> str:
    """A name for a run's model as it is talked to: `model_identity`, and what the user says of its chat format."""
    said = config.chat.model_dump(mode="json", exclude_defaults=True)
    identity = model_identity(config.model_path)
    return f"{identity}{_CHAT}{digest(json.dumps(said, sort_keys=True))}" if said else identity


def model_of(identity: str) -> str:
    """The `model_identity` in an `identity_of`."""
    return identity.partition(_CHAT)[0]


def model_identity(path: str) -> str:
    """A name for a model's content: of a folder its files, wherever it lies; of a hub model its name."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    parts = []
    for file in sorted(
        f for f in folder.iterdir() if f.is_file() and f.suffix in {".json", ".safetensors", ".bin", ".jinja"}
    ):
        parts.append((file.name, file.stat().st_size, _sample(file)))
    return f"{folder.name}:{digest(*parts)}"


def _sample(file: Path) -> str:
    """A hash of a file's head, which is a safetensors file's index, and of blocks all through it: some of every large tensor, in a
    second where all of an 8B model takes a minute."""
    found = hashlib.sha256()
    with file.open("rb") as stream:
        found.update(stream.read(_HEAD))
        for start in range(_HEAD, file.stat().st_size, _STRIDE):
            stream.seek(start)
            found.update(stream.read(_BLOCK))
    return found.hexdigest()
