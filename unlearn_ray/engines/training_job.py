"""The assignment of a training job, and its progress reports. Light: the driver and Ray Train's own actors pass it on without the many
seconds that importing transformers, PEFT and DeepSpeed takes."""

from dataclasses import dataclass
from typing import Any, Literal

from ray.actor import ActorHandle

from unlearn_ray.config import WorkerResources
from unlearn_ray.engines.protocols import TrainJob
from unlearn_ray.errors import ConfigError

RESULT = "result.json"  # in a job's checkpoints once its export is there


@dataclass(frozen=True, slots=True)
class Assignment:
    """All that a worker is told."""

    job: TrainJob
    workers: WorkerResources
    run: str  # names the training: same rows, same config
    scratch: str  # a folder's name, below each node's temporary folder, that no other training has
    device: Literal["cpu", "cuda"]
    progress: ActorHandle | None


def work(loop_config: dict[str, Any]) -> None:
    """The train function of Ray Train, on a worker."""
    from unlearn_ray.engines import training_worker

    training_worker.work(loop_config)


def check_workers(workers: WorkerResources) -> None:
    """Refuse what ZeRO can't do.

    Raises:
        ConfigError: the offload needs a higher stage.
    """
    needed = {"none": 0, "optimizer": 1, "all": 3}[workers.offload]
    if workers.zero_stage < needed:
        raise ConfigError(
            f"cluster.workers.offload: {workers.offload} needs zero_stage {needed} or more (it is {workers.zero_stage})"
        )


class Progress:
    """An actor that remembers how far each job is."""

    def __init__(self) -> None:
        self._steps: dict[str, tuple[int, int, str]] = {}

    def put(self, name: str, step: int, num_steps: int, speed: str) -> None:
        self._steps[name] = (step, num_steps, speed)

    def take(self) -> dict[str, tuple[int, int, str]]:
        """What is new since the last call."""
        steps, self._steps = self._steps, {}
        return steps
