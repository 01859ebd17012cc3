"""Files that grow while a training runs, on a disk and in an object store, and metrics.jsonl, which is one."""

import errno
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from storage import Storage

from unlearn_ray.artifacts import Folder
from unlearn_ray.errors import StorageError
from unlearn_ray.train.growing import SYNC_SECONDS, Lines, Mirror, last_lines
from unlearn_ray.train.metrics import METRICS, StepMetrics, lines_before, read_last

STEP = StepMetrics(4, 80, 0.5, 0.4, 0.1, 1e-4, 0.25, False, 2400, 1200.0, 2.0, 1.5, 1_700_000_000.0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def remote(s3_storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, s3_storage.environment[name])
    return Folder(f"s3://bucket/{tmp_path.name}?scheme=http&endpoint_override={s3_storage.endpoint}")


def test_on_a_disk_each_line_is_there_at_once(tmp_path: Path) -> None:
    lines = Lines(Folder(tmp_path), "a.txt", ["kept"])
    assert (tmp_path / "a.txt").read_text() == "kept\n"
    lines.add("one")
    assert (tmp_path / "a.txt").read_text() == "kept\none\n"
    lines.add("two")
    lines.close()
    assert (tmp_path / "a.txt").read_text() == "kept\none\ntwo\n"
    Lines(Folder(tmp_path), "a.txt").close()
    assert (tmp_path / "a.txt").read_text() == ""  # of another training


def test_in_an_object_store_lines_come_at_an_interval_and_at_the_end(remote: Folder) -> None:
    clock = Clock()
    lines = Lines(remote, "a.txt", ["kept"], clock)
    lines.add("one")
    assert remote.read_text("a.txt") == "kept\n"
    clock.now = SYNC_SECONDS
    lines.add("two")
    assert remote.read_text("a.txt") == "kept\none\ntwo\n"
    lines.add("three")
    assert last_lines(remote, "a.txt", 1) == ["two"]
    lines.close()
    assert last_lines(remote, "a.txt", 2) == ["two", "three"]


def test_a_folder_of_others_files_is_copied_with_what_is_new_in_it(remote: Folder, tmp_path: Path) -> None:
    clock = Clock()
    (tmp_path / "files/below").mkdir(parents=True)
    mirror = Mirror(tmp_path / "files", remote / "logger", clock)
    (tmp_path / "files/below/a").write_text("1")
    mirror.sync()
    assert (remote / "logger").names() == []
    clock.now = SYNC_SECONDS
    mirror.sync()
    assert (remote / "logger/below").read_text("a") == "1"
    (tmp_path / "files/below/a").write_text("12")
    mirror.sync(now=True)
    assert (remote / "logger/below").read_text("a") == "12"
    Mirror(tmp_path / "elsewhere", remote / "logger", clock)  # the training is taken up on another machine
    assert (tmp_path / "elsewhere/below/a").read_text() == "12"


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def fails(*_: Any) -> int:
        raise StorageError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "write_lines", fails)
        yield


def test_storage_that_fails_is_told_once_and_tried_again(
    remote: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    lines = Lines(remote, "a.txt", clock=clock)
    with full_disk(monkeypatch), caplog.at_level(logging.WARNING):
        for number in range(1, 4):
            clock.now = 2 * number * SYNC_SECONDS
            lines.add(str(number))
    assert len([line for line in caplog.messages if "a.txt" in line and "not up to date" in line]) == 1
    lines.close()
    assert remote.read_text("a.txt") == "1\n2\n3\n"


def test_an_upload_that_takes_long_comes_less_often(remote: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = Clock(), []

    def slow(folder: Folder, name: str, lines: Any) -> int:
        clock.now += 10.0
        written.append(clock.now)
        return 0

    monkeypatch.setattr(Folder, "write_lines", slow)
    lines = Lines(remote, "a.txt", clock=clock)
    while clock.now < 1_000:
        clock.now += 1.0
        lines.add("x")
    assert 10.0 * len(written) <= 0.06 * clock.now + 10.0


def test_the_last_step_is_read_past_a_line_that_is_cut_off(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert read_last(folder) is None
    lines = [replace(STEP, step=number).to_json() for number in range(3)]
    (tmp_path / METRICS).write_text("\n".join(lines) + "\n" + lines[0][:20])
    assert read_last(folder) == replace(STEP, step=2)
    (tmp_path / METRICS).write_text("\n".join(lines) + "\n" + lines[0][:20] + "\n")
    assert read_last(folder) == replace(STEP, step=2)
    (tmp_path / METRICS).write_text("x" * 100_000 + "\n" + lines[1] + "\n")  # longer than what is read of it
    assert read_last(folder) == replace(STEP, step=1)


def test_steps_that_are_done_again_replace_those_of_before(tmp_path: Path) -> None:
    lines = [replace(STEP, step=number).to_json() for number in range(5)]
    (tmp_path / METRICS).write_text("\n".join(lines) + "\n{")
    assert lines_before(Folder(tmp_path), 3) == lines[:3]
    assert lines_before(Folder(tmp_path), 0) == []


def test_a_step_is_one_line_of_json_and_one_in_words() -> None:
    assert json.loads(STEP.to_json())["tokens_per_second"] == 1200.0
    assert STEP.line == (
        "step 5/80, loss 0.5, 1,200 tokens/s, forget 0.4, retain 0.1, gradient norm 0.25, learning rate 0.0001, 2.00 s, 1.5 GiB"
    )
    skipped = replace(STEP, loss=None, retain_loss=None, grad_norm=None, skipped=True)
    assert skipped.line.startswith("step 5/80, loss not finite, ") and skipped.line.endswith(", skipped")
    assert skipped.figures.keys() == STEP.figures.keys() - {"train/loss", "train/retain_loss", "train/grad_norm"}
