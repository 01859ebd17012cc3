"""metrics.jsonl: figures of each step of a running training, and their text in one line. Does not import torch.

It has times, speed and memory. losses.jsonl has none, so it is the same for a resumed and an uninterrupted training.
"""

import json
from dataclasses import asdict, dataclass, fields

from unlearn_ray.artifacts import Folder
from unlearn_ray.train.growing import last_lines

METRICS = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One optimizer step. Losses are as in `records.StepRecord`; None: not finite, or no such term."""

    step: int  # from 0
    num_steps: int
    loss: float | None
    forget_loss: float | None
    retain_loss: float | None
    lr: float
    grad_norm: float | None
    skipped: bool  # the gradient was not finite, so the weights did not change
    tokens: int  # of the step's rows over all workers, with questions, without padding
    tokens_per_second: float
    seconds: float  # of the step itself, without checkpoints and gate evaluations
    memory_gib: float  # peak so far on rank 0: of its GPU, or of its process on a CPU
    at: float  # seconds since 1970

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)

    @property
    def figures(self) -> dict[str, float]:
        """The figures for loggers."""
        values = {name: value for name, value in asdict(self).items() if name not in ("step", "num_steps", "at")}
        return {f"train/{name}": float(value) for name, value in values.items() if value is not None}

    @property
    def speed(self) -> str:
        """Loss and speed, for a progress bar."""
        loss = "not finite" if self.loss is None else f"{self.loss:.3g}"
        return f"loss {loss}, {self.tokens_per_second:,.0f} tokens/s"

    @property
    def line(self) -> str:
        """All figures in one line."""
        parts = [f"step {self.step + 1}/{self.num_steps}", self.speed]
        for name, value in (("forget", self.forget_loss), ("retain", self.retain_loss), ("gradient norm", self.grad_norm)):  # fmt: skip
            if value is not None:
                parts.append(f"{name} {value:.3g}")
        parts += [f"learning rate {self.lr:.3g}", f"{self.seconds:.2f} s", f"{self.memory_gib:.1f} GiB"]
        return ", ".join(parts + (["skipped"] if self.skipped else []))


def read_last(folder: Folder) -> StepMetrics | None:
    """The last step in a folder's metrics; None if there is none."""
    for line in reversed(last_lines(folder, METRICS, 2)):
        if (found := _read(line)) is not None:
            return found
    return None


def lines_before(folder: Folder, first_step: int) -> list[str]:
    """The lines of steps before `first_step`, which a resumed training keeps. Lines of repeated steps are left out."""
    if first_step == 0 or not folder.exists(METRICS):
        return []
    read = ((line, _read(line)) for line in folder.read_text(METRICS).splitlines())
    return [line for line, found in read if found is not None and found.step < first_step]


def _read(line: str) -> StepMetrics | None:
    """One line; None if it is cut off, as on a full disk."""
    try:
        values = json.loads(line)
        return StepMetrics(**{each.name: values[each.name] for each in fields(StepMetrics)})
    except (ValueError, KeyError, TypeError):
        return None
