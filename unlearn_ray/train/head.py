"""The head's product in chunks: values of a loss on the learnt tokens, without holding the logits of all of them.

4,096 learnt tokens with a vocabulary of 128,256 have 2 GiB of float32 logits, and a loss holds several tensors of that size. So the product of hidden
states and head matrix is computed for about a hundred tokens at a time, and again in the backward pass (as Liger-Kernel and torchtune do: arXiv
2410.10989, section 3.2). The chunks are over tokens, not over the vocabulary: a loss sees whole distributions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

CHUNK = 2**24  # logits per chunk, in elements; up to twice as many are computed without chunks


# Maps positions of some learnt tokens of a pass to their logits (C, V).
Logits = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Term:
    """A function of the logits of some learnt tokens of a pass. N: learnt tokens, C: those of a chunk, V: vocabulary."""

    tokens: torch.Tensor  # their positions among the learnt ones, increasing
    # Arguments: logits (C, V), and the positions of these tokens among the learnt ones. Result: one or more values, as a 1-dimensional tensor; the
    # values of all chunks are concatenated. It is called twice per chunk, so it must not be random.
    of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def at_once(logits_NV: torch.Tensor, terms: Sequence[Term]) -> list[torch.Tensor]:
    """The values of each term, from all logits."""
    return [term.of(logits_NV[term.tokens], term.tokens) for term in terms]


def in_chunks(
    states_ND: torch.Tensor, head: torch.nn.Linear, vocabulary: int, terms: Sequence[Term]
) -> list[torch.Tensor]:
    """The values of each term, from the hidden states that are the head's input."""
    size = chunk_size(vocabulary)
    return [
        _InChunks.apply(states_ND[term.tokens], head.weight, head.bias, head, term, size)
        if len(term.tokens)
        else term.of(F.linear(states_ND[term.tokens], head.weight, head.bias), term.tokens)
        for term in terms
    ]


def chunk_size(vocabulary: int) -> int:
    """Learnt tokens per chunk."""
    return max(1, CHUNK // vocabulary)


def is_large(num_tokens: int, vocabulary: int) -> bool:
    """Whether the logits of `num_tokens` learnt tokens are too large to hold at once."""
    return num_tokens > 2 * chunk_size(vocabulary)


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states_MD: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        head: torch.nn.Linear,
        term: Term,
        size: int,
    ) -> torch.Tensor:
        parts = [slice(first, first + size) for first in range(0, len(states_MD), size)]
        values = [term.of(F.linear(states_MD[part], weight_VD, bias_V), term.tokens[part]) for part in parts]
        ctx.save_for_backward(states_MD)
        # The head and not its weight: a sharded weight is gathered again for the backward pass.
        ctx.head, ctx.term, ctx.parts, ctx.lengths = head, term, parts, [len(each) for each in values]
        return torch.cat(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_values: torch.Tensor) -> Any:
        (states_MD,) = ctx.saved_tensors
        head, term = ctx.head, ctx.term
        weight_VD, bias_V = head.weight.detach(), None if head.bias is None else head.bias.detach()
        needs_states, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad_states = torch.empty_like(states_MD) if needs_states else None
        # In float32: a bf16 sum over many chunks would lose precision that a sum within one chunk does not lose.
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=torch.float32) if needs_bias and bias_V is not None else None
        given = grad_values.split(ctx.lengths)
        for part, grad in zip(ctx.parts, given, strict=True):
            logits_CV = F.linear(states_MD[part], weight_VD, bias_V).requires_grad_()
            with torch.enable_grad():
                found = term.of(logits_CV, term.tokens[part])
            (grad_CV,) = torch.autograd.grad(found, logits_CV, grad)
            del found, logits_CV
            if grad_states is not None:
                grad_states[part] = grad_CV @ weight_VD
            if grad_weight is not None:
                if grad_weight.dtype == grad_CV.dtype:
                    grad_weight.addmm_(grad_CV.T, states_MD[part])
                else:
                    grad_weight += grad_CV.T @ states_MD[part]
            if grad_bias is not None:
                grad_bias += grad_CV.sum(dim=0)
        return (
            grad_states,
            None if grad_weight is None else grad_weight.to(weight_VD.dtype),
            None if grad_bias is None or bias_V is None else grad_bias.to(bias_V.dtype),
            None,
            None,
            None,
        )
