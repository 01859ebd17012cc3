"""Loads a model in shares. Under ZeRO-3 a rank never holds more than its own share and one whole weight."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from unlearn_ray.errors import ModelError, gist
from unlearn_ray.train.modelfiles import weights_of
from unlearn_ray.train.models import attention_on, load_base

log = logging.getLogger(__name__)


def load_in_shares(
    model: str, dtype: torch.dtype, device: torch.device, settings: Mapping[str, Any], attention: str = "auto"
) -> PreTrainedModel:
    """The base model. Each weight is sharded over the ranks as soon as it is read.

    If the weights' names in the files differ from the layers' names (experts that are stored one by one), or the files are not safetensors, every
    rank loads the whole model, and the log says so.

    Args:
        settings: DeepSpeed's config for stage 3.

    Raises:
        ModelError: the model can't be loaded.
    """
    try:
        return _load(model, dtype, device, settings, attention)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ModelError(f"model {model} can't be loaded: {gist(error)}") from error


def _load(
    model: str, dtype: torch.dtype, device: torch.device, settings: Mapping[str, Any], attention: str
) -> PreTrainedModel:
    names = _names_in(model)
    empty = _without_weights(model, dtype, attention_on(device, attention)) if names else None
    if empty is None or not all(names.get(name) for name, _ in empty.named_parameters()):
        log.warning(
            "every worker loads the whole of %s: the weights' names in its files differ from its layers' names",
            model,
        )
        return load_base(model, dtype, device, attention)
    zero = settings["zero_optimization"]
    # Without DeepSpeed's memory-efficient linear layers: it would patch torch for all models of this process, and save nothing for weights loaded here.
    only = {"zero_optimization": {**zero, "memory_efficient_linear": False}}
    kept = {key: settings[key] for key in ("train_micro_batch_size_per_gpu", "bf16")}
    owners: dict[int, list[tuple[nn.Module, str]]] = {}  # a tied weight has several
    for module in empty.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                owners.setdefault(id(weight), []).append((module, name))
    room = torch.empty(0)
    # The largest first, while the rank holds the least memory.
    for name, weight in sorted(empty.named_parameters(), key=lambda named: -named[1].numel()):
        if room.dtype != weight.dtype or room.numel() // 2 > weight.numel() or room.numel() < weight.numel():
            del room
            # One buffer for many weights, one after the other. Separate buffers would leave gaps between the shares.
            room = torch.empty(weight.numel(), dtype=weight.dtype, device=device)
        values = room[: weight.numel()].view(weight.shape)
        _read(names[name], name, values)
        read = nn.Parameter(values, requires_grad=weight.requires_grad)
        _share_out(read, {**kept, **only})
        for module, attribute in owners[id(weight)]:
            module._parameters[attribute] = read
    for name, buffer in empty.named_buffers():
        if name in names:
            _read(names[name], name, buffer)
        buffer.data = buffer.to(device)
    return empty


def _share_out(weight: nn.Parameter, settings: dict[str, Any]) -> None:
    import deepspeed

    deepspeed.zero.Init(module=nn.ParameterList([weight]), config_dict_or_path=settings)


def _without_weights(model: str, dtype: torch.dtype, attention: str) -> PreTrainedModel | None:
    """The model with layers and buffers but without weights; None if some of its weights need another dtype."""
    config = AutoConfig.from_pretrained(model)
    # Memory that is never written takes no room: each of these weights is replaced before it is read.
    with no_init_weights():
        empty: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    empty.tie_weights()
    return None if empty._keep_in_fp32_modules_strict else empty


def _names_in(model: str) -> dict[str, Path]:
    """The safetensors file of each weight. Empty if the files are not on this machine yet, or of another kind."""
    found: dict[str, Path] = {}
    for file in weights_of(model):
        if file.suffix != ".safetensors":
            return {}
        with safe_open(file, framework="pt") as opened:
            found |= dict.fromkeys(opened.keys(), file)
    return found


def _read(file: Path, name: str, values: torch.Tensor) -> None:
    """Fill a weight. The file is opened for this weight only: the pages read from a mapped file count as process memory until it is closed."""
    with safe_open(file, framework="pt") as opened:
        there = opened.get_tensor(name)
        if there.shape != values.shape:
            raise ValueError(f"{file.name} holds {name} of {tuple(there.shape)}, its config says {tuple(values.shape)}")
        values.copy_(there)
