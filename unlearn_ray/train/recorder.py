"""Records a running training: writes metrics.jsonl, and feeds the loggers. On rank 0 only."""

import logging
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from unlearn_ray.artifacts import Folder
from unlearn_ray.train.growing import Lines, Mirror
from unlearn_ray.train.loggers.logger import Logger, Training
from unlearn_ray.train.loggers.table import opened
from unlearn_ray.train.metrics import METRICS, StepMetrics, lines_before
from unlearn_ray.train.records import StepRecord

log = logging.getLogger(__name__)


class Recorder:
    """Use as a context manager.

    Args:
        folder: gets metrics.jsonl, and a folder per logger.
        scratch: a local folder for the loggers' files, if `folder` is in an object store.
        num_tokens: gives the tokens of a step's rows, over all workers.

    Raises:
        ConfigError: a logger can't start.
    """

    def __init__(
        self,
        folder: Folder,
        scratch: Path,
        loggers: Sequence[str],
        training: Training,
        num_steps: int,
        num_tokens: Callable[[int], int],
        device: torch.device,
    ) -> None:
        self._num_steps, self._num_tokens, self._device = num_steps, num_tokens, device
        self._lines = Lines(folder, METRICS, lines_before(folder, training.first_step))
        self._loggers: dict[str, Logger] = {}
        self._mirrors: list[Mirror] = []
        for name in loggers:
            place = folder.local / name if folder.is_local else scratch / name
            if not folder.is_local:
                self._mirrors.append(Mirror(place, folder / name))
            about = Training(training.name, training.run, training.first_step, place, training.config)
            self._loggers[name] = opened(name, about)
        self._began = time.monotonic()

    def __enter__(self) -> "Recorder":
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._each(lambda logger: logger.close())
        for mirror in self._mirrors:
            mirror.sync(now=True)

    def begin(self) -> None:
        """Start the time of a step."""
        self._began = time.monotonic()

    def see(self, record: StepRecord) -> StepMetrics:
        """Record a finished step."""
        seconds, num_tokens = time.monotonic() - self._began, self._num_tokens(record.step)
        found = StepMetrics(
            record.step,
            self._num_steps,
            record.loss,
            record.forget_loss,
            record.retain_loss,
            record.lr,
            record.grad_norm,
            record.is_skipped,
            num_tokens,
            round(num_tokens / max(seconds, 1e-9), 1),
            round(seconds, 4),
            round(_peak_bytes(self._device) / 2**30, 3),
            round(time.time(), 3),
        )
        self._lines.add(found.to_json())
        self.log(record.step, found.figures)
        return found

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Pass figures to the loggers."""
        self._each(lambda logger: logger.log(step, figures))
        for mirror in self._mirrors:
            mirror.sync()

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                call(logger)
            except Exception as error:  # each library has its own errors; none may end a training
                log.warning("%s gets no further figures: %s", name, error)
                del self._loggers[name]


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
