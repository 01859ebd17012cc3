"""Evaluations of a training's gate, and the decisions from them: the best state, and early stopping. Pure, and without torch: every rank makes the
same decision from the same figures.

The score of a state is what it keeps minus what it still knows:

    score = retain_choice - max(0, (forget_choice - chance) / (1 - chance))

Forget and retain rows are those whose true answer the base model prefers. So the base model scores 0, and a model that forgets all and keeps all
scores 1. Without retain rows, everything counts as kept. Chance is 1 / (1 + number of wrong answers) for a forget row; a choice below chance does not
count as more forgetting.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import StopWhen

GATE = "gate.jsonl"
SAME = 0.05  # smaller differences of scores count as none


@dataclass(frozen=True, slots=True)
class GateRecord:
    """One evaluation of the gate, after `step` steps; 0: the base model. Losses are means per token of the true answers; None: not finite, or no
    such rows."""

    step: int
    forget_loss: float | None
    forget_choice: float  # share of rows whose true answer is likelier per token than each wrong one
    retain_loss: float | None
    retain_choice: float | None
    score: float

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def of_json(cls, line: str) -> "GateRecord":
        return cls(**json.loads(line))

    @property
    def figures(self) -> dict[str, float]:
        """The figures for loggers."""
        return {f"gate/{name}": value for name, value in asdict(self).items() if name != "step" and value is not None}


def score_of(forget_choice: float, retain_choice: float | None, chance: float) -> float:
    """The score in the module's docstring."""
    still_known = max(0.0, (forget_choice - chance) / (1 - chance))
    return (1.0 if retain_choice is None else retain_choice) - still_known


def is_best(record: GateRecord, before: Sequence[GateRecord], num_rows: int) -> bool:
    """Whether this state is better than all before, and should be exported. Of the states whose score is close to the highest (within one row, and
    within `SAME`), the latest counts as the best: it has learnt longer, and one row is not a meaningful difference.

    Args:
        num_rows: the number of forget or of retain rows, whichever is smaller.
    """
    return record.score >= max((each.score for each in before), default=record.score) - min(1 / num_rows, SAME)


def reason_to_stop(stop_when: StopWhen, records: Sequence[GateRecord]) -> str | None:
    """Why a training should stop after the last record; None: it should continue.

    Args:
        records: the record of the base model comes first.
    """
    last = records[-1]
    if stop_when.retain_below is not None and last.retain_choice is not None and last.retain_choice < stop_when.retain_below:  # fmt: skip
        return f"the retain rows' choice is {last.retain_choice:.3f}, below {stop_when.retain_below:g}"
    if stop_when.forget_below is not None and last.forget_choice < stop_when.forget_below:
        return f"the forget rows' choice is {last.forget_choice:.3f}, below {stop_when.forget_below:g}"
    if stop_when.no_gain_for is not None:
        scores = [record.score for record in records]
        num_since = len(scores) - 1 - scores.index(max(scores))
        if num_since >= stop_when.no_gain_for:
            return f"no better score for {num_since} evaluations"
    return None


def read_gate(folder: Folder, last_step: int) -> list[GateRecord]:
    """The records of a training that resumes after `last_step`, without records of steps that will be repeated."""
    if last_step == 0 or not folder.exists(GATE):
        return []
    found = [GateRecord.of_json(line) for line in folder.read_text(GATE).splitlines()]
    return [record for record in found if record.step <= last_step]


def write_gate(folder: Folder, records: Sequence[GateRecord]) -> None:
    folder.write_lines(GATE, (record.to_json() for record in records))


def state_name(step: int) -> str:
    """Name of the file with the weights after `step` steps."""
    return f"{Path(GATE).stem}-{step:08d}.pt"
