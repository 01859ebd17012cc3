"""Memory of a training worker and time of its steps, from the model's shape and the config alone.

N: parameters, P: learnt parameters, D: tokens of a training.

Weights, gradients and optimizer are those of mixed-precision Adam under ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1: 2 + 2 + 12
bytes per parameter). Activations are counted tensor by tensor for transformers' Llama, as autograd keeps them, after Korthikanti et al. 2022
(arXiv 2205.05198, section 4). benchmarks/memory.py compares both with the memory of a process.
"""

from dataclasses import dataclass
from typing import Literal

from unlearn_ray.config import FinetuneConfig, Lora, Meta, Recomputing, RunConfig, WorkerResources
from unlearn_ray.sizing.gpus import Device
from unlearn_ray.sizing.shapes import Shape

Kind = Literal["cpu", "cuda"]
# Memory of a process without a model. On a CPU: Python with torch, transformers and DeepSpeed (550 MiB), compiled kernels and glibc's memory for
# threads (300 MiB); both measured. On a GPU: CUDA's context with the workspaces of cuBLAS and NCCL (1 to 2 GB on Hopper).
BASE_BYTES = {"cpu": 850 * 2**20, "cuda": 1536 * 2**20}
LOGITS_AT_ONCE = 2**24  # as in train/head.py, which is not imported because it imports torch
_BUCKET = 2**28  # elements, as in engines/deepspeed_runtime.py
_SPARE = 0.12  # share of activations and logits that the allocator can't use
# Share of the peak arithmetic rate that training reaches: torchtitan reports 33 to 39 % for Llama 3.1 8B on H100 in bf16 (arXiv 2410.06511, table 1).
MFU = 0.35
_LINK_SHARE = 0.6  # of a link's rate, as collectives reach it
# Tokens of a turn's markers with a system message, of a question, and of an answer in each style; from SmolLM2's rows.
FRAME_TOKENS, QUESTION_TOKENS = 30, 25
ANSWER_TOKENS = {"sentence": 40, "paragraph": 120, "free": 250}


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass of a worker."""

    rows: int
    length: int  # tokens per row, padding included
    learnt: int  # tokens of answers, over all rows

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak memory of one worker in bytes, by its parts."""

    base: float
    weights: float
    gradients: float
    optimizer: float
    buffers: float  # for reductions, and for weights that ZeRO-3 gathers
    activations: float
    logits: float
    reference: float = 0.0  # the base model beside full weights
    displaced: float = 0.0  # what `finetune.lasting` moves, and where it was
    update: float = 0.0  # temporaries of the optimizer's step, when no activations are held

    @property
    def total(self) -> float:
        held = self.base + self.weights + self.optimizer + self.reference + self.displaced
        forward = (1 + _SPARE) * (self.activations + self.logits)
        return held + max(forward + self.gradients + self.buffers, self.gradients + self.buffers + self.update)


def learnt_parameters(shape: Shape, config: FinetuneConfig) -> int:
    """P: LoRA's factors, or all parameters."""
    if isinstance(config.weights, Lora):
        return shape.lora_parameters(config.weights.rank, config.weights.target_modules)
    return shape.parameters


def training_memory(
    shape: Shape, config: FinetuneConfig, workers: WorkerResources, batch: Pass, *, device: Kind
) -> Memory:
    """The peak of one worker, in bytes. With an elastic number of workers the minimum counts, because each worker then holds the largest share.

    Args:
        config: `precision: auto` counts as bf16.
    """
    number, learnt, count, stage = (
        shape.parameters,
        learnt_parameters(shape, config),
        workers.span[0],
        workers.zero_stage,
    )
    width = 4 if config.precision == "fp32" else 2
    is_lora = isinstance(config.weights, Lora)
    sharded = count if stage == 3 else 1
    frozen = number if is_lora else 0
    weights = width * (learnt + frozen) / sharded
    # ZeRO-1 to 3 shard float32 masters and moments. Without ZeRO there are masters only if the model is in bf16.
    masters = 4 if stage > 0 or width == 2 else 0
    optimizer = (8 + masters) * learnt / (count if stage > 0 else 1)
    gradients = width * learnt / (count if stage >= 2 else 1)
    if stage == 0 and width == 2:
        gradients += 4 * learnt  # DeepSpeed accumulates them in float32
    bucket = min(_BUCKET, learnt)
    buffers = float(width * bucket * (2 if device == "cuda" and stage > 0 else 1)) if stage > 0 else 0.0
    if stage == 3:
        block = sum(inputs * outputs for inputs, outputs in shape.linears.values())
        buffers += width * (2 * block + shape.embedding)  # this layer and the next, or the output layer
    # Float32 gradients of a share, and two temporaries of torch's Adam.
    update = 12 * learnt / (count if stage > 0 else 1) if masters else 8 * learnt
    if workers.offload != "none":
        optimizer, update = 0.0, 0.0
    if workers.offload == "all":
        weights = 0.0
    reference = 0.0
    if asks_base(config) and not is_lora:
        reference = width * number / sharded
    return Memory(
        base=BASE_BYTES[device],
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        buffers=buffers,
        activations=activation_bytes(shape, config, batch, width, device, workers.gradient_checkpointing),
        logits=logit_bytes(shape, config, batch.learnt, width),
        reference=reference,
        displaced=displaced_bytes(config, learnt, width),
        update=update,
    )


