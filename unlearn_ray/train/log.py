"""A training's log: training.log, written by rank 0, and the last log lines of another rank if that rank failed. Does not import torch."""

import logging
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from unlearn_ray.artifacts import Folder
from unlearn_ray.errors import ArtifactError, ConfigError, DivergenceError, StorageError, UnlearnError
from unlearn_ray.train.growing import Lines, last_lines

LOG = "training.log"
NUM_SHOWN = 10  # last lines that a run's summary shows
_OF_RANK = "training-rank{}.log"
_MOST = 40  # lines kept of another rank
_FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
_OURS = __name__.partition(".")[0]
log = logging.getLogger(__name__)


class _Handler(logging.Handler):
    """Takes all messages of this package, and warnings of other packages."""

    def __init__(self, take: Callable[[str], object]) -> None:
        super().__init__(logging.INFO)
        self._take = take
        self.setFormatter(_FORMAT)

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING or record.name.partition(".")[0] == _OURS:
            for line in self.format(record).splitlines():
                self._take(line)


@contextmanager
def logged(folder: Folder, rank: int, is_loss: Callable[[Exception], bool]) -> Iterator[None]:
    """Keep the log of the block, and the error that ended it. Other ranks than 0 leave a log only for an error of their own, which rank 0 does not get.

    Args:
        is_loss: whether an error only means that another rank was lost.
    """
    tail: deque[str] = deque(maxlen=_MOST)
    lines = Lines(folder, LOG) if rank == 0 else None
    if rank == 0:  # those of other ranks, from an earlier attempt
        clear_logs(folder, but=LOG)
    handler = _Handler(tail.append if lines is None else lines.add)
    root, ours = logging.getLogger(), logging.getLogger(_OURS)
    level = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    except Exception as error:
        for line in _told(error):
            log.error("%s", line)
        if lines is None and not is_loss(error) and not isinstance(error, (DivergenceError, ConfigError)):
            _leave(folder, rank, list(tail))
        raise
    finally:
        root.removeHandler(handler)
        ours.setLevel(level)
        if lines is not None:
            lines.close()


def _told(error: Exception) -> list[str]:
    """One line for errors that a user can fix, a traceback for all others."""
    if isinstance(error, UnlearnError):
        return [str(error)]
    return "".join(traceback.format_exception(error)).rstrip().splitlines()


def _leave(folder: Folder, rank: int, lines: list[str]) -> None:
    try:
        folder.write_lines(_OF_RANK.format(rank), lines)
    except (ArtifactError, StorageError) as failure:
        log.warning("%s", failure)


def clear_logs(folder: Folder, but: str = "") -> None:
    """Remove the logs of earlier attempts, before a new one."""
    for name in _logs_in(folder):
        if name != but:
            folder.remove(name)


def last_log_lines(folder: Folder) -> list[str]:
    """The last log lines of a training: of the rank that failed, else of rank 0."""
    found = sorted(_logs_in(folder), key=lambda name: name == LOG)
    return last_lines(folder, found[0], NUM_SHOWN) if found else []


def _logs_in(folder: Folder) -> list[str]:
    return [name for name in folder.names(".log") if name == LOG or name.startswith("training-rank")]
