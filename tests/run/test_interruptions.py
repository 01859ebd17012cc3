"""A run that is stopped, killed or damaged goes on where it was, and ends as an unbroken one would."""

import contextlib
import fcntl
import os
import pty
import shutil
import subprocess
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from commandline import COMMAND, QUICKSTART, Run, environment, unlearn

from unlearn_ray.artifacts import Folder


def started(cwd: Path, *arguments: str | Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(folder: Folder, process: "subprocess.Popen[Any]", seconds: float = 600) -> None:
    """Until the folder holds its first rows."""
    end = time.monotonic() + seconds
    while not folder.names(".parquet"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{folder} stayed empty"
        time.sleep(0.05)


def everything(screen: int) -> str:
    """What is shown until the last who holds the terminal has ended."""
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal says that nobody is left
        while more := os.read(screen, 65_536):
            shown += more
    os.close(screen)
    return shown.decode(errors="replace")


def copied(quickstart: Run, target: Path, *stages: str) -> Folder:
    """A run's folder with some of the quickstart's stages."""
    home = target / "runs" / "pocket"
    home.mkdir(parents=True)
    shutil.copy(quickstart.folder.local / "run.json", home)
    for stage in stages:
        shutil.copytree(quickstart.folder.local / stage, home / stage)
    return Folder(home)


def test_a_killed_driver_resumes_and_ends_as_an_unbroken_run(quickstart: Run, tmp_path: Path) -> None:
    run = copied(quickstart, tmp_path, "questions")
    small = ("cluster.engines.batch_size=64", "--until", "answers")
    process = started(tmp_path, "run", QUICKSTART, *small)
    wait_for(run / "answers" / "asked" / "000" / "replies", process)
    process.kill()
    process.wait()
    assert not (run / "answers").exists("manifest.json")
    again = unlearn("run", QUICKSTART, *small, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    for name in ("rows", "unguarded", "terms"):
        expected = sorted((quickstart.folder / "answers" / name).read_rows(), key=lambda row: row["id"])
        assert sorted((run / "answers" / name).read_rows(), key=lambda row: row["id"]) == expected


def test_ctrl_c_on_a_terminal_with_bars_ends_in_one_line(quickstart: Run, tmp_path: Path) -> None:
    run = copied(quickstart, tmp_path, "questions")
    screen, keyboard = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "run", str(QUICKSTART), "--until", "answers"],
        cwd=tmp_path,
        env=environment() | {"TERM": "xterm"},
        stdin=keyboard,
        stdout=keyboard,
        stderr=keyboard,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # Ctrl-C goes to all that this terminal started
    )
    os.close(keyboard)
    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(everything, screen)
        wait_for(run / "answers" / "told" / "requests", process)
        os.write(screen, b"\x03")
        assert process.wait(300) == 130
        text = seen.result(60)
    assert "starting 1 vLLM engine" in text and "ETA" in text  # the bars
    assert "goes on where this one ended" in text and "Traceback" not in text


def test_a_half_written_stage_is_redone_and_said(quickstart: Run, tmp_path: Path) -> None:
    run = copied(quickstart, tmp_path, "questions", "answers", "dataset")
    (run / "dataset").write_text("manifest.json", '{"stage": "data')
    (run.local / "dataset" / "started.json").unlink()
    plan = unlearn("run", QUICKSTART, "--dry-run", cwd=tmp_path, timeout=300)
    line = next(line for line in plan.stdout.splitlines() if line.startswith("dataset"))
    assert "redo" in line and "half written" in line


def test_two_runs_of_one_name_cannot_write_the_same_folder(quickstart: Run, tmp_path: Path) -> None:
    run = copied(quickstart, tmp_path, "questions")
    with open(run.local / "run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = unlearn("run", QUICKSTART, "--until", "questions", cwd=tmp_path, timeout=300)
    assert second.returncode == 2 and "another run" in second.stderr
