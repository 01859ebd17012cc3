"""Checkpoints on their way to storage, and those that are taken out of turn. (In Ray Train, for real: test_training.py.)"""

import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from ray.train.v2.api.preemption import PreemptionInfo

from unlearn_ray.artifacts import Folder
from unlearn_ray.engines import checkpoints
from unlearn_ray.engines.checkpoints import Notice, Uploads


class Storage:
    """As slow as a test wants it; as Ray Train does, it removes what it has taken."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []
        self.modes: set[str] = set()
        self.at_work: list[Path] = []
        self.most_at_work = 0
        self.has_time = threading.Event()

    def report(self, metrics: dict[str, Any], checkpoint: Any, checkpoint_upload_mode: Any) -> None:
        self.reports.append(metrics)
        self.modes.add(checkpoint_upload_mode.value)
        self.at_work = [folder for folder in self.at_work if folder.exists()] + [Path(checkpoint.path)]
        self.most_at_work = max(self.most_at_work, len(self.at_work))
        threading.Thread(target=self._take, args=(Path(checkpoint.path),), daemon=True).start()

    def _take(self, folder: Path) -> None:
        self.has_time.wait(10)
        shutil.rmtree(folder)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Storage:
    storage = Storage()
    monkeypatch.setattr(ray.train, "report", storage.report)
    return storage


def write(folder: Path) -> None:
    assert not list(folder.iterdir())
    (folder / "state").write_text("x")


def test_training_goes_on_while_one_is_on_its_way_and_the_next_one_waits(storage: Storage) -> None:
    uploads = Uploads()
    uploads.add(write, 5)
    assert storage.reports == [{"step": 5}] and storage.at_work[0].exists()  # it did not wait
    second = threading.Thread(target=uploads.add, args=(write, 10))
    second.start()
    time.sleep(0.2)
    assert len(storage.reports) == 1
    storage.has_time.set()
    second.join(10)
    uploads.wait()
    assert storage.reports[1] == {"step": 10}
    assert (storage.most_at_work, storage.modes) == (1, {"ASYNC"})


def test_one_that_can_not_be_written_leaves_nothing(storage: Storage) -> None:
    folders = []

    def fail(folder: Path) -> None:
        folders.append(folder)
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        Uploads().add(fail, 5)
    assert not folders[0].exists() and not storage.reports


def test_what_a_killed_worker_left_is_removed_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("checkpoint_1", "checkpoint_2", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint_manager_snapshot.json").write_text("{}")
    reported = SimpleNamespace(checkpoint=ray.train.Checkpoint.from_directory(str(tmp_path / "checkpoint_1")))
    monkeypatch.setattr(ray.train, "get_all_reported_checkpoints", lambda mode: [reported])
    checkpoints.remove_unknown(Folder(tmp_path / "new"))
    checkpoints.remove_unknown(Folder(tmp_path))
    assert {each.name for each in tmp_path.iterdir()} == {"checkpoint_1", "checkpoint_manager_snapshot.json", "other"}


class OneRank:
    rank = 0

    def sum(self, values: list[float]) -> list[float]:
        return values


def test_a_node_that_is_to_go_is_noticed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = [0.0], []
    going: list[str] = []

    def info() -> PreemptionInfo | None:
        asked.append(clock[0])
        return PreemptionInfo(None, {node: [0] for node in going}) if going else None

    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(ray.train, "get_preemption_info", info)
    notice, seen = Notice(OneRank()), []
    for second in range(40):
        clock[0] = float(second)
        going[:] = ["a"] * (second >= 12) + ["b"] * (second >= 22)
        if notice.is_new():
            seen.append(second)
    assert seen == [15, 25]  # each within five seconds, and never again
    assert len(asked) == 7  # not after every step: all ranks wait for each other then
