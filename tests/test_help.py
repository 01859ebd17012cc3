"""What --help says is for users, and says how to begin."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from unlearn_ray import cli

ROOT = Path(__file__).parents[1]
COMMANDS = ("run", "plan", "forget", "questions", "answers", "dataset", "finetune", "evaluate", "probes", "certify", "verify", "status", "report", "attack", "compare", "serve", "publish", "rollback", "models", "demo", "version")  # fmt: skip


def shown(*arguments: str) -> str:
    done = CliRunner().invoke(cli.app, [*arguments, "--help"], env={"COLUMNS": "120", "TERM": "dumb"})
    assert done.exit_code == 0
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.output).split())


def test_the_help_says_what_the_program_does_and_how_to_begin() -> None:
    text = shown()
    assert "Make a language model forget topics" in text and "unlearn-ray run" in text
    assert "parse, connect" not in text and "imported by" not in text
    for command in COMMANDS:
        assert f" {command} " in text


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_says_what_it_does(command: str) -> None:
    text = shown(command)
    assert re.search(r"\](?:\.\.\.)? [A-Z][^.]+[.:]|\}.* [A-Z][^.]+\.", text)
    assert "[[" not in text and cli.__doc__ is not None and cli.__doc__[:20] not in text


def test_the_jobs_entry_point_shows_its_own_usage() -> None:
    command = [sys.executable, str(ROOT / "jobs" / "run.py"), "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=120).stdout
    usage = next(line for line in text.splitlines() if "Usage" in line)
    assert "jobs/run.py" in usage and "CONFIG" in usage and " run " not in usage.replace("jobs/run.py", "")
