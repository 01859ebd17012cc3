"""A run: data are gathered for all topics in parallel, then models are trained on them and evaluated.

Each topic goes through its own chain of stages at its own pace. A failure of one topic does not stop the others. This module does not know
which stages are finished (`plan`), or how a stage works.
"""

import json
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

import pyarrow as pa

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.chat import ChatFormat
from unlearn_ray.config import RunConfig
from unlearn_ray.engines.protocols import Generator, MapCounts, Parse, R, Render, T, Trainer
from unlearn_ray.errors import (
    ArtifactError,
    ClusterError,
    EngineError,
    FailedError,
    ModelError,
    PartialError,
    StorageError,
    ThinDataError,
    UnlearnError,
)
from unlearn_ray.lease import in_turn
from unlearn_ray.plan import check_pool, identity_of
from unlearn_ray.runs import FAILED, failure_in
from unlearn_ray.stages.checking import model_shortfalls, topic_shortfalls
from unlearn_ray.stages.dataset import DATASET
from unlearn_ray.stages.finetune import FINETUNE
from unlearn_ray.stages.mixture import MIXTURE
from unlearn_ray.stages.stage import (
    Engines,
    Identities,
    Stage,
    Unit,
    finished_manifest,
    models_of,
    opened,
    perform,
    pool_of,
    state_of,
    topic_of,
)
from unlearn_ray.stages.table import COMMANDS, STAGES
from unlearn_ray.synth.enough import Shortfall, told
from unlearn_ray.train.log import last_log_lines

log = logging.getLogger(__name__)
# Topics in parallel: enough to keep many engines busy, few enough for the driver's files and threads.
MAX_CHAINS = 16
MAX_EVALUATIONS = 4
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_STOP = 1.0
_FOR_ALL = (ClusterError, ModelError, StorageError)  # errors that stop every topic


def refuse(found: Sequence[Shortfall]) -> None:
    """Refuse to train on data below the floors."""
    raise ThinDataError(told(found))


@dataclass(frozen=True, slots=True)
class Failure:
    """The error that stopped a topic or a model."""

    unit: Unit
    stage: str
    error: Exception

    @property
    def reason(self) -> str:
        return " ".join(str(self.error).split()) or type(self.error).__name__

    @property
    def log(self) -> list[str]:
        """The last log lines of a training."""
        return last_log_lines(self.unit.home / self.stage) if self.stage == FINETUNE.name else []

    @property
    def line(self) -> str:
        return self.reason if self.unit.label in self.reason else f"{self.unit.label}, {self.stage}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Hooks:
    """Callbacks for the events of a run. They are called from any of its threads."""

    on_start: Callable[[Stage, Unit], None] = lambda stage, unit: None
    on_finish: Callable[[Stage, Unit, Manifest], None] = lambda stage, unit, manifest: None
    on_failure: Callable[[Failure], None] = lambda failure: None
    on_thin: Callable[[Sequence[Shortfall]], None] = (
        refuse  # gets the floors that the data miss; returns to accept them
    )


def run(
    config: RunConfig,
    engines: Engines,
    selected: Sequence[str] = COMMANDS,
    hooks: Hooks = Hooks(),
    *,
    fail_fast: bool = False,
) -> None:
    """Do the selected steps for every topic. The stages themselves skip finished work with the same identity.

    Args:
        selected: names from `table.COMMANDS`.
        fail_fast: end with the first topic or model that fails.

    Raises:
        PartialError: some topics or models failed, one line per failure. The others are done, and the same command retries only the failed.
        FailedError, ThinDataError, ...: all failed.
        ClusterError, ModelError: no topic could go on.
    """
    _Run(config, engines, selected, hooks, fail_fast).run()


class _Stopped(Exception):
    """Raised in a run's other threads once the run has ended."""


