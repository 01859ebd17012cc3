"""A model under DeepSpeed: ZeRO 0 to 3 on any number of ranks, as the training loop's runtime."""

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from unlearn_ray.config import FinetuneConfig, Lora, WorkerResources
from unlearn_ray.engines.deepspeed_patches import destroy, import_deepspeed, undo_first_step
from unlearn_ray.engines.deepspeed_state import blocks_of, learner_of, refresh
from unlearn_ray.engines.precision import has_bf16
from unlearn_ray.engines.sharded_load import load_in_shares
from unlearn_ray.engines.shards import load_shards, save_shard
from unlearn_ray.train.batches import MicroBatch
from unlearn_ray.train.head import Logits, Term
from unlearn_ray.train.lasting.displacement import Displacement
from unlearn_ray.train.models import DTYPES, AnswerLogits, load_base, prepare
from unlearn_ray.train.objectives.table import needs_base_model

_BUCKET = 2**28  # elements reduced together, at most


def deepspeed_config(
    config: FinetuneConfig,
    workers: WorkerResources,
    *,
    num_micro_batches: int,
    num_parameters: int,
    device: Literal["cpu", "cuda"],
) -> dict[str, Any]:
    """DeepSpeed's own config. The rows of a pass are dealt by `train.batches`: its micro-batch size is nominal."""
    pinned = {"device": "cpu", "pin_memory": device == "cuda"}
    bucket = max(1, min(_BUCKET, num_parameters))
    zero: dict[str, Any] = {
        "stage": workers.zero_stage,
        "reduce_bucket_size": bucket,
        "overlap_comm": device == "cuda" and workers.zero_stage > 0,
        "contiguous_gradients": True,
    }
    if workers.zero_stage in (1, 2):
        zero["allgather_bucket_size"] = bucket
    if workers.zero_stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": bucket // 10,
            # Small ones, such as norms and LoRA's, are gathered once and kept.
            "stage3_param_persistence_threshold": min(100_000, num_parameters // 10),
        }
    if workers.offload != "none":
        zero["offload_optimizer"] = pinned
    if workers.offload == "all":
        zero["offload_param"] = pinned
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": num_micro_batches,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": config.precision == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own AdamW compiles C++ on first use, for minutes; torch's has the same result.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


