"""One driver at a time in a folder of an object store."""

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commandline import QUICKSTART, ROOT, unlearn
from storage import Storage, gs, s3

from unlearn_ray import config as configs
from unlearn_ray import plan
from unlearn_ray.artifacts import Folder
from unlearn_ray.errors import ArtifactError
from unlearn_ray.lease import SECONDS_BETWEEN_BEATS, SECONDS_TO_DIE, in_turn, leased

# Holds a folder from a given moment on, says how that went, and lives until it is told to end.
DRIVER = """
    import signal, sys, time
    from unlearn_ray.artifacts import Folder
    from unlearn_ray.errors import ArtifactError
    from unlearn_ray.lease import leased

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command line has it
    time.sleep(max(0, float(sys.argv[2]) - time.time()))
    try:
        with leased(Folder(sys.argv[1])):
            print("held", flush=True)
            sys.stdin.readline()
    except ArtifactError as error:
        print(error, flush=True)
"""


@pytest.fixture(scope="module", params=[s3, gs])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    with request.param() as storage, pytest.MonkeyPatch.context() as patch:
        for name, value in storage.environment.items():
            patch.setenv(name, value)
        yield storage


@pytest.fixture
def home(storage: Storage, request: pytest.FixtureRequest) -> Folder:
    """A place of this test's own."""
    return Folder(storage.bucket) / request.node.originalname


def driver(folder: Folder, at: float = 0.0) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DRIVER), folder.uri, str(at)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: "subprocess.Popen[str]") -> None:
    process.communicate("\n", timeout=60)


def test_a_second_driver_is_refused_while_the_first_lives_and_welcome_after(home: Folder) -> None:
    first = driver(home / "run.lock")
    assert said(first) == "held"
    with (
        pytest.raises(ArtifactError, match=f"is being written by another run .*process {first.pid}"),
        leased(home / "run.lock"),
    ):
        pass
    assert len((home / "run.lock").names(".json")) == 1  # it left nothing
    end(first)
    told: list[str] = []
    with leased(home / "run.lock", told.append):
        assert told == []
    assert (home / "run.lock").names(".json") == []


def test_of_drivers_that_begin_at_one_moment_one_goes_on(home: Folder) -> None:
    at = time.time() + 4
    drivers = [driver(home / "run.lock", at) for _ in range(4)]
    answers = [said(each) for each in drivers]
    for each in drivers:
        end(each)
    assert answers.count("held") == 1
    assert all("is being written by another run" in answer for answer in answers if answer != "held")


@pytest.mark.long(waits=True)
def test_a_killed_driver_locks_its_run_for_a_minute_and_that_is_said(home: Folder) -> None:
    first = driver(home / "run.lock")
    assert said(first) == "held"
    first.kill()
    first.wait()
    told: list[str] = []
    began = time.monotonic()
    with leased(home / "run.lock", told.append):
        seconds = time.monotonic() - began
    assert seconds > SECONDS_TO_DIE - SECONDS_BETWEEN_BEATS
    assert len(told) == 1 and f"process {first.pid}: waiting up to" in told[0]


@pytest.mark.long(waits=True)
def test_a_driver_whose_lease_was_taken_over_ends(home: Folder, tmp_path: Path) -> None:
    first = driver(home / "run.lock")
    assert said(first) == "held"
    [name] = (home / "run.lock").names(".json")
    (home / "run.lock").filesystem.delete_file(f"{(home / 'run.lock').path}/{name}")
    assert "was taken over by another run" in said(first)
    assert first.wait(60) == 0


@pytest.mark.real
def test_a_second_run_on_remote_storage_is_one_line(home: Folder, tmp_path: Path) -> None:
    config = configs.load(QUICKSTART, [f"output={home.uri}"])
    with plan.claimed(config):
        second = unlearn("run", QUICKSTART, f"output={home.uri}", "--until", "questions", cwd=tmp_path, timeout=300)
    assert second.returncode == 2, second.stdout + second.stderr
    assert "is being written by another run" in second.stderr and second.stderr.count("\n") == 1
    assert not (config.folder / "topics/harry-potter/questions").names(".parquet")


def test_what_runs_share_is_held_by_one_after_the_other(home: Folder) -> None:
    seen = list[str]()

    def hold(name: str) -> None:
        with in_turn(home, "general", lambda: False):
            seen.append(name)
            time.sleep(0.5)
            seen.append(name)

    threads = [threading.Thread(target=hold, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "".join(seen) in ("aabb", "bbaa")
    assert home.names() == ["general.lock"] and not (home / "general.lock").names(".json")
