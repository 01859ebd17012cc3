"""What one worker of a training holds, and what its steps take, from the model's shape and the config alone.

N: parameters, P: learnt ones, W: workers, b: bytes of a float that is computed with. T: tokens of a forward pass, V: vocabulary.

Weights, gradients and optimizer are those of mixed-precision Adam under ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1: 2 + 2 + 12
bytes a parameter); activations are counted tensor by tensor for transformers' Llama as autograd keeps them, after Korthikanti et al. 2022
(arXiv 2205.05198, section 4). benchmarks/memory.py holds both to what a process takes.
"""

from dataclasses import dataclass
from typing import Literal

from unlearn_ray.config import FinetuneConfig, Lora, Recomputing, RunConfig, WorkerResources
from unlearn_ray.sizing.gpus import Device
from unlearn_ray.sizing.shapes import Shape

Kind = Literal["cpu", "cuda"]
# Of a process that holds no model: on a CPU Python with torch, transformers and DeepSpeed (550 MiB), compiled kernels and what glibc keeps for its
# threads (300 MiB; both measured); on a GPU CUDA's context with the workspaces of cuBLAS and NCCL (1 to 2 GB on Hopper).
BASE_BYTES = {"cpu": 850 * 2**20, "cuda": 1536 * 2**20}
LOGITS_AT_ONCE = 2**24  # as in train/head.py, which imports torch
_BUCKET = 2**28  # elements, as in engines/deepspeed_runtime.py
_SPARE = 0.12  # of the activations and logits: what the allocator can't fill
# Share of the peak arithmetic rate that training reaches: torchtitan reports 33 to 39 % for Llama 3.1 8B on H100 in bf16 (arXiv 2410.06511, table 1).
MFU = 0.35
_LINK_SHARE = 0.6  # of a link's rate, that collectives reach
# Tokens of a turn's markers and a system message; a question; and an answer of each style, of SmolLM2's rows.
FRAME_TOKENS, QUESTION_TOKENS = 30, 25
ANSWER_TOKENS = {"sentence": 40, "paragraph": 120, "free": 250}


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass of a worker."""

    rows: int
    length: int  # tokens of a row, filled up
    learnt: int  # tokens of answers, over all rows

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one worker at its peak, by what they hold."""

    base: float
    weights: float
    gradients: float
    optimizer: float
    buffers: float  # of reductions, and what ZeRO-3 gathers
    activations: float
    logits: float
    reference: float = 0.0  # the base model beside full weights
    update: float = 0.0  # of the optimizer's step alone, when no activations are held

    @property
    def total(self) -> float:
        held = self.base + self.weights + self.optimizer + self.reference
        forward = (1 + _SPARE) * (self.activations + self.logits)
        return held + max(forward + self.gradients + self.buffers, self.gradients + self.buffers + self.update)


def learnt_parameters(shape: Shape, config: FinetuneConfig) -> int:
    """P: of LoRA its factors, else all."""
    if isinstance(config.weights, Lora):
        return shape.lora_parameters(config.weights.rank, config.weights.target_modules)
    return shape.parameters


def training_memory(
    shape: Shape, config: FinetuneConfig, workers: WorkerResources, batch: Pass, *, device: Kind
) -> Memory:
    """The peak of one worker, in bytes. Of a choice of how many workers the fewest count: each holds the largest share then.

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
    # ZeRO-1 to 3 keep masters and moments in float32, a share of them each; without ZeRO there are masters where the model is in bf16.
    masters = 4 if stage > 0 or width == 2 else 0
    optimizer = (8 + masters) * learnt / (count if stage > 0 else 1)
    gradients = width * learnt / (count if stage >= 2 else 1)
    if stage == 0 and width == 2:
        gradients += 4 * learnt  # DeepSpeed sums them up in float32
    bucket = min(_BUCKET, learnt)
    buffers = float(width * bucket * (2 if device == "cuda" and stage > 0 else 1)) if stage > 0 else 0.0
    if stage == 3:
        block = sum(inputs * outputs for inputs, outputs in shape.linears.values())
        buffers += width * (2 * block + shape.embedding)  # this layer and the next, or the output layer
    # Gradients of a share in float32, and two temporaries of torch's Adam.
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
        update=update,
    )


def activation_bytes(
    shape: Shape, config: FinetuneConfig, batch: Pass, width: int, device: Kind, again: Recomputing
) -> float:
    """What autograd keeps of a forward pass, and what the layer at work takes beside it.

    A layer keeps, per token: of each norm its input in float32 (and, where its weight learns, what it normalised) and its output; queries, keys
    and values; what attention gives out; four times the width of the MLP. Without fused attention (CPU) also the scores: float32, and
    what is computed with. Recomputation keeps each layer's input alone, and one layer whole.
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
    # Of a recomputed layer its input is kept; selectively, every second product and attention's result as well.
    products = width * (wide + 2 * narrow + 2 * shape.hidden + 2 * shape.intermediate)
    kept_of = {"none": layer, "selective": width * (shape.hidden + wide) + products / 2, "full": width * shape.hidden}
    kept = shape.layers * kept_of[again] + (0 if again == "none" else layer)
    return float(batch.tokens * (kept + at_work))


