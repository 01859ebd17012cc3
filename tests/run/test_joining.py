"""A run on a Ray that is there already: sent to it as a job, and joined from outside."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError

import pytest
from commandline import COMMAND, ROOT, environment

from unlearn_ray.artifacts import Folder

pytestmark = pytest.mark.real
RAY = Path(sys.executable).with_name("ray")
SMALL = ["questions.num_questions=12", "questions.num_entities=4", "name=sent"]


@dataclass(frozen=True)
class Head:
    """A cluster of one node."""

    address: str
    dashboard: str
    environment: dict[str, str]


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_for(page: str, process: "subprocess.Popen[bytes]", seconds: float = 300) -> None:
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


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    gcs, dashboard, client, agent = free_ports(4)
    home = tempfile.mkdtemp(prefix="ur-", dir="/tmp")  # short: a socket's path has 107 bytes
    settings = environment() | {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    settings["PATH"] = f"{RAY.parent}:{settings['PATH']}"  # the `python` of jobs, as an image has it
    command = [RAY, "start", "--head", "--block", "--num-cpus=8", "--node-ip-address=127.0.0.1", f"--port={gcs}"]
    command += [f"--temp-dir={home}", "--include-dashboard=true", f"--dashboard-port={dashboard}"]
    command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats"]
    process = subprocess.Popen(
        command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        # The agent starts last, and jobs are handed to it.
        for page in (f"{address}/api/jobs/", f"http://127.0.0.1:{agent}/api/healthz"):
            wait_for(page, process)
        yield Head(f"127.0.0.1:{gcs}", address, settings)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def sent(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was sent as a job."""
    output = tmp_path_factory.mktemp("sent")
    entry = ["python", "jobs/run.py", "jobs/configs/pocket.yaml", f"output={output}", *SMALL, "--until", "questions"]
    done = subprocess.run(
        [RAY, "job", "submit", "--address", head.dashboard, "--working-dir", ROOT, "--", *entry],
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "questions" in done.stdout
    return output


def test_a_job_runs_where_it_was_sent(sent: Path) -> None:
    assert (sent / "sent" / "questions" / "manifest.json").is_file()
    kept = [row for row in Folder(sent / "sent" / "questions" / "rows").read_rows() if not row["drop"]]
    assert len(kept) == 12


def test_a_run_joins_the_cluster_that_ray_address_names(head: Head, sent: Path, tmp_path: Path) -> None:
    arguments = ["run", ROOT / "jobs" / "configs" / "pocket.yaml", f"output={sent}", *SMALL, "--until", "answers"]
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=tmp_path,
        env=head.environment | {"RAY_ADDRESS": head.address},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "skipped" in done.stdout, "the job's questions are there"
    assert list(Folder(sent / "sent" / "answers" / "rows").read_rows())
