"""The training loop. What runs it (one process, or DeepSpeed on many) comes in as an argument."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

import torch

from unlearn_ray.config import FinetuneConfig, Lowering, Rmu
from unlearn_ray.rows import seed_of
from unlearn_ray.train.batches import Batches, Counts, MicroBatch
from unlearn_ray.train.head import Logits, Term
from unlearn_ray.train.lasting.displacement import Displacement
from unlearn_ray.train.objectives.answers import Answers
from unlearn_ray.train.objectives.table import OBJECTIVES
from unlearn_ray.train.objectives.terms import kl_to_base, token_logp
from unlearn_ray.train.records import StepRecord, finite

T = TypeVar("T", float, torch.Tensor)


class Runtime(Protocol):
    """A model under training, whole or sharded over ranks."""

    @property
    def rank(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def values(self, batch: MicroBatch, terms: Sequence[Term]) -> list[torch.Tensor]:
        """The values of each term on the learnt tokens of a pass."""
        ...

    def states(
        self, batch: MicroBatch, terms: Sequence[Term], layer: int | None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The same, and the output (N, D) of a layer at those positions; None: the layer at 7/32 of the depth.

        Raises:
            ConfigError: the model has no such layer.
        """
        ...

    def base(self, batch: MicroBatch) -> Logits:
        """A function that gives the base model's logits at learnt tokens of this batch, without gradients. Must be called within a term."""
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

    def displaced(self) -> AbstractContextManager[Displacement]:
        """The learnt weights, to be moved; they are back when the context ends."""
        ...


class Displacing(Protocol):
    """Adds gradients that are taken at displaced weights to those of a step (`finetune.lasting`)."""

    def backward(self, runtime: Runtime, step: int) -> None: ...


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
        invented_B = batch.is_invented_B
        kept_B = batch.is_retain_B
        forget_B = ~kept_B & ~invented_B
        base = self._base(runtime, batch, kept_B, forget_B)

        def of_forget(logits_CV: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
            return self._loss.of(self._config, self._answers(batch, forget_B, tokens, logits_CV, base))[None]

        def logp(logits_CV: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
            return token_logp(logits_CV, batch.targets_N[tokens])

        def kl(logits_CV: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
            return kl_to_base(logits_CV, base(tokens))[None]

        forget_M = self._tokens(batch, forget_B)
        asked_M = forget_M[:0] if self._loss.reads == "hidden" else forget_M
        terms = [
            Term(asked_M, of_forget if self._loss.reads_logits else logp),
            Term(self._tokens(batch, invented_B), logp),
            Term(self._tokens(batch, kept_B), kl if self._retain_kind == "kl" else logp),
        ]
        hidden_ND = None
        if isinstance(self._config, Rmu):
            values, hidden_ND = runtime.states(batch, terms, self._config.layer)
        else:
            values = runtime.values(batch, terms)
        of_forget_M, invented_logp_M, of_kept_M = values
        retain = of_kept_M.sum() if self._retain_kind == "kl" else -of_kept_M.sum()
        if self._loss.reads_logits:
            forget = of_forget_M.sum()
        else:
            invented = None
            if self._pairs:
                invented = self._answers(batch, invented_B, terms[1].tokens, logp_M=invented_logp_M)
            answers = self._answers(
                batch, forget_B, forget_M, logp_M=of_forget_M, hidden_ND=hidden_ND, invented=invented
            )
            forget = self._loss.of(self._config, answers)
        return forget, retain, -invented_logp_M.sum() if self._invented_weight else torch.zeros(())

    def forget_part(self, counts: Counts, forget: T, invented: T) -> T:
        """Of the loss of a step, or a pass's share of it, from such sums.

        Args:
            counts: of the step.
        """
        part = forget / max(1, counts.forget_rows if self._loss.per == "row" else counts.forget_tokens)
        if self._invented_weight:
            part = part + self._invented_weight * invented / max(1, counts.invented_tokens)
        return part

    def _base(self, runtime: Runtime, batch: MicroBatch, kept_B: torch.Tensor, forget_B: torch.Tensor) -> Logits:
        """A function that gives the base model's logits at learnt tokens of the batch, if the retain or the forget term needs them."""
        asked_B = torch.zeros_like(kept_B)
        if self._retain_kind == "kl":
            asked_B |= kept_B
        if self._loss.reads == "base_logits":
            asked_B |= forget_B
        elif self._retain_kind != "kl":
            return _no_base
        # The first row if no row needs them: all sharded ranks must run the base model, or none.
        asked_B[0] |= not bool(asked_B.any())
        found = runtime.base(batch.rows(asked_B))
        place_N = asked_B[batch.row_N].cumsum(0) - 1
        return lambda tokens: found(place_N[tokens])

    def _tokens(self, batch: MicroBatch, chosen_B: torch.Tensor) -> torch.Tensor:
        """Positions among the learnt tokens."""
        return chosen_B[batch.row_N].nonzero()[:, 0]

    def _answers(
        self,
        batch: MicroBatch,
        chosen_B: torch.Tensor,
        tokens: torch.Tensor,
        logits_CV: torch.Tensor | None = None,
        base: Logits | None = None,
        *,
        logp_M: torch.Tensor | None = None,
        hidden_ND: torch.Tensor | None = None,
        invented: Answers | None = None,
    ) -> Answers:
        """The answers of the chosen rows, at some or all of their tokens."""
        counted_B = chosen_B & batch.predicts_BL.any(dim=1)  # a row that only fills up counts for nothing
        return Answers(
            logits_CV,
            batch.targets_N[tokens],
            (counted_B.cumsum(0) - 1)[batch.row_N[tokens]],
            batch.base_logp_B[counted_B],
            lambda: (base or _no_base)(tokens),
            None if hidden_ND is None else hidden_ND[tokens],
            invented,
            self._seed,
            logp_M,
        )


def _no_base(tokens: torch.Tensor) -> torch.Tensor:
    raise AssertionError("an objective uses the base model's logits, but its `Loss.reads` does not say so")


def learnt_logps(runtime: Runtime, batch: MicroBatch) -> torch.Tensor:
    """Log-probability of each learnt token (N)."""

    def logp(logits_CV: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return token_logp(logits_CV, batch.targets_N[tokens])

    every = torch.arange(len(batch.targets_N), device=batch.ids_BL.device)
    return runtime.values(batch, [Term(every, logp)])[0]


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
    lasting: Displacing | None = None,
    on_step: Callable[[StepRecord], bool | None],
) -> None:
    """Train from `first_step` to the end. `on_step` is called after each step, on every rank. The training ends if it returns True; it must return the
    same on all ranks."""
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
        if lasting is not None:
            lasting.backward(runtime, step)
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
        total -= float(learnt_logps(runtime, batch).sum())
        num_tokens += len(batch.targets_N)
    return total / num_tokens
