"""The actor that owns a fleet's engines. It starts as many engines as there is work for, and sends them batches. It restarts engines that
die or hang, and reports what happened."""

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from unlearn_ray.engines.capacity import described, growth, in_words, is_refused
from unlearn_ray.engines.failures import LASTING, BatchError, Death, gist, kind_of, plain, told
from unlearn_ray.engines.protocols import Request
from unlearn_ray.engines.turns import Turns
from unlearn_ray.engines.vllm_engine import EngineSpec, PrefixCounts, environment
from unlearn_ray.errors import ClusterError, EngineError

log = logging.getLogger(__name__)

BATCHES_IN_FLIGHT = 4  # full batches per engine; more than one, so that it tokenises the next batch while it decodes
# Small batches per engine, as many topics send them: an engine works on the requests of all of them at once.
MAX_BATCHES = 16
SECONDS_TO_CLOSE = 10
_MAX_STARTS = 3  # failed starts in a row of one engine
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_OF_REFUSAL = 10.0  # two rounds of an autoscaler, which has seen a request by then
_MAX_EVENTS = 10_000  # kept until they are fetched
# Idle time after which an engine above the minimum is released. It is longer than the pause between two rounds.
_SECONDS_IDLE = 60.0
_SECONDS_BETWEEN_SIGNS = 5.0  # between checks that a busy engine makes progress


@dataclass(frozen=True, slots=True)
class News:
    """The dispatcher's report."""

    events: list[tuple[int, str]]  # logging level, text
    waiting: dict[int, float]  # engine without room on a node -> start of its wait, in seconds since the epoch
    num_ready: int
    num_asked: int  # batches in flight


