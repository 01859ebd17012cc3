"""A service that is full, whose processes are killed, and that is started twice."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from commandline import ROOT, Run, Service, unlearn

sys.path.append(str(ROOT / "benchmarks"))
import soak

pytestmark = pytest.mark.late
KV_CACHE_MIB = 1024  # the engine touches its pages as it first needs them


def test_a_second_service_on_the_port_is_one_line(service: Service, quickstart: Run, tmp_path: Path) -> None:
    port = service.url.rpartition(":")[2]
    done = unlearn("serve", quickstart.folder.local, "--port", port, cwd=tmp_path, timeout=300)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert len(done.stderr.strip().splitlines()) == 1 and port in done.stderr


def test_a_crowd_is_answered_or_told_to_come_back(service: Service) -> None:
    found, samples = asyncio.run(soak.crowd_for(service, num_clients=48, seconds=10))
    assert set(found.ends) == {"answered", "full"}, found.details
    assert found.ends["answered"] > 20 and found.ends["full"] > 20
    memory = soak.thirds(samples)
    for name, cache in {"ServeReplica": 0, "VLLM::EngineCore": KV_CACHE_MIB, "others": 0}.items():
        assert memory[name]["last"] < 1.1 * memory[name]["first"] + cache, memory


@pytest.mark.long
def test_a_killed_engine_ends_every_answer_with_an_error_and_comes_back(service: Service) -> None:
    check(asyncio.run(soak.crowd_and_kill(service, "EngineCore", num_clients=12)))
    assert service.processes("EngineCore")


@pytest.mark.long
def test_a_killed_replica_ends_every_answer_with_an_error_and_comes_back(service: Service) -> None:
    check(asyncio.run(soak.crowd_and_kill(service, "UnlearnServer", num_clients=12)))


def check(found: dict[str, Any]) -> None:
    assert not {"silent", "broken", "hung"}.intersection(found["ends"]), found
    assert {detail for detail in found["details"] if detail.startswith("cut")} == {"cut stream_cut"}
    assert found["failed_that_began_before"] and found["ends"]["answered"], json.dumps(found)
    # Every status is one that a client retries.
    assert all(not detail.startswith("refused") or detail.startswith("refused 503") for detail in found["details"]), (
        found
    )
