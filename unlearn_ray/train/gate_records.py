"""What the gate of a training sees, and what follows from it: which state is the best, and whether to go on. Pure, and knows no torch: every rank
comes to the same answer from the same figures.

The score of a state is what it keeps less what it still knows:

    score = retain_choice - max(0, (forget_choice - chance) / (1 - chance))

Both kinds of rows are those whose true answer the base model prefers. So it has a score of 0; one that forgets all and keeps all has 1. Without
retain rows, all counts as kept. A forget row's chance is 1 / (1 + its wrong answers): below it, nothing more is forgotten.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import StopWhen

GATE = "gate.jsonl"
SAME = 0.05  # scores that differ by less may be the same


@dataclass(frozen=True, slots=True)
class GateRecord:
    """The held-out rows after so many steps; 0: the base model. Losses are of the true answers, means per token; None: not finite, or no such rows."""

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
        """Those that a logger draws."""
        return {f"gate/{name}": value for name, value in asdict(self).items() if name != "step" and value is not None}


def score_of(forget_choice: float, retain_choice: float | None, chance: float) -> float:
    """As above."""
    still_known = max(0.0, (forget_choice - chance) / (1 - chance))
    return (1.0 if retain_choice is None else retain_choice) - still_known


def is_best(record: GateRecord, before: Sequence[GateRecord], num_rows: int) -> bool:
    """Whether a state is the one to export, of all so far: of those whose score is within one row of the highest, and `SAME` at most, the latest.
    It has learnt longer, and one row more or less is no difference.

    Args:
        num_rows: the fewer of the forget and the retain rows.
    """
    return record.score >= max((each.score for each in before), default=record.score) - min(1 / num_rows, SAME)


def reason_to_stop(stop_when: StopWhen, records: Sequence[GateRecord]) -> str | None:
    """Why a training should end with the last of these; None: it should go on.

    Args:
        records: the base model's first.
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
    """The records of a training that is taken up after `last_step`; those of steps that it does again are left out."""
    if last_step == 0 or not folder.exists(GATE):
        return []
    found = [GateRecord.of_json(line) for line in folder.read_text(GATE).splitlines()]
    return [record for record in found if record.step <= last_step]


def write_gate(folder: Folder, records: Sequence[GateRecord]) -> None:
    folder.write_lines(GATE, (record.to_json() for record in records))


def state_name(step: int) -> str:
    """The file of the weights after so many steps."""
    return f"{Path(GATE).stem}-{step:08d}.pt"
