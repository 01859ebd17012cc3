"""A trainer that trains nothing, for tests of its callers. It counts rows, and writes real folders."""

from collections.abc import Collection, Sequence

from unlearn_ray.engines.protocols import MERGED, TrainJob, TrainResult
from unlearn_ray.errors import EngineError
from unlearn_ray.train.records import LOSSES, StepRecord


class ScriptedTrainer:
    """Implements `protocols.Trainer`.

    Args:
        fail_at: names of jobs that fail.

    `jobs` are the jobs that were trained or tried, without those that an earlier call had finished.
    """

    def __init__(self, *, fail_at: Collection[str] = ()) -> None:
        self._fail_at = fail_at
        self.jobs: list[TrainJob] = []

    def outcomes(self, jobs: Sequence[TrainJob]) -> dict[str, TrainResult | Exception]:
        ended: dict[str, TrainResult | Exception] = {}
        for job in jobs:
            try:
                ended[job.name] = self._train(job)
            except EngineError as error:
                ended[job.name] = error
        return ended

    def _train(self, job: TrainJob) -> TrainResult:
        job.checkpoints.make()
        if not (job.checkpoints.exists(LOSSES) and job.out.exists()):
            self.jobs.append(job)
            self._learn(job)
        return self._result(job)

    def _learn(self, job: TrainJob) -> None:
        if job.name in self._fail_at:
            raise EngineError("the script ends here")
        records = [
            StepRecord(step, 2.0, 1.0, 1.0, job.config.learning_rate, 0.5) for step in range(job.config.num_steps)
        ]
        job.checkpoints.write_lines(LOSSES, (record.to_json() for record in records))
        if not job.config.is_model:
            job.out.write_text("adapter_config.json", "{}")
        for folder in [job.out] if job.config.is_model else [job.out.parent / MERGED] * (job.config.export == "both"):
            folder.write_text("config.json", "{}")

    def _result(self, job: TrainJob) -> TrainResult:
        forget, retain = (
            [row for row in folder.read_rows(["topic", "split"]) if row["split"] == "train" and row["topic"] in topics]
            for folder, topics in ((job.forget, job.topics), (job.retain, (*job.topics, "")))
        )
        return TrainResult(
            name=job.name,
            path=str(job.out),
            num_steps=job.config.num_steps,
            num_forget_rows=len(forget),
            num_retain_rows=len(retain) if job.config.retains else 0,
            final_loss={"forget": 1.0, "retain": 1.0},
            export_loss={"engine": 1.0, "reloaded": 1.0},
            seconds=0.0,
        )
