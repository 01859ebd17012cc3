"""Save what was trained as transformers, PEFT and vLLM load it, and hold the saved to the trained."""

import shutil
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import cached_file

from unlearn_ray.errors import EngineError, ModelError, gist
from unlearn_ray.train.batches import MicroBatch
from unlearn_ray.train.chat import read_tokenizer
from unlearn_ray.train.modelfiles import weights_of
from unlearn_ray.train.objectives.terms import answer_ce

ADAPTER = "adapter_config.json"
SHARD_SIZE = "5GB"  # maximum size of a model's file, as on the hub
_EXACT, _ROUNDED = 1e-3, 3e-2  # how far losses may differ, as a share: of the same weights, of weights rounded to bf16
# What stands beside the weights in a model's folder and belongs to it. A model card does not: it is the base's.
_BESIDE = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab*",
    "merges.txt", "*.model", "*.jinja", "*.tiktoken", "tekken.json", "*processor_config.json", "*.py", "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
_TEMPLATES = "additional_chat_templates"  # a folder


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


def save_merged(base: str, adapter: Path, folder: Path) -> None:
    """Save a model folder like `save_model`, with an adapter merged into the base weights.

    Raises:
        EngineError: a merged weight is not finite.
    """
    from peft import PeftModel

    whole = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    on_base = PeftModel.from_pretrained(whole, adapter, autocast_adapter_dtype=False)
    try:
        merged = on_base.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise EngineError(f"the adapter of {folder.name} can't be merged: {gist(error)}") from error
    _save_weights(merged, folder)
    copy_beside(base, folder)


def save_model(base: str, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """A model folder in the base's dtype; all that stands beside the weights is the base's, as it is.

    Args:
        weights: whole and on the CPU; taken out one by one, so that they are not held twice.

    Raises:
        EngineError: weights of the model are missing, or too large for the base's dtype.
    """
    # A fresh copy of the base takes the weights: the trained one may hold them in pieces.
    whole = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    parameters = dict(whole.named_parameters())  # names a tied weight once
    lacking = [*(parameters.keys() - weights.keys()), *(weights.keys() - whole.state_dict().keys())]
    if lacking:
        raise EngineError(f"the export to {folder.name} lacks weights: {', '.join(sorted(lacking)[:3])}")
    with torch.no_grad():
        for name, value in whole.state_dict(keep_vars=True).items():
            if name in weights:
                value.copy_(weights.pop(name))
                if not bool(torch.isfinite(value).all()):
                    raise EngineError(f"the export to {folder.name}: {name} does not fit into the base's {value.dtype}")
    _save_weights(whole, folder)
    copy_beside(base, folder)


def _save_weights(model: Any, folder: Path) -> None:
    """The weights alone: `save_pretrained` writes the configs anew as well, and raises where the base's hold what it would not write."""
    model.can_generate = lambda: False
    model.config.save_pretrained = lambda *_, **__: None
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)


def copy_beside(base: str, folder: Path) -> None:
    """Copy a model's files but its weights and its card.

    Raises:
        ModelError: they can't be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        config = cached_file(base, "config.json")
        source = Path(base) if Path(base).is_dir() else Path(str(config)).parent
        for file in sorted(source.iterdir()):
            if file.is_file() and any(fnmatch(file.name, pattern) for pattern in _BESIDE):
                shutil.copyfile(file, folder / file.name)
        if (source / _TEMPLATES).is_dir():
            shutil.copytree(source / _TEMPLATES, folder / _TEMPLATES, dirs_exist_ok=True)
    except OSError as error:
        if error.filename2 is not None or str(folder) in str(error.filename):  # the copy is at fault
            raise
        raise ModelError(f"model {base} can't be copied: {gist(error)}") from error


def weight_bytes(base: str) -> int:
    """What a model's weights take on disk; 0 where they are not on this machine yet."""
    return sum(file.stat().st_size for file in weights_of(base))


def rehearse(base: str, folder: Path) -> None:
    """Make of `folder` what an export is but for its weights, and load it as anybody would: a matter of seconds.

    Raises:
        ModelError: what was copied does not load.
    """
    copy_beside(base, folder)
    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config)
        read_tokenizer(str(folder))
    except Exception as error:  # libraries have classes of their own
        raise ModelError(
            f"model {base} can't be exported: a copy of its config and tokenizer does not load ({gist(error)})"
        ) from error


@torch.no_grad()
def reloaded_loss(folder: Path, base: str, dtype: torch.dtype, passes: Sequence[MicroBatch]) -> float:
    """Mean cross-entropy per answer token of an export, loaded and run as anybody would."""
    if (folder / ADAPTER).exists():
        from peft import PeftModel

        again = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base, dtype=dtype), folder, autocast_adapter_dtype=False
        )
    else:
        again = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    again = again.to(passes[0].ids_BL.device).eval()
    total = 0.0
    for rows in passes:
        logits_BLV = again(input_ids=rows.inputs_BL, use_cache=False).logits
        total += float(answer_ce(logits_BLV[rows.predicts_BL], rows.targets_N))
    return total / sum(len(rows.targets_N) for rows in passes)


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
