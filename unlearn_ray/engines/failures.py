"""Failures of engines: what is told of them, and how two are known to be the same."""

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
)  # come again if tried again


_LENGTH = 500  # of what is told of an error
_TAIL_BYTES = 2**18
_CAUSE = re.compile(r"\b(?:[a-z_]\w*\.)*[A-Z]\w*(?:Error|Exception)\b: .+")
_POINTS_ELSEWHERE = re.compile(
    r"root cause (?:above|in)|for the root cause|EngineDeadError|Engine core initialization failed"
)


class BatchError(EngineError):
    """Requests that raise while they are made ready for the engine, or its answer is read. The engine lives on."""


@dataclass(frozen=True, slots=True)
class Death:
    """An engine that died under a batch."""

    reason: str
    is_failure: bool  # it raised; else its process or node was lost, which may be no fault of the batch


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
    """An error of a task, in a form that survives the way to the driver: one of others' with arguments of its own is another one, or none,
    where it is unpacked.

    Args:
        what: failed, as a person is told of others' errors.
    """
    return (
        error if isinstance(error, UnlearnError | EngineError | StorageError) else EngineError(f"{what}: {told(error)}")
    )


def told(error: BaseException) -> str:
    """An error's kind and text, and where in this package it came from, as far as that is known."""
    text = gist(error, _LENGTH)
    if isinstance(error, UnlearnError | EngineError):
        return text
    package = Path(__file__).parents[1]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if package in Path(frame.filename).parents]
    place = f" ({Path(frames[-1].filename).relative_to(package.parent)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}"


def why_lost(error: Exception) -> str:
    """Of Ray's many lines about a lost actor those that say why."""
    text = " ".join(str(error).split())
    return gist(re.sub(r"^.*?(?=The actor (is dead|died) because|[Tt]he actor's node|its node)", "", text), _LENGTH)


def root_cause(error: BaseException, written: Path | None = None) -> str:
    """What an error of vLLM says. On a GPU its engine is a process of its own, and the error only points to what that one wrote: then the
    last error there.

    Args:
        written: where this process's standard error goes; None: found out, as Ray gives each worker a file.
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
    """A failure without what differs from one time to the next: numbers, addresses, ids."""
    return re.sub(r"[0-9a-f]*\d[0-9a-f.]*", "#", failure if isinstance(failure, str) else told(failure))