def logit_bytes(shape: Shape, config: FinetuneConfig, num_tokens: int, width: int) -> float:
    """The head's output at learnt tokens, in forward and backward: as computed, a copy by kind, float32, log-probabilities and their
    gradient; of KL the base model's as well. Of many tokens a chunk at a time, with the head's gradient in float32 (`train.head`)."""
    gradient = 0
    if num_tokens > 2 * (chunk := max(1, LOGITS_AT_ONCE // shape.vocabulary)):
        num_tokens, gradient = chunk, 0 if isinstance(config.weights, Lora) else 4 * shape.embedding
    own = 2 * width + (4 if width == 2 else 0) + 4 + 4
    base = width + 4 + 4 + 4 if asks_base(config) else 0
    return float(num_tokens * shape.vocabulary * (own + base) + gradient)


def asks_base(config: FinetuneConfig) -> bool:
    """Whether the base model is asked in each pass: of the retain rows by KL, of the forget rows by UNDIAL."""
    return _asks_of_retained(config) or config.objective.kind == "undial"


def _asks_of_retained(config: FinetuneConfig) -> bool:
    return config.retains and config.retain.kind == "kl"


def checkpoint_bytes(shape: Shape, config: FinetuneConfig) -> int:
    """Of one state of a training, over all workers: float32 masters and two moments of the learnt weights."""
    return learnt_parameters(shape, config) * 12


def num_checkpoints(config: FinetuneConfig) -> int:
    """How many states a training that is never interrupted writes; none after the last step, which exports."""
    return (config.num_steps - 1) // config.checkpoint_every


def kept_checkpoints(config: FinetuneConfig) -> int:
    """How many of them are there at most: those that are kept, and the next one while it is uploaded."""
    return min(num_checkpoints(config), config.keep_checkpoints + 1)


def gate_bytes(shape: Shape, config: FinetuneConfig) -> int:
    """Of the best state that a gate keeps, twice while a better one takes its place."""
    width = 4 if config.precision == "fp32" else 2
    return 2 * width * learnt_parameters(shape, config) if config.evaluate_every else 0


def export_bytes(shape: Shape, config: FinetuneConfig) -> int:
    """What is exported of one training, on disk."""
    model, adapter = shape.parameters * shape.dtype_bytes, 4 * learnt_parameters(shape, config)
    if not isinstance(config.weights, Lora):
        return model
    return {"merged": model, "both": model + adapter}.get(config.export or "adapter", adapter)


def answer_tokens(config: RunConfig) -> tuple[int, int]:
    """Tokens of an answer: expected, and at most."""
    most = max(config.answers.max_tokens, config.dataset.retain.max_tokens)
    return min(most, ANSWER_TOKENS[config.answers.style]), most


def pass_of(config: RunConfig, workers: WorkerResources, *, at_most: bool) -> Pass:
    """A worker's forward pass: of rows as they are expected, with as many workers as there may be; or of the longest, which share passes, since rows are
    dealt by length, with as few."""
    expected, most = answer_tokens(config)
    answer = most if at_most else expected
    length = min(config.finetune.max_tokens, FRAME_TOKENS + QUESTION_TOKENS + answer)
    size = workers.micro_batch if workers.micro_tokens is None else max(1, workers.micro_tokens // length)
    rows = min(size, -(-rows_per_step(config.finetune) // workers.span[0 if at_most else 1]))
    return Pass(rows, length, rows * min(answer, length))


def rows_per_step(config: FinetuneConfig) -> int:
    """Over all workers; both halves of a pair are rows."""
    return config.forget_batch * (2 if config.pairs else 1) + (config.retain_batch if config.retains else 0)


def training_flops(shape: Shape, config: FinetuneConfig, num_tokens: float, length: float, again: Recomputing) -> float:
    """Floating-point operations of training on tokens.

    Forward 2 N' D, backward 4 N' D, and 2 N' D again where activations are recomputed; N' are the parameters that a token is multiplied with (Kaplan
    et al. 2020, arXiv 2001.08361, section 2.1: C = 6 N D). Frozen weights have no gradient: with LoRA the backward pass is 2 N' D. Attention adds
    12 layers x width x length a token to 6 N D (PaLM, Chowdhery et al. 2022, arXiv 2204.02311, appendix B), in the same proportions. KL
    adds a forward pass of the base model on the retain rows, UNDIAL on the forget rows.
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
    """Of one optimiser step: arithmetic at `MFU`, and what the workers send each other.

    ZeRO-2 reduces the gradients after every pass and gathers the weights once a step; ZeRO-3 gathers the weights for every forward and
    backward pass as well (arXiv 1910.02054, section 7). Stages 0 and 1 reduce once a step.
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
