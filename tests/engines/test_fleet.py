"""The fleet's dealings with engines that die, on engines that are quick to start."""

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from ray import cloudpickle

from unlearn_ray.config import ClusterConfig, EngineResources
from unlearn_ray.engines.fleet import Fleet
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.vllm_engine import EngineSpec
from unlearn_ray.errors import EngineError, ModelError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import the tests

SPEC = EngineSpec("no model", EngineResources(num_cpus=0.5), "cpu")


class EchoEngine:
    """Says what it is asked; some words end its process."""

    def __init__(self, spec: EngineSpec) -> None:
        pass

    def process_id(self) -> int:
        return os.getpid()

    def generate(self, requests: list[Request]) -> tuple[bool, list[Reply]]:
        time.sleep(0.05)
        words = [request.messages[-1]["content"] for request in requests]
        if any("poison" in word for word in words):
            os._exit(1)
        return True, [Reply((word,), (False,)) for word in words]

    def close(self) -> None:
        pass


class NeverStarts(EchoEngine):
    def __init__(self, spec: EngineSpec) -> None:
        raise ModelError("no model is in that folder")


class DiesLoading(EchoEngine):
    def __init__(self, spec: EngineSpec) -> None:
        os._exit(1)


class AlwaysDies(EchoEngine):
    def generate(self, requests: list[Request]) -> tuple[bool, list[Reply]]:
        os._exit(1)


@contextmanager
def fleet_of(engine: type, num_engines: int = 1, max_deaths: int = 16) -> Iterator[Fleet]:
    fleet = Fleet(SPEC, num_engines, engine, max_deaths)
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
def test_engines_that_die_of_everything_end_the_call(ray_session: ClusterConfig) -> None:
    with fleet_of(AlwaysDies, max_deaths=4) as fleet, pytest.raises(EngineError, match="died 4 times in a row"):
        fleet.client.generate(requests(*(f"word {i}" for i in range(8))))


def test_a_model_that_cannot_be_used_is_said_in_one_line(ray_session: ClusterConfig) -> None:
    with fleet_of(NeverStarts) as fleet, pytest.raises(ModelError) as caught:
        fleet.wait()
    assert str(caught.value) == "no model is in that folder"


def test_an_engine_that_dies_while_it_loads_is_given_up_after_three_times(ray_session: ClusterConfig) -> None:
    with fleet_of(DiesLoading) as fleet, pytest.raises(EngineError):
        fleet.wait()
