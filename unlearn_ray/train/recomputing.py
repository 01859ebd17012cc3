"""Activation checkpointing: which activations the forward pass keeps, and which the backward pass computes again."""

from collections import Counter
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from unlearn_ray.config import Recomputing

_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def recompute(model: PreTrainedModel, kind: Recomputing) -> None:
    """Have each layer keep only its input (`full`), or also every second matrix product and attention's result (`selective`). The latter is
    torchtitan's operator-level selective checkpointing: it keeps expensive results, and computes only half of the products again."""
    if kind == "none":
        return
    how: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        how["context_fn"] = _contexts
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)


def _contexts() -> Any:
    seen: Counter[bool] = Counter()  # products so far, in the forward pass and in the recomputation

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if op in _ATTENTION:
            return CheckpointPolicy.MUST_SAVE
        if op in _PRODUCTS:
            seen[context.is_recompute] += 1
            if seen[context.is_recompute] % 2:
                return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
