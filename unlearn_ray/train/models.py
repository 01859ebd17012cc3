"""Loading a model for training: precision, LoRA, and logits at the learnt positions alone."""

from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from unlearn_ray.config import Lora, Recomputing, Weights
from unlearn_ray.errors import ConfigError, ModelError, gist
from unlearn_ray.rows import seed_of
from unlearn_ray.train.batches import MicroBatch
from unlearn_ray.train.recomputing import recompute

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_base(model: str, dtype: torch.dtype, device: torch.device, attention: str = "auto") -> PreTrainedModel:
    """The base model, ready to train.

    Raises:
        ModelError: it can't be loaded, or has no such attention here.
    """
    if attention == "auto":
        # On a CPU the backward pass of torch's fused attention is slower than plain matrices.
        attention = "eager" if device.type == "cpu" else "sdpa"
    try:
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation=attention)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"model {model} can't be loaded: {gist(error)}") from error
    return cast(PreTrainedModel, loaded.to(device))


def prepare(
    base: PreTrainedModel, weights: Weights, *, seed: int, gradient_checkpointing: Recomputing
) -> torch.nn.Module:
    """The module to train: the base itself, or the base under a LoRA adapter whose initial values follow from the seed."""
    base.train()
    recompute(base, gradient_checkpointing)
    if not isinstance(weights, Lora):
        return base
    if gradient_checkpointing != "none":
        base.enable_input_require_grads()
    torch.manual_seed(seed_of(seed, "lora"))
    config = LoraConfig(
        r=weights.rank,
        lora_alpha=weights.alpha,
        use_rslora=weights.rslora,
        lora_dropout=weights.dropout,
        target_modules=weights.target_modules
        if isinstance(weights.target_modules, str)
        else list(weights.target_modules),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(base, config)
    except ValueError as error:
        names = weights.target_modules if isinstance(weights.target_modules, str) else ", ".join(weights.target_modules)
        raise ConfigError(f"finetune.weights.target_modules: {base.name_or_path} has none of {names}") from error


class AnswerLogits:
    """Runs a causal model so that its head sees learnt positions only: at a vocabulary of 128,000, the logits of all
    the others would take more memory than the model. A hook on the head leaves what an architecture does after it in place."""

    def __init__(self, module: Any) -> None:
        causal = module.get_base_model() if isinstance(module, PeftModel) else module
        causal.get_output_embeddings().register_forward_pre_hook(self._select)
        self._depth = int(causal.config.get_text_config().num_hidden_layers)
        self._predicts_BL: torch.Tensor | None = None

    def __call__(self, forward: Any, batch: MicroBatch) -> torch.Tensor:
        """Logits (N, V). Rows are filled up to the right, where a causal model never looks: no attention mask is needed."""
        self._predicts_BL = batch.predicts_BL
        try:
            return cast(torch.Tensor, forward(input_ids=batch.inputs_BL, use_cache=False).logits)
        finally:
            self._predicts_BL = None

    def states(self, forward: Any, batch: MicroBatch, layer: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits, and what a layer gives out (N, D) at the same positions.

        Args:
            layer: counted from 0; None: the one at 7/32 of the depth.

        Raises:
            ConfigError: the model has no such layer.
        """
        number = self._depth * 7 // 32 if layer is None else layer
        if number >= self._depth:
            raise ConfigError(f"finetune.objective.layer: the model has layers 0 to {self._depth - 1} (it is {layer})")
        self._predicts_BL = batch.predicts_BL
        try:
            found = forward(input_ids=batch.inputs_BL, use_cache=False, output_hidden_states=True)
        finally:
            self._predicts_BL = None
        # The first are the embeddings.
        return found.logits, found.hidden_states[number + 1][batch.predicts_BL]

    def _select(self, head: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if self._predicts_BL is None:
            return None
        return (arguments[0][self._predicts_BL], *arguments[1:])
