"""What a logger is, and what it is opened with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Training:
    """The training that is logged."""

    name: str  # of the model: a topic's slug, or "joint"
    run: str  # equal for a training and the one that takes it up
    first_step: int
    folder: Path  # a local folder for the logger's files
    config: Mapping[str, Any]  # the section `finetune`, as JSON has it


class Logger(Protocol):
    """Gets figures on rank 0 alone. What it raises ends the logging, not the training."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures after a step, from 0; their names have a part before a slash: train/loss, gate/score."""
        ...

    def close(self) -> None:
        """The training has ended, well or badly."""
        ...
