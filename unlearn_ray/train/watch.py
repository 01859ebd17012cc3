"""Whether a training goes well. A pure function of what its steps and its check say; every rank comes to the same answer.

A training lowers its loss: one that ends above where it began is refused, whatever the reason. Along the way, only what no training
recovers from ends it at once. The thresholds and what they were measured on: docs/decisions/divergence.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from unlearn_ray.config import FinetuneConfig
from unlearn_ray.errors import DivergenceError
from unlearn_ray.train.records import StepRecord

MAX_IN_A_ROW = 3  # steps skipped, or with a gradient of zero
GUESSING_STEPS = 5  # in a row with a loss at or above that of guessing
LOST_STEPS = 10  # in a row with a loss far above the first one; 5 % of the steps if those are more
FAR_FACTOR, FAR_NATS = 3.0, 2.0  # far above: factor times the first loss, and so many nats
FORGET_FACTOR, FORGET_NATS = 1.1, 0.1  # how far the forget rows' loss may end above the base model's: rounding
RETAIN_NATS = 2.0  # how far the retain rows' loss may: seven times the perplexity
_SAME = 1e-3  # as a share: the tokenizer may know a few words less than the model
_DEAD_LOSS = 1e-3  # below it a gradient of zero means that all is learnt


@dataclass(frozen=True, slots=True)
class CheckLosses:
    """Mean cross-entropy of the check's rows, forget and retain apart; None without retain rows."""

    forget: float
    retain: float | None
    lowers: bool = False  # the forget rows' answers are to become unlikely: their loss may rise

    def fault(self, base: "CheckLosses", guessing: float) -> str | None:
        """What is wrong with a model whose base model had the losses of `base`; None for a sound one.

        Args:
            guessing: the loss of equal probabilities, which a dead model gives to every row.
        """
        if all(abs(loss - guessing) < _SAME * guessing for loss in (self.forget, self.retain) if loss is not None):
            return f"the loss of its rows is that of guessing, {guessing:.4g}"
        highest = math.inf if self.lowers else FORGET_FACTOR * base.forget + FORGET_NATS
        pairs = [("forget", self.forget, base.forget, highest)]
        if self.retain is not None and base.retain is not None:
            pairs.append(("retain", self.retain, base.retain, base.retain + RETAIN_NATS))
        for name, loss, before, limit in pairs:
            if not loss <= limit:  # NaN as well
                return f"the loss of its {name} rows is {loss:.4g} and was {before:.4g} before"
        return None


def _far_above(first: float) -> float:
    """Of a loss that may be negative, as that of gradient ascent is."""
    return first + (FAR_FACTOR - 1) * abs(first) + FAR_NATS


class Watch:
    """Looks at the steps of one training.

    Args:
        vocab_size: the loss of guessing is its logarithm.
        records: of the steps that a resumed training has behind it.
    """

    def __init__(self, name: str, config: FinetuneConfig, vocab_size: int, records: Sequence[StepRecord] = ()) -> None:
        self._name, self._config = name, config
        self.kept = ""  # of its state: the end of a sentence
        self.guessing = math.log(vocab_size)
        self._patience = max(LOST_STEPS, config.num_steps // 20)
        self._first: StepRecord | None = None
        self.num_skipped = 0
        self._in_a_row = {"skipped": 0, "dead": 0, "guessing": 0, "lost": 0}
        for record in records:
            self._count(record)

    def see(self, record: StepRecord) -> None:
        """Count a step.

        Raises:
            DivergenceError: the training can't recover from what it shows.
        """
        self._count(record)
        if fault := self._fault(record):
            norm = "not finite" if record.grad_norm is None else f"{record.grad_norm:.4g}"
            loss = "not finite" if record.loss is None else f"{record.loss:.4g}"
            self._refuse(
                f"diverged at step {record.step}: {fault} (loss {loss}, gradient norm {norm}, {self.num_skipped} steps skipped)",
                is_base=self._first is record and record.loss is None,
            )

    def judge(self, step: int, losses: CheckLosses, base: CheckLosses) -> None:
        """Whether what was learnt by the end of `step` may be exported.

        Raises:
            DivergenceError: the model is worse at what it was trained on than before, or most steps were skipped.
        """
        if 2 * self.num_skipped > step + 1:
            self._refuse(
                f"went wrong by step {step}: {self.num_skipped} of {step + 1} steps were skipped, their gradient was not finite"
            )
        if fault := losses.fault(base, self.guessing):
            self._refuse(f"went wrong by step {step}: {fault} ({self.num_skipped} steps skipped)")

    def refuse_weights(self, step: int, weight: str) -> None:
        """Raises DivergenceError: a weight is not finite."""
        self._refuse(f"went wrong by step {step}: {weight} holds values that are not finite")

    def _refuse(self, what: str, is_base: bool = False) -> None:
        config = self._config
        if is_base:
            advice = "the model itself, before any step, has no finite loss: set finetune.precision: fp32, or use another model"
        else:
            ways = [f"lower finetune.learning_rate (it is {config.learning_rate:g})"]
            if config.max_grad_norm > 1:
                ways.append(f"finetune.max_grad_norm (it is {config.max_grad_norm:g})")
            ways.append(f"or raise finetune.warmup_steps (it is {config.warmup_steps})")
            if config.precision != "fp32":
                ways.append("or set finetune.precision: fp32")
            advice = ", ".join(ways)
        raise DivergenceError(f"the training of {self._name} {what}; nothing of it is exported{self.kept}: {advice}")

    def _count(self, record: StepRecord) -> None:
        first = self._first = self._first or record
        self.num_skipped += record.is_skipped
        loss, forget = record.loss, record.forget_loss
        signs = {
            "skipped": record.is_skipped,
            "dead": record.grad_norm == 0.0 and loss is not None and loss > _DEAD_LOSS,
            "guessing": not self._config.lowers_truth
            and forget is not None
            and forget >= self.guessing
            and first.forget_loss is not None
            and first.forget_loss < self.guessing,
            "lost": loss is not None and first.loss is not None and loss > _far_above(first.loss),
        }
        self._in_a_row = {sign: self._in_a_row[sign] + 1 if seen else 0 for sign, seen in signs.items()}

    def _fault(self, record: StepRecord) -> str | None:
        count, first = self._in_a_row, self._first
        if record.loss is None:
            return "the loss is not finite"
        if count["skipped"] >= MAX_IN_A_ROW:
            return f"the gradient was not finite for {count['skipped']} steps in a row"
        if count["dead"] >= MAX_IN_A_ROW:
            return f"the gradient was zero for {count['dead']} steps in a row"
        if count["guessing"] >= GUESSING_STEPS:
            return f"the forget loss was that of guessing, {self.guessing:.4g}, or worse for {count['guessing']} steps in a row"
        if count["lost"] >= self._patience and first is not None:
            return (
                f"the loss was far above that of the first step, {first.loss:.4g}, for {count['lost']} steps in a row"
            )
        return None
