"""Which batch goes to which engine, and when. The engines are scripted, and need no Ray."""

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import Any

import pytest

from unlearn_ray.config import EngineResources
from unlearn_ray.engines.dispatcher import BATCHES_IN_FLIGHT, MAX_BATCHES, Dispatcher
from unlearn_ray.engines.vllm_engine import EngineSpec, PrefixCounts
from unlearn_ray.errors import EngineError


class ScriptedEngine:
    """Answers the batch that came first, when it is told to."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self._open: deque[asyncio.Future[PrefixCounts]] = deque()

    @property
    def generate(self) -> "ScriptedEngine":
        return self

    def options(self, num_returns: int) -> "ScriptedEngine":
        return self

    def remote(self, batch: Any) -> tuple["asyncio.Future[PrefixCounts]", Any]:
        self.asked.append(batch)
        self._open.append(asyncio.Future())
        return self._open[-1], batch

    @property
    def num_open(self) -> int:
        return len(self._open)

    async def answer(self) -> None:
        self._open.popleft().set_result(PrefixCounts(0, 0))
        await settled()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Scripted(Dispatcher):
    """One whose engine is ready at once."""

    def __init__(self, batch_size: int) -> None:
        self.engine = ScriptedEngine()
        spec = EngineSpec("none", EngineResources(batch_size=batch_size), "cpu")
        super().__init__(spec, (1, 1), object, max_deaths=16, start_timeout_seconds=1.0)

    async def _start(self, number: int) -> None:
        async with self._changed:
            self._engines[number] = self.engine
            self._load[number] = self._asked[number] = 0
            self._notify()

    def asking(self, caller: str, name: str, num_requests: int = 1, alone: bool = False) -> "asyncio.Task[Any]":
        return asyncio.ensure_future(self.ask([name], num_requests, alone, caller))


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 30))


def test_a_small_topic_does_not_wait_behind_a_large_one() -> None:
    async def scenario() -> None:
        dispatcher = Scripted(batch_size=1)
        engine = dispatcher.engine
        large = [dispatcher.asking("large", f"large {i}") for i in range(100)]
        await settled()
        small = [dispatcher.asking("small", f"small {i}") for i in range(3)]
        await settled()
        assert engine.asked == [f"large {i}" for i in range(BATCHES_IN_FLIGHT)]
        for _ in range(103):
            await engine.answer()
        assert {"small 0", "small 1", "small 2"} < set(engine.asked[4:9]), "a turn each"
        assert [each.result() for each in (*large, *small)] == [
            [name] for name in (*(f"large {i}" for i in range(100)), *(f"small {i}" for i in range(3)))
        ]

    run(scenario())


def test_topics_that_go_on_have_level_shares() -> None:
    async def scenario() -> None:
        dispatcher = Scripted(batch_size=1)
        for _ in range(60):  # the first is there before the others, with all it has
            dispatcher.asking("first", "first")
        await settled()
        for name in ("second", "third"):
            for _ in range(60):
                dispatcher.asking(name, name)
        for _ in range(60):
            await dispatcher.engine.answer()
        counts = [dispatcher.engine.asked.count(name) for name in ("first", "second", "third")]
        assert max(counts) - min(counts) <= BATCHES_IN_FLIGHT, counts

    run(scenario())


def test_an_engine_has_many_small_batches_at_once_and_four_full_ones() -> None:
    async def scenario(num_requests: int, expected: int) -> None:
        dispatcher = Scripted(batch_size=64)
        for i in range(40):
            dispatcher.asking(f"topic {i}", f"batch {i}", num_requests)
        await settled()
        assert dispatcher.engine.num_open == expected
        while dispatcher.engine.num_open:
            await dispatcher.engine.answer()
        assert len(dispatcher.engine.asked) == 40

    run(scenario(4, MAX_BATCHES))
    run(scenario(64, BATCHES_IN_FLIGHT))


def test_a_batch_that_runs_alone_waits_for_those_under_way_and_keeps_others_off() -> None:
    async def scenario() -> None:
        dispatcher = Scripted(batch_size=1)
        engine = dispatcher.engine
        beside = [dispatcher.asking("a", f"a {i}") for i in range(6)]
        await settled()
        alone = dispatcher.asking("b", "alone", alone=True)
        await settled()
        for _ in range(BATCHES_IN_FLIGHT):
            assert "alone" not in engine.asked
            await engine.answer()
        assert engine.asked[-1] == "alone" and engine.num_open == 1
        await engine.answer()
        assert alone.result() == ["alone"] and engine.num_open == 2
        await engine.answer()
        await engine.answer()
        assert all(each.done() for each in beside)

    run(scenario())


def test_who_gives_up_waiting_takes_no_place() -> None:
    async def scenario() -> None:
        dispatcher = Scripted(batch_size=1)
        asked = [dispatcher.asking("a", f"a {i}") for i in range(8)]
        await settled()
        for each in asked[4:6]:
            each.cancel()
        await settled()
        for _ in range(6):
            await dispatcher.engine.answer()
        assert dispatcher.engine.asked == [f"a {i}" for i in (0, 1, 2, 3, 6, 7)]
        assert not sum(dispatcher._load.values()) and not len(dispatcher._turns)

    run(scenario())


def test_all_who_wait_hear_that_no_engine_will_answer() -> None:
    async def scenario() -> None:
        dispatcher = Scripted(batch_size=1)
        asked = [dispatcher.asking(str(i), str(i)) for i in range(12)]
        await settled()
        await dispatcher.condemn("it dies of everything")
        await settled()
        for each in asked[BATCHES_IN_FLIGHT:]:
            with pytest.raises(EngineError, match="it dies of everything"):
                each.result()

    run(scenario())
