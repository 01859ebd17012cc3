"""Long-lived vLLM actors, and the one small actor that hands batches to them.

An engine takes seconds to minutes to start, so rounds and stages share it. A batch goes to the ready engine with the least to do; an
engine that waits for a node (autoscaling) joins when it is ready; one that dies is started again and its batches are asked again.
"""

import asyncio
import logging
import multiprocessing
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.vllm_engine import EngineSpec, VllmEngine, environment
from unlearn_ray.errors import EngineError, UnlearnError
from unlearn_ray.rows import Drop

log = logging.getLogger(__name__)

BATCHES_IN_FLIGHT = 4  # an engine; more than one, so that its next batch is tokenised while it decodes
_MAX_STARTS = 3  # in a row, of one engine that dies while it loads
_MAX_DEATHS = 16  # in a row, with no batch answered between: more than it takes to find one bad row among a thousand
_SECONDS_TO_CLOSE = 10


class EngineActor:
    """The actor around one engine."""

    def __init__(self, spec: EngineSpec) -> None:
        self._engine = VllmEngine(spec)

    def process_id(self) -> int:
        return os.getpid()

    def generate(self, requests: list[Request]) -> tuple[bool, list[Reply]]:
        """The flag is there to be awaited by who doesn't need the replies."""
        try:
            return True, self._engine.generate(requests)
        except EngineError:
            self.close()
            os._exit(1)  # vLLM doesn't outlive its own failure, and a dead actor is what the dispatcher mends

    def close(self) -> None:
        """End the processes that vLLM started: they would outlive a killed actor, and keep the GPU's memory."""
        for child in multiprocessing.active_children():
            child.kill()


