"""Fast LoRA adapters on a CPU: all tokens of an adapter are multiplied with its weights in one operation.

vLLM's own CPU path copies an adapter's weights for every token. That made an adapter 4 to 7 times slower than the base model. It also
treats slot -1, which means "no adapter", as the last slot. With every slot in use, the base model's own answers would go through some
adapter.
"""

from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

_FEW_TOKENS = 8  # per adapter; for so few, copying the weights per token is cheaper than a separate operation


class GroupedLora(PunicaWrapperCPU):
    """y += scale * x A^T B^T, per adapter. If many adapters have one or two tokens each, as in decoding, per token."""

    _groups: tuple[tuple[int, Any], ...] = ()  # slot of each adapter in the batch, and its tokens' rows
    _tokens: tuple[torch.Tensor, torch.Tensor] | None = None  # slot and row of each token, if there are few

    def _update_prefill_metadata(self, token_lora_tensor: torch.Tensor) -> None:
        super()._update_prefill_metadata(token_lora_tensor)
        slots = [int(slot) for slot in token_lora_tensor.unique() if slot >= 0]
        self._tokens = None
        if len(slots) > 1:
            rows = (token_lora_tensor >= 0).nonzero().flatten()
            if len(rows) <= _FEW_TOKENS * len(slots):
                self._tokens = token_lora_tensor[rows], rows
        if len(slots) == 1 and bool((token_lora_tensor == slots[0]).all()):
            self._groups = ((slots[0], slice(0, len(token_lora_tensor))),)
        else:
            self._groups = tuple((slot, (token_lora_tensor == slot).nonzero().flatten()) for slot in slots)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        """See vLLM's method. x: (tokens, in), y: (tokens, out), A: (slots, 1, rank, in), B: (slots, 1, out, rank). Computes in float32 as
        vLLM does.
        """
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        if self._tokens is not None:
            slots, rows = self._tokens
            columns, start = x[rows].float()[:, :, None], 0
            for lora_a, lora_b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                shrunk = torch.bmm(lora_a[slots, 0].float(), columns) * scale
                expanded = torch.bmm(lora_b[slots, 0].float(), shrunk)
                y[rows, start : start + size] += expanded[:, :size, 0].to(y.dtype)
                start += size
            return
        for slot, rows in self._groups:
            inputs, start = x[rows].float(), 0
            for lora_a, lora_b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                shrunk = inputs @ lora_a[slot, 0].float().T * scale
                expanded = shrunk @ lora_b[slot, 0].float().T
                y[rows, start : start + size] += expanded[:, :size].to(y.dtype)
                start += size
