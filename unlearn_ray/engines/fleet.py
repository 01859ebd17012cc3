"""A fleet of long-lived vLLM engines, as a run sees it.

An engine takes seconds to minutes to start, so rounds and stages share it. A batch goes to the ready engine with the lowest load. An
engine that waits for a node (autoscaling) joins when it is ready. An engine that dies is restarted, and its batches are sent again.
"""

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from unlearn_ray.engines.capacity import described, in_words
from unlearn_ray.engines.chunks import TASK_CPUS
from unlearn_ray.engines.dispatcher import BATCHES_IN_FLIGHT, SECONDS_TO_CLOSE, Dispatcher, News
from unlearn_ray.engines.engine_actor import EngineActor
from unlearn_ray.engines.failures import Death, gist, kind_of, plain
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.vllm_engine import EngineSpec, PrefixCounts
from unlearn_ray.errors import ClusterError, EngineError
from unlearn_ray.rows import Drop

log = logging.getLogger(__name__)

_MAX_DEATHS = 16  # in a row, with no batch answered between; finding one bad row in a thousand takes fewer
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_START_TIMEOUT = 1800.0
_SECONDS_TO_FIRST_WORD = 5.0  # a shorter wait is not reported
_SECONDS_BETWEEN_WORDS = 30.0


@dataclass(frozen=True, slots=True)
class FleetClient:
    """A task's access to the fleet. Small and picklable."""

    dispatcher: ActorHandle
    caller: str = ""  # counts are kept per caller

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in order. A batch that keeps killing engines is split until the bad request is alone; that request is then marked.

        Raises:
            EngineError: no engine could be started, engines die at every request, or the requests can't be asked.
        """
        if not requests:
            return []
        tried = False
        # Twice beside other batches, because engines also die of lost nodes and of other batches. Then alone, which is proof.
        for alone in (False, False, True):
            answer = self._ask(requests, alone)
            if not isinstance(answer, Death):
                return answer
            if not tried and (answer.is_failure or alone):
                self._try_another(requests[0], answer)
                tried = True
        return self._search(requests)

    def _try_another(self, request: Request, death: Death) -> None:
        """Send a harmless request in the same way. An engine that dies at it dies at every request, and needs no sixteen attempts.

        Raises:
            EngineError: the engine died for the same reason.
        """
        harmless = replace(request, messages=[{"role": "user", "content": "Hello"}], max_tokens=1)
        for _ in range(1 if death.is_failure else 2):  # a process may be lost for other reasons
            answer = self._ask([harmless], alone=True)
            if not isinstance(answer, Death) or kind_of(answer.reason) != kind_of(death.reason):
                return
        ray.get(self.dispatcher.condemn.remote(death.reason))
        raise EngineError(f"vLLM dies at every request: {death.reason}")

    def _search(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies to requests that killed an engine on their own."""
        if len(requests) == 1:
            answer = self._ask(requests, alone=True)
            if isinstance(answer, Death):
                log.error("this request kills engines: %s", requests[0])
                return [Reply(error=Drop.ENGINE)]
            return answer
        half = len(requests) // 2
        found: list[Reply] = []
        for part in (requests[:half], requests[half:]):
            answer = self._ask(part, alone=True)
            found += self._search(part) if isinstance(answer, Death) else answer
        return found

    def _ask(self, requests: Sequence[Request], alone: bool) -> list[Reply] | Death:
        reference = ray.put(list(requests))
        try:
            answer = ray.get(self.dispatcher.ask.remote([reference], len(requests), alone, self.caller))
            return answer if isinstance(answer, Death) else list(ray.get(answer[0]))
        except ObjectLostError as error:  # the node with a finished reply was lost before the reply was fetched
            return Death(gist(error), is_failure=False)
        except (RayTaskError, RayActorError) as error:
            raise plain(error) from error


def _since(moment: float) -> str:
    """A wait as text, such as "waiting since 14:03:07 (35 s)"."""
    return f"waiting since {time.strftime('%H:%M:%S', time.localtime(moment))} ({time.time() - moment:.0f} s)"


def _nothing() -> None:
    """An empty task. That it runs shows that there is room for a task."""


