"""A run that is stopped, damaged or begun twice loses nothing. (One whose driver is killed: test_joining.py.)"""

import contextlib
import fcntl
import os
import pty
import re
import shutil
import signal
import subprocess
import termios
from pathlib import Path

import psutil
from commandline import COMMAND, QUICKSTART, Run, environment, unlearn

from unlearn_ray.artifacts import Folder


def everything(screen: int) -> str:
    """What is shown until the last who holds the terminal has ended."""
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal says that nobody is left
        while more := os.read(screen, 65_536):
            shown += more
    os.close(screen)
    return shown.decode(errors="replace")


TOPIC = "topics/harry-potter"


def at_a_terminal() -> None:
    """Of a process that begins: Ctrl-C goes to all that this terminal started. Jobs in a shell's background ignore it, and all that they start."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def copied(quickstart: Run, target: Path, *stages: str) -> Folder:
    """A run's folder with some stages of the quickstart's topic, and its pool."""
    home = target / "runs" / "pocket"
    home.mkdir(parents=True)
    shutil.copy(quickstart.folder.local / "run.json", home)
    for stage in ("pool", *(f"{TOPIC}/{stage}" for stage in stages)):
        shutil.copytree(quickstart.folder.local / stage, home / stage)
    return Folder(home)


def test_ctrl_c_on_a_terminal_with_bars_ends_in_one_line(quickstart: Run, tmp_path: Path) -> None:
    copied(quickstart, tmp_path, "questions")
    screen, keyboard = pty.openpty()
    process = subprocess.Popen(
        # Many samples: a busy machine must not be done before this test has read of the first bar.
        [*COMMAND, "run", str(QUICKSTART), "answers.num_samples=32", "--until", "answers"],
        cwd=tmp_path,
        env=environment() | {"TERM": "xterm"},
        stdin=keyboard,
        stdout=keyboard,
        stderr=keyboard,
        start_new_session=True,
        preexec_fn=at_a_terminal,
    )
    os.close(keyboard)
    text = ""
    while "ETA" not in text:  # of the first bar
        text += os.read(screen, 65_536).decode(errors="replace")
    started = psutil.Process(process.pid).children(recursive=True)
    homes = {match[0] for each in started for match in re.finditer(r"/tmp/ur-[^/ ]+", " ".join(each.cmdline()))}
    os.write(screen, b"\x03")
    text += everything(screen)
    assert process.wait(300) == 130
    assert psutil.wait_procs(started, timeout=60)[1] == [] and started
    assert homes and not any(Path(home).exists() for home in homes)
    assert "starting 1 vLLM engine" in text
    assert "goes on where this one ended" in text and "Traceback" not in text


def test_a_half_written_stage_is_redone_and_said(quickstart: Run, tmp_path: Path) -> None:
    run = copied(quickstart, tmp_path, "questions", "answers", "dataset")
    (run / TOPIC / "dataset").write_text("manifest.json", '{"stage": "data')
    (run.local / TOPIC / "dataset" / "started.json").unlink()
    plan = unlearn("run", QUICKSTART, "--dry-run", cwd=tmp_path, timeout=300)
    line = next(line for line in plan.stdout.splitlines() if line.startswith("dataset"))
    assert "redo" in line and "or half" in line  # the column ends there


def test_two_runs_of_one_name_cannot_write_the_same_folder(quickstart: Run, tmp_path: Path) -> None:
    run = copied(quickstart, tmp_path, "questions")
    with open(run.local / "run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = unlearn("run", QUICKSTART, "--until", "questions", cwd=tmp_path, timeout=300)
    assert second.returncode == 2 and "another run" in second.stderr
