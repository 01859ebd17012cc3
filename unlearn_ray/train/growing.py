"""Files that grow while a training runs. On a disk, lines are appended. An object store can't append: there the files are rewritten at intervals and at
the end.

These files only inform, so they must not end a training: if storage fails, the log says so once, and writing is tried again.
"""

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TextIO

from pyarrow import fs

from unlearn_ray.artifacts import Folder
from unlearn_ray.errors import ArtifactError, StorageError

SYNC_SECONDS = 20.0  # between two uploads
_SHARE = 0.05  # of the time, at most, for uploads
_TAIL_BYTES = 2**16
log = logging.getLogger(__name__)


class Turns:
    """When to upload: every `SYNC_SECONDS`, or less often if an upload takes long."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = clock() + SYNC_SECONDS

    def is_due(self) -> bool:
        return self._clock() >= self._next

    def took(self, seconds: float) -> None:
        self._next = self._clock() + max(SYNC_SECONDS, seconds / _SHARE)


class Lines:
    """A file of lines.

    Args:
        kept: the first lines; the file's former content is removed.
    """

    def __init__(
        self, folder: Folder, name: str, kept: Iterable[str] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._name = folder, name
        self._lines = list(kept)
        self._turns, self._clock = Turns(clock), clock
        self._is_told = False
        self._file: TextIO | None = None
        self._write()

    def add(self, line: str) -> None:
        if self._file is not None:
            try:
                self._file.write(f"{line}\n")
                self._file.flush()
            except OSError as error:
                self._tell(error)
            return
        self._lines.append(line)
        if self._turns.is_due():
            self._write()

    def close(self) -> None:
        if self._file is None:
            self._write()
            return
        try:
            self._file.close()
        except OSError as error:
            self._tell(error)

    def _write(self) -> None:
        began = self._clock()
        try:
            self._folder.write_lines(self._name, self._lines)
            if self._folder.is_local:
                self._file = (self._folder.local / self._name).open("a", encoding="utf-8")
                self._lines = []
        except (ArtifactError, OSError) as error:
            self._tell(error)
        self._turns.took(self._clock() - began)

    def _tell(self, error: Exception) -> None:
        if not self._is_told:
            self._is_told = True  # set before the warning, which may go to such a file
            log.warning("%s/%s is not up to date: %s", self._folder, self._name, error)


class Mirror:
    """Copies a local folder, which others write to, to an object store. It first fetches what is there already, so that a training resumed on another
    machine continues its database."""

    def __init__(self, source: Path, target: Folder, clock: Callable[[], float] = time.monotonic) -> None:
        self._source, self._target = source, target
        self._turns, self._clock = Turns(clock), clock
        self._copied: dict[Path, tuple[int, int]] = {}
        self._is_told = False
        try:
            if target.exists():
                source.mkdir(parents=True, exist_ok=True)
                fs.copy_files(target.path, str(source), source_filesystem=target.filesystem)
        except (ArtifactError, OSError) as error:
            log.warning("%s can't be read, so its files start anew: %s", target, error)

    def sync(self, *, now: bool = False) -> None:
        """Copy changed files, if it is time or `now` is set."""
        if not now and not self._turns.is_due():
            return
        began = self._clock()
        try:
            for file in sorted(path for path in self._source.rglob("*") if path.is_file()):
                state = file.stat()
                if self._copied.get(file) != (state.st_size, state.st_mtime_ns):
                    self._copy(file)
                    self._copied[file] = (state.st_size, state.st_mtime_ns)
        except (ArtifactError, OSError) as error:
            if not self._is_told:
                log.warning("%s is not up to date: %s", self._target, error)
            self._is_told = True
        self._turns.took(self._clock() - began)

    def _copy(self, file: Path) -> None:
        place = self._target
        for name in file.relative_to(self._source).parent.parts:
            place = place / name
        fs.copy_files(str(file), f"{place.path}/{file.name}", destination_filesystem=place.filesystem)


def last_lines(folder: Folder, name: str, number: int) -> list[str]:
    """The last complete lines of a file; empty if there is no such file or storage can't be reached, because nothing depends on them."""
    try:
        if not folder.exists(name):
            return []
        with folder.opened(name) as file:
            size = file.size()
            start = max(0, size - _TAIL_BYTES)
            file.seek(start)
            text = bytes(file.read()).decode(errors="replace")
    except (ArtifactError, StorageError) as error:
        log.warning("%s", error)
        return []
    lines = text.split("\n")[1 if start else 0 :]
    return lines[:-1][-number:]
