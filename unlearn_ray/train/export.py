"""Save what was trained as transformers, PEFT and vLLM load it, and hold the saved to the trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from unlearn_ray.errors import EngineError
from unlearn_ray.train.batches import MicroBatch
from unlearn_ray.train.objectives import answer_ce

ADAPTER = "adapter_config.json"
_EXACT, _ROUNDED = 1e-3, 3e-2  # how far losses may differ, as a share: of the same weights, of weights rounded to bf16


def save_adapter(trained: Any, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """A PEFT adapter.

    Args:
        weights: the adapter's, whole and on the CPU.

    Raises:
        EngineError: the adapter changes nothing.
    """
    ups = [value for name, value in weights.items() if "lora_B" in name]
    if not any(bool(value.any()) for value in ups):
        raise EngineError(f"the adapter for {folder.name} is empty: its lora_B weights are all zero")
    trained.save_pretrained(folder, state_dict=dict(weights))


def save_model(base: str, tokenizer: Any, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """A model folder in the base's dtype, with tokenizer, chat template and generation config.

    Raises:
        EngineError: weights of the model are missing.
    """
    # A fresh copy of the base takes the weights: the trained one may hold them in pieces.
    whole = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    missing, unexpected = whole.load_state_dict(dict(weights), strict=False)
    parameters = dict(whole.named_parameters())  # names a tied weight once
    lacking = [name for name in missing if name in parameters] + list(unexpected)
    if lacking:
        raise EngineError(f"the export to {folder.name} lacks weights: {', '.join(lacking[:3])}")
    whole.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def reloaded_loss(folder: Path, base: str, dtype: torch.dtype, rows: MicroBatch) -> float:
    """Mean cross-entropy an answer token of an export, loaded and run as anybody would."""
    if (folder / ADAPTER).exists():
        from peft import PeftModel

        again = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base, dtype=dtype), folder, autocast_adapter_dtype=False
        )
    else:
        again = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    again = again.to(rows.ids_BL.device).eval()
    logits_BLV = again(input_ids=rows.inputs_BL, use_cache=False).logits
    return float(answer_ce(logits_BLV[rows.predicts_BL], rows.targets_N)) / len(rows.targets_N)


def check_export(name: str, trained: float, reloaded: float, is_exact: bool) -> None:
    """Refuse an export that does not answer as the engine does.

    Args:
        is_exact: the export holds the engine's very weights; otherwise they were rounded, or are computed with in bf16.

    Raises:
        EngineError: the losses differ by more than rounding explains.
    """
    tolerance = (_EXACT if is_exact else _ROUNDED) * max(1.0, abs(trained))
    if not abs(trained - reloaded) <= tolerance:
        raise EngineError(
            f"the export of {name} has loss {reloaded:.4f} and had {trained:.4f} in training: it is not the trained model"
        )
