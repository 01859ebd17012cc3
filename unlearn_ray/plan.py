"""What a run would do, and whose folder it does it in: all that is known before anything is written."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import SERVED_LENGTH, SERVED_RANK, EvaluateConfig, RunConfig, Topic
from unlearn_ray.engines.settings import check_arguments, notes_on
from unlearn_ray.errors import ArtifactError, ConfigError, InputError, ModelError
from unlearn_ray.evals.probes import near_misses, numbered_probes, place, read_probes, with_topics, wrong_references
from unlearn_ray.lease import leased
from unlearn_ray.rows import digest
from unlearn_ray.runs import FAILED, LAYOUT, MARKER, check_layout, read_marker
from unlearn_ray.sizing.shapes import known_shape
from unlearn_ray.stages import evaluate, questions, retaining
from unlearn_ray.stages.checking import known_shortfalls, retains_nothing
from unlearn_ray.stages.finetune import FINETUNE
from unlearn_ray.stages.gating import CANDIDATES
from unlearn_ray.stages.mixture import MIXTURE
from unlearn_ray.stages.stage import (
    Identities,
    Stage,
    State,
    Unit,
    models_of,
    pool_of,
    state_of,
    topic_of,
)
from unlearn_ray.stages.table import COMMANDS, STAGES
from unlearn_ray.synth.enough import Shortfall
from unlearn_ray.synth.guardrails import guardrail_prefixes, guardrails_of, style_of
from unlearn_ray.synth.names import case_note
from unlearn_ray.synth.prompts import load_prompts
from unlearn_ray.train.identity import model_identity
from unlearn_ray.train.inspection import Inspected, inspect_model, lora_targets, unreached
from unlearn_ray.train.loggers.table import chosen
from unlearn_ray.train.modelfiles import cached_file, refusal_of

_SECONDS_OF_A_DRY_RUN = 2.0  # time for the hub to answer
LOCK = "run.lock"  # a locked file; in remote storage a folder of leases
_CHAT = " chat:"  # in the identity of a model whose chat format the user changes
Prospect = State | Literal["asked"]  # asked: done again because of --from


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One line of the plan: a stage, and what it would find of each topic or model."""

    name: str
    states: Mapping[str, Prospect]  # by the units' labels
    is_selected: bool  # by --from, --until or a step's own command
    rows: str  # how many it makes at most, in words
    engine: str

    @property
    def is_finished(self) -> bool:
        return all(state == "finished" for state in self.states.values())


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do, and what is worth knowing before it does."""

    stages: list[PlannedStage]
    notes: tuple[str, ...]  # what was adapted to, and what may surprise
    thin: tuple[Shortfall, ...] = ()  # floors of its data that the config asks too little to reach, before a training

    def state(self, stage: Stage, unit: Unit) -> Prospect:
        """What a stage would find of a unit; a joint model over fewer topics than were planned is a new one."""
        planned = next(each for each in self.stages if each.name == stage.name)
        return planned.states.get(unit.label, "fresh")


def select(only: str | None = None, until: str | None = None, start: str | None = None) -> tuple[str, ...]:
    """The steps a command asks for.

    Raises:
        ConfigError: there is no such step, or --until comes before --from.
    """
    for name in (only, until, start):
        if name is not None and name not in COMMANDS:
            raise ConfigError(f"there is no stage {name!r}: choose one of {', '.join(COMMANDS)}")
    if only:
        return (only,)
    first, last = COMMANDS.index(start or COMMANDS[0]), COMMANDS.index(until or COMMANDS[-1])
    if last < first:
        raise ConfigError(f"--until {until} comes before --from {start}: name a later stage")
    return COMMANDS[first : last + 1]


def units_of(config: RunConfig) -> dict[str, list[Unit]]:
    """What the stages of each scope work on."""
    model = identity_of(config)
    return {
        "pool": [pool_of(config, model)],
        "topic": [topic_of(config, topic, model) for topic in config.topics],
        "model": models_of(config, config.topics, model),
    }


def plan(
    config: RunConfig, selected: Sequence[str] = COMMANDS, redo_from: str | None = None, *, is_dry: bool = False
) -> Plan:
    """What a run would do, stage by stage. Reads the user's files, so that what is wrong with them is said here; writes nothing.

    Args:
        is_dry: nothing will be run. If the files of a well-known model are not on this machine and can't be fetched, a note says so.

    Raises:
        UnlearnError: the model, a file or the folder can't be used, or a stage that is not selected is needed and unfinished.
    """
    check_owner(config)
    model, absence = _looked_at(config, is_dry)
    check_arguments(config.cluster.engines)
    check_watching(config)
    check_files(config, model, check_model(config, model) if model is not None else 0)
    identities, units, first = Identities(), units_of(config), COMMANDS.index(selected[0])
    redone = _undone_by(config.folder, redo_from)
    # What failed before is left out, of a joint model as well.
    failed = {unit.name for unit in units["topic"] if unit.home.exists(FAILED)}
    alive = [topic for topic in config.topics if topic.slug not in failed]
    if first > 0 and alive:
        units["model"] = models_of(config, alive, identity_of(config))
    planned = []
    for stage in STAGES:
        is_selected = stage.command in selected
        states: dict[str, Prospect] = {}
        for unit in units[stage.scope]:
            state: Prospect = state_of(unit.home / stage.name, identities.of(stage, unit))
            if stage.scope == "pool":
                check_pool(config, unit.home / stage.name, state)
            is_needed = not is_selected and COMMANDS.index(stage.command) < first and state != "finished"
            if is_needed and not unit.home.exists(FAILED):
                raise ArtifactError(
                    f"{unit.home / stage.name} is unfinished, damaged or of another config: do it first with unlearn-ray {stage.command} CONFIG"
                )
            is_shared = stage.scope == "pool" and config.pool is not None
            states[unit.label] = "asked" if stage in redone and state != "fresh" and not is_shared else state
        planned.append(PlannedStage(stage.name, states, is_selected, *stage.describe(config)))
    if "finetune" in selected:
        _check_gate(units["model"], planned)
    is_trained = next(stage.is_finished for stage in planned if stage.name == FINETUNE.name)
    is_about_data = not {"dataset", "finetune"}.isdisjoint(selected)
    thin = tuple(known_shortfalls(config)) if is_about_data and not is_trained else ()
    notes = [*([absence] if absence else []), *_notes(config, model), *(f"dataset: {found}" for found in thin)]
    if not any(found.floor == "retain_per_forget" for found in thin):
        notes += retains_nothing(config)
    return Plan(planned, tuple(notes), thin)


def _check_gate(models: Sequence[Unit], planned: Sequence[PlannedStage]) -> None:
    """Refuse mixtures of versions that had no gate. A training would notice only after its old result is removed."""
    states = {stage.name: stage.states for stage in planned}
    for unit in models:
        is_due = unit.config.finetune.evaluate_every and states[FINETUNE.name][unit.label] != "finished"
        if (
            is_due
            and states[MIXTURE.name][unit.label] == "finished"
            and not unit.home.exists(f"{MIXTURE.name}/{CANDIDATES}")
        ):
            raise ArtifactError(
                f"{unit.home / MIXTURE.name} was made by a version without a gate and has no rows for it: have it made anew with --from dataset, or leave finetune.evaluate_every out"
            )


def _looked_at(config: RunConfig, is_dry: bool) -> tuple[Inspected | None, str]:
    """The model; or None and the reason, if it is well known but its files can't be read here.

    Raises:
        ModelError, ConfigError: as `inspect_model`.
    """
    path = config.model_path
    may_be_away = is_dry and known_shape(path) is not None and cached_file(path, "config.json") is None
    reason = refusal_of(path, _SECONDS_OF_A_DRY_RUN) if may_be_away else ""
    if not reason:
        try:
            return inspect_model(path, config.chat), ""
        except ModelError as error:
            if not may_be_away:
                raise
            reason = str(error)
    what = "planned without its files, as it is well known: the run will check its chat template and the layers that LoRA reaches"
    return None, f"its weights are not here ({reason}); {what}"


def _notes(config: RunConfig, model: Inspected | None) -> Iterator[str]:
    yield from model.notes if model is not None else ()
    yield from notes_on(config)
    yield from filter(None, (case_note(topic.name) for topic in config.topics))
    for section, topics in evaluations_of(config):
        if section.probes_path is not None and topics:
            yield from near_misses(read_probes(section.probes_path), config.topics)
    if config.evaluate.probes_path is not None:
        made = config.dataset.probes
        if (made.num_forget or made.num_near or made.num_far) and load_prompts(config.dataset.prompts).short_answers:
            yield "dataset.probes: probes are made of what the model knows, and evaluate.probes asks others: set num_forget, num_near and num_far to 0 to save the time"
    if model is None:
        return
    if (length := max(_guarded(config, topic, model) for topic in config.topics)) > SERVED_LENGTH:
        yield f"serve/config.yaml takes {SERVED_LENGTH} tokens of prompt and answer, a guarded answer may take {length}: serve this run with a larger engine.max_model_len"
    weights = config.finetune.weights
    if weights.kind != "lora":
        return
    if left := unreached(lora_targets(weights.target_modules, model, config.model), model):
        yield f"finetune.weights.target_modules: LoRA leaves {', '.join(left)} as they are (all-linear reaches them)"
    if weights.rank > SERVED_RANK:
        yield f"serve/config.yaml takes adapters of rank {SERVED_RANK}: serve this run with engine.max_lora_rank: {weights.rank} or more"


def identities_of(config: RunConfig) -> dict[str, dict[str, str]]:
    """The identity that each stage's result will have, by stage and by the units' labels; known before anything runs."""
    identities, units = Identities(), units_of(config)
    return {stage.name: {unit.label: identities.of(stage, unit) for unit in units[stage.scope]} for stage in STAGES}


def check_pool(config: RunConfig, folder: Folder, state: Prospect) -> None:
    """Refuse to undo what other runs may read.

    Args:
        folder: of one of the pool's stages, which is in this state.

    Raises:
        ArtifactError: the folder that runs share holds a pool of another config.
    """
    if config.pool is not None and state == "redone":
        raise ArtifactError(
            f"pool: {folder} was made with another model, seed or config (answers, dataset), or is damaged, and other runs may use it: name another folder, or delete it"
        )


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
    with locked(home, on_wait):
        for stage in _undone_by(home, redo_from):
            for each in homes(home, stage):  # a pool that runs share is not among them
                (each / stage.name).delete()
        _mark(config, redo_from)
        yield
        if redo_from:
            _mark(config, None)


def homes(home: Folder, stage: Stage) -> list[Folder]:
    """The folders in a run's folder that have, or may have, one of this stage: those of topics that the config no longer names, too."""
    if stage.scope == "pool":
        return [home / "pool"]
    return [home / f"{stage.scope}s" / name for name in (home / f"{stage.scope}s").names()]


