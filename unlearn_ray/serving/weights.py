"""Adapters and models by the heads of their files: what would end an engine, or change nothing in it, is refused before it is loaded."""

import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import LINEAR_LAYERS
from unlearn_ray.errors import ModelError

ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# What an engine is started for. Not the output layer: vLLM's CPU engine can't score prompts with it.
LORA_TARGETS = LINEAR_LAYERS
_PREFIX = "base_model.model."
_FACTORS = {".lora_A.weight": 0, ".lora_B.weight": 1}
# vLLM knows one rank and one scale an adapter, and low-rank factors alone.
_UNSERVABLE = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias", "layer_replication")
Shapes = Mapping[str, tuple[int, int]]  # rows and columns of a linear layer, by its name


@dataclass(frozen=True, slots=True)
class Adapter:
    """What the files of a PEFT LoRA adapter say."""

    rank: int
    base: str  # folder or hub name of the model it was trained on, as written in it
    shapes: Shapes  # of the layers that it changes


def read_adapter(folder: Folder) -> Adapter:
    """A LoRA adapter whose files are whole and which vLLM can load.

    Raises:
        ModelError: a file is missing or corrupt, or the adapter is of a kind that can't be served.
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
    shapes, ranks = _factors(folder, _read_head(folder, ADAPTER_WEIGHTS))
    if ranks != {config.get("r")}:
        raise ModelError(f"{folder}: {ADAPTER} and {ADAPTER_WEIGHTS} differ in rank: copy or train it again")
    return Adapter(ranks.pop(), base, shapes)


def _factors(folder: Folder, tensors: Mapping[str, Any]) -> tuple[dict[str, tuple[int, int]], set[int]]:
    """Shapes of the layers that an adapter's factors change, and the factors' ranks."""
    found: dict[str, list[tuple[int, int] | None]] = {}
    for name, tensor in tensors.items():
        suffix = next((suffix for suffix in _FACTORS if name.endswith(suffix)), None)
        layer = name.removeprefix(_PREFIX).removesuffix(suffix or "")
        if suffix is None or layer.rpartition(".")[2] not in LORA_TARGETS:
            raise ModelError(f"{folder} changes {layer}: services are started for {', '.join(LORA_TARGETS)}")
        if len(tensor["shape"]) != 2:
            raise ModelError(f"{folder} changes {layer}, which is no linear layer: only those can be served")
        rows, columns = tensor["shape"]
        found.setdefault(layer, [None, None])[_FACTORS[suffix]] = (rows, columns)
    shapes, ranks = {}, set()
    for layer, (down, up) in found.items():
        if down is None or up is None:
            raise ModelError(f"{folder} has half of what it changes in {layer}: copy or train it again")
        shapes[layer] = up[0], down[1]
        ranks |= {down[0], up[1]}
    return shapes, ranks


def check_shapes(adapter: Shapes, base: Shapes, name: str) -> None:
    """Refuse an adapter for a model of another shape.

    Args:
        base: empty where it isn't known, such as for quantised weights: nothing is refused then.

    Raises:
        ModelError: a layer that the adapter changes is not in the base model, or of another shape there.
    """
    for layer, shape in adapter.items() if base else ():
        if layer not in base:
            raise ModelError(f"{name} is for another base model: this one has no {layer}")
        if tuple(base[layer]) != shape:
            ours, theirs = " x ".join(map(str, base[layer])), " x ".join(map(str, shape))
            raise ModelError(f"{name} is for another base model: its {layer} is {theirs}, this one's is {ours}")


def base_shapes(model: str) -> dict[str, tuple[int, int]]:
    """Shapes of a base model's layers that adapters change; empty where its weights are not on this machine, or quantised.

    Raises:
        ModelError: a file of its weights is corrupt.
    """
    path = Path(model) if Path(model).is_dir() else _cached(model)
    if path is None:
        return {}
    found, folder = {}, Folder(path)
    for file in folder.names(".safetensors"):
        for name, tensor in _read_head(folder, file).items():
            layer = name.removesuffix(".weight")
            if layer != name and layer.rpartition(".")[2] in LORA_TARGETS and len(tensor["shape"]) == 2:
                if not tensor["dtype"].startswith(("BF", "F")):
                    return {}  # packed: these shapes are not the layers'
                found[layer] = (tensor["shape"][0], tensor["shape"][1])
    return found


def _cached(model: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def check_model(folder: Folder) -> None:
    """Refuse a model folder that is not whole.

    Raises:
        ModelError: a file is missing or corrupt.
    """
    files = folder.names(".safetensors")
    if not folder.exists("config.json") or not files:
        raise ModelError(f"{folder} is no model: config.json or its *.safetensors are missing")
    held = {name for file in files for name in _read_head(folder, file)}
    index = "model.safetensors.index.json"
    if folder.exists(index):
        try:
            promised = set(json.loads(folder.read_text(index))["weight_map"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{folder}/{index} is corrupt: copy or train it again") from error
        if promised - held:
            raise ModelError(f"{folder} lacks weights, such as {min(promised - held)}: copy or train it again")


def _read_head(folder: Folder, name: str) -> dict[str, Any]:
    """Type and shape of each tensor in a safetensors file that has all the bytes which its head promises.

    Raises:
        ModelError: it has not, or has no head.
    """
    path = posixpath.join(folder.path, name)
    try:
        with folder.filesystem.open_input_file(path) as file:
            size, length = file.size(), int.from_bytes(file.read(8), "little")
            tensors = json.loads(file.read(length)) if length <= size - 8 else {}
        tensors.pop("__metadata__", None)
        ends = [tensor["data_offsets"][1] for tensor in tensors.values() if {"shape", "dtype"} <= set(tensor)]
        if ends and max(ends) == size - 8 - length:
            return dict(tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{folder}/{name} is corrupt: copy or train it again") from error
    raise ModelError(f"{folder}/{name} is corrupt: copy or train it again")
