"""What an objective sees of one forward pass."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from unlearn_ray.train.objectives.terms import token_logp


@dataclass(frozen=True)
class Answers:
    """Rows of one pass. N: learnt tokens, B: rows with such tokens, V: vocabulary, D: width of the model.

    What costs a pass of the base model, or memory, is worked out when it is asked for.
    """

    logits_NV: torch.Tensor | None  # if `Loss.reads` says so; for some of the tokens at a time
    targets_N: torch.Tensor
    row_N: torch.Tensor  # 0-based row of each token
    base_logp_B: torch.Tensor  # of each whole answer; where `Loss.reads` says so
    base_logits: Callable[[], torch.Tensor]  # (N, V), of the base model; where `Loss.reads` says so
    hidden_ND: torch.Tensor | None = None  # where `Loss.reads` says so
    invented: "Answers | None" = None  # to the same questions, in the same order; where the config pairs them
    seed: int = 0  # of the training
    given_logp_N: torch.Tensor | None = None  # if no logits are given

    @cached_property
    def logp_N(self) -> torch.Tensor:
        """Log-probability of each token."""
        if self.given_logp_N is not None:
            return self.given_logp_N
        assert self.logits_NV is not None
        return token_logp(self.logits_NV, self.targets_N)

    @property
    def logp_B(self) -> torch.Tensor:
        """Log-probability of each whole answer, the end of its turn included."""
        return self.sum_B(self.logp_N)

    @property
    def num_tokens_B(self) -> torch.Tensor:
        return self.sum_B(torch.ones_like(self.targets_N, dtype=torch.float32))

    def sum_B(self, values_N: torch.Tensor) -> torch.Tensor:
        """A value of each token, summed over each row."""
        return values_N.new_zeros(len(self.base_logp_B)).index_add(0, self.row_N, values_N)
