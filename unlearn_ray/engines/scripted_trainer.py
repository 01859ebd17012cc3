"""A trainer that trains nothing, for tests of what stands around it: rows are counted, and the folders it leaves are real."""

from collections.abc import Sequence

from unlearn_ray.engines.protocols import TrainJob, TrainResult
from unlearn_ray.errors import EngineError
from unlearn_ray.train.records import LOSSES, StepRecord


class ScriptedTrainer:
    """Implements `protocols.Trainer`.

    Args:
        fail_at: name of a job that fails, after those before it are finished.
    """

    def __init__(self, *, fail_at: str | None = None) -> None:
        self._fail_at = fail_at
        self.jobs: list[TrainJob] = []

    def train(self, jobs: Sequence[TrainJob]) -> list[TrainResult]:
        return [self._train(job) for job in jobs]

    def _train(self, job: TrainJob) -> TrainResult:
        self.jobs.append(job)
        job.checkpoints.make()
        if job.name == self._fail_at:
            raise EngineError(f"{job.name}: the script ends here")
        records = [
            StepRecord(step, 2.0, 1.0, 1.0, job.config.learning_rate, 0.5) for step in range(job.config.num_steps)
        ]
        job.checkpoints.write_lines(LOSSES, (record.to_json() for record in records))
        job.out.write_text("adapter_config.json", "{}")
        forget, retain = (
            [row for row in folder.read_rows(["topic", "split"]) if row["split"] == "train" and row["topic"] in topics]
            for folder, topics in ((job.forget, job.topics), (job.retain, (*job.topics, "")))
        )
        return TrainResult(
            name=job.name,
            path=str(job.out),
            num_steps=job.config.num_steps,
            num_forget_rows=len(forget),
            num_retain_rows=len(retain) if job.config.retain.kind != "none" else 0,
            final_loss={"forget": 1.0, "retain": 1.0},
            export_loss={"engine": 1.0, "reloaded": 1.0},
            seconds=0.0,
        )