class Fleet:
    """The engines of one model."""

    def __init__(
        self,
        spec: EngineSpec,
        num_engines: int,
        engine: type = EngineActor,
        max_deaths: int = _MAX_DEATHS,
        start_timeout_seconds: float = _SECONDS_TO_START_TIMEOUT,
        on_wait: Callable[[str], None] = lambda text: None,
        *,
        min_engines: int | None = None,
        **options: float,
    ) -> None:
        """
        Args:
            num_engines: the number of engines. With `min_engines`, the maximum: engines start as there is work for them.
            start_timeout_seconds: how long an engine waits for room on a node while there is no other engine.
            on_wait: called repeatedly during a wait, with the reason as text.
            options: options of the dispatcher.
        """
        self.spec, self.num_engines = spec, num_engines
        self._on_wait, self._start_timeout = on_wait, start_timeout_seconds
        # On the driver's node. If the driver is lost, the fleet ends anyway; no other node's loss ends all engines.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        span = (num_engines if min_engines is None else min_engines, num_engines)
        place: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 1000, "scheduling_strategy": here}
        self._dispatcher = (
            ray.remote(Dispatcher)
            .options(**place)
            .remote(spec, span, engine, max_deaths, start_timeout_seconds, **options)
        )
        self._closed = threading.Event()
        self._listener = threading.Thread(target=self._listen, name="fleet", daemon=True)
        self._listener.start()

    @property
    def client(self) -> FleetClient:
        """A client for a new caller, with counts of its own."""
        return FleetClient(self._dispatcher, uuid.uuid4().hex)

    @property
    def num_slots(self) -> int:
        """Batches worth having in flight."""
        return self.num_engines * BATCHES_IN_FLIGHT

    def prefix_counts(self, client: FleetClient) -> PrefixCounts:
        """The lookups of a client's requests in the engines' prefix caches since the last call, and the hits."""
        found: PrefixCounts = ray.get(self._dispatcher.prefix_counts.remote(client.caller))
        return found

    def process_ids(self) -> list[int]:
        """Process ids of the engines' actors, to inspect or end them. Actors that end during the call are left out."""
        found = []
        for engine in ray.get(self._dispatcher.engines.remote()):
            with contextlib.suppress(RayActorError):
                found.append(ray.get(engine.place.remote())[1])
        return found

    def wait(self) -> None:
        """Return once one engine is ready.

        Raises:
            ClusterError: no node had room for an engine in time.
            EngineError: no engine could be started; the message says why.
            ModelError: the model can't be used.
        """
        try:
            ray.get(self._dispatcher.wait.remote())
        except (RayTaskError, RayActorError) as error:
            raise plain(error) from error

    def wait_for_tasks(self) -> None:
        """Return once the cluster has room for the tasks that ask the engines. They need a CPU besides those of the engines.

        Raises:
            ClusterError: the cluster had no such room in time.
        """
        task, began, spoke = ray.remote(num_cpus=TASK_CPUS)(_nothing).remote(), time.time(), 0.0
        while not ray.wait([task], timeout=_SECONDS_BETWEEN_LOOKS)[0]:
            waited = time.time() - began
            if waited > self._start_timeout:
                ray.cancel(task)
                raise ClusterError(
                    f"cluster.start_timeout_seconds: no node had a CPU for the tasks that ask the engines for {waited:.0f} s: "
                    f"{described()}: end what holds them, add nodes, or wait longer"
                )
            if waited >= _SECONDS_TO_FIRST_WORD and time.time() - spoke >= _SECONDS_BETWEEN_WORDS:
                spoke = time.time()
                text = f"{_since(began)} for a CPU for the tasks that ask the engines: {described()}"
                log.info("%s", text)
                self._on_wait(text)

    def close(self) -> None:
        self._closed.set()
        self._listener.join(SECONDS_TO_CLOSE)
        try:
            self._hear(ray.get(self._dispatcher.news.remote(), timeout=SECONDS_TO_CLOSE))
            ray.get(self._dispatcher.close.remote(), timeout=2 * SECONDS_TO_CLOSE)
        except RayError:
            log.warning("the engines did not close in time", exc_info=True)
        ray.kill(self._dispatcher)

    def _listen(self) -> None:
        """Copy the dispatcher's news into this process's log. Its own log goes to a file of Ray's on the dispatcher's machine."""
        spoke = 0.0
        while not self._closed.wait(_SECONDS_BETWEEN_LOOKS):
            try:
                news: News = ray.get(self._dispatcher.news.remote())
                self._hear(news)
                now = time.time()
                since = min(news.waiting.values(), default=now)
                if now - since < _SECONDS_TO_FIRST_WORD:
                    spoke = 0.0
                elif now - spoke >= _SECONDS_BETWEEN_WORDS:
                    spoke = now
                    self._say(news, since)
            except RayError:
                return  # the dispatcher is gone; the next call to it raises

    def _hear(self, news: News) -> None:
        for level, text in news.events:
            log.log(level, "%s", text)

    def _say(self, news: News, since: float) -> None:
        """Report engines that no node has room for: in the log, and on the console if the run waits for them."""
        text = (
            f"{_since(since)} for room for {len(news.waiting)} of {self.num_engines} "
            f"engine{'s' if self.num_engines > 1 else ''} of {in_words(self.spec.shape)}: {described()}"
        )
        log.info("%s", text)
        if not news.num_ready:
            self._on_wait(text)