def displaced_bytes(config: FinetuneConfig, learnt: int, width: int) -> float:
    """What `finetune.lasting` holds, whole on each worker: the weights as they were, float32 masters and gradients, and an attacker's two moments."""
    if config.lasting is None:
        return 0.0
    return float(learnt * (width + 8 + (8 if config.has_attacker else 0)))


def activation_bytes(
    shape: Shape, config: FinetuneConfig, batch: Pass, width: int, device: Kind, again: Recomputing
) -> float:
    """The tensors that autograd keeps of a forward pass, and the temporaries of the layer that is being computed.

    A layer keeps, per token: the float32 input and the output of each norm (and the normalised values if the norm's weight is learnt); queries,
    keys and values; the output of attention; four times the width of the MLP. Without fused attention (CPU) it also keeps the scores, in float32 and
    in the dtype of the computation. Full recomputation keeps only each layer's input, and one whole layer.
    """
    wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    is_lora = isinstance(config.weights, Lora)
    norm = 4 * shape.hidden + width * shape.hidden * (1 if is_lora else 2)
    if device == "cpu":  # keys and values are repeated for each query's head
        scores = (4 + (width if width == 2 else 0)) * shape.heads * batch.length
        attention = width * 4 * wide + scores
        at_work = 2 * scores + width * 3 * shape.intermediate
    else:
        attention = width * (3 * wide + 2 * narrow)
        at_work = width * 3 * shape.intermediate
    layer = 2 * norm + attention + width * 4 * shape.intermediate
    # A recomputed layer keeps its input; with selective recomputation also every second product and attention's result.
    products = width * (wide + 2 * narrow + 2 * shape.hidden + 2 * shape.intermediate)
    kept_of = {"none": layer, "selective": width * (shape.hidden + wide) + products / 2, "full": width * shape.hidden}
    kept = shape.layers * kept_of[again] + (0 if again == "none" else layer)
    return float(batch.tokens * (kept + at_work))


