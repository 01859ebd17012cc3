"""The fleet's dealings with engines that die, on engines that are quick to start."""

import logging
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jinja2
import pytest
import ray
from pytest import LogCaptureFixture
from ray import cloudpickle
from ray.actor import ActorHandle

from unlearn_ray.config import ClusterConfig, EngineResources
from unlearn_ray.engines.engine_actor import EngineActor
from unlearn_ray.engines.fleet import Fleet
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.vllm_engine import EngineSpec, PrefixCounts
from unlearn_ray.errors import ClusterError, EngineError, ModelError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import the tests

SPEC = EngineSpec("no model", EngineResources(num_cpus=0.5), "cpu")


class EchoEngine:
    """Says what it is asked; some words end its process, or make it fail."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec

    def place(self) -> tuple[str, int]:
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def start(self) -> None:
        pass

    def num_steps(self) -> int:
        return 0

    def generate(self, requests: list[Request]) -> tuple[PrefixCounts, list[Reply]]:
        time.sleep(0.05)
        words = [request.messages[-1]["content"] for request in requests]
        if any("poison" in word for word in words):
            os._exit(1)
        if any("venom" in word for word in words):
            raise EngineError("the engine died: RuntimeError: venom")
        return PrefixCounts(4, 3), [Reply((word,), (False,)) for word in words]

    def close(self) -> None:
        pass


def starts_of(spec: EngineSpec) -> int:
    """How often engines were started, this one included: of a folder in the name of the model."""
    with open(spec.model, "a") as file:
        file.write("x")
        return file.tell()


class NeverStarts(EchoEngine):
    def start(self) -> None:
        starts_of(self._spec)
        raise ModelError("no model is in that folder")


class StartsWrongly(EchoEngine):
    def start(self) -> None:
        starts_of(self._spec)
        raise TypeError("Engine.__init__() got an unexpected keyword argument 'rope'")


class FindsNoMemory(EchoEngine):
    def start(self) -> None:
        raise EngineError(f"vLLM can't start: {7.5 - starts_of(self._spec)} GiB of memory are free, 8 are needed")


class DiesLoading(EchoEngine):
    def start(self) -> None:
        os._exit(1)


class AlwaysDies(EchoEngine):
    def generate(self, requests: list[Request]) -> tuple[PrefixCounts, list[Reply]]:
        os._exit(1)


class FailsAlways(EchoEngine):
    def generate(self, requests: list[Request]) -> tuple[PrefixCounts, list[Reply]]:
        starts_of(self._spec)
        raise EngineError("the engine died: NotImplementedError: generator with an offset")


class RefusesInPython(EchoEngine):
    """The real actor, around an engine whose template raises."""

    def __init__(self, spec: EngineSpec) -> None:
        self._actor = EngineActor(spec)
        self._actor._engine = self  # type: ignore[assignment]

    def generate(self, requests: list[Request]) -> tuple[PrefixCounts, list[Reply]]:
        if any("twist" in str(request.messages) for request in requests):
            return self._actor_generate(requests)
        return super().generate(requests)

    def _actor_generate(self, requests: list[Request]) -> tuple[PrefixCounts, list[Reply]]:
        self._actor._engine = _Twisted()  # type: ignore[assignment]
        return self._actor.generate(requests)


class _Twisted:
    def generate(self, requests: list[Request]) -> list[Reply]:
        raise jinja2.TemplateSyntaxError("roles must alternate", 3)


@contextmanager
def fleet_of(engine: type, num_engines: int = 1, max_deaths: int = 16, counter: Path | None = None) -> Iterator[Fleet]:
    fleet = Fleet(replace(SPEC, model=str(counter or SPEC.model)), num_engines, engine, max_deaths)
    try:
        yield fleet
    finally:
        fleet.close()


def requests(*words: str) -> list[Request]:
    return [Request(messages=[{"role": "user", "content": word}]) for word in words]


def test_replies_come_in_the_order_of_requests_from_several_engines(ray_session: ClusterConfig) -> None:
    with fleet_of(EchoEngine, 2) as fleet, ThreadPoolExecutor(8) as callers:
        batches = [[f"{i}.{j}" for j in range(5)] for i in range(20)]
        found = list(callers.map(lambda words: fleet.client.generate(requests(*words)), batches))
        assert [[reply.texts[0] for reply in batch] for batch in found] == batches
        assert len(set(fleet.process_ids())) == 2


def test_a_small_topic_does_not_wait_for_a_large_one(ray_session: ClusterConfig) -> None:
    spec = replace(SPEC, resources=SPEC.resources.model_copy(update={"batch_size": 1}))
    fleet = Fleet(spec, 1, EchoEngine)
    try:
        large, small = fleet.client, fleet.client
        with ThreadPoolExecutor(120) as callers:
            asked = [callers.submit(large.generate, requests(f"large {i}")) for i in range(120)]
            asked[0].result()
            for i in range(4):
                assert small.generate(requests(f"small {i}"))[0].texts == (f"small {i}",)
            assert sum(each.done() for each in asked) < 80, "four turns, while each other one is the large topic's"
            assert [each.result()[0].texts for each in asked] == [(f"large {i}",) for i in range(120)]
    finally:
        fleet.close()


@pytest.mark.long
def test_a_request_that_kills_engines_is_found_and_its_neighbours_are_answered(ray_session: ClusterConfig) -> None:
    words = [f"word {i}" for i in range(4)]
    words[2] = "poison"
    beside = [[f"beside {i}.{j}" for j in range(4)] for i in range(3)]
    with fleet_of(EchoEngine) as fleet, ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda batch: fleet.client.generate(requests(*batch)), [words, *beside]))
    assert [reply.error for reply in found[0]] == [None, None, "engine", None]
    assert [reply.texts for reply in found[0] if not reply.error] == [(word,) for word in words if word != "poison"]
    # They ran beside the poison and died with it; none may be blamed.
    assert [[reply.texts[0] for reply in batch] for batch in found[1:]] == beside


@pytest.mark.long
def test_a_request_that_fails_engines_is_found_as_well(ray_session: ClusterConfig, caplog: LogCaptureFixture) -> None:
    words = [f"word {i}" for i in range(4)]
    words[1] = "venom"
    with caplog.at_level(logging.INFO, "unlearn_ray"), fleet_of(EchoEngine) as fleet:
        found = fleet.client.generate(requests(*words))
    assert [reply.error for reply in found] == [None, "engine", None, None]
    lost = [record.getMessage() for record in caplog.records if "was lost" in record.getMessage()]
    assert lost and all("engine 0 on node" in line and "RuntimeError: venom; it is restarted" in line for line in lost)


@pytest.mark.long
def test_engines_that_die_of_everything_end_the_call_soon(ray_session: ClusterConfig) -> None:
    with fleet_of(AlwaysDies) as fleet, pytest.raises(EngineError, match=r"dies at every request: .*worker process"):
        fleet.client.generate(requests(*(f"word {i}" for i in range(8))))


@pytest.mark.long
def test_an_engine_that_fails_on_every_request_says_its_first_error_once(
    ray_session: ClusterConfig, tmp_path: Path
) -> None:
    counter, says = tmp_path / "asked", "dies at every request: the engine died: NotImplementedError: generator with"
    with fleet_of(FailsAlways, counter=counter) as fleet, ThreadPoolExecutor(4) as callers:
        asked = [callers.submit(fleet.client.generate, requests(f"{i}.0", f"{i}.1")) for i in range(4)]
        for each in asked:
            with pytest.raises(EngineError, match=says):
                each.result()
    assert len(counter.read_text()) <= 6  # the four that were under way, and one or two that were tried for it


def test_an_error_of_a_batch_is_said_with_its_text_and_asked_once(ray_session: ClusterConfig) -> None:
    with fleet_of(RefusesInPython) as fleet:
        with pytest.raises(
            EngineError, match=r"TemplateSyntaxError: roles must alternate .*\(unlearn_ray/engines/engine_actor"
        ):
            fleet.client.generate(requests("a", "twist"))
        assert fleet.client.generate(requests("b"))[0].texts == ("b",)  # it lives on
        assert ray.get(fleet.client.dispatcher.news.remote()).num_ready == 1


def test_a_model_that_cannot_be_used_is_said_in_one_line(ray_session: ClusterConfig, tmp_path: Path) -> None:
    with fleet_of(NeverStarts, counter=tmp_path / "starts") as fleet, pytest.raises(ModelError) as caught:
        fleet.wait()
    assert str(caught.value) == "no model is in that folder"
    assert (tmp_path / "starts").read_text() == "x"


def test_an_error_that_would_come_again_is_not_tried_again(ray_session: ClusterConfig, tmp_path: Path) -> None:
    with fleet_of(StartsWrongly, counter=tmp_path / "starts") as fleet, pytest.raises(TypeError, match="'rope'"):
        fleet.wait()
    assert (tmp_path / "starts").read_text() == "x"


def test_a_start_that_fails_twice_alike_is_given_up(ray_session: ClusterConfig, tmp_path: Path) -> None:
    with fleet_of(FindsNoMemory, counter=tmp_path / "starts") as fleet, pytest.raises(EngineError, match="GiB"):
        fleet.wait()
    assert (tmp_path / "starts").read_text() == "xx"


def test_an_engine_that_dies_while_it_loads_is_given_up(ray_session: ClusterConfig) -> None:
    with fleet_of(DiesLoading) as fleet, pytest.raises(EngineError, match="worker process has died"):
        fleet.wait()


def test_a_lost_engine_is_in_the_log_of_whoever_asks(ray_session: ClusterConfig, caplog: LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "unlearn_ray"), fleet_of(EchoEngine) as fleet:
        fleet.wait()
        [killed] = fleet.process_ids()
        os.kill(killed, signal.SIGKILL)
        assert fleet.client.generate(requests("word"))[0].texts == ("word",)
    said = [record.getMessage() for record in caplog.records]
    assert any("engine 0 on node" in line and f"process {killed} was lost: The actor" in line for line in said)
    assert sum("engine 0 is ready on node" in line for line in said) == 2


def holding_all_cpus() -> list[ActorHandle]:
    """Actors that hold every CPU that nobody holds: other tests' engine may have some, and engines that have just ended give theirs back late."""
    holders: list[ActorHandle] = []
    until = time.monotonic() + 3
    while time.monotonic() < until:
        if free := ray.available_resources().get("CPU", 0):
            holders.append(ray.remote(EchoEngine).options(num_cpus=free).remote(SPEC))
            ray.get(holders[-1].place.remote(), timeout=60)
            until = time.monotonic() + 3
        time.sleep(0.2)
    return holders


