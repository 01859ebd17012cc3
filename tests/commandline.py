"""The command line as a person runs it: a process of its own, in an empty folder."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unlearn_ray.artifacts import Folder

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "jobs" / "configs" / "pocket.yaml"
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


@dataclass(frozen=True)
class Run:
    """A finished run."""

    cwd: Path
    folder: Folder
    arguments: Sequence[str | Path]
    output: str
