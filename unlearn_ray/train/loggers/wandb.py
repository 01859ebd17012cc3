"""Weights & Biases. Its own variables say where to and as whom: WANDB_API_KEY, WANDB_PROJECT, WANDB_MODE=offline."""

import os
from collections.abc import Mapping

from unlearn_ray.train.loggers.logger import Training

PROJECT = "unlearn-ray"
_STEP = "step"


class Wandb:
    """Implements `Logger`."""

    def __init__(self, training: Training) -> None:
        import wandb

        # The same id: a training that is taken up goes on in the same run.
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=training.name,
            id=training.run,
            resume="allow",
            dir=str(training.folder),
            config=dict(training.config),
            settings=wandb.Settings(console="off", silent=True),
        )
        # Steps as figures: its own counter takes none that was seen before, such as one that is done again.
        self._run.define_metric("*", step_metric=_STEP)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({**figures, _STEP: step})

    def close(self) -> None:
        self._run.finish()


def open(training: Training) -> Wandb:
    return Wandb(training)
