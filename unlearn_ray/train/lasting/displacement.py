"""Learnt weights that are moved away for a few passes, and brought back exactly."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


class Displacement:
    """The learnt weights of a model, whole on each rank. All ranks must move alike.

    Args:
        add_up: sums tensors over the ranks, in place.
        aside: the context in which a training engine does not count a pass as its own.
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        add_up: Callable[[Sequence[torch.Tensor]], None],
        aside: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._weights, self._add_up, self._aside = weights, add_up, aside
        self._home = [weight.detach().clone() for weight in weights]
        # In float32: a step is often smaller than the last digit of a bf16 weight.
        self.masters = [weight.detach().to(torch.float32, copy=True) for weight in weights]

    def gradients(self, losses: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """The float32 gradients of the sum of these losses over all ranks, at the present weights.

        They bypass what collects the gradients of the training: `autograd.grad` runs no hook of a weight.
        """
        found = [torch.zeros_like(master) for master in self.masters]
        with self._aside():
            for loss in losses:
                parts = torch.autograd.grad(loss, list(self._weights), allow_unused=True)
                for total, part in zip(found, parts, strict=True):
                    if part is not None:
                        total += part
        self._add_up(found)
        return found

    @torch.no_grad()
    def step(self, optimizer: Any, gradients: Sequence[torch.Tensor]) -> None:
        """Move by a step of an optimizer of `masters`."""
        for master, gradient in zip(self.masters, gradients, strict=True):
            master.grad = gradient
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.put()

    @torch.no_grad()
    def put(self) -> None:
        """Give the model the weights that `masters` hold."""
        for weight, master in zip(self._weights, self.masters, strict=True):
            weight.copy_(master)

    @torch.no_grad()
    def back(self) -> None:
        for weight, home in zip(self._weights, self._home, strict=True):
            weight.copy_(home)
