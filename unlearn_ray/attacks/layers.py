"""What a model holds inside: hidden states by layer, and what its last norm and head make of them.

Layer 0 is the embedding, layer k the output of block k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from unlearn_ray.attacks.local import Local, passes
from unlearn_ray.errors import ModelError

# What architectures call the norm behind the last block: Llama and most, GPT-2, Phi, GPT-NeoX.
_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "final_norm")


def num_layers(module: Any) -> int:
    return int(module.config.get_text_config().num_hidden_layers)


def final_norm(module: Any) -> torch.nn.Module:
    """The norm between the last block and the head.

    Raises:
        ModelError: the architecture calls it otherwise.
    """
    decoder = module.get_decoder()
    for name in _NORMS:
        if isinstance(found := getattr(decoder, name, None), torch.nn.Module):
            return found
    raise ModelError(f"{type(module).__name__}: no final norm found (looked for {', '.join(_NORMS)})")


def blocks(module: Any) -> torch.nn.ModuleList:
    """The blocks of a model, in order.

    Raises:
        ModelError: the architecture has no list of as many blocks as its config says.
    """
    for each in module.get_decoder().children():
        if isinstance(each, torch.nn.ModuleList) and len(each) == num_layers(module):
            return each
    raise ModelError(f"{type(module).__name__}: no list of {num_layers(module)} blocks found")


@torch.no_grad()
def states(
    model: Local, rows: Sequence[Sequence[int]], read: Callable[[int, torch.Tensor], torch.Tensor]
) -> list[list[torch.Tensor]]:
    """Of each row, what `read` takes from each layer.

    Args:
        read: called with the row's number and its hidden states (tokens, width) of one layer.
    """
    found: list[list[torch.Tensor]] = [[] for _ in rows]
    for taken in passes([len(ids) for ids in rows]):
        ids_BL, _ = model.padded([rows[number] for number in taken])
        output = model.module(input_ids=ids_BL, use_cache=False, output_hidden_states=True)
        for place, number in enumerate(taken):
            length = len(rows[number])
            found[number] = [read(number, layer_BLD[place, :length]) for layer_BLD in output.hidden_states]
    return found


@torch.no_grad()
def lens_ranks(model: Local, rows: Sequence[Sequence[int]], tokens: Sequence[int]) -> list[list[int]]:
    """Rank of a token behind each row, by layer: 1 + how many tokens the head gives more, were this layer the last.

    The logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens"): logits of layer k = head(final norm(state of layer k)).
    """
    norm, head, last = final_norm(model.module), model.module.get_output_embeddings(), num_layers(model.module)
    found = []
    for layers, token in zip(states(model, rows, lambda _, layer_LD: layer_LD[-1]), tokens, strict=True):
        ranks = []
        for number, state_D in enumerate(layers):
            # transformers gives the last one behind the norm.
            logits_V = head(state_D if number == last else norm(state_D)).float()
            ranks.append(1 + int((logits_V > logits_V[token]).sum()))
        found.append(ranks)
    return found


@contextmanager
def pushed(block: torch.nn.Module, by_D: torch.Tensor) -> Iterator[None]:
    """While open, a vector is added to what a block says at the last token of each pass: of a prompt its last, then every generated one."""

    def add(_: torch.nn.Module, __: Any, output: Any) -> Any:
        # Some architectures give a tuple, whose first part is the state.
        state_BLD = output[0] if isinstance(output, tuple) else output
        moved_BLD = state_BLD.clone()
        moved_BLD[:, -1] += by_D.to(moved_BLD)
        return (moved_BLD, *output[1:]) if isinstance(output, tuple) else moved_BLD

    handle = block.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