@dataclass(slots=True)
class _Run:
    config: RunConfig
    engines: Engines
    selected: Sequence[str]
    hooks: Hooks
    fail_fast: bool
    identities: Identities = field(default_factory=Identities)
    failures: list[Failure] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    topics: list[Unit] = field(default_factory=list)

    def run(self) -> None:
        model = identity_of(self.config)
        topics = self.topics = [topic_of(self.config, topic, model) for topic in self.config.topics]
        if self.of("topic"):
            self.gather(pool_of(self.config, model), topics)
        else:
            self.leave_out(topics)
        if not {"dataset", "finetune"}.isdisjoint(self.selected):
            self.check(topics, topic_shortfalls)
        models = models_of(self.config, [unit.topic for unit in self.alive(topics)], model)
        self.leave_behind(models)
        for stage in self.of("model"):
            if stage is FINETUNE:
                self.check(models, model_shortfalls)
            self.advance(stage, self.alive(models))
        if MIXTURE in self.of("model") and FINETUNE not in self.of("model"):
            self.check(models, model_shortfalls)
        if self.failures:
            num_done = len(self.alive(models if self.of("model") else topics))
            # The data of the other topics are kept, even if no model was made of them.
            if not num_done and any(failure.unit.scope == "topic" for failure in self.failures):
                num_done = len(self.alive(topics))
            raise failure_of(self.failures, num_done)

    def leave_out(self, topics: Sequence[Unit]) -> None:
        """Leave topics that failed before out of the models again, and report them. Before a training, thin data are checked again, because the
        user may accept them now."""
        is_looked_at = not {"dataset", "finetune"}.isdisjoint(self.selected)
        unfinished = [
            unit
            for unit in topics
            if not self.is_finished(DATASET, unit) or (unit.home.exists(FAILED) and not is_looked_at)
        ]
        if len(unfinished) == len(topics) and not any(failure_in(unit.home) for unit in unfinished):
            return  # the stages that read them report it
        for unit in unfinished:
            said = failure_in(unit.home) or {"stage": DATASET.name, "reason": f"{unit.home} is unfinished"}
            self.failures.append(Failure(unit, said["stage"], ArtifactError(said["reason"])))

    def leave_behind(self, units: Sequence[Unit]) -> None:
        """Report units again that failed before this command's first step, and skip them: later steps would only miss their input."""
        steps = list(dict.fromkeys([*COMMANDS, *(stage.command for stage in STAGES)]))
        first = min(steps.index(step) for step in self.selected)
        for unit in self.alive(units):
            said = failure_in(unit.home)
            stage = next((stage for stage in STAGES if said and stage.name == said["stage"]), None)
            if said is None or stage is None or steps.index(stage.command) >= first:
                continue
            if stage is DATASET and unit.scope == "model" and "finetune" in self.selected:
                continue  # thin data: checked again, because the user may accept them now
            if stage.scope != unit.scope or not self.is_finished(stage, unit):
                self.failures.append(Failure(unit, said["stage"], ArtifactError(said["reason"])))

    def alive(self, units: Sequence[Unit]) -> list[Unit]:
        """The units that have not failed."""
        stopped = {(failure.unit.scope, failure.unit.name) for failure in self.failures}
        return [unit for unit in units if (unit.scope, unit.name) not in stopped]

    def check(self, units: Sequence[Unit], shortfalls: Callable[[Unit], list[Shortfall]]) -> None:
        """Report the floors that the data miss, unless the training on them is done."""
        for unit in self.alive(units):
            try:
                if not self.is_trained(unit) and (found := shortfalls(unit)):
                    self.hooks.on_thin(found)
            except UnlearnError as error:
                self.fail(unit, DATASET.name, error)
            else:
                self.forget_failure(unit, DATASET.name)

    def of(self, scope: str) -> list[Stage]:
        """The selected stages of a scope, in order."""
        return [stage for stage in STAGES if stage.scope == scope and stage.command in self.selected]

    def gather(self, pool: Unit, topics: Sequence[Unit]) -> None:
        """Make the pool and every topic's data, in parallel."""
        self.leave_behind(topics)
        ready: dict[str, Future[None]] = {stage.name: Future() for stage in self.of("pool")}

        def share(stage: Stage) -> None:
            try:
                if self.config.pool is None or self.is_finished(stage, pool):
                    self.perform(stage, pool, "pool")
                else:
                    with in_turn(pool.home, stage.name, self.stopped.is_set):
                        folder = pool.home / stage.name
                        check_pool(self.config, folder, state_of(folder, self.identities.of(stage, pool)))
                        self.perform(stage, pool, "pool")
            except BaseException as error:
                ready[stage.name].set_exception(error)
                raise
            ready[stage.name].set_result(None)

        def chain(unit: Unit) -> None:
            try:
                for stage in self.of("topic"):
                    for each in stage.inputs:
                        if each.name in ready:
                            ready[each.name].result()
                    self.perform(stage, unit, unit.label if len(topics) > 1 else "")
            except _Stopped:
                raise
            except _FOR_ALL:
                raise
            except Exception as error:
                if any(each.done() and each.exception() is error for each in ready.values()):
                    raise  # an error of the pool, which is reported once
                self.fail(unit, stage.name, error)

        shares = [partial(share, stage) for stage in self.of("pool")]
        chains = [partial(chain, unit) for unit in self.alive(topics)]
        self.side_by_side([*shares, *chains], len(shares) + MAX_CHAINS)

    def advance(self, stage: Stage, units: Sequence[Unit]) -> None:
        """Do one stage for all models."""
        if stage.together is not None:
            self.together(stage, units)
            return

        def one(unit: Unit) -> None:
            try:
                self.perform(stage, unit, unit.label if len(units) > 1 else "")
            except (_Stopped, *_FOR_ALL):
                raise
            except Exception as error:
                self.fail(unit, stage.name, error)

        # A full fine-tune needs the engines to itself, because they hold one model at a time.
        is_shared = stage.command == "evaluate" and not any(unit.config.finetune.is_model for unit in units)
        self.side_by_side([partial(one, unit) for unit in units], MAX_EVALUATIONS if is_shared else 1)

    def together(self, stage: Stage, units: Sequence[Unit]) -> None:
        works = []
        for unit in units:
            self.begin(stage, unit)
            try:
                work = opened(stage, unit, self.engines, self.identities)
            except ArtifactError as error:
                self.fail(unit, stage.name, error)
                continue
            if work.run.is_finished:
                self.hooks.on_finish(stage, unit, finished_manifest(work.run.folder))
            else:
                works.append(work)
        if not works:
            return
        assert stage.together is not None
        ended = stage.together(works)
        for work in works:
            found = ended[work.unit.name]
            if isinstance(found, Exception):
                self.fail(work.unit, stage.name, found)
            else:
                self.hooks.on_finish(stage, work.unit, found)

    def perform(self, stage: Stage, unit: Unit, label: str) -> None:
        self.begin(stage, unit)
        manifest = perform(stage, unit, _Shared(self.engines, label, self.stopped, self.lock), self.identities)
        self.hooks.on_finish(stage, unit, manifest)

    def begin(self, stage: Stage, unit: Unit) -> None:
        if self.stopped.is_set():
            raise _Stopped
        self.forget_failure(unit, stage.name)
        self.hooks.on_start(stage, unit)

    def forget_failure(self, unit: Unit, stage: str) -> None:
        """Delete a unit's failure in this stage, because it is tried again or is fixed. A failure in another stage is kept."""
        if (said := failure_in(unit.home)) is not None and said["stage"] in (stage, ""):
            unit.home.remove(FAILED)

    def is_trained(self, unit: Unit) -> bool:
        """Whether a model, or the model of a topic, is already trained on these data."""
        others = [each.topic for each in self.alive(self.topics)]
        models = [unit] if unit.scope == "model" else models_of(self.config, others, unit.model)
        names = {topic.name for topic in unit.topics}
        mine = next(each for each in models if names <= {topic.name for topic in each.topics})
        return self.is_finished(FINETUNE, mine)

    def is_finished(self, stage: Stage, unit: Unit) -> bool:
        return state_of(unit.home / stage.name, self.identities.of(stage, unit)) == "finished"

    def fail(self, unit: Unit, stage: str, error: Exception) -> None:
        """Record a failure in the unit's folder. The other units go on."""
        if self.stopped.is_set():
            raise _Stopped
        failure = Failure(unit, stage, error)
        log.error("%s, %s: %s", unit.label, stage, error, exc_info=error)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        said = {"stage": stage, "reason": failure.reason, "at": at, "log": failure.log}
        unit.home.write_text(FAILED, json.dumps(said, indent=2))
        with self.lock:
            self.failures.append(failure)
        self.hooks.on_failure(failure)
        if self.fail_fast:
            raise error

    def side_by_side(self, chains: Sequence[Callable[[], None]], number: int) -> None:
        """Call all chains in threads, `number` at a time. A single one is called in this thread.

        Raises:
            BaseException: the first error of a chain. The others are then told to stop.
        """
        if len(chains) == 1 or number == 1:
            for chain in chains:
                chain()
            return
        waiting, ended = queue.SimpleQueue[Callable[[], None]](), queue.SimpleQueue[BaseException | None]()
        for chain in chains:
            waiting.put(chain)

        def work() -> None:
            while True:
                try:
                    waiting.get_nowait()()
                except queue.Empty:
                    return
                except BaseException as error:
                    ended.put(error)
                    return  # the error ends the run: this thread begins no further chain
                else:
                    ended.put(None)

        # Not a thread pool: a thread that waits for Ray must not keep an interrupted driver alive.
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(number, len(chains)))]
        for thread in threads:
            thread.start()
        num_left = len(chains)
        try:
            while num_left:
                try:
                    error = ended.get(timeout=_SECONDS_BETWEEN_LOOKS)
                except queue.Empty:
                    continue
                num_left -= 1
                if error is not None:
                    raise error
        except BaseException:
            self.stopped.set()
            for thread in threads:
                thread.join(_SECONDS_TO_STOP / len(threads))
            raise