def logit_bytes(shape: Shape, config: FinetuneConfig, num_tokens: int, width: int) -> float:
    """The logits of learnt tokens in the forward and backward pass: as computed, a copy, in float32, log-probabilities and their gradient. KL
    also has the base model's. For many tokens only one chunk, and the head's gradient in float32 (`train.head`)."""
    gradient = 0
    if num_tokens > 2 * (chunk := max(1, LOGITS_AT_ONCE // shape.vocabulary)):
        num_tokens, gradient = chunk, 0 if isinstance(config.weights, Lora) else 4 * shape.embedding
    own = 2 * width + (4 if width == 2 else 0) + 4 + 4
    base = width + 4 + 4 + 4 if asks_base(config) else 0
    return float(num_tokens * shape.vocabulary * (own + base) + gradient)


def asks_base(config: FinetuneConfig) -> bool:
    """Whether each pass runs the base model: on retain rows for KL, on forget rows for UNDIAL."""
    return _asks_of_retained(config) or config.objective.kind == "undial"


def _asks_of_retained(config: FinetuneConfig) -> bool:
    return config.retains and config.retain.kind == "kl"


def checkpoint_bytes(shape: Shape, config: FinetuneConfig) -> int:
    """Size of one checkpoint, over all workers: float32 masters and two moments of the learnt weights."""
    return learnt_parameters(shape, config) * 12


def num_checkpoints(config: FinetuneConfig) -> int:
    """Number of checkpoints of an uninterrupted training. There is none after the last step, which exports."""
    return (config.num_steps - 1) // config.checkpoint_every


def kept_checkpoints(config: FinetuneConfig) -> int:
    """Number of checkpoints that exist at the same time, at most: the kept ones, and the one that is uploaded."""
    return min(num_checkpoints(config), config.keep_checkpoints + 1)


def gate_bytes(shape: Shape, config: FinetuneConfig) -> int:
    """Disk space of the gate's best state; two copies while a better one replaces it."""
    width = 4 if config.precision == "fp32" else 2
    return 2 * width * learnt_parameters(shape, config) if config.evaluate_every else 0


def export_bytes(shape: Shape, config: FinetuneConfig) -> int:
    """Disk space of a training's export."""
    model, adapter = shape.parameters * shape.dtype_bytes, 4 * learnt_parameters(shape, config)
    if not isinstance(config.weights, Lora):
        return model
    return {"merged": model, "both": model + adapter}.get(config.export or "adapter", adapter)


def answer_tokens(config: RunConfig) -> tuple[int, int]:
    """Expected and maximum number of tokens of an answer."""
    most = max(config.answers.max_tokens, config.dataset.retain.max_tokens)
    return min(most, ANSWER_TOKENS[config.answers.style]), most


def pass_of(config: RunConfig, workers: WorkerResources, *, at_most: bool) -> Pass:
    """A worker's forward pass: with rows of expected length and the maximum number of workers, or with rows of maximum length and the minimum number.
    Rows are sorted by length, so the longest ones share a pass."""
    expected, most = answer_tokens(config)
    answer = most if at_most else expected
    length = min(config.finetune.max_tokens, FRAME_TOKENS + QUESTION_TOKENS + answer)
    size = workers.micro_batch if workers.micro_tokens is None else max(1, workers.micro_tokens // length)
    rows = min(size, -(-rows_per_step(config.finetune) // workers.span[0 if at_most else 1]))
    return Pass(rows, length, rows * min(answer, length))


def rows_per_step(config: FinetuneConfig) -> int:
    """Rows per step over all workers; a pair counts as two rows. With `finetune.lasting` also those at displaced weights, and those that displace them."""
    forget = config.forget_batch * (2 if config.pairs else 1)
    displaced: float = 0
    if isinstance(config.lasting, Meta):
        displaced = forget + config.forget_batch * sum(config.lasting.steps) / 2
    elif config.lasting is not None:
        displaced = 2 * forget
    return round(forget + displaced) + (config.retain_batch if config.retains else 0)


def training_flops(shape: Shape, config: FinetuneConfig, num_tokens: float, length: float, again: Recomputing) -> float:
    """Floating-point operations of training on tokens.

    Forward 2 N' D, backward 4 N' D, where N' are the parameters that a token is multiplied with (Kaplan et al. 2020, arXiv 2001.08361,
    section 2.1: C = 6 N D). Recomputation adds 2 N' D (full) or N' D (selective). Frozen weights have no gradient, so with LoRA the backward pass
    is 2 N' D. Attention adds 12 layers x width x length per token to 6 N D (PaLM, Chowdhery et al. 2022, arXiv 2204.02311, appendix B), in the same
    proportions. KL adds a forward pass of the base model on the retain rows, UNDIAL on the forget rows.
    """
    multiplied = shape.matrix_parameters + 2 * shape.layers * shape.heads * shape.head_dim * length
    passes = 4 if isinstance(config.weights, Lora) else 6
    passes += {"none": 0, "selective": 1, "full": 2}[again]
    flops = passes * multiplied * num_tokens
    num_asked = config.retain_batch if _asks_of_retained(config) else 0
    num_asked += config.forget_batch if config.objective.kind == "undial" else 0
    return flops + 2 * multiplied * num_tokens * num_asked / rows_per_step(config)


def step_seconds(
    shape: Shape, config: RunConfig, workers: WorkerResources, device: Device, *, cores: float = 1.0
) -> float:
    """The time of one optimizer step: arithmetic at `MFU`, plus communication between the workers.

    ZeRO-2 reduces the gradients after every pass and gathers the weights once per step. ZeRO-3 also gathers the weights for every forward and
    backward pass (arXiv 1910.02054, section 7). Stages 0 and 1 reduce once per step.
    """
    finetune = config.finetune
    batch = pass_of(config, workers, at_most=False)
    num_rows = rows_per_step(finetune)
    flops = training_flops(shape, finetune, num_rows * batch.length, batch.length, workers.gradient_checkpointing) / (
        workers.span[1] * cores
    )
    width = 4 if finetune.precision == "fp32" else 2
    num_passes = -(-num_rows // (workers.span[1] * batch.rows))
    learnt, share = width * learnt_parameters(shape, finetune), (workers.span[1] - 1) / workers.span[1]
    model = width * shape.parameters
    sent = learnt * share * {0: 2, 1: 2, 2: num_passes + 1, 3: num_passes}[workers.zero_stage]
    if workers.zero_stage == 3:
        sent += 2 * num_passes * model * share
    return flops / (device.flops * MFU) + sent / (device.link * _LINK_SHARE)
