"""Weights & Biases. Its own environment variables set account, project and mode: WANDB_API_KEY, WANDB_PROJECT, WANDB_MODE=offline."""

import os
from collections.abc import Mapping

from unlearn_ray.train.loggers.logger import Training

PROJECT = "unlearn-ray"
_STEP = "step"


class Wandb:
    """Implements `Logger`."""

    def __init__(self, training: Training) -> None:
        import wandb

        # A fixed id: a resumed training continues the same W&B run.
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=training.name,
            id=training.run,
            resume="allow",
            dir=str(training.folder),
            config=dict(training.config),
            settings=wandb.Settings(console="off", silent=True),
        )
        # The step is a figure: W&B's own counter refuses steps that it has seen, such as repeated ones.
        self._run.define_metric("*", step_metric=_STEP)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({**figures, _STEP: step})

    def close(self) -> None:
        self._run.finish()


def open(training: Training) -> Wandb:
    return Wandb(training)
