"""A cluster of one node, as `ray start` makes it: what jobs are sent to, runs join, and `serve deploy` uses."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError

from commandline import environment

from unlearn_ray.serving.environment import SERVE_ENVIRONMENT

BIN = Path(sys.executable).parent
_OF_A_SMALL_MACHINE = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}


@dataclass(frozen=True)
class Head:
    address: str
    dashboard: str
    environment: dict[str, str]  # in which it was started
    pid: int

    def run(
        self, *command: str | Path, cwd: Path, timeout: float = 900, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """A command in the head's environment, and `more`; it must end well."""
        done = subprocess.run(
            command,
            cwd=cwd,
            env=self.environment | more,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _wait_for(page: str, process: "subprocess.Popen[bytes]", seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(page, timeout=5).close()
            return
        except HTTPError as error:
            if error.code != 503:  # it answers, whatever it says
                return
        except OSError:
            assert process.poll() is None and time.monotonic() < end, f"{page} does not answer"
        time.sleep(0.5)


@contextmanager
def started(more: Mapping[str, str]) -> Iterator[Head]:
    """A head with the service's environment, and `more`."""
    gcs, dashboard, client, agent = free_ports(4)
    home = tempfile.mkdtemp(prefix="ur-", dir="/tmp")  # short: a socket's path has 107 bytes
    settings = {**environment(), **SERVE_ENVIRONMENT, **_OF_A_SMALL_MACHINE, **more}
    settings["PATH"] = f"{BIN}:{settings['PATH']}"  # the `python` of jobs, as an image has it
    command: list[str | Path] = [BIN / "ray", "start", "--head", "--block"]
    command += ["--num-cpus=8", "--node-ip-address=127.0.0.1"]
    command += [f"--port={gcs}", f"--temp-dir={home}", "--include-dashboard=true", f"--dashboard-port={dashboard}"]
    command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats"]
    with running(command, settings, gcs, dashboard, agent) as head:
        yield head


@contextmanager
def running(
    command: Sequence[str | Path], settings: dict[str, str], gcs: int, dashboard: int, agent: int
) -> Iterator[Head]:
    """A head started by `ray start --block`, in a process group of its own that is ended with it."""
    process = subprocess.Popen(
        command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        # The agent starts last, and jobs are handed to it.
        for page in (f"{address}/api/jobs/", f"http://127.0.0.1:{agent}/api/healthz"):
            _wait_for(page, process)
        yield Head(f"127.0.0.1:{gcs}", address, settings, process.pid)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