class _Dispatcher:
    """Owns the engines. Batches pass through it as references alone."""

    def __init__(self, spec: EngineSpec, num_engines: int, engine: type, max_deaths: int) -> None:
        self._spec, self._num_engines, self._engine, self._max_deaths = spec, num_engines, engine, max_deaths
        self._changed = asyncio.Condition()
        self._engines: dict[int, ActorHandle] = {}
        self._load: dict[int, int] = {}  # batches of the engines that are ready
        self._reserved: set[int] = set()  # engines kept for a batch that must run alone
        self._starts: Counter[int] = Counter()
        self._failures: dict[int, Exception] = {}  # engines given up
        self._num_deaths = 0  # in a row
        self._starting = {number: asyncio.ensure_future(self._start(number)) for number in range(num_engines)}

    async def _start(self, number: int) -> None:
        spec, resources = self._spec, self._spec.resources
        options: dict[str, Any] = {
            "num_cpus": resources.num_cpus,
            "num_gpus": resources.tensor_parallel_size if spec.device == "cuda" else 0,
            "runtime_env": {"env_vars": environment(spec)},
            "max_concurrency": BATCHES_IN_FLIGHT + 2,
        }
        failure: Exception | None = None
        for attempt in range(1, _MAX_STARTS + 1):
            self._engines[number] = engine = ray.remote(self._engine).options(**options).remote(spec)
            try:
                await engine.process_id.remote()
                failure = None
                break
            except Exception as error:
                failure = error
                log.warning("engine %d did not start (%d of %d): %s", number, attempt, _MAX_STARTS, error)
                if isinstance(plain(error), UnlearnError):
                    break  # such as no model in that folder: the next attempt would say the same
        async with self._changed:
            if failure is None:
                self._load[number] = 0
            else:
                self._failures[number] = failure
            self._changed.notify_all()

    async def wait(self) -> None:
        """Return once an engine is ready; raise why none ever will be."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._load) or self._is_lost())
            self._check()

    async def ask(self, requests: "list[ray.ObjectRef[list[Request]]]", alone: bool) -> list[Any]:
        """A reference to the replies; none if the engine died under these requests.

        `alone`: no other batch runs beside this one, so that if the engine dies, this one did it.
        """
        number = await self._acquire(alone)
        start = self._starts[number]
        died = False
        try:
            done, replies = self._engines[number].generate.options(num_returns=2).remote(requests[0])
            await done
            return [replies]
        except RayActorError as error:
            log.warning("engine %d died: %s", number, error)
            died = True
            return []
        finally:
            await self._release(number, start, alone, died)

    async def _acquire(self, alone: bool) -> int:
        async with self._changed:
            while True:
                await self._changed.wait_for(lambda: bool(self._free()) or self._is_lost())
                self._check()
                number = min(self._free(), key=lambda each: self._load[each])
                if not alone:
                    break
                self._reserved.add(number)
                await self._changed.wait_for(partial(self._is_drained, number))
                if number in self._load:
                    break
                self._reserved.discard(number)
            self._load[number] += 1
            return number

    async def _release(self, number: int, start: int, alone: bool, died: bool) -> None:
        async with self._changed:
            if alone:
                self._reserved.discard(number)
            if not died:
                self._num_deaths = 0
            if self._starts[number] == start:  # else it was replaced already, when another of its batches saw it dead
                if died:
                    self._num_deaths += 1
                    self._starts[number] += 1
                    del self._load[number]
                    self._starting[number] = asyncio.ensure_future(self._start(number))
                else:
                    self._load[number] -= 1
            self._changed.notify_all()

    def _free(self) -> list[int]:
        return [number for number in self._load if number not in self._reserved]

    def _is_drained(self, number: int) -> bool:
        return self._load.get(number) == 0 or self._is_lost(number)

    def _is_lost(self, number: int | None = None) -> bool:
        if number in self._failures or self._num_deaths >= self._max_deaths:
            return True
        return len(self._failures) == self._num_engines

    def _check(self) -> None:
        if self._num_deaths >= self._max_deaths:
            raise EngineError(
                f"vLLM died {self._max_deaths} times in a row without an answer: the run's logs say of what"
            )
        if self._is_lost():
            raise next(iter(self._failures.values()))

    async def engines(self) -> list[ActorHandle]:
        return [self._engines[number] for number in sorted(self._engines)]

    async def close(self) -> None:
        for task in self._starting.values():
            task.cancel()
        engines = list(self._engines.values())
        if endings := [asyncio.ensure_future(_closed(engine)) for engine in engines]:
            await asyncio.wait(endings, timeout=_SECONDS_TO_CLOSE)
        for engine in engines:
            ray.kill(engine)


async def _closed(engine: ActorHandle) -> None:
    try:
        await engine.close.remote()
    except RayError:
        return  # it is gone already


@dataclass(frozen=True, slots=True)
class FleetClient:
    """What a task needs to ask the fleet; small and picklable."""

    dispatcher: ActorHandle

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in order. A batch that keeps killing engines is split until the request that does it stands alone, and is marked.

        Raises:
            EngineError: no engine could be started, or they die whatever they are asked.
        """
        if not requests:
            return []
        # Twice beside others, for engines also die of lost nodes and of other batches; then alone, which proves it.
        for alone in (False, False, True):
            replies = self._ask(requests, alone)
            if replies is not None:
                return replies
        return self._search(requests)

    def _search(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies to requests that killed an engine on their own."""
        if len(requests) == 1:
            replies = self._ask(requests, alone=True)
            if replies is None:
                log.error("this request kills engines: %s", requests[0])
            return replies or [Reply(error=Drop.ENGINE)]
        half = len(requests) // 2
        found: list[Reply] = []
        for part in (requests[:half], requests[half:]):
            replies = self._ask(part, alone=True)
            found += self._search(part) if replies is None else replies
        return found

    def _ask(self, requests: Sequence[Request], alone: bool) -> list[Reply] | None:
        """None: the engine died."""
        reference = ray.put(list(requests))
        try:
            answer = ray.get(self.dispatcher.ask.remote([reference], alone))
            return list(ray.get(answer[0])) if answer else None
        except (RayTaskError, RayActorError) as error:
            raise plain(error) from error


def plain(error: Exception) -> Exception:
    """The reason for a failure in an actor or task, without Ray's wrapping."""
    cause: Exception = error
    while isinstance(cause, RayTaskError) and isinstance(cause.cause, Exception):
        cause = cause.cause
    text = str(cause)
    for kind in (*UnlearnError.__subclasses__(), EngineError):
        if isinstance(cause, kind) and "\n" not in text:
            return cause
        if isinstance(cause, kind) or f"{kind.__name__}: " in text:  # an actor's start-up reports its error as text
            return kind(text.rsplit(f"{kind.__name__}: ", 1)[-1].strip().split("\n")[0])
    return EngineError(" ".join(text.split())[-500:]) if isinstance(cause, RayError) else cause


class Fleet:
    """The engines of one model."""

    def __init__(
        self, spec: EngineSpec, num_engines: int, engine: type = EngineActor, max_deaths: int = _MAX_DEATHS
    ) -> None:
        self.spec, self.num_engines = spec, num_engines
        # Beside the driver, whose end is the fleet's end anyway: no other node's loss takes all engines with it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 1000, "scheduling_strategy": here}
        self._dispatcher = ray.remote(_Dispatcher).options(**options).remote(spec, num_engines, engine, max_deaths)

    @property
    def client(self) -> FleetClient:
        return FleetClient(self._dispatcher)

    @property
    def num_slots(self) -> int:
        """Batches worth having in flight."""
        return self.num_engines * BATCHES_IN_FLIGHT

    def process_ids(self) -> list[int]:
        """Of the engines' actors, for whoever wants to look at them, or to end one."""
        return [ray.get(engine.process_id.remote()) for engine in ray.get(self._dispatcher.engines.remote())]

    def wait(self) -> None:
        """Return once one engine is ready.

        Raises:
            EngineError: none could be started; the message says why.
            ModelError: the model can't be used.
        """
        try:
            ray.get(self._dispatcher.wait.remote())
        except (RayTaskError, RayActorError) as error:
            raise plain(error) from error

    def close(self) -> None:
        try:
            ray.get(self._dispatcher.close.remote(), timeout=2 * _SECONDS_TO_CLOSE)
        except RayError:
            log.warning("the engines did not close in time", exc_info=True)
        ray.kill(self._dispatcher)
