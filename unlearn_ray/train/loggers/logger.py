"""The interface of a logger, and the arguments to open it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Training:
    """The training that is logged."""

    name: str  # of the model: a topic's slug, or "joint"
    run: str  # the same for a training and its resumed training
    first_step: int
    folder: Path  # a local folder for the logger's files
    config: Mapping[str, Any]  # the section `finetune` as JSON values


class Logger(Protocol):
    """Gets figures on rank 0 only. An exception ends this logger, not the training."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Log the figures after a step (from 0). Names have a prefix, as in train/loss and gate/score."""
        ...

    def close(self) -> None:
        """Called when the training has ended, successfully or not."""
        ...
