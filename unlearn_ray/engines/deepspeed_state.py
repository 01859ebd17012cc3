"""Finds a rank's masters and optimizer state in DeepSpeed, for each ZeRO stage. Written for DeepSpeed 0.19."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from unlearn_ray.engines.shards import Block, Part, share


def blocks_of(engine: Any, zero_stage: int, *, shared_out: bool) -> list[Block]:
    """The masters that this rank holds.

    Args:
        shared_out: return only this rank's share of state that all ranks hold alike, so that it is written once.
    """
    names = {id(weight): name for name, weight in engine.module.named_parameters()}
    if zero_stage == 3:
        return list(_sharded(engine.optimizer, names))
    if zero_stage in (1, 2):
        return list(_partitioned(engine.optimizer, names))
    return list(_whole(engine.optimizer, names, shared_out))


def _whole(optimizer: Any, names: dict[int, str], shared_out: bool) -> Iterator[Block]:
    for weight, master in _pairs(optimizer):
        first, numel = 0, master.numel()
        if shared_out:
            first, numel = share(numel, dist.get_rank(), dist.get_world_size())
        if numel:
            yield Block(master, first, numel, (Part(names[id(weight)], first, numel, 0),))


def _pairs(optimizer: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each weight with its master. In float32 both are the same tensor."""
    if isinstance(optimizer, torch.optim.Optimizer):
        for group in optimizer.param_groups:
            yield from ((weight, weight) for weight in group["params"])
        return
    for weights, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
        yield from zip(weights, masters, strict=True)


def _partitioned(optimizer: Any, names: dict[int, str]) -> Iterator[Block]:
    """ZeRO-1 and 2: all weights in one flat sequence, cut into one run per rank."""
    for weights, flat in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True):
        parts = []
        for weight in weights:
            if (mapping := weight._hp_mapping) is not None:  # a part of it is in this rank's run
                here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
                parts.append(Part(names[id(weight)], here.start, here.numel, there.start))
        if parts:
            yield Block(flat, 0, flat.numel(), tuple(parts))


def _sharded(optimizer: Any, names: dict[int, str]) -> Iterator[Block]:
    """ZeRO-3: each weight is cut into one run per rank; the last runs are padded."""
    for weights, flat in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        parts = []
        for weight in weights:
            _, offset, length = optimizer.grad_position[optimizer.get_param_id(weight)]
            start = dist.get_rank() * length
            numel = min(length, weight.ds_numel - start)
            if numel > 0:
                parts.append(Part(names[id(weight)], start, numel, offset))
        if parts:
            yield Block(flat, 0, flat.numel(), tuple(parts))


def refresh(engine: Any, zero_stage: int) -> None:
    """Recompute the model's weights from the masters."""
    optimizer = engine.optimizer
    if zero_stage == 3:
        optimizer.checkpoint_event_prologue()
        for number in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(number)
        optimizer.checkpoint_event_epilogue()
    elif zero_stage in (1, 2):
        optimizer.update_lp_params()
    else:
        for weight, master in _pairs(optimizer):
            if weight is not master:
                weight.data.copy_(master.data)


def learner_of(engine: Any) -> torch.optim.Optimizer:
    """The optimizer with the state. DeepSpeed may have wrapped it."""
    found: torch.optim.Optimizer = engine.basic_optimizer
    return found
