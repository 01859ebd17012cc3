"""What is left of a service that was stopped: nothing. The shared one is, so no test may follow."""

import os
import signal
import socket
from pathlib import Path

import httpx
import psutil
import pytest
from commandline import Service


@pytest.mark.late
def test_ctrl_c_lets_answers_finish_and_leaves_nothing_behind(service: Service) -> None:
    processes = service.processes()
    homes = {Path(part) for process in processes for part in process.cmdline() if part.endswith("haproxy.cfg")}
    with service.client.chat.completions.create(
        model="base",
        messages=[{"role": "user", "content": "Who?"}],
        max_tokens=300,
        stream=True,
        extra_body={"ignore_eos": True},
    ) as stream:
        next(stream)
        os.killpg(service.process.pid, signal.SIGINT)
        events = list(stream)
    assert events[-1].choices[0].finish_reason == "length"
    assert service.process.wait(120) == 130
    assert service.output.read_text().rstrip().endswith("The service has ended.")
    _, left = psutil.wait_procs(processes, timeout=60)
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []
    assert homes and not any(home.exists() for home in homes)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", int(service.url.rpartition(":")[2])))
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{service.url}/ready")
