"""What training says of itself, a line a step. Knows no torch, so that stages can read it at no cost."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

LOSSES = "losses.jsonl"  # a trainer leaves it in a job's `checkpoints`


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step; the losses are those before it, a token's mean."""

    step: int
    loss: float  # forget_loss + weight * retain_loss
    forget_loss: float
    retain_loss: float | None  # cross-entropy (gd) or KL to the base model (kl); None without a retain term
    lr: float
    grad_norm: float  # before clipping

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def write_records(path: Path, records: Iterable[StepRecord]) -> None:
    path.write_text("".join(f"{record.to_json()}\n" for record in records))


def read_records(path: Path) -> list[StepRecord]:
    return [StepRecord(**json.loads(line)) for line in path.read_text().splitlines()]
