"""Loading a model for training: precision, LoRA, and logits at the learnt positions alone."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from unlearn_ray.config import Lora, Recomputing, Weights
from unlearn_ray.errors import ConfigError, ModelError, gist
from unlearn_ray.rows import seed_of
from unlearn_ray.train import head
from unlearn_ray.train.batches import MicroBatch
from unlearn_ray.train.head import Logits, Term, at_once, in_chunks
from unlearn_ray.train.recomputing import recompute

log = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_base(model: str, dtype: torch.dtype, device: torch.device, attention: str = "auto") -> PreTrainedModel:
    """The base model, ready to train.

    Raises:
        ModelError: the model can't be loaded, or this attention is not available.
    """
    chosen = attention_on(device, attention)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation=chosen)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"model {model} can't be loaded: {gist(error)}") from error
    return cast(PreTrainedModel, loaded.to(device))


def attention_on(device: torch.device, attention: str) -> str:
    """The attention to use; resolves `auto`. On a CPU the backward pass of torch's fused attention is slower than plain matrix products."""
    if attention != "auto":
        return attention
    return "eager" if device.type == "cpu" else "sdpa"


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
    the others would take more memory than the model. A hook on the head leaves what an architecture does after it in place.

    For many learnt tokens, the values of a loss are computed in chunks (`train.head`). If an architecture does more than the head's product (Gemma's
    soft cap, Granite's scale, an adapter on the head), all their logits are held, and the log says so once.
    """

    def __init__(self, module: Any) -> None:
        causal = module.get_base_model() if isinstance(module, PeftModel) else module
        self._head = causal.get_output_embeddings()
        self._head.register_forward_pre_hook(self._select)
        # The head's forward is replaced: DeepSpeed's hooks around it then gather a sharded weight once per pass, not once per chunk.
        self._product = self._head.forward
        self._head.forward = self._forward
        weight = self._head.weight
        self._vocabulary = int(
            getattr(weight, "ds_shape", weight.shape)[0]
        )  # ds_shape: the full shape of a weight that is sharded already
        self._depth = int(causal.config.get_text_config().num_hidden_layers)
        self._predicts_BL: torch.Tensor | None = None
        self._gives: Callable[[torch.Tensor], torch.Tensor] = self._product
        # Whether the logits are just the head's product; None: not checked yet.
        self._is_product: bool | None = None if type(self._head) is torch.nn.Linear else False
        self._has_warned = False

    def __call__(self, forward: Any, batch: MicroBatch) -> torch.Tensor:
        """Logits (N, V). Rows are filled up to the right, where a causal model never looks: no attention mask is needed."""
        return cast(torch.Tensor, self._run(forward, batch, self._product).logits)

    def values(self, forward: Any, batch: MicroBatch, terms: Sequence[Term]) -> list[torch.Tensor]:
        """The values of each term."""
        return self._values(forward, batch, terms)[0]

    def states(
        self, forward: Any, batch: MicroBatch, terms: Sequence[Term], layer: int | None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The same, and the output (N, D) of a layer at the learnt positions.

        Args:
            layer: counted from 0; None: the one at 7/32 of the depth.

        Raises:
            ConfigError: the model has no such layer.
        """
        number = self._depth * 7 // 32 if layer is None else layer
        if number >= self._depth:
            raise ConfigError(f"finetune.objective.layer: the model has layers 0 to {self._depth - 1} (it is {layer})")
        values, found = self._values(forward, batch, terms, output_hidden_states=True)
        # The first are the embeddings.
        return values, found.hidden_states[number + 1][batch.predicts_BL]

    @torch.no_grad()
    def base(self, forward: Any, batch: MicroBatch, is_sharded_apart: bool = False) -> Logits:
        """A function that gives logits (C, V) at some of the learnt tokens. For many learnt tokens only the head's input is held, and the product is
        computed for the requested tokens.

        Args:
            is_sharded_apart: the head's weight is gathered only while this model runs, not while another model is trained.
        """
        if is_sharded_apart or not self._in_chunks(forward, batch):
            logits_NV = self(forward, batch)
            return lambda tokens: logits_NV[tokens]
        states_ND, layer = self._run(forward, batch, lambda states_ND: states_ND).logits, self._head

        @torch.no_grad()
        def look_up(tokens: torch.Tensor) -> torch.Tensor:
            return F.linear(states_ND[tokens], layer.weight, layer.bias)

        return look_up

    def _values(
        self, forward: Any, batch: MicroBatch, terms: Sequence[Term], **more: Any
    ) -> tuple[list[torch.Tensor], Any]:
        if not self._in_chunks(forward, batch):
            found = self._run(forward, batch, self._product, **more)
            return at_once(found.logits, terms), found
        lengths: list[int] = []

        def gives(states_ND: torch.Tensor) -> torch.Tensor:
            values = in_chunks(states_ND, self._head, self._vocabulary, terms)
            lengths.extend(len(each) for each in values)
            return torch.cat(values)

        found = self._run(forward, batch, gives, **more)
        return list(found.logits.split(lengths)), found

    def _in_chunks(self, forward: Any, batch: MicroBatch) -> bool:
        """Whether to compute this pass' logits in chunks: it has many learnt tokens, and the architecture allows it."""
        # On every rank at its first pass: all ranks must run a sharded model together.
        if self._is_product is None:
            self._is_product = self._look(forward, batch)
        is_large = head.is_large(int(batch.predicts_BL.sum()), self._vocabulary)
        if is_large and not self._is_product and not self._has_warned:
            self._has_warned = True
            log.warning(
                "the model's logits are more than its head's product: those of all learnt tokens of a pass are held at once"
            )
        return is_large and self._is_product

    @torch.no_grad()
    def _look(self, forward: Any, batch: MicroBatch) -> bool:
        """Whether the head's output is the model's logits, unchanged. One token is enough to check."""
        given: list[torch.Tensor] = []

        def gives(states: torch.Tensor) -> torch.Tensor:
            given.append(self._product(states))
            return given[0]

        self._gives = gives
        devices = [batch.ids_BL.device] if batch.ids_BL.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):  # this check must not change the dropout
                found = forward(input_ids=batch.inputs_BL[:1, :1], use_cache=False).logits
        finally:
            self._gives = self._product
        # DeepSpeed's hooks may return another tensor object, but with the same memory.
        return bool(found.data_ptr() == given[0].data_ptr() and found.dtype == given[0].dtype)

    def _run(self, forward: Any, batch: MicroBatch, gives: Callable[[torch.Tensor], torch.Tensor], **more: Any) -> Any:
        """One pass, in which `gives` replaces the head's product."""
        self._predicts_BL, self._gives = batch.predicts_BL, gives
        try:
            return forward(input_ids=batch.inputs_BL, use_cache=False, **more)
        finally:
            self._predicts_BL, self._gives = None, self._product

    def _forward(self, states: torch.Tensor) -> torch.Tensor:
        return self._gives(states)

    def _select(self, _: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if self._predicts_BL is None:
            return None
        return (arguments[0][self._predicts_BL], *arguments[1:])
