"""What a worker shows of a training while it runs: its metrics, its loggers and the driver's progress line. Nothing but rank 0's does anything."""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from unlearn_ray.engines.training_job import Assignment
from unlearn_ray.train.batches import Batches
from unlearn_ray.train.loggers.logger import Training
from unlearn_ray.train.loggers.table import chosen
from unlearn_ray.train.recorder import Recorder
from unlearn_ray.train.records import StepRecord

log = logging.getLogger(__name__)


class Show(ExitStack):
    """Use as a context manager.

    Raises:
        ConfigError: a logger is not installed here, or can't begin.
    """

    def __init__(self, assignment: Assignment, runtime: Any, batches: Batches, first_step: int, scratch: Path) -> None:
        super().__init__()
        self._job, self._progress = assignment.job, assignment.progress
        self._recorder: Recorder | None = None
        if runtime.rank == 0:
            job = assignment.job
            training = Training(
                job.name, assignment.run, first_step, scratch, job.config.model_dump(mode="json", exclude={"loggers"})
            )
            recorder = Recorder(
                job.watched,
                scratch / "loggers",
                chosen(job.config.loggers),
                training,
                job.config.num_steps,
                lambda step: sum(row.num_tokens for row in batches.placed(step)),
                runtime.device,
            )
            self._recorder = self.enter_context(recorder)

    def see(self, record: StepRecord) -> None:
        """A step has ended."""
        if self._recorder is None:
            return
        found = self._recorder.see(record)
        log.info("%s: %s", self._job.name, found.line)
        if self._progress is not None:
            self._progress.put.remote(self._job.name, record.step + 1, self._job.config.num_steps, found.speed)

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Further figures after a step."""
        if self._recorder is not None:
            self._recorder.log(step, figures)

    def begin(self) -> None:
        """The next step begins."""
        if self._recorder is not None:
            self._recorder.begin()
