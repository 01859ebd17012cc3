"""Long-lived vLLM actors. An engine takes seconds to minutes to start, so rounds and stages share it; a batch goes to the engine with
the least to do, and an engine that dies costs a retry. An actor that waits for a node (autoscaling) joins when it is ready."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.vllm_engine import EngineSpec, VllmEngine, environment
from unlearn_ray.errors import EngineError, UnlearnError
from unlearn_ray.rows import Drop

log = logging.getLogger(__name__)

BATCHES_IN_FLIGHT = 4  # an engine; more than one, so that its next batch is tokenised while it decodes
_RETRIES = 2  # of a batch whose engine died; then it is split


class _Engine:
    """The actor around one engine."""

    def __init__(self, spec: EngineSpec) -> None:
        self._engine = VllmEngine(spec)

    def ready(self) -> bool:
        return True

    def generate(self, requests: list[Request]) -> list[Reply]:
        return self._engine.generate(requests)

    def process_id(self) -> int:
        import os

        return os.getpid()


class _Dispatcher:
    """Knows which engines are ready and how many batches each has."""

    def __init__(self, engines: list[ActorHandle]) -> None:
        self._engines = engines
        self._load: dict[int, int] = {}
        self._failures: dict[int, Exception] = {}
        self._changed = asyncio.Condition()
        self._watchers = [asyncio.ensure_future(self._watch(number)) for number in range(len(engines))]

    async def _watch(self, number: int) -> None:
        try:
            await self._engines[number].ready.remote()
            self._load[number] = 0
        except Exception as error:  # kept, and raised to whoever asks once no engine is left
            self._failures[number] = error
        async with self._changed:
            self._changed.notify_all()

    async def acquire(self) -> tuple[int, ActorHandle]:
        """The ready engine with the fewest batches; waits while none is ready."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._load) or len(self._failures) == len(self._engines))
        if not self._load:
            raise next(iter(self._failures.values()))
        number = min(self._load, key=lambda each: self._load[each])
        self._load[number] += 1
        return number, self._engines[number]

    async def release(self, number: int) -> None:
        self._load[number] -= 1

    async def num_ready(self) -> int:
        return len(self._load)


@dataclass(frozen=True, slots=True)
class FleetClient:
    """What a task needs to ask the fleet; small and picklable."""

    dispatcher: ActorHandle

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in order. A batch that keeps killing engines is split until the row that does it is alone, and that one marked.

        Raises:
            EngineError: no engine could be started.
        """
        if not requests:
            return []
        for _ in range(1 + _RETRIES):
            try:
                return self._ask(list(requests))
            except RayActorError as error:
                log.warning("an engine died under %d requests: %s", len(requests), error)
        if len(requests) == 1:
            return [Reply(error=Drop.ENGINE)]
        half = len(requests) // 2
        return self.generate(requests[:half]) + self.generate(requests[half:])

    def _ask(self, requests: list[Request]) -> list[Reply]:
        try:
            number, engine = ray.get(self.dispatcher.acquire.remote())
        except RayTaskError as error:
            raise _plain(error) from error
        try:
            return list(ray.get(engine.generate.remote(requests)))
        finally:
            self.dispatcher.release.remote(number)


def _plain(error: Exception) -> Exception:
    """The reason an engine could not start, without Ray's wrapping."""
    cause: Any = error
    while isinstance(cause, RayTaskError) and cause.cause is not None:
        cause = cause.cause
    text = str(cause)
    for kind in (*UnlearnError.__subclasses__(), EngineError):
        if isinstance(cause, kind) or f"{kind.__name__}: " in text:
            return kind(text.rsplit(f"{kind.__name__}: ", 1)[-1].strip().split("\n")[0])
    return EngineError(" ".join(text.split())[-500:])


class Fleet:
    """The engines of one model."""

    def __init__(self, spec: EngineSpec, num_engines: int) -> None:
        self.spec = spec
        resources = spec.resources
        options: dict[str, Any] = {
            "num_cpus": resources.num_cpus,
            "num_gpus": resources.tensor_parallel_size if spec.device == "cuda" else 0,
            "runtime_env": {"env_vars": environment(spec)},
            "max_restarts": -1,
            "max_concurrency": BATCHES_IN_FLIGHT + 2,
        }
        self.engines = [ray.remote(_Engine).options(**options).remote(spec) for _ in range(num_engines)]
        self._dispatcher = ray.remote(_Dispatcher).options(num_cpus=0, max_concurrency=1000).remote(self.engines)

    @property
    def client(self) -> FleetClient:
        return FleetClient(self._dispatcher)

    @property
    def num_slots(self) -> int:
        """Batches worth having in flight."""
        return len(self.engines) * BATCHES_IN_FLIGHT

    def wait(self) -> None:
        """Return once one engine is ready.

        Raises:
            EngineError: none could be started; the message says why.
            ModelError: the model can't be used.
        """
        try:
            number, _ = ray.get(self._dispatcher.acquire.remote())
        except (RayTaskError, RayActorError) as error:
            raise _plain(error) from error
        ray.get(self._dispatcher.release.remote(number))

    def close(self) -> None:
        for actor in (*self.engines, self._dispatcher):
            ray.kill(actor)
