"""The training loop. What runs it (one process, or DeepSpeed on many) comes in as an argument."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch

from unlearn_ray.config import FinetuneConfig, Lowering, Rmu
from unlearn_ray.rows import seed_of
from unlearn_ray.train.batches import Batches, Counts, MicroBatch
from unlearn_ray.train.objectives.answers import Answers
from unlearn_ray.train.objectives.table import OBJECTIVES
from unlearn_ray.train.objectives.terms import answer_ce, kl_to_base
from unlearn_ray.train.records import StepRecord, finite

T = TypeVar("T", float, torch.Tensor)


class Runtime(Protocol):
    """A model under training, whole or sharded over ranks."""

    @property
    def rank(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def logits(self, batch: MicroBatch) -> torch.Tensor:
        """Logits (N, V) at the positions that predict learnt tokens."""
        ...

    def states(self, batch: MicroBatch, layer: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, and what a layer gives out (N, D) at those positions; None: the layer at 7/32 of the depth.

        Raises:
            ConfigError: the model has no such layer.
        """
        ...

    def base_logits(self, batch: MicroBatch) -> torch.Tensor:
        """The logits of the model before training, without gradients."""
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


class Objective:
    """The loss of a training: forget + weight * retain, each a mean over the whole step, over all ranks. Where the config pairs true answers with
    invented ones, the forget part has a term that teaches those.

    Args:
        seed: of the training.
    """

    def __init__(self, config: FinetuneConfig, seed: int) -> None:
        self._config, self._retain_kind, self._seed = config.objective, config.retain.kind, seed
        self._loss = OBJECTIVES[config.objective.kind]
        self._pairs = config.pairs
        self._invented_weight = config.objective.invented if isinstance(config.objective, Lowering) else 0.0

    def sums(self, runtime: Runtime, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of one pass: forget loss, retain loss, and cross-entropy of the invented halves of pairs."""
        hidden_ND = None
        if isinstance(self._config, Rmu):
            logits_NV, hidden_ND = runtime.states(batch, self._config.layer)
        else:
            logits_NV = runtime.logits(batch)
        answers = self._answers(runtime, batch, logits_NV, hidden_ND)
        forget, retain = self._loss.of(self._config, answers), self._retain_sum(runtime, batch, logits_NV)
        if not self._invented_weight:
            return forget, retain, torch.zeros(())
        assert answers.invented is not None
        return forget, retain, answer_ce(answers.invented.logits_NV, answers.invented.targets_N)

    def forget_part(self, counts: Counts, forget: T, invented: T) -> T:
        """Of the loss of a step, or a pass's share of it, from such sums.

        Args:
            counts: of the step.
        """
        part = forget / max(1, counts.forget_rows if self._loss.per == "row" else counts.forget_tokens)
        if self._invented_weight:
            part = part + self._invented_weight * invented / max(1, counts.invented_tokens)
        return part

    def _retain_sum(self, runtime: Runtime, batch: MicroBatch, logits_NV: torch.Tensor) -> torch.Tensor:
        targets_N, is_retain_N = batch.targets_N, batch.is_retain_N
        if self._retain_kind != "kl":
            return answer_ce(logits_NV[is_retain_N], targets_N[is_retain_N])
        taken = batch.rows(_with_one(batch.is_retain_B))
        base_logits_NV = runtime.base_logits(taken)[taken.is_retain_N]
        return kl_to_base(logits_NV[is_retain_N], base_logits_NV)

    def _answers(
        self, runtime: Runtime, batch: MicroBatch, logits_NV: torch.Tensor, hidden_ND: torch.Tensor | None
    ) -> Answers:
        """Those of the forget rows, with the invented ones of their pairs."""

        def of(chosen_B: torch.Tensor, invented: Answers | None) -> Answers:
            row_N = batch.row_N
            chosen_N = chosen_B[row_N]
            counted_B = chosen_B & batch.predicts_BL.any(dim=1)  # a row that only fills up counts for nothing

            def base_logits() -> torch.Tensor:
                taken = batch.rows(_with_one(chosen_B))
                return runtime.base_logits(taken)[chosen_B[_with_one(chosen_B)][taken.row_N]]

            return Answers(
                logits_NV[chosen_N],
                batch.targets_N[chosen_N],
                (counted_B.cumsum(0) - 1)[row_N[chosen_N]],
                batch.base_logp_B[counted_B],
                base_logits,
                None if hidden_ND is None else hidden_ND[chosen_N],
                invented,
                self._seed,
            )

        invented = of(batch.is_invented_B, None) if self._pairs else None
        return of(~batch.is_retain_B & ~batch.is_invented_B, invented)


def _with_one(chosen_B: torch.Tensor) -> torch.Tensor:
    """The chosen rows, or the first one where there are none: sharded ranks must all run the base model, or none."""
    taken_B = chosen_B.clone()
    taken_B[0] |= not bool(chosen_B.any())
    return taken_B


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
    on_step: Callable[[StepRecord], bool | None],
) -> None:
    """Train from `first_step` to the end; `on_step` is called after each step, on every rank. Where it returns True, on all of them, that is the end."""
    objective = Objective(config, seed)
    for step in range(first_step, config.num_steps):
        # Dropout must not depend on where a resumed training began.
        torch.manual_seed(seed_of(seed, "step", step, runtime.rank))
        counts = batches.counts(step)
        totals = [0.0, 0.0, 0.0]
        for batch in batches.micro_batches(step, runtime.rank):
            sums = objective.sums(runtime, batch.to(runtime.device))
            forget, retain, invented = sums
            part = objective.forget_part(counts, forget, invented)
            runtime.backward(part + config.retain.weight * retain / max(1, counts.retain_tokens))
            totals = [total + float(each.detach()) for total, each in zip(totals, sums, strict=True)]
        rate = learning_rate(step, config)
        grad_norm = runtime.step(rate)
        forget_sum, retain_sum, invented_sum = runtime.sum(totals)
        forget_loss = objective.forget_part(counts, forget_sum, invented_sum)
        retain_loss = retain_sum / counts.retain_tokens if counts.retain_tokens else 0.0
        loss = forget_loss + config.retain.weight * retain_loss
        retained = finite(retain_loss) if counts.retain_tokens else None
        if on_step(StepRecord(step, finite(loss), finite(forget_loss), retained, rate, finite(grad_norm))):
            return


@torch.no_grad()
def mean_ce(runtime: Runtime, passes: Sequence[MicroBatch]) -> float:
    """Mean cross-entropy of the learnt tokens of these passes, which every rank runs: what an export is held to."""
    total, num_tokens = 0.0, 0
    for batch in passes:
        batch = batch.to(runtime.device)
        total += float(answer_ce(runtime.logits(batch), batch.targets_N))
        num_tokens += len(batch.targets_N)
    return total / num_tokens
