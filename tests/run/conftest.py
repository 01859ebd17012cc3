"""One real run of the shipped quickstart, whose artifacts the tests of this folder read."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from unlearn_ray.artifacts import Folder

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "jobs" / "configs" / "pocket.yaml"
COMMAND = [sys.executable, "-c", "from unlearn_ray.cli import app; app()"]


def environment() -> dict[str, str]:
    """As a person's shell has it: nothing of this test session's own Ray."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"COLUMNS": "120"}


def unlearn(*arguments: str | Path, cwd: Path, timeout: float = 540) -> subprocess.CompletedProcess[str]:
    """The command line, as a process of its own."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


@dataclass(frozen=True)
class Run:
    """A finished run."""

    cwd: Path
    folder: Folder
    arguments: Sequence[str | Path]
    output: str


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`make quickstart`, in an empty folder."""
    cwd = tmp_path_factory.mktemp("quickstart")
    arguments: list[str | Path] = ["run", QUICKSTART]
    done = unlearn(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Run(cwd, Folder(cwd / "runs" / "pocket"), arguments, done.stdout)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "quickstart" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real)
