"""Checkpoints on their way to storage, and when one is taken out of turn."""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import ray.train
from pyarrow import fs
from ray.train import CheckpointConsistencyMode, CheckpointUploadMode

_SECONDS_BETWEEN_LOOKS = 5.0  # as often as Ray Train itself asks which nodes are to go
_SECONDS_TO_POLL = 0.05
_NAMED = "checkpoint_"  # how Ray Train begins the names of their folders


class Uploads:
    """Checkpoints of one rank. While one is on its way, training goes on; the next one waits for it, so that a slow storage fills no disk."""

    def __init__(self) -> None:
        self._last: Path | None = None

    def add(self, write: Callable[[Path], None], step: int) -> None:
        """Report a checkpoint. To be called on every rank.

        Args:
            write: this rank's files into an empty folder, which is gone once they are in storage.
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
        """Until the last one is in storage. One that can't be written there ends the training: Ray Train ends this process then."""
        while self._last is not None and self._last.exists():
            time.sleep(_SECONDS_TO_POLL)


def remove_unknown() -> None:
    """Remove what killed workers were about to report: Ray Train knows nothing of it, and would keep it as long as the training lasts. To be called
    by one rank, before any reports a checkpoint."""
    known = {
        Path(each.checkpoint.path).name
        for each in ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
    }
    storage = ray.train.get_context().get_storage()
    filesystem, home = storage.storage_filesystem, storage.experiment_fs_path
    for found in filesystem.get_file_info(fs.FileSelector(home, allow_not_found=True)):
        is_one = found.type == fs.FileType.Directory and found.base_name.startswith(_NAMED)
        if is_one and found.base_name not in known:
            filesystem.delete_dir(found.path)


class Ranks(Protocol):
    """Of `loop.Runtime`, what tells ranks apart and lets them agree."""

    @property
    def rank(self) -> int: ...

    def sum(self, values: list[float]) -> list[float]: ...


class Notice:
    """Whether a node of this training is about to be taken away: a spot instance, or one that an autoscaler drains."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._looked = time.monotonic()
        self._known: set[str] = set()

    def is_new(self) -> bool:
        """True once for each such node. To be called after the same steps on every rank."""
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
