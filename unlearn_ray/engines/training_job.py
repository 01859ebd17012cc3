"""The assignment of a training job, and its progress reports. It imports no transformers, PEFT or DeepSpeed, which takes many seconds: the
driver and Ray Train's own actors only pass it on."""

from dataclasses import dataclass
from typing import Any, Literal

from ray.actor import ActorHandle

from unlearn_ray.config import WorkerResources
from unlearn_ray.engines.protocols import TrainJob
from unlearn_ray.errors import ConfigError

RESULT = "result.json"  # in a job's checkpoints, written after its export


@dataclass(frozen=True, slots=True)
class Assignment:
    """All inputs of a worker."""

    job: TrainJob
    workers: WorkerResources
    run: str  # name of the training: the same for the same rows and config
    scratch: str  # name of a folder in each node's temporary folder, unique to this training
    device: Literal["cpu", "cuda"]
    progress: ActorHandle | None


def work(loop_config: dict[str, Any]) -> None:
    """The train function of Ray Train, on a worker."""
    from unlearn_ray.engines import training_worker

    training_worker.work(loop_config)


def check_workers(workers: WorkerResources) -> None:
    """Refuse settings that ZeRO does not support.

    Raises:
        ConfigError: the offload needs a higher ZeRO stage.
    """
    needed = {"none": 0, "optimizer": 1, "all": 3}[workers.offload]
    if workers.zero_stage < needed:
        raise ConfigError(
            f"cluster.workers.offload: {workers.offload} needs zero_stage {needed} or more (it is {workers.zero_stage})"
        )


class Progress:
    """An actor that keeps each job's progress."""

    def __init__(self) -> None:
        self._steps: dict[str, tuple[int, int, str]] = {}

    def put(self, name: str, step: int, num_steps: int, speed: str) -> None:
        self._steps[name] = (step, num_steps, speed)

    def take(self) -> dict[str, tuple[int, int, str]]:
        """The progress since the last call."""
        steps, self._steps = self._steps, {}
        return steps
