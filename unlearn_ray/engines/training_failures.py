"""Which failures of a training are worth another try. Runs in Ray Train's controller, so it imports no torch."""

import errno
import traceback
from typing import Any

from ray.exceptions import RayError
from ray.train import FailureConfig, UserCallback
from ray.train.v2.api.exceptions import ControllerError

from unlearn_ray.errors import EngineError, UnlearnError, gist

_LASTING = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOENT,
}  # fmt: skip
# Errors on the other ranks when one rank is lost. torch has no exception class for all of them.
_CONNECTION = ("gloo", "nccl", "c10d", "connection", "socket", "timed out", "timeout")
_PASSING = ("cuda error", "out of memory")
_STEP = "at step "


def mark(error: Exception, step: int) -> None:
    """Add the step at which an error was raised to the error."""
    error.add_note(f"{_STEP}{step}")


def is_loss(error: Exception) -> bool:
    """Whether an error means that a worker or a node, or the connection to one, was lost."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, RayError | ConnectionError | TimeoutError) or names & {"RayTrainError", "DistError"}:
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _CONNECTION)


def comes_again(error: Exception) -> bool:
    """Whether the same rows and the same config would lead to the same error again."""
    if isinstance(error, UnlearnError | EngineError):
        return True
    if is_loss(error):
        return False
    if isinstance(error, OSError):
        return error.errno in _LASTING
    return not (isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _PASSING))


def borne(max_failures: int) -> FailureConfig:
    """The number of failures that a training may recover from. Announced preemptions are not counted: Ray Train has a separate limit for them, which
    is infinite here."""
    return FailureConfig(max_failures=max_failures, max_preemption_failures=-1)


class NoSecondTry(UserCallback):
    """Ends a training whose error would come again.

    Ray Train 2.60 counts every error of a worker against `max_failures`. Its only way to tell them apart: an error that a callback raises
    counts as the controller's own error, and Ray Train does not retry after that.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._seen: set[tuple[str, str]] = set()

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        errors = [error for _, error in sorted(worker_exceptions.items())]
        ours = [error for error in errors if isinstance(error, UnlearnError | EngineError)]
        final: list[Exception] = [*ours] or (
            [] if any(map(is_loss, errors)) else [error for error in errors if self._is_final(error)]
        )
        if not final:
            return
        error = final[0]
        if not ours:
            error = EngineError(f"the training of {self._name} failed: {in_a_line(error)}")
        raise ControllerError(error)

    def _is_final(self, error: Exception) -> bool:
        """Whether the error would come again, or was already raised at this step in an earlier try."""
        notes = [note for note in getattr(error, "__notes__", ()) if note.startswith(_STEP)]
        sign = (type(error).__name__, notes[-1] if notes else "")
        came_before = sign in self._seen
        self._seen.add(sign)
        return came_before or comes_again(error)


def in_a_line(error: BaseException) -> str:
    """An error in one line, with its class if the text alone does not explain it."""
    text = "".join(traceback.format_exception_only(error))
    return gist(text.removeprefix(f"{type(error).__module__}."), 500)


def cause(name: str, error: Exception) -> Exception:
    """The cause of a training's failure: an error of ours, or an EngineError that names the training."""
    found = list(getattr(error, "worker_failures", {}).values()) or [getattr(error, "controller_failure", error)]
    causes = [getattr(failure, "_base_exc", failure) for failure in found]
    for each in causes:
        if isinstance(each, UnlearnError | EngineError):
            return each
    # When one rank fails, the others lose their connection to it. Their errors are not the cause.
    shown = next((each for each in causes if not is_loss(each)), causes[0])
    failed = EngineError(f"the training of {name} failed: {in_a_line(shown)}")
    failed.__cause__ = error
    return failed
