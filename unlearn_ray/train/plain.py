"""The runtime of one process without Ray or DeepSpeed: what the sharded one is held to."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel

from unlearn_ray.config import FinetuneConfig
from unlearn_ray.train.batches import MicroBatch
from unlearn_ray.train.head import Logits, Term
from unlearn_ray.train.lasting.displacement import Displacement
from unlearn_ray.train.models import AnswerLogits
from unlearn_ray.train.objectives.table import needs_base_model


class PlainRuntime:
    """Implements `loop.Runtime` with a torch module and AdamW."""

    rank = 0

    def __init__(self, module: Any, config: FinetuneConfig, device: torch.device) -> None:
        self.module = module
        self.device = device
        self._config = config
        self._base = module
        if needs_base_model(config) and not isinstance(module, PeftModel):
            self._base = copy.deepcopy(module).eval().requires_grad_(False)
        self._answers = AnswerLogits(module)
        self._base_answers = self._answers if self._base is module else AnswerLogits(self._base)
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        # A step is often smaller than the last digit of a bf16 weight: masters in float32 sum them up, as DeepSpeed's do.
        self._masters = [
            value if value.dtype == torch.float32 else value.detach().float().requires_grad_()
            for value in self._parameters
        ]
        self._optimizer = torch.optim.AdamW(
            self._masters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )

    def values(self, batch: MicroBatch, terms: Sequence[Term]) -> list[torch.Tensor]:
        return self._answers.values(self.module, batch, terms)

    def states(
        self, batch: MicroBatch, terms: Sequence[Term], layer: int | None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        return self._answers.states(self.module, batch, terms, layer)

    def base(self, batch: MicroBatch) -> Logits:
        with self.module.disable_adapter() if self._base is self.module else nullcontext():
            return self._base_answers.base(self._base, batch)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        for master, parameter in zip(self._masters, self._parameters, strict=True):
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.float()
        norm = torch.nn.utils.clip_grad_norm_(self._masters, self._config.max_grad_norm)
        if torch.isfinite(norm):
            self._optimizer.step()
            self._round()
        for parameter in (*self._masters, *self._parameters):
            parameter.grad = None
        return float(norm)

    @torch.no_grad()
    def _round(self) -> None:
        """The module's weights from their masters."""
        for master, parameter in zip(self._masters, self._parameters, strict=True):
            if master is not parameter:
                parameter.copy_(master)

    def sum(self, values: list[float]) -> list[float]:
        return values

    @contextmanager
    def displaced(self) -> Iterator[Displacement]:
        moved = Displacement(self._parameters, lambda tensors: None)
        try:
            yield moved
        finally:
            moved.back()