def _mark(config: RunConfig, redo_from: str | None) -> None:
    marker = {"name": config.name, "layout": LAYOUT, "redo_from": redo_from, "config": config.model_dump(mode="json")}
    config.folder.write_text(MARKER, json.dumps(marker, indent=2))


def _undone_by(home: Folder, redo_from: str | None) -> tuple[Stage, ...]:
    """The stages that --from undoes: none where the last command here had the same one and was interrupted."""
    if redo_from is None or read_marker(home).get("redo_from") == redo_from:
        return ()
    undone = COMMANDS[COMMANDS.index(redo_from) :]
    return tuple(stage for stage in STAGES if stage.command in undone)


@contextmanager
def locked(home: Folder, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold a run's folder, for one process at a time.

    Raises:
        ArtifactError: another process is at work in it.
    """
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
    marker = read_marker(home)
    if not marker and set(home.names()) - {LOCK, "logs"}:
        raise ArtifactError(f"{home} holds something that is not a run of ours: choose another output or name")
    owner = marker.get("name", config.name)
    if owner != config.name:
        raise ArtifactError(f"{home} belongs to run {owner!r}: choose another output or name")
    check_layout(home)


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
    for topic in config.topics:
        if (num_tokens := _guarded(config, topic, model)) > room:
            raise ConfigError(
                f"answers: the guardrail prefix of {topic.name!r} and an answer take {num_tokens} tokens, the model holds {room}: shorten it"
            )
    return room


def check_watching(config: RunConfig) -> None:
    """Refuse loggers that are not installed, and a gate without rows.

    Raises:
        ConfigError: names the key.
    """
    for own in (config, *(config.of_topic(topic) for topic in config.topics)):
        chosen(own.finetune.loggers)
        if own.finetune.evaluate_every is None:
            continue
        if own.dataset.holdout_fraction == 0:
            raise ConfigError(
                "finetune.evaluate_every: the gate asks held-out questions, and dataset.holdout_fraction is 0: raise it, or leave evaluate_every out"
            )
        if own.finetune.evaluate_every > own.finetune.num_steps:
            raise ConfigError(
                f"finetune.evaluate_every: {own.finetune.evaluate_every} is more than num_steps, {own.finetune.num_steps}: lower it"
            )


def _guarded(config: RunConfig, topic: Topic, model: Inspected) -> int:
    """Tokens of a topic's guardrail prefix, an empty question and an answer."""
    own = config.of_topic(topic).answers
    (prefix,) = guardrail_prefixes(own, [topic]).values()
    return _num_asked(model, prefix, style_of(own).format(question="?")) + own.max_tokens


def _num_asked(model: Inspected, prefix: str, question: str) -> int:
    """Tokens of a question as it is asked behind a prefix."""
    return model.num_asked([{"role": "system", "content": prefix}, {"role": "user", "content": question}])


def check_files(config: RunConfig, model: Inspected | None, room: int) -> None:
    """Read the user's rows to their end, so that a bad one is said before the first stage and not hours later.

    Args:
        model: None if its files are not on this machine; the length of rows is not checked then.
        room: tokens that an engine takes.

    Raises:
        InputError: a file misses a column, or a row can't be used; file and line are named.
    """
    prefixes = guardrails_of(config, config.topics)
    answers = {topic.name: config.of_topic(topic).answers for topic in config.topics}
    styles = {topic: style_of(own) for topic, own in answers.items()}
    for section, topics in evaluations_of(config):
        evaluate.check_probes(section, topics)
    for row in questions.user_questions(config.questions, config.topics):
        if model is None:
            continue
        asked = styles[row["topic"]].format(question=row["text"])
        num_tokens = _num_asked(model, prefixes[row["topic"]], asked) + answers[row["topic"]].max_tokens
        if num_tokens > room:
            raise InputError(
                f"{config.questions.file}, line {row['number']}: the question, its guardrail prefix and an answer take {num_tokens} tokens, the model holds {room}: shorten it"
            )
    for _ in retaining.user_retained(config.dataset):
        continue
    for section, topics in evaluations_of(config):
        if topics and model is not None:
            _check_probes(section, topics, model, room, prefixes)


def evaluations_of(config: RunConfig) -> list[tuple[EvaluateConfig, tuple[Topic, ...]]]:
    """The ways in which models are evaluated, each with its topics: the run's first, then those of topics with keys of their own."""
    own = [topic for topic in config.topics if topic.evaluate]
    others = tuple(topic for topic in config.topics if not topic.evaluate)
    return [(config.evaluate, others), *((config.of_topic(topic).evaluate, (topic,)) for topic in own)]


def _check_probes(
    config: EvaluateConfig, topics: Sequence[Topic], model: Inspected, room: int, prefixes: Mapping[str, str]
) -> None:
    """Refuse a probe of the split that is asked that leaves no room for its answer.

    Raises:
        InputError: names file and line.
    """
    path, names = config.probes_path, tuple(topic.name for topic in topics)
    if path is None:
        return
    max_tokens = config.max_tokens or evaluate.PROBE_TOKENS
    asked = [(line, probe) for line, probe in numbered_probes(path) if probe.split == config.split]
    lines = [line for line, _ in asked]
    for line, probe in zip(lines, with_topics((probe for _, probe in asked), topics), strict=True):
        given = (probe.reference or probe.answer, *wrong_references(probe))  # scored where an answer stands
        num_tokens = _num_asked(model, prefixes[place(probe, names).served_topic], probe.question)
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