def test_what_a_fleet_waits_for_is_said_until_it_gives_up(ray_session: ClusterConfig) -> None:
    said: list[str] = []
    holders = holding_all_cpus()
    fleet = Fleet(SPEC, 2, EchoEngine, start_timeout_seconds=9, on_wait=said.append)
    try:
        with pytest.raises(
            ClusterError, match=r"start_timeout_seconds: no node had room .* 0 of 8 CPUs are free"
        ) as caught:
            fleet.wait()
        assert "\n" not in str(caught.value)
    finally:
        fleet.close()
        for holder in holders:
            ray.kill(holder)
    assert said and all(
        "for room for 2 of 2 engines of 0.5 CPUs: 1 node is up, 0 of 8 CPUs are free" in line for line in said
    )


class Hangs(EchoEngine):
    """Makes no step while it is asked to stay."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._num_steps = 0

    def num_steps(self) -> int:
        return self._num_steps

    def generate(self, requests: list[Request]) -> tuple[PrefixCounts, list[Reply]]:
        words = [request.messages[-1]["content"] for request in requests]
        for _ in range(200 if "think" in words else 0):  # slow, and alive
            self._num_steps += 1
            time.sleep(0.02)
        if any("stay" in word for word in words):
            time.sleep(3600)
        return super().generate(requests)


@pytest.mark.long
def test_an_engine_that_makes_no_token_is_replaced_and_what_hangs_it_is_found(
    ray_session: ClusterConfig, caplog: LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    spec = replace(SPEC, resources=SPEC.resources.model_copy(update={"engine_timeout_seconds": 2.0}))
    fleet = Fleet(spec, 1, Hangs)
    try:
        (slow,) = fleet.client.generate(requests("think"))  # twice as long as the timeout
        assert slow.texts == ("think",) and "was lost" not in caplog.text
        replies = fleet.client.generate(requests("a", "stay here", "b"))
        assert [reply.error for reply in replies] == [None, "engine", None]
    finally:
        fleet.close()
    assert re.search(
        r"engine 0 on node \S+, process \d+ was lost: it made no token for \d+ s \(cluster\.engines\.engine_timeout_seconds\); it is restarted",
        caplog.text,
    )


def test_engines_come_with_work_and_go_without(ray_session: ClusterConfig, caplog: LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    fleet = Fleet(SPEC, 3, EchoEngine, min_engines=1, idle_seconds=1.0)
    try:
        client = fleet.client
        client.generate(requests("one batch"))
        assert len(fleet.process_ids()) == 1, "one engine does a few batches"
        num_batches, deadline = 1, time.monotonic() + 60
        with ThreadPoolExecutor(12) as callers:
            while not all(f"engine {number} is ready" in caplog.text for number in range(3)):
                assert time.monotonic() < deadline
                found = list(callers.map(client.generate, [requests(f"{i}") for i in range(100)]))
                assert [reply.texts[0] for (reply,) in found] == [f"{i}" for i in range(100)]
                num_batches += 100
        deadline = time.monotonic() + 60
        while len(fleet.process_ids()) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        (reply,) = fleet.client.generate(requests("still there"))
        assert reply.texts == ("still there",)
        assert fleet.prefix_counts(client) == (4 * num_batches, 3 * num_batches), "another client's are its own"
    finally:
        fleet.close()
    assert caplog.text.count("was idle and is released") == 2


def test_an_engine_that_finds_no_room_is_not_waited_for_once_the_work_is_done(
    ray_session: ClusterConfig, caplog: LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fleet = Fleet(
        replace(SPEC, resources=EngineResources(num_cpus=5)), 2, EchoEngine, min_engines=1, idle_seconds=1.0
    )  # eight CPUs: the second never fits
    try:
        with ThreadPoolExecutor(12) as callers:
            assert len(list(callers.map(fleet.client.generate, [requests("x")] * 60))) == 60
        deadline = time.monotonic() + 60
        while "engine 1 was idle and is released" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert fleet.client.generate(requests("on"))[0].texts == ("on",)
    finally:
        fleet.close()
