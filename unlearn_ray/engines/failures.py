"""Failures of engines: what is told of them, and how two are known to be the same."""

import re
import traceback
from dataclasses import dataclass
from pathlib import Path

from ray.exceptions import RayError, RayTaskError

from unlearn_ray.errors import EngineError, UnlearnError

LASTING = (
    UnlearnError,
    TypeError,
    ValueError,
    KeyError,
    AttributeError,
    NotImplementedError,
)  # come again if tried again


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
        return EngineError(gist(cause))
    if isinstance(cause, UnlearnError | EngineError) and "\n" in str(cause):
        return type(cause)(" ".join(str(cause).split())[:500])
    return cause


def told(error: BaseException) -> str:
    """An error's kind and text, and where in this package it came from, as far as that is known."""
    text = " ".join(str(error).split())[:500]
    if isinstance(error, UnlearnError | EngineError):
        return text
    package = Path(__file__).parents[1]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if package in Path(frame.filename).parents]
    place = f" ({Path(frames[-1].filename).relative_to(package.parent)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}"


def gist(error: Exception) -> str:
    """Of Ray's many lines about a lost actor those that say why."""
    text = " ".join(str(error).split())
    return re.sub(r"^.*?(?=The actor (is dead|died) because|[Tt]he actor's node|its node)", "", text)[:400]


def kind_of(failure: Exception | str) -> str:
    """A failure without what differs from one time to the next: numbers, addresses, ids."""
    return re.sub(r"[0-9a-f]*\d[0-9a-f.]*", "#", failure if isinstance(failure, str) else told(failure))
