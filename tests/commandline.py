"""The command line as a person runs it: a process of its own, in an empty folder."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from openai import OpenAI

from unlearn_ray.artifacts import Folder
from unlearn_ray.serving.service import free_port

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "jobs" / "configs" / "pocket.yaml"
KEY = "sk-of-the-tests-0123"
COMMAND = [sys.executable, "-c", "from unlearn_ray.cli import app; app()"]


def environment() -> dict[str, str]:
    """As a person's shell has it: nothing of this test session's own Ray."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"COLUMNS": "120"}


def unlearn(*arguments: str | Path, cwd: Path, timeout: float = 1500) -> subprocess.CompletedProcess[str]:
    """The command line, as a process of its own."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def descendants(pid: int, part: str = "") -> list[psutil.Process]:
    """The living ones with `part` in their command line."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if part in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@dataclass(frozen=True)
class Run:
    """A finished run."""

    cwd: Path
    folder: Folder
    arguments: Sequence[str | Path]
    output: str


@dataclass(frozen=True)
class Service:
    """A running `unlearn-ray serve`."""

    url: str
    registry: Path
    key: str
    output: Path  # what the command wrote
    process: "subprocess.Popen[bytes]"

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=300)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    @property
    def is_ready(self) -> bool:
        with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(f"{self.url}/ready", timeout=5) as answer:
            return bool(json.load(answer)["ready"])
        return False

    def processes(self, part: str = "") -> list[psutil.Process]:
        """Its processes with `part` in their command line."""
        return [] if self.process.poll() is not None else descendants(self.process.pid, part)

    @property
    def logs(self) -> Path:
        """Where its Ray writes what processes say."""
        arguments = self.processes("gcs_server")[0].cmdline()
        return Path(next(argument for argument in arguments if argument.startswith("--log_dir=")).partition("=")[2])

    def wait_until_ready(self, seconds: float = 600) -> float:
        """Returns how long it took."""
        began = time.monotonic()
        while not self.is_ready:
            assert self.process.poll() is None, self.output.read_text()[-3000:]
            assert time.monotonic() < began + seconds, self.output.read_text()[-3000:]
            time.sleep(0.1)
        return time.monotonic() - began


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # jobs in a shell's background ignore it, and all that they start


@contextlib.contextmanager
def serving(run: Path, cwd: Path, *arguments: str) -> Iterator[Service]:
    """`unlearn-ray serve` on a run, with a key and a registry below `cwd`."""
    keys, registry, output = cwd / "keys", cwd / "registry", cwd / "serve.log"
    keys.write_text(f"{KEY}\n")
    port = free_port()
    options = ["--port", str(port), "--keys", str(keys), "--registry", str(registry), *arguments]
    with output.open("wb") as log:
        process = subprocess.Popen(
            [*COMMAND, "serve", str(run), *options],
            cwd=cwd,
            env=environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C goes to a whole process group: ours must not be it
            preexec_fn=_hear_ctrl_c,
        )
        service = Service(f"http://127.0.0.1:{port}", registry, KEY, output, process)
        try:
            service.wait_until_ready()
            yield service
        finally:
            left = service.processes()
            if process.poll() is None:
                process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            for each in [process, *left]:  # nothing is, unless a test failed
                with contextlib.suppress(psutil.Error, ProcessLookupError):
                    each.kill()
