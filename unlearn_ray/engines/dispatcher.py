"""The actor that owns a fleet's engines: starts them, hands them batches, starts again those that die, and tells what happened."""

import asyncio
import logging
import multiprocessing
import os
import time
from collections import Counter, deque
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from unlearn_ray.engines.capacity import described, growth, in_words, is_refused
from unlearn_ray.engines.failures import LASTING, BatchError, Death, gist, kind_of, plain, told
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.vllm_engine import EngineSpec, VllmEngine, environment
from unlearn_ray.errors import ClusterError, EngineError, UnlearnError

log = logging.getLogger(__name__)

BATCHES_IN_FLIGHT = 4  # an engine; more than one, so that its next batch is tokenised while it decodes
SECONDS_TO_CLOSE = 10
_MAX_STARTS = 3  # in a row, of one engine that dies while it loads
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_OF_REFUSAL = 10.0  # two rounds of an autoscaler, which has seen a request by then
_MAX_EVENTS = 10_000  # that nobody fetched


class EngineActor:
    """The actor around one engine. It is there as soon as a node has room for it; then it is told to load its model."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._engine: VllmEngine | None = None

    def place(self) -> tuple[str, int]:
        """Its node's id, and its process's."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def start(self) -> None:
        self._engine = VllmEngine(self._spec)

    def generate(self, requests: list[Request]) -> tuple[bool, list[Reply]]:
        """Await the flag alone to leave the replies on their node.

        Raises:
            EngineError: the engine died; whoever hears it ends this actor.
            BatchError: these requests can't be asked.
        """
        assert self._engine is not None
        try:
            return True, self._engine.generate(requests)
        except (EngineError, UnlearnError):
            raise
        except Exception as error:
            raise BatchError(f"the engine can't be asked: {told(error)}") from None

    def close(self) -> None:
        """End the processes that vLLM started: they would outlive a killed actor, and keep the GPU's memory."""
        for child in multiprocessing.active_children():
            child.kill()


@dataclass(frozen=True, slots=True)
class News:
    """What the dispatcher has to tell."""

    events: list[tuple[int, str]]  # level of logging, text
    waiting: dict[int, float]  # engine that has no room yet -> since when, in seconds since the epoch
    num_ready: int
    num_asked: int  # batches that engines work on