class DeepSpeedRuntime:
    """One rank's share of a model, its gradients and its optimizer. Implements `train.loop.Runtime`.

    Args:
        model: folder or hub name of the base model.
        num_micro_batches: forward passes of a rank in a step.
    """

    def __init__(
        self,
        model: str,
        config: FinetuneConfig,
        workers: WorkerResources,
        device: torch.device,
        *,
        seed: int,
        num_micro_batches: int,
    ) -> None:
        deepspeed = import_deepspeed()
        self.device = device
        self._zero_stage, self._num_micro_batches = workers.zero_stage, num_micro_batches
        deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False)
        if config.precision == "auto":
            config = config.model_copy(update={"precision": _common_precision(device)})
        self.precision = config.precision
        base = self._load(model, config, workers)
        self.module: Any = prepare(
            base, config.weights, seed=seed, gradient_checkpointing=workers.gradient_checkpointing
        )
        self.is_adapter = isinstance(config.weights, Lora)
        self._answers: Any = AnswerLogits(self.module)
        self._weights = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        if workers.zero_stage == 3 and self.is_adapter:
            # DeepSpeed casts and moves a whole model, but leaves one that was loaded in shares as it is.
            for weight in self._weights:
                weight.data = weight.data.to(device, DTYPES[self.precision])
        # Fused: one pass over the weights instead of ten, since ZeRO's flat shards are large.
        optimizer: Any = partial(torch.optim.AdamW, fused=True)
        if device.type == "cuda" and workers.offload != "none":
            optimizer = deepspeed.ops.adam.DeepSpeedCPUAdam  # compiled on first use: needs g++ and ninja
        settings = deepspeed_config(
            config,
            workers,
            num_micro_batches=num_micro_batches,
            num_parameters=sum(weight.numel() for weight in self._weights),
            device="cuda" if device.type == "cuda" else "cpu",
        )
        self._engine, *_ = deepspeed.initialize(
            model=self.module,
            optimizer=optimizer(self._weights, lr=config.learning_rate, weight_decay=config.weight_decay),
            config=settings,
            dist_init_required=False,
        )
        self._forward: Any = self._engine
        if workers.zero_stage == 0 and config.precision == "bf16":
            undo_first_step(self._engine.optimizer)
        # An adapter is switched off to see the base model; full weights have left it behind.
        self._base: Any = None
        self._base_answers: Any = None
        if needs_base_model(config) and not self.is_adapter:
            frozen: Any = self._load(model, config, workers).eval().requires_grad_(False)
            self._base_answers = AnswerLogits(frozen)
            self._base = _sharded(deepspeed, frozen, settings) if workers.zero_stage == 3 else frozen

    def _load(self, model: str, config: FinetuneConfig, workers: WorkerResources) -> Any:
        """The base model: whole, or this rank's share under ZeRO-3."""
        dtype = DTYPES[self.precision]
        if self._zero_stage < 3:
            return load_base(model, dtype, self.device, workers.attention)
        settings = deepspeed_config(
            config,
            workers,
            num_micro_batches=1,
            num_parameters=1,
            device="cuda" if self.device.type == "cuda" else "cpu",
        )
        return load_in_shares(model, dtype, self.device, settings, workers.attention)

    @property
    def rank(self) -> int:
        return int(dist.get_rank())

    def values(self, batch: MicroBatch, terms: Sequence[Term]) -> list[torch.Tensor]:
        found: list[torch.Tensor] = self._answers.values(self._forward, batch, terms)
        return found

    def states(
        self, batch: MicroBatch, terms: Sequence[Term], layer: int | None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        found: tuple[list[torch.Tensor], torch.Tensor] = self._answers.states(self._forward, batch, terms, layer)
        return found

    def base(self, batch: MicroBatch) -> Logits:
        found: Logits
        if self._base is not None:
            found = self._base_answers.base(self._base, batch, is_sharded_apart=self._zero_stage == 3)
            return found
        with self.module.disable_adapter():
            found = self._answers.base(self._engine, batch)
        return found

    def backward(self, loss: torch.Tensor) -> None:
        # DeepSpeed takes the mean over ranks and passes, and the loss is a sum over both.
        self._engine.backward(loss * dist.get_world_size() * self._num_micro_batches)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()

    def step(self, learning_rate: float) -> float:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self._zero_stage == 0 and self.precision == "fp32":
            return self._plain_step()
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def _plain_step(self) -> float:
        """In fp32 without ZeRO, DeepSpeed clips, but neither tells the norm nor leaves out a gradient that is not finite."""
        norm = float(
            torch.nn.utils.get_total_norm([weight.grad for weight in self._weights if weight.grad is not None])
        )
        groups = self._engine.optimizer.param_groups
        learnt = [group["params"] for group in groups]
        if not math.isfinite(norm):
            for group in groups:
                group["params"] = []
        self._engine.step()
        for group, weights in zip(groups, learnt, strict=True):
            group["params"] = weights
        return norm

    def sum(self, values: list[float]) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    @contextmanager
    def displaced(self) -> Iterator[Displacement]:
        """The learnt weights, to be moved. ZeRO-3 has only a share of them: the config refuses it."""

        def add_up(tensors: Sequence[torch.Tensor]) -> None:
            for tensor in tensors:
                dist.all_reduce(tensor)

        @contextmanager
        def aside() -> Iterator[None]:
            # The engine counts each backward pass of what it computed as one of the training.
            self._forward = self.module
            try:
                yield
            finally:
                self._forward = self._engine

        moved = Displacement(self._weights, add_up, aside)
        try:
            yield moved
        finally:
            moved.back()

    def save(self, folder: Path) -> None:
        """Write this rank's part of a checkpoint. Any number of ranks can load the checkpoint, under any ZeRO stage."""
        folder.mkdir(parents=True, exist_ok=True)
        blocks = blocks_of(self._engine, self._zero_stage, shared_out=True)
        save_shard(folder, blocks, learner_of(self._engine), self.rank)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Load the state that all ranks of a training wrote into a folder.

        Raises:
            ArtifactError: a part of it is missing.
        """
        blocks = blocks_of(self._engine, self._zero_stage, shared_out=False)
        load_shards(folder, blocks, learner_of(self._engine))
        refresh(self._engine, self._zero_stage)

    def weights(self) -> dict[str, torch.Tensor] | None:
        """The learnt weights by name, on the CPU of rank 0; None on the others."""
        import deepspeed

        gathered = {}
        for name, parameter in self.module.named_parameters():
            if not parameter.requires_grad:
                continue
            is_sharded = self._zero_stage == 3
            with deepspeed.zero.GatheredParameters([parameter]) if is_sharded else nullcontext():
                if self.rank == 0:
                    gathered[name] = parameter.detach().to("cpu", copy=True)
        return gathered if self.rank == 0 else None

    def close(self) -> None:
        """Give the memory back: what is exported is loaded next. Nothing can be asked of this runtime afterwards."""
        for engine in (self._engine, self._base if self._zero_stage == 3 else None):
            if engine is not None:
                destroy(engine, is_sharded=self._zero_stage == 3)
        self._engine = self._forward = self.module = self._answers = self._base = self._base_answers = None
        self._weights = []
        gc.collect()  # hooks and what they belong to hold each other
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _common_precision(device: torch.device) -> Literal["fp32", "bf16"]:
    """bf16 where every rank's device has it: all hold the same weights."""
    ranks_have = torch.tensor(int(has_bf16(device.type)), device=device)
    dist.all_reduce(ranks_have, op=dist.ReduceOp.MIN)
    return "bf16" if ranks_have else "fp32"


def _sharded(deepspeed: Any, frozen: torch.nn.Module, settings: dict[str, Any]) -> Any:
    """A frozen model with its weights shared out over the ranks as those of the trained one are."""
    kept = {key: settings[key] for key in ("train_micro_batch_size_per_gpu", "bf16", "steps_per_print")}
    zero = {
        "stage": 3,
        "stage3_param_persistence_threshold": settings["zero_optimization"]["stage3_param_persistence_threshold"],
    }
    engine, *_ = deepspeed.initialize(
        model=frozen, config={**kept, "zero_optimization": zero}, dist_init_required=False
    )
    engine.eval()
    return engine
