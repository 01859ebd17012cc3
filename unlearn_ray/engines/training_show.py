"""Reports a running training: metrics, loggers and the driver's progress line. Only rank 0 reports."""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from unlearn_ray.engines.protocols import TrainJob
from unlearn_ray.engines.training_job import Assignment
from unlearn_ray.rows import digest
from unlearn_ray.train.batches import Batches
from unlearn_ray.train.loggers.logger import Training
from unlearn_ray.train.loggers.table import chosen
from unlearn_ray.train.recorder import Recorder
from unlearn_ray.train.records import StepRecord

log = logging.getLogger(__name__)


def logged_name(job: TrainJob, run: str) -> str:
    """The id of a training in the loggers' own servers. Equal trainings of two runs, in two folders, have two; a resumed one has the same again."""
    return f"{run}-{digest(job.out)[:8]}"


class Show(ExitStack):
    """Use as a context manager.

    Raises:
        ConfigError: a logger is not installed on this machine, or can't start.
    """

    def __init__(self, assignment: Assignment, runtime: Any, batches: Batches, first_step: int, scratch: Path) -> None:
        super().__init__()
        self._job, self._progress = assignment.job, assignment.progress
        self._recorder: Recorder | None = None
        if runtime.rank == 0:
            job = assignment.job
            training = Training(
                job.name,
                logged_name(job, assignment.run),
                first_step,
                scratch,
                job.config.model_dump(mode="json", exclude={"loggers"}),
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
        """Report a finished step."""
        if self._recorder is None:
            return
        found = self._recorder.see(record)
        log.info("%s: %s", self._job.name, found.line)
        if self._progress is not None:
            self._progress.put.remote(self._job.name, record.step + 1, self._job.config.num_steps, found.speed)

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Report further figures after a step."""
        if self._recorder is not None:
            self._recorder.log(step, figures)

    def begin(self) -> None:
        """Start timing the next step."""
        if self._recorder is not None:
            self._recorder.begin()