class Dispatcher:
    """Owns the engines. Batches pass through it as references alone."""

    def __init__(
        self, spec: EngineSpec, num_engines: int, engine: type, max_deaths: int, start_timeout_seconds: float
    ) -> None:
        self._spec, self._num_engines, self._engine, self._max_deaths = spec, num_engines, engine, max_deaths
        self._start_timeout = start_timeout_seconds
        self._changed = asyncio.Condition()
        self._engines: dict[int, ActorHandle] = {}
        self._places: dict[int, str] = {}  # where each is, in words
        self._waiting: dict[int, float] = {}  # engines that no node has room for -> since when
        self._loading: set[int] = set()
        self._load: dict[int, int] = {}  # batches of the engines that are ready
        self._reserved: set[int] = set()  # engines kept for a batch that must run alone
        self._starts: Counter[int] = Counter()
        self._failures: dict[int, Exception] = {}  # engines given up
        self._first_death: Death | None = None  # of those in a row
        self._num_deaths = 0  # in a row
        self._verdict = ""  # why no engine will answer anything
        self._events: deque[tuple[int, str]] = deque(maxlen=_MAX_EVENTS)
        self._endings: set[asyncio.Future[None]] = set()
        self._starting = {number: asyncio.ensure_future(self._start(number)) for number in range(num_engines)}

    async def _start(self, number: int) -> None:
        shape = self._spec.shape
        options: dict[str, Any] = {
            "num_cpus": shape["CPU"],
            "num_gpus": shape["GPU"],
            "runtime_env": {"env_vars": environment(self._spec)},
            "max_concurrency": BATCHES_IN_FLIGHT + 2,
        }
        failure: Exception | None = None
        seen: set[str] = set()
        for attempt in range(1, _MAX_STARTS + 1):
            began = time.monotonic()
            self._engines[number] = engine = ray.remote(self._engine).options(**options).remote(self._spec)
            try:
                await self._placed(number, engine)
                self._loading.add(number)
                await engine.start.remote()
                failure = None
                seconds = time.monotonic() - began
                self._tell(logging.INFO, f"engine {number} is ready on {self._places[number]} after {seconds:.0f} s")
                break
            except Exception as error:
                failure = plain(error)
                self._end(engine)
                will_come_again = isinstance(failure, LASTING) or kind_of(failure) in seen
                seen.add(kind_of(failure))
                end = "" if attempt < _MAX_STARTS and not will_come_again else ", it is given up"
                self._tell(
                    logging.WARNING,
                    f"engine {number} did not start ({attempt} of {_MAX_STARTS}) on {self._places.get(number, 'any node')}: "
                    f"{told(failure)}{end}",
                )
                if will_come_again:
                    break
            finally:
                self._loading.discard(number)
        async with self._changed:
            if failure is None:
                self._load[number] = 0
            else:
                self._failures[number] = failure
            self._changed.notify_all()

    async def _placed(self, number: int, engine: ActorHandle) -> None:
        """Return once a node has room for the engine.

        Raises:
            ClusterError: none has in the time that the config gives, and no other engine is there to go on with.
        """
        shape = self._spec.shape
        self._waiting[number] = alone_since = time.time()  # the second: since no other engine is there
        refused_since: float | None = None
        place = asyncio.wrap_future(engine.place.remote().future())
        try:
            while not (await asyncio.wait({place}, timeout=_SECONDS_BETWEEN_LOOKS))[0]:
                if self._load or self._loading:
                    alone_since, refused_since = time.time(), None
                    continue  # the run goes on without this one
                waited = time.time() - alone_since
                if waited > self._start_timeout:
                    raise ClusterError(
                        f"cluster.start_timeout_seconds: no node had room for an engine of {in_words(shape)} for {waited:.0f} s: "
                        f"{await asyncio.to_thread(described)}: end what holds them, add nodes, or wait longer"
                    )
                if not await asyncio.to_thread(_is_out_of_reach, shape):
                    refused_since = None
                elif refused_since is None:
                    refused_since = time.time()
                elif time.time() - refused_since > _SECONDS_OF_REFUSAL:
                    raise ClusterError(
                        f"cluster.engines: no node that the autoscaler may start has room for an engine of {in_words(shape)}: "
                        "lower num_cpus or tensor_parallel_size, or add nodes"
                    )
            node, pid = await place
        finally:
            self._waiting.pop(number, None)
        self._places[number] = f"node {node[-12:]}, process {pid}"

    def _tell(self, level: int, text: str) -> None:
        self._events.append((level, text))

    async def news(self) -> News:
        """What happened since the last call, and what is waited for."""
        events = [self._events.popleft() for _ in range(len(self._events))]
        return News(events, dict(self._waiting), len(self._load), sum(self._load.values()))

    async def wait(self) -> None:
        """Return once an engine is ready; raise why none ever will be."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._load) or self._is_lost())
            self._check()

    async def ask(self, requests: "list[ray.ObjectRef[list[Request]]]", alone: bool) -> "list[Any] | Death":
        """A reference to the replies, or why the engine died under these requests.

        `alone`: no other batch runs beside this one, so that if the engine dies, this one did it.

        Raises:
            EngineError: these requests can't be asked, or no engine will ever answer.
        """
        number = await self._acquire(alone)
        start = self._starts[number]
        death: Death | None = None
        try:
            done, replies = self._engines[number].generate.options(num_returns=2).remote(requests[0])
            await done
            return [replies]
        except RayTaskError as error:
            cause = plain(error)
            if isinstance(cause, BatchError) or not isinstance(cause, EngineError):
                raise cause from None
            death = Death(str(cause), is_failure=True)
            return death
        except RayError as error:  # its process, its node, or the memory for it
            death = Death(gist(error), is_failure=False)
            return death
        finally:
            await self._release(number, start, alone, death)

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

    async def _release(self, number: int, start: int, alone: bool, death: Death | None) -> None:
        async with self._changed:
            if alone:
                self._reserved.discard(number)
            if death is None:
                self._num_deaths, self._first_death = 0, None
            if self._starts[number] == start:  # else it was replaced already, when another of its batches saw it dead
                if death is not None:
                    self._num_deaths += 1
                    self._first_death = self._first_death or death
                    self._starts[number] += 1
                    del self._load[number]
                    self._tell(
                        logging.WARNING,
                        f"engine {number} on {self._places[number]} was lost: {death.reason}; it is started again",
                    )
                    self._end(self._engines[number])
                    self._starting[number] = asyncio.ensure_future(self._start(number))
                else:
                    self._load[number] -= 1
            self._changed.notify_all()

    async def condemn(self, reason: str) -> None:
        """Ask no engine again: they die of whatever they are asked."""
        async with self._changed:
            self._verdict = self._verdict or reason
            self._tell(logging.ERROR, f"engines die of every request: {self._verdict}")
            self._changed.notify_all()

    def _end(self, engine: ActorHandle) -> None:
        """End an engine's actor; first the processes that vLLM started, which would outlive it."""
        ending = asyncio.ensure_future(_ended(engine))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    def _free(self) -> list[int]:
        return [number for number in self._load if number not in self._reserved]

    def _is_drained(self, number: int) -> bool:
        return self._load.get(number) == 0 or self._is_lost(number)

    def _is_lost(self, number: int | None = None) -> bool:
        if self._verdict or number in self._failures or self._num_deaths >= self._max_deaths:
            return True
        return len(self._failures) == self._num_engines

    def _check(self) -> None:
        if self._verdict:
            raise EngineError(f"vLLM dies of every request: {self._verdict}")
        if self._num_deaths >= self._max_deaths:
            first = self._first_death.reason if self._first_death else ""
            raise EngineError(f"vLLM died {self._max_deaths} times in a row without an answer, first of this: {first}")
        if self._is_lost():
            raise next(iter(self._failures.values()))

    async def engines(self) -> list[ActorHandle]:
        return [self._engines[number] for number in sorted(self._engines)]

    async def close(self) -> None:
        for task in self._starting.values():
            task.cancel()
        engines = list(self._engines.values())
        if endings := [asyncio.ensure_future(_closed(engine)) for engine in engines]:
            await asyncio.wait(endings, timeout=SECONDS_TO_CLOSE)
        for engine in engines:
            ray.kill(engine)


async def _closed(engine: ActorHandle) -> None:
    try:
        await engine.close.remote()
    except RayError:
        return  # it is gone already


async def _ended(engine: ActorHandle) -> None:
    try:
        await asyncio.wait_for(_closed(engine), SECONDS_TO_CLOSE)
    except TimeoutError:
        log.warning("an engine did not close in time")
    ray.kill(engine)


def _is_out_of_reach(shape: dict[str, float]) -> bool:
    """Whether an autoscaler that does not show its limits refuses a shape."""
    grown = growth()
    return grown is not None and bool(grown.unknown) and is_refused(shape)
