"""Checks adapters and models by the headers of their files. Files that would crash an engine, or have no effect, are refused."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlearn_ray.artifacts import Folder
from unlearn_ray.errors import ModelError
from unlearn_ray.train.modelfiles import OUTER_LAYERS, Shapes, read_head

ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTORS = {".lora_A.weight": 0, ".lora_B.weight": 1}
# vLLM supports one rank and one scale per adapter, and only low-rank factors.
_UNSERVABLE = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias", "layer_replication")


@dataclass(frozen=True, slots=True)
class Adapter:
    """The facts in the files of a PEFT LoRA adapter."""

    rank: int
    base: str  # folder or hub name of the model that it was trained on, as its config names it
    shapes: Shapes  # of the layers that it changes


def read_adapter(folder: Folder) -> Adapter:
    """Read a LoRA adapter. Its files must be complete, and vLLM must be able to load it.

    Raises:
        ModelError: a file is missing or corrupt, or this kind of adapter can't be served.
    """
    try:
        config = json.loads(folder.read_text(ADAPTER))
        kind, base = config["peft_type"], str(config.get("base_model_name_or_path") or "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder}/{ADAPTER} is missing or corrupt: publish a PEFT adapter's folder") from error
    if kind != "LORA":
        raise ModelError(f"{folder} is a {kind} adapter: only LORA can be served")
    extras = [name for name in _UNSERVABLE if config.get(name)]
    if config.get("bias", "none") != "none":
        extras.append("bias")
    if extras:
        raise ModelError(f"{folder} was trained with {', '.join(extras)}, which can't be served: train it without")
    if not folder.exists(ADAPTER_WEIGHTS):
        raise ModelError(f"{folder} has no {ADAPTER_WEIGHTS}: publish a PEFT adapter's folder")
    shapes, ranks = _factors(folder, read_head(folder, ADAPTER_WEIGHTS))
    if ranks != {config.get("r")}:
        raise ModelError(f"{folder}: {ADAPTER} and {ADAPTER_WEIGHTS} differ in rank: copy or train it again")
    return Adapter(ranks.pop(), base, shapes)


def _factors(folder: Folder, tensors: Mapping[str, Any]) -> tuple[dict[str, tuple[int, int]], set[int]]:
    """Shapes of the layers that an adapter's factors change, and the factors' ranks."""
    found: dict[str, list[tuple[int, int] | None]] = {}
    for name, tensor in tensors.items():
        suffix = next((suffix for suffix in _FACTORS if name.endswith(suffix)), None)
        layer = name.removeprefix(_PREFIX).removesuffix(suffix or "")
        if suffix is None or OUTER_LAYERS.intersection(layer.split(".")):
            raise ModelError(f"{folder} changes {layer}: only linear layers within the model can be served")
        if len(tensor["shape"]) != 2:
            raise ModelError(f"{folder} changes {layer}, which is not a linear layer: only linear layers can be served")
        rows, columns = tensor["shape"]
        found.setdefault(layer, [None, None])[_FACTORS[suffix]] = (rows, columns)
    shapes, ranks = {}, set()
    for layer, (down, up) in found.items():
        if down is None or up is None:
            raise ModelError(f"{folder} has only one of the two factors of {layer}: copy or train it again")
        shapes[layer] = up[0], down[1]
        ranks |= {down[0], up[1]}
    return shapes, ranks


def check_shapes(adapter: Shapes, base: Shapes, name: str) -> None:
    """Refuse an adapter for a model of another shape.

    Args:
        base: empty if unknown, for example for quantised weights. Then nothing is refused.

    Raises:
        ModelError: a layer that the adapter changes is missing in the base model, or has another shape there.
    """
    for layer, shape in adapter.items() if base else ():
        if layer not in base:
            raise ModelError(f"{name} is for another base model: this one has no {layer}")
        if tuple(base[layer]) != shape:
            ours, theirs = " x ".join(map(str, base[layer])), " x ".join(map(str, shape))
            raise ModelError(f"{name} is for another base model: its {layer} is {theirs}, this one's is {ours}")


def check_model(folder: Folder) -> None:
    """Refuse an incomplete model folder.

    Raises:
        ModelError: a file is missing or corrupt.
    """
    files = folder.names(".safetensors")
    if not folder.exists("config.json") or not files:
        raise ModelError(f"{folder} is not a model: config.json or its *.safetensors are missing")
    held = {name for file in files for name in read_head(folder, file)}
    index = "model.safetensors.index.json"
    if folder.exists(index):
        try:
            promised = set(json.loads(folder.read_text(index))["weight_map"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{folder}/{index} is corrupt: copy or train it again") from error
        if promised - held:
            raise ModelError(f"{folder} lacks weights, such as {min(promised - held)}: copy or train it again")
