"""A lease on a folder in an object store, which has no locks: one small object per driver, renewed while the driver lives.

If two drivers begin at the same moment, each writes its own object, waits until the other's would be visible, and lists them. A driver that
already holds the folder keeps it. Otherwise the driver whose object's name sorts first gets it, and the others delete their objects. The
storage must list an object once it is written, as S3 and Google's do. Ages are measured by the storage's clock, because machines' clocks
differ.
"""

import fcntl
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from pyarrow import fs

from unlearn_ray.artifacts import Folder
from unlearn_ray.errors import ArtifactError

log = logging.getLogger(__name__)

SECONDS_BETWEEN_BEATS = 10.0
SECONDS_TO_DIE = 60.0  # without renewal, after which a driver counts as dead
_SECONDS_BETWEEN_TRIES = 1.0
_SECONDS_TO_SETTLE = 2.0  # longer than a write takes
_CANDIDATE, _HOLDER = "candidate", "holder"


@dataclass(frozen=True, slots=True)
class _Entry:
    """A driver's object."""

    name: str
    written: float  # seconds, by the storage's clock
    is_holder: bool
    owner: str


class HeldError(ArtifactError):
    """Another driver holds the folder."""


@contextmanager
def in_turn(folder: Folder, name: str, is_over: Callable[[], bool]) -> Iterator[None]:
    """Hold a part of a folder to which several drivers write in turn: by a locked file on a disk, or by leases in an object store.

    Args:
        name: the part's name.
        is_over: asked while another driver holds the part. If it returns True, nothing is held, and the caller must not write.
    """
    lock, said = folder / f"{name}.lock", False
    with ExitStack() as stack:
        while not is_over():
            try:
                stack.enter_context(_locked(lock) if folder.is_local else leased(lock))
                break
            except HeldError as error:
                if not said:
                    said = True
                    log.info("%s: %s", lock, error)
                time.sleep(_SECONDS_BETWEEN_TRIES)
        yield


@contextmanager
def _locked(file: Folder) -> Iterator[None]:
    file.parent.make()
    with open(file.local, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HeldError(f"{file.parent} is being written by another run") from error
        yield


@contextmanager
def leased(folder: Folder, on_wait: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Hold a remote folder. `folder` is for the lease's objects only.

    Args:
        on_wait: called with the length of the wait, as text, if another driver may be dead.

    Raises:
        ArtifactError: another driver holds the folder, or took it over because this one did not renew its lease in time.
    """
    lease = _Lease(folder)
    lease.acquire(on_wait)
    ended = threading.Event()
    beats = threading.Thread(target=lease.keep, args=(ended,), name="lease", daemon=True)
    beats.start()
    try:
        yield
    except KeyboardInterrupt as error:
        if lease.is_lost:
            raise ArtifactError(
                f"{folder.parent} was taken over by another run: this one did not renew its lease"
            ) from error
        raise
    finally:
        ended.set()
        beats.join()
        lease.release()


class _Lease:
    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._name = f"{time.time_ns():020d}-{uuid.uuid4().hex}.json"
        self._owner = f"{socket.gethostname()}, process {os.getpid()}"
        self.is_lost = False

    def acquire(self, on_wait: Callable[[str], None]) -> None:
        self._write(_CANDIDATE)
        try:
            self._outlast(on_wait)
            self._write(_HOLDER)
            # A write took longer than the others waited. The driver whose name sorts first goes on.
            self._give_way([entry for entry in self._others() if entry.is_holder and entry.name < self._name])
        except BaseException:
            self.release()
            raise

    def _outlast(self, on_wait: Callable[[str], None]) -> None:
        """Return once no other driver can hold the folder. A driver that does not renew its lease for long enough counts as dead."""
        began = time.monotonic()
        time.sleep(_SECONDS_TO_SETTLE)
        first = {entry.name: entry for entry in self._others()}
        said = False
        while True:
            self._write(_CANDIDATE)
            now = self._now()
            others = self._others()
            before = [entry for entry in others if entry.is_holder or entry.name < self._name]
            # Drivers that wrote during this wait are alive.
            self._give_way([entry for entry in before if first.get(entry.name) != entry])
            living = [entry for entry in before if now - entry.written <= SECONDS_TO_DIE]
            if not living:
                for entry in before:
                    log.warning("%s was left by %s, which no longer renews its lease", self._folder.parent, entry.owner)
                    self._delete(entry.name)
                return
            if time.monotonic() - began > 2 * SECONDS_TO_DIE:  # a driver that restarts again and again
                self._give_way(living)
            if not said:
                said = True
                left = max(SECONDS_TO_DIE - (now - entry.written) for entry in living)
                on_wait(
                    f"{self._folder.parent} was last written by {living[0].owner}: waiting up to {left:.0f} s to see whether it is alive"
                )
            time.sleep(1.0)

    def _give_way(self, others: list[_Entry]) -> None:
        if others:
            raise HeldError(
                f"{self._folder.parent} is being written by another run ({others[0].owner}): wait for it, or give this one another name"
            )

    def keep(self, ended: threading.Event) -> None:
        """Renew the lease until the end. If it was taken over, this process ends, because two drivers would write the same files."""
        while not ended.wait(SECONDS_BETWEEN_BEATS):
            try:
                if not self._folder.exists(self._name):
                    self.is_lost = True
                    log.error("%s was taken over by another run", self._folder.parent)
                    # A cluster stops a job in the same way. A real signal also wakes a main thread that waits in the kernel.
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                    return
                self._write(_HOLDER)
            except (OSError, ArtifactError) as error:
                log.warning("the lease on %s can't be renewed: %s", self._folder.parent, error)

    def release(self) -> None:
        try:
            self._delete(self._name)
        except OSError as error:
            log.warning("the lease on %s stays for %d s: %s", self._folder.parent, SECONDS_TO_DIE, error)

    def _write(self, state: str) -> None:
        self._folder.write_text(self._name, json.dumps({"state": state, "owner": self._owner}))

    def _delete(self, name: str) -> None:
        filesystem, path = self._folder.filesystem, self._folder.path
        if filesystem.get_file_info(f"{path}/{name}").type == fs.FileType.File:
            filesystem.delete_file(f"{path}/{name}")

    def _now(self) -> float:
        """The time by the storage's clock: the time of our own object, which was just written."""
        return self._written(self._name) or time.time()

    def _written(self, name: str) -> float | None:
        info = self._folder.filesystem.get_file_info(f"{self._folder.path}/{name}")
        return info.mtime_ns / 1e9 if info.type == fs.FileType.File and info.mtime_ns else None

    def _others(self) -> list[_Entry]:
        found = []
        for name in self._folder.names(".json"):
            if name == self._name or (written := self._written(name)) is None:
                continue
            try:
                content = json.loads(self._folder.read_text(name))
                found.append(_Entry(name, written, content["state"] == _HOLDER, content["owner"]))
            except (OSError, ValueError, KeyError) as error:  # the object was deleted between list and read
                log.info("%s/%s can't be read: %s", self._folder, name, error)
        return sorted(found, key=lambda entry: (not entry.is_holder, entry.name))
