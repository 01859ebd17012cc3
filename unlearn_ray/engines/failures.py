"""Failures of engines: their messages, and whether two failures are of the same kind."""

import os
import re
import traceback
from dataclasses import dataclass
from pathlib import Path

from ray.exceptions import RayError, RayTaskError

from unlearn_ray.errors import EngineError, StorageError, UnlearnError, gist

LASTING = (
    UnlearnError,
    TypeError,
    ValueError,
    KeyError,
    AttributeError,
    NotImplementedError,
)  # errors that every further try would raise again


_LENGTH = 500  # characters of an error's text in a message
_TAIL_BYTES = 2**18
_CAUSE = re.compile(r"\b(?:[a-z_]\w*\.)*[A-Z]\w*(?:Error|Exception)\b: .+")
_POINTS_ELSEWHERE = re.compile(
    r"root cause (?:above|in)|for the root cause|EngineDeadError|Engine core initialization failed"
)


class BatchError(EngineError):
    """Requests that fail before they reach the engine, or when its answer is read. The engine goes on."""


@dataclass(frozen=True, slots=True)
class Death:
    """An engine that died under a batch."""

    reason: str
    is_failure: bool  # the engine raised an error; False: its process or node was lost, perhaps not by the batch


def plain(error: Exception) -> Exception:
    """The reason for a failure in an actor or task, without Ray's wrapping."""
    cause: Exception = error
    while isinstance(cause, RayTaskError) and isinstance(cause.cause, Exception):
        cause = cause.cause
    if isinstance(cause, RayError):
        return EngineError(why_lost(cause))
    if isinstance(cause, UnlearnError | EngineError) and "\n" in str(cause):
        return type(cause)(gist(cause, _LENGTH))
    return cause


def portable(error: Exception, what: str) -> Exception:
    """An error of a task, in a form that survives pickling on the way to the driver. An exception class of others, with arguments of its own,
    may turn into another error or fail to unpickle.

    Args:
        what: the failure, as text, for the message of such an error.
    """
    return (
        error if isinstance(error, UnlearnError | EngineError | StorageError) else EngineError(f"{what}: {told(error)}")
    )


def told(error: BaseException) -> str:
    """An error's class and text, and the place in this package that raised it, if known."""
    text = gist(error, _LENGTH)
    if isinstance(error, UnlearnError | EngineError):
        return text
    package = Path(__file__).parents[1]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if package in Path(frame.filename).parents]
    place = f" ({Path(frames[-1].filename).relative_to(package.parent)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}"


def why_lost(error: Exception) -> str:
    """The reason in Ray's many lines about a lost actor."""
    text = " ".join(str(error).split())
    return gist(re.sub(r"^.*?(?=The actor (is dead|died) because|[Tt]he actor's node|its node)", "", text), _LENGTH)


def root_cause(error: BaseException, written: Path | None = None) -> str:
    """The text of an error of vLLM. On a GPU its engine runs in a process of its own, and the error only points to that process's output.
    Then this is the last error in that output.

    Args:
        written: the file with this process's standard error. None: the file that Ray gives each worker.
    """
    text = gist(error, _LENGTH)
    if not _POINTS_ELSEWHERE.search(text):
        return text
    path = written or Path(os.readlink("/proc/self/fd/2"))
    if not path.is_file():
        return text
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    causes = [found[0] for line in lines if (found := _CAUSE.search(line)) and not _POINTS_ELSEWHERE.search(found[0])]
    return gist(causes[-1], _LENGTH) if causes else text


def kind_of(failure: Exception | str) -> str:
    """A failure's text without the parts that differ each time: numbers, addresses, ids."""
    return re.sub(r"[0-9a-f]*\d[0-9a-f.]*", "#", failure if isinstance(failure, str) else told(failure))
