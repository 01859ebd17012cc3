"""What is done around DeepSpeed's faults: one function each, with the upstream issue and the condition for its removal. DeepSpeed 0.19."""

import logging
from typing import Any

import torch


def import_deepspeed() -> Any:
    """The module, quiet, and without its shared-memory reduction for CPUs: that one is compiled on first use, for a minute, and gloo gives the same result.

    No issue: DeepSpeed means it so. Can go when the wheel brings the compiled reduction.
    """
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    from deepspeed.ops import __compatible_ops__ as compatible

    deepspeed.utils.logger.setLevel(logging.WARNING)
    compatible["deepspeed_shm_comm"] = False
    return deepspeed


def destroy(engine: Any, is_sharded: bool) -> None:
    """End an engine. ZeRO-3's would keep its weights as long as the process lives: a global list holds its module, and the hooks of
    its modules hold all else. So they are emptied.

    deepspeedai/DeepSpeed#7204; when a destroyed engine leaves nothing behind, `engine.destroy()` will do.
    """
    parameters = list(engine.module.parameters())
    engine.destroy()
    if is_sharded:
        from deepspeed.runtime.zero import parameter_offload

        parameter_offload.FWD_MODULE_STACK.clear()
        if (learner := getattr(engine, "basic_optimizer", None)) is not None:
            learner.state.clear()
            learner.param_groups.clear()
        vars(engine.optimizer).clear()
        for parameter in parameters:
            parameter.grad = None
            vars(parameter).clear()  # this rank's share of it
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)


def undo_first_step(optimizer: Any) -> None:
    """Begin as if nothing was learnt yet.

    In bf16 without ZeRO, DeepSpeed has the optimizer take a step of zero gradients to allocate its state. Adam counts it, and corrects its
    moments as in a second step: the first update was three quarters of what it should be. Weight decay acts in it, too.
    deepspeedai/DeepSpeed#5104 would end this; then this function can go.
    """
    optimizer.optimizer.state.clear()
    optimizer.refresh_fp32_params()
