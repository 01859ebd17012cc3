"""A service that is full, whose processes are killed, that is started twice, and that is stopped. It is of these tests alone."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from commandline import ROOT, Run, Service, serving, unlearn

sys.path.append(str(ROOT / "benchmarks"))
import soak

LIMITS = ("scaling.max_ongoing_requests=12", "scaling.max_queued_requests=4", "scaling.target_ongoing_requests=12")


@pytest.fixture(scope="module")
def own(quickstart: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(quickstart.folder.local, tmp_path_factory.mktemp("own"), *LIMITS) as service:
        yield service


def test_a_second_service_on_the_port_is_one_line(own: Service, quickstart: Run, tmp_path: Path) -> None:
    port = own.url.rpartition(":")[2]
    done = unlearn("serve", quickstart.folder.local, "--port", port, cwd=tmp_path, timeout=300)
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert len(done.stderr.strip().splitlines()) == 1 and port in done.stderr


def test_a_crowd_is_answered_or_told_to_come_back(own: Service) -> None:
    found, samples = asyncio.run(soak.crowd_for(own, num_clients=48, seconds=10))
    assert set(found.ends) == {"answered", "full"}, found.details
    assert found.ends["answered"] > 20 and found.ends["full"] > 20
    memory = soak.thirds(samples)
    for name in ("ServeReplica", "VLLM::EngineCore", "others"):
        assert memory[name]["last"] < 1.1 * memory[name]["first"], memory


def test_a_killed_engine_cuts_no_answer_in_silence_and_comes_back(own: Service) -> None:
    found = asyncio.run(soak.crowd_and_kill(own, "EngineCore", num_clients=12))
    check(found)
    assert own.processes("EngineCore")


def test_a_killed_replica_cuts_no_answer_in_silence_and_comes_back(own: Service) -> None:
    found = asyncio.run(soak.crowd_and_kill(own, "UnlearnServer", num_clients=12))
    check(found)


def check(found: dict[str, Any]) -> None:
    assert "silent" not in found["ends"], found
    assert found["failed_that_began_before"] and found["ends"]["answered"], found
    # Every status is one that a client retries.
    assert all(not detail.startswith("refused") or detail.startswith("refused 503") for detail in found["details"]), (
        found
    )


def test_ctrl_c_lets_answers_finish_and_leaves_nothing_behind(own: Service) -> None:
    processes = own.processes()
    homes = {Path(part) for process in processes for part in process.cmdline() if part.endswith("haproxy.cfg")}
    with own.client.chat.completions.create(
        model="base",
        messages=[{"role": "user", "content": "Who?"}],
        max_tokens=300,
        stream=True,
        extra_body={"ignore_eos": True},
    ) as stream:
        next(stream)
        os.killpg(own.process.pid, signal.SIGINT)
        events = list(stream)
    assert events[-1].choices[0].finish_reason == "length"
    assert own.process.wait(120) == 130
    assert own.output.read_text().rstrip().endswith("The service has ended.")
    _, left = psutil.wait_procs(processes, timeout=60)
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []
    assert homes and not any(home.exists() for home in homes)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", int(own.url.rpartition(":")[2])))
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{own.url}/ready")