class Dispatcher:
    """Owns the engines. Batches pass through it only as object references."""

    def __init__(
        self,
        spec: EngineSpec,
        span: tuple[int, int],
        engine: type,
        max_deaths: int,
        start_timeout_seconds: float,
        idle_seconds: float = _SECONDS_IDLE,
    ) -> None:
        """
        Args:
            span: minimum and maximum number of engines.
            idle_seconds: how long an engine above the minimum is kept without work.
        """
        self._spec, (self._least, self._most), self._engine, self._max_deaths = spec, span, engine, max_deaths
        self._start_timeout, self._idle_seconds = start_timeout_seconds, idle_seconds
        self._changed = asyncio.Condition()
        self._engines: dict[int, ActorHandle] = {}
        self._places: dict[int, str] = {}  # engine -> its node and process, as text
        self._waiting: dict[int, float] = {}  # engine without room on a node -> start of its wait
        self._loading: set[int] = set()
        self._load: dict[int, int] = {}  # ready engine -> its batches in flight
        self._idle_since: dict[int, float] = {}  # engine without a batch -> start of its idle time, monotonic
        self._asked: Counter[int] = Counter()  # engine -> its requests in flight
        self._turns = Turns()  # batches that wait for an engine
        self._num_reserving = 0  # batches that must run alone and wait for an engine
        self._hung: dict[tuple[int, int], str] = {}  # engine and number of its start -> why it is replaced
        self._prefix: dict[str, PrefixCounts] = {}  # by caller
        self._reserved: set[int] = set()  # engines kept for a batch that must run alone
        self._starts: Counter[int] = Counter()
        self._failures: dict[int, Exception] = {}  # abandoned engine -> its last failure
        self._first_death: Death | None = None  # the first of the deaths in a row
        self._num_deaths = 0  # in a row
        self._verdict = ""  # why no engine will answer any request
        self._events: deque[tuple[int, str]] = deque(maxlen=_MAX_EVENTS)
        self._tasks: set[asyncio.Future[None]] = set()
        self._starting = {number: asyncio.ensure_future(self._start(number)) for number in range(self._least)}
        if self._least < self._most:
            self._keep(self._retire())

    async def _start(self, number: int) -> None:
        shape = self._spec.shape
        options: dict[str, Any] = {
            "num_cpus": shape["CPU"],
            "num_gpus": shape["GPU"],
            "runtime_env": {"env_vars": environment(self._spec)},
            "max_concurrency": MAX_BATCHES + 2,
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
                end = "" if attempt < _MAX_STARTS and not will_come_again else "; there are no further attempts"
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
                self._load[number] = self._asked[number] = 0
                self._idle_since[number] = time.monotonic()
                self._keep(self._watch(number, self._starts[number], engine))
            else:
                self._failures[number] = failure
            self._notify()

    async def _placed(self, number: int, engine: ActorHandle) -> None:
        """Return once a node has room for the engine.

        Raises:
            ClusterError: no node had room within the configured time, and there is no other engine to go on with.
        """
        shape = self._spec.shape
        self._waiting[number] = alone_since = time.time()  # alone_since: start of the time without any other engine
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

    async def _watch(self, number: int, start: int, engine: ActorHandle) -> None:
        """Replace a busy engine that makes no token within the configured time."""
        timeout = self._spec.resources.engine_timeout_seconds
        pause = min(_SECONDS_BETWEEN_SIGNS, timeout / 4)
        num_steps, since = -1, time.monotonic()
        while self._starts[number] == start and number in self._load:
            await asyncio.sleep(pause)
            if not self._load.get(number):
                since = time.monotonic()
                continue
            try:
                found = await asyncio.wait_for(asyncio.wrap_future(engine.num_steps.remote().future()), pause)
            except TimeoutError:
                found = num_steps  # a hung process may not answer at all
            except RayError:
                return  # the caller of the batch gets the same error
            if found != num_steps:
                num_steps, since = found, time.monotonic()
            elif (waited := time.monotonic() - since) > timeout:
                self._hung[number, start] = (
                    f"it made no token for {waited:.0f} s (cluster.engines.engine_timeout_seconds)"
                )
                self._end(engine)
                return

    def _grow(self) -> None:
        """Start engines until there is one per BATCHES_IN_FLIGHT batches, or their maximum is reached."""
        num_batches = sum(self._load.values()) + self._num_waiting
        wanted = min(self._most, math.ceil(num_batches / BATCHES_IN_FLIGHT))
        for number in range(self._most):
            if len(self._starting) >= wanted:
                return
            if number not in self._starting:
                self._starting[number] = asyncio.ensure_future(self._start(number))

    async def _retire(self) -> None:
        """Release engines above the minimum, or their requests for room, after they had no work for a while."""
        while True:
            await asyncio.sleep(min(_SECONDS_BETWEEN_LOOKS, self._idle_seconds))
            async with self._changed:
                long_ago = time.monotonic() - self._idle_seconds
                rested = [number for number, since in self._idle_since.items() if since < long_ago]
                if not any(self._load.values()) and not self._num_waiting and rested:
                    rested += list(self._waiting)  # there is no work for the nodes that they wait for
                for number in sorted(rested, reverse=True):
                    if len(self._starting) <= self._least or number in self._reserved:
                        continue
                    self._starting.pop(number).cancel()
                    self._load.pop(number, None)
                    self._idle_since.pop(number, None)
                    self._waiting.pop(number, None)
                    self._starts[number] += 1
                    self._end(self._engines.pop(number))
                    self._tell(logging.INFO, f"engine {number} was idle and is released")

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task in the background. Without a reference to it, it might be garbage collected."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _tell(self, level: int, text: str) -> None:
        self._events.append((level, text))

    async def news(self) -> News:
        """The events since the last call, and the engines that wait for room."""
        events = [self._events.popleft() for _ in range(len(self._events))]
        return News(events, dict(self._waiting), len(self._load), sum(self._load.values()))

    async def wait(self) -> None:
        """Return once an engine is ready. Raises the reason if none will ever be."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._load) or self._is_lost())
            self._check()

    async def ask(
        self, requests: "list[ray.ObjectRef[list[Request]]]", num_requests: int, alone: bool, caller: str
    ) -> "list[Any] | Death":
        """A reference to the replies, or why the engine died under these requests.

        `caller`: the asking stage. Callers with fewer requests in flight go first. Prefix cache hits are counted per caller.
        `alone`: no other batch runs on the engine at the same time. If the engine then dies, this batch is the cause.

        Raises:
            EngineError: these requests can't be asked, or no engine will ever answer.
        """
        number = await (self._reserve if alone else self._in_turn)(caller, num_requests)
        start = self._starts[number]
        death: Death | None = None
        try:
            done, replies = self._engines[number].generate.options(num_returns=2).remote(requests[0])
            queries, hits = await done
            before = self._prefix.get(caller, PrefixCounts(0, 0))
            self._prefix[caller] = PrefixCounts(before.queries + queries, before.hits + hits)
            return [replies]
        except RayTaskError as error:
            cause = plain(error)
            if isinstance(cause, BatchError) or not isinstance(cause, EngineError):
                raise cause from None
            death = Death(str(cause), is_failure=True)
            return death
        except RayError as error:  # the engine's process or node is lost, or its memory ran out
            death = Death(self._hung.get((number, start)) or gist(error), is_failure=False)
            return death
        finally:
            await self._release(number, start, caller, num_requests, alone, death)

    async def _in_turn(self, caller: str, num_requests: int) -> int:
        """The engine for a batch, once it is the batch's turn."""
        while True:
            turn = self._turns.queue(caller, num_requests)
            self._grow()
            self._hand_out()
            try:
                number = await turn.engine
            except asyncio.CancelledError:
                self._turns.leave(turn)
                if not turn.engine.cancelled() and (number := turn.engine.result()) is not None:  # it just got one
                    await self._release(number, self._starts[number], caller, num_requests, alone=False, death=None)
                raise
            if number is not None:
                return number
            self._check()

    async def _reserve(self, caller: str, num_requests: int) -> int:
        """An engine without any other batch."""
        async with self._changed:
            while True:
                self._num_reserving += 1
                try:
                    self._grow()
                    await self._changed.wait_for(lambda: bool(self._free()) or self._is_lost())
                finally:
                    self._num_reserving -= 1
                self._check()
                number = min(self._free(), key=lambda each: self._load[each])
                self._reserved.add(number)
                await self._changed.wait_for(partial(self._is_drained, number))
                if number in self._load:
                    self._take(number, caller, num_requests)
                    return number
                self._reserved.discard(number)

    def _hand_out(self) -> None:
        """Assign waiting batches to engines with room."""
        is_lost = self._is_lost()
        while is_lost or (rooms := [number for number in self._free() if self._has_room(number)]):
            turn = self._turns.next()
            if turn is None:
                return
            if turn.engine.done():  # its caller no longer waits
                continue
            if is_lost:
                turn.engine.set_result(None)
                continue
            number = min(rooms, key=lambda each: (self._load[each], self._asked[each]))
            self._take(number, turn.caller, turn.num_requests)
            turn.engine.set_result(number)

    def _has_room(self, number: int) -> bool:
        num_batches, most = self._load[number], BATCHES_IN_FLIGHT * self._spec.resources.batch_size
        return num_batches < BATCHES_IN_FLIGHT or (num_batches < MAX_BATCHES and self._asked[number] < most)

    def _take(self, number: int, caller: str, num_requests: int) -> None:
        self._turns.begin(caller, num_requests)
        self._load[number] += 1
        self._asked[number] += num_requests
        self._idle_since.pop(number, None)

    @property
    def _num_waiting(self) -> int:
        """Batches that wait for an engine."""
        return len(self._turns) + self._num_reserving

    async def _release(
        self, number: int, start: int, caller: str, num_requests: int, alone: bool, death: Death | None
    ) -> None:
        async with self._changed:
            self._turns.end(caller, num_requests)
            if alone:
                self._reserved.discard(number)
            if death is None:
                self._num_deaths, self._first_death = 0, None
            if self._starts[number] == start:  # else another batch of this engine saw its death and replaced it
                if death is not None:
                    self._num_deaths += 1
                    self._first_death = self._first_death or death
                    self._starts[number] += 1
                    del self._load[number]
                    self._idle_since.pop(number, None)
                    self._tell(
                        logging.WARNING,
                        f"engine {number} on {self._places[number]} was lost: {death.reason}; it is restarted",
                    )
                    self._end(self._engines[number])
                    self._starting[number] = asyncio.ensure_future(self._start(number))
                else:
                    self._load[number] -= 1
                    self._asked[number] -= num_requests
                    if not self._load[number]:
                        self._idle_since[number] = time.monotonic()
            self._notify()

    def _notify(self) -> None:
        """Wake all waiting callers after a change."""
        self._hand_out()
        self._changed.notify_all()

    async def condemn(self, reason: str) -> None:
        """Send no more requests, because every request kills its engine."""
        async with self._changed:
            self._verdict = self._verdict or reason
            self._tell(logging.ERROR, f"engines die at every request: {self._verdict}")
            self._notify()

    def _end(self, engine: ActorHandle) -> None:
        """End an engine's actor. The processes that vLLM started are ended first, because they would outlive it."""
        self._keep(_ended(engine))

    def _free(self) -> list[int]:
        return [number for number in self._load if number not in self._reserved]

    def _is_drained(self, number: int) -> bool:
        return self._load.get(number) == 0 or self._is_lost(number)

    def _is_lost(self, number: int | None = None) -> bool:
        if self._verdict or number in self._failures or self._num_deaths >= self._max_deaths:
            return True
        return self._failures.keys() >= self._starting.keys()

    def _check(self) -> None:
        if self._verdict:
            raise EngineError(f"vLLM dies at every request: {self._verdict}")
        if self._num_deaths >= self._max_deaths:
            first = self._first_death.reason if self._first_death else ""
            raise EngineError(
                f"vLLM died {self._max_deaths} times in a row without an answer; the first cause: {first}"
            )
        if self._is_lost():
            raise next(iter(self._failures.values()))

    async def prefix_counts(self, caller: str) -> PrefixCounts:
        """A caller's counts from all engines since the last call. The last counts of lost engines are missing. If several callers ask at the
        same time, an engine's counts go to the caller whose batch ends first."""
        return self._prefix.pop(caller, PrefixCounts(0, 0))

    async def engines(self) -> list[ActorHandle]:
        return [self._engines[number] for number in sorted(self._engines)]

    async def close(self) -> None:
        for task in [*self._starting.values(), *self._tasks]:
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
        return  # it has ended already


async def _ended(engine: ActorHandle) -> None:
    try:
        await asyncio.wait_for(_closed(engine), SECONDS_TO_CLOSE)
    except TimeoutError:
        log.warning("an engine did not close in time")
    ray.kill(engine)


def _is_out_of_reach(shape: dict[str, float]) -> bool:
    """Whether an autoscaler that does not report its limits refuses a shape."""
    grown = growth()
    return grown is not None and bool(grown.unknown) and is_refused(shape)
