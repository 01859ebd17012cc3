"""Uploads checkpoints, and notices when an extra one is needed."""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import ray.train
from pyarrow import fs
from ray.train import CheckpointConsistencyMode, CheckpointUploadMode

from unlearn_ray.artifacts import Folder

_SECONDS_BETWEEN_LOOKS = 5.0  # the interval at which Ray Train itself looks for preempted nodes
_SECONDS_TO_POLL = 0.05
_NAMED = "checkpoint_"  # Ray Train's folder names begin with this


class Uploads:
    """Uploads the checkpoints of one rank. Training continues during an upload. The next checkpoint waits for it, so that slow storage
    does not fill the disk."""

    def __init__(self) -> None:
        self._last: Path | None = None

    def add(self, write: Callable[[Path], None], step: int) -> None:
        """Report a checkpoint. Must be called on every rank.

        Args:
            write: writes this rank's files into an empty folder, which is removed after the upload.
        """
        self.wait()
        folder = Path(tempfile.mkdtemp(prefix="unlearn-ray-state-"))
        try:
            write(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        state = ray.train.Checkpoint.from_directory(str(folder))
        ray.train.report({"step": step}, checkpoint=state, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
        self._last = folder

    def wait(self) -> None:
        """Wait until the last checkpoint is in storage. If it can't be written there, Ray Train ends this process, and so the training."""
        while self._last is not None and self._last.exists():
            time.sleep(_SECONDS_TO_POLL)


def remove_unknown(home: Folder) -> None:
    """Remove the checkpoints that killed workers had not reported yet. Ray Train does not know them, and would keep them until the training ends.
    Must be called on one rank, before any rank reports a checkpoint.

    Args:
        home: Ray Train's folder of this training. It does not exist yet if the training has just begun.
    """
    known = {
        Path(each.checkpoint.path).name
        for each in ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
    }
    for found in home.filesystem.get_file_info(fs.FileSelector(home.path, allow_not_found=True)):
        is_one = found.type == fs.FileType.Directory and found.base_name.startswith(_NAMED)
        if is_one and found.base_name not in known:
            home.filesystem.delete_dir(found.path)


class Ranks(Protocol):
    """The part of `loop.Runtime` that communicates between ranks."""

    @property
    def rank(self) -> int: ...

    def sum(self, values: list[float]) -> list[float]: ...


class Notice:
    """Notices that a node of this training will be taken away: a preempted spot instance, or a node that an autoscaler drains."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._looked = time.monotonic()
        self._known: set[str] = set()

    def is_new(self) -> bool:
        """True once per such node. Must be called after the same steps on every rank."""
        now = time.monotonic()
        is_due = self._ranks.rank == 0 and now - self._looked >= _SECONDS_BETWEEN_LOOKS
        if not self._ranks.sum([float(is_due)])[0]:
            return False
        self._looked = now
        found = ray.train.get_preemption_info()
        if found is None or self._known.issuperset(found.preempted_node_ids):
            return False
        self._known |= set(found.preempted_node_ids)
        return True
