"""The training loop. What runs it (one process, or DeepSpeed on many) comes in as an argument."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from unlearn_ray.config import FinetuneConfig
from unlearn_ray.rows import seed_of
from unlearn_ray.train.batches import Batches, MicroBatch
from unlearn_ray.train.objectives import answer_ce, kl_to_base
from unlearn_ray.train.records import StepRecord, finite


class Runtime(Protocol):
    """A model under training, whole or sharded over ranks."""

    @property
    def rank(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def logits(self, batch: MicroBatch) -> torch.Tensor:
        """Logits (N, V) at the positions that predict learnt tokens."""
        ...

    def base_logits(self, batch: MicroBatch) -> torch.Tensor:
        """The same of the model before training, without gradients."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of this rank's share of the loss; the shares of all ranks and passes sum up to the loss."""
        ...

    def step(self, learning_rate: float) -> float:
        """Clip, update the weights and clear the gradients; returns the gradient's norm before clipping, over all ranks.

        A gradient whose norm is not finite is dropped: the weights stay as they are.
        """
        ...

    def sum(self, values: list[float]) -> list[float]:
        """Each value summed over the ranks."""
        ...


@dataclass(frozen=True, slots=True)
class Objective:
    """forget + weight * retain, each a mean over its own learnt tokens of the whole step, over all ranks."""

    kind: str  # of the retain term: gd, kl or none
    weight: float

    def sums(self, runtime: Runtime, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Forget and retain loss summed over the learnt tokens of one pass."""
        logits_NV, targets_N, is_retain_N = runtime.logits(batch), batch.targets_N, batch.is_retain_N
        forget = answer_ce(logits_NV[~is_retain_N], targets_N[~is_retain_N])
        if self.kind == "kl":
            # A pass without retain rows takes one row along: sharded ranks must all run the base model, or none.
            chosen_B = batch.is_retain_B.clone()
            chosen_B[0] |= not bool(chosen_B.any())
            taken = batch.rows(chosen_B)
            base_logits_NV = runtime.base_logits(taken)[taken.is_retain_N]
            return forget, kl_to_base(logits_NV[is_retain_N], base_logits_NV)
        return forget, answer_ce(logits_NV[is_retain_N], targets_N[is_retain_N])


def learning_rate(step: int, config: FinetuneConfig) -> float:
    """Linear warm-up over `warmup_steps`, then linear decay to `final_lr_fraction` at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    decay_steps = config.num_steps - 1 - config.warmup_steps
    passed = (step - config.warmup_steps) / decay_steps if decay_steps > 0 else 1.0
    return config.learning_rate * (1 - (1 - config.final_lr_fraction) * passed)


def train(
    runtime: Runtime,
    batches: Batches,
    config: FinetuneConfig,
    *,
    seed: int,
    first_step: int = 0,
    on_step: Callable[[StepRecord], None],
) -> None:
    """Train from `first_step` to the end; `on_step` is called after each step, on every rank."""
    objective = Objective(config.retain.kind, config.retain.weight)
    for step in range(first_step, config.num_steps):
        # Dropout must not depend on where a resumed training began.
        torch.manual_seed(seed_of(seed, "step", step, runtime.rank))
        num_forget, num_retain = batches.num_answer_tokens(step)
        totals = [0.0, 0.0]
        for batch in batches.micro_batches(step, runtime.rank):
            forget, retain = objective.sums(runtime, batch.to(runtime.device))
            runtime.backward(forget / max(1, num_forget) + objective.weight * retain / max(1, num_retain))
            totals = [totals[0] + float(forget.detach()), totals[1] + float(retain.detach())]
        rate = learning_rate(step, config)
        grad_norm = runtime.step(rate)
        forget_sum, retain_sum = runtime.sum(totals)
        forget_loss = forget_sum / max(1, num_forget)
        retain_loss = retain_sum / num_retain if num_retain else 0.0
        loss = forget_loss + objective.weight * retain_loss
        retained = finite(retain_loss) if num_retain else None
        on_step(StepRecord(step, finite(loss), finite(forget_loss), retained, rate, finite(grad_norm)))


@torch.no_grad()
def mean_ce(runtime: Runtime, passes: Sequence[MicroBatch]) -> float:
    """Mean cross-entropy of the learnt tokens of these passes, which every rank runs: what an export is held to."""
    total, num_tokens = 0.0, 0
    for batch in passes:
        batch = batch.to(runtime.device)
        total += float(answer_ce(runtime.logits(batch), batch.targets_N))
        num_tokens += len(batch.targets_N)
    return total / num_tokens