@dataclass(frozen=True, slots=True)
class _Shared:
    """A run's engines for one chain. Requests carry the chain's label. Once the run has ended, every call raises."""

    engines: Engines
    label: str
    stopped: threading.Event
    lock: threading.Lock
    is_evaluator: bool = False  # whether `map` asks the evaluator instead of the generator

    @property
    def chat(self) -> ChatFormat:
        return self.engines.chat

    @property
    def generator(self) -> "_Shared":
        return self

    @property
    def evaluator(self) -> "_Shared":
        return replace(self, is_evaluator=True)

    @property
    def trainer(self) -> Trainer:
        return self.engines.trainer

    def map(
        self,
        source: Folder,
        out: Folder,
        render: Render,
        parse: Parse,
        schema: pa.Schema,
        *,
        label: str,
        model: str | None = None,
    ) -> MapCounts:
        """See `protocols.Generator.map`."""
        generator, asked = self._asked(label)
        counts = generator.map(source, out, render, parse, schema, label=asked, model=model)
        if self.stopped.is_set():
            raise _Stopped
        return counts

    def each(
        self,
        task: Callable[[T], R],
        items: Sequence[T],
        take: Callable[[R], object] = lambda result: None,
        *,
        label: str,
    ) -> None:
        """See `protocols.Generator.each`."""
        generator, asked = self._asked(label)
        generator.each(task, items, take, label=asked)

    def _asked(self, label: str) -> tuple[Generator, str]:
        """The generator to ask, and the full label."""
        if self.stopped.is_set():
            raise _Stopped
        with self.lock:  # the first access creates the generator
            generator: Generator = self.engines.evaluator if self.is_evaluator else self.engines.generator
        return generator, f"{self.label}: {label}" if self.label else label

    def close(self) -> None:
        """The run closes its engines itself."""


def failure_of(failures: Sequence[Failure], num_done: int) -> Exception:
    """The error to raise for all failures, with one line per failure.

    Args:
        num_done: topics or models that are done.
    """
    if len(failures) == 1 and not num_done:
        return failures[0].error
    lines = [failure.line for failure in failures]
    if num_done:
        return PartialError(
            "\n".join([*lines, f"the others are done ({num_done}) and kept; the same command tries only what failed"])
        )
    if all(isinstance(failure.error, UnlearnError) for failure in failures):
        return FailedError("\n".join(lines))
    return EngineError("\n".join(lines))
