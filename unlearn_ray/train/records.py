"""What training says of itself, a line a step. Knows no torch, so that stages can read it at no cost."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

LOSSES = "losses.jsonl"  # a trainer leaves it in a job's `checkpoints`


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step; the losses are those before it, means per token or, as some objectives are taken, per answer. A figure that is not finite is None: JSON can't hold it."""

    step: int
    loss: float | None  # forget_loss + weight * retain_loss
    forget_loss: float | None
    retain_loss: float | None  # cross-entropy (gd) or KL to the base model (kl); None without a retain term
    lr: float
    grad_norm: float | None  # before clipping; None: not finite, and the step was skipped

    @property
    def is_skipped(self) -> bool:
        """The weights stayed as they were."""
        return self.grad_norm is None

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)


def finite(value: float) -> float | None:
    """The value, or None in place of NaN and the infinities."""
    return value if math.isfinite(value) else None


def write_records(path: Path, records: Iterable[StepRecord]) -> None:
    path.write_text("".join(f"{record.to_json()}\n" for record in records))


def read_records(path: Path) -> list[StepRecord]:
    return [StepRecord(**json.loads(line)) for line in path.read_text().splitlines()]
