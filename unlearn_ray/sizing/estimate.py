"""The estimate of a run: rows, tokens, arithmetic, time, memory and cost of each stage, and the settings to change if it does not fit."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

from unlearn_ray.config import Recomputing, RunConfig, WorkerResources
from unlearn_ray.errors import ConfigError
from unlearn_ray.sizing.generation import Asked, asked_by, asking_seconds, num_sequences
from unlearn_ray.sizing.gpus import DEVICES, Device, machine_memory
from unlearn_ray.sizing.shapes import Shape
from unlearn_ray.sizing.training import (
    Kind,
    Memory,
    checkpoint_bytes,
    export_bytes,
    gate_bytes,
    kept_checkpoints,
    num_checkpoints,
    pass_of,
    rows_per_step,
    step_seconds,
    training_flops,
    training_memory,
)

FILLED = 0.95  # of a device's memory; a training that is planned to take more does not fit
# Overhead of a stage: starting and ending engines or workers, loading weights, compiling.
START_SECONDS: dict[Kind, float] = {"cuda": 150.0, "cpu": 40.0}
_MAX_WORKERS = 64
_PRICES: dict[Recomputing, float] = {"none": 0.0, "selective": 1.2, "full": 1.8}  # in units of halving a pass


@dataclass(frozen=True, slots=True)
class StageCost:
    """The cost of one stage."""

    name: str
    rows: int
    tokens: float
    flops: float
    gpus: int  # held while it works
    seconds: float
    memory: float  # bytes per GPU; on a CPU, of all its processes

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.seconds / 3600


@dataclass(frozen=True, slots=True)
class Misfit:
    """A stage that does not fit, and the nearest settings that do."""

    stage: str
    needed: float  # bytes per GPU
    there: float
    settings: tuple[str, ...]  # KEY.PATH=VALUE; empty: no known setting fits


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimate of a run on one kind of device."""

    device: Device
    shape: Shape
    num_gpus: int
    stages: tuple[StageCost, ...]
    worker: Memory  # of one training's worker
    step_seconds: float
    num_trainings: int
    side_by_side: int
    checkpoint: int  # bytes of one state
    checkpoints: int  # number that one training writes
    kept: int  # of them at the same time, at most
    export: int  # bytes, of one training
    gate: int  # bytes, of the gate's best state
    misfits: tuple[Misfit, ...]

    @property
    def gpu_hours(self) -> float:
        return sum(stage.gpu_hours for stage in self.stages)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def checkpoint_space(self) -> int:
        """Bytes, of all trainings."""
        return self.checkpoint * self.kept * self.num_trainings

    def cost(self, per_hour: float) -> float:
        """In the currency of `per_hour`, the price of a GPU-hour."""
        return self.gpu_hours * per_hour


def estimate(config: RunConfig, shape: Shape, gpu: str, num_gpus: int | None = None) -> Estimate:
    """Estimate a run.

    Args:
        gpu: a key of `DEVICES`.
        num_gpus: in the cluster; None: those of one machine, or more if a training or the engines ask for more.

    Raises:
        ConfigError: the device is not known, or a training or an engine asks for more GPUs than there are.
    """
    if gpu not in DEVICES:
        raise ConfigError(f"--gpu: there is no {gpu!r}: choose one of {', '.join(DEVICES)}")
    device, kind = DEVICES[gpu], _kind(gpu)
    workers, engines = config.cluster.workers, config.cluster.engines
    if kind == "cpu":
        num_gpus = 1  # the machine
    else:
        count = engines.num_engines if isinstance(engines.num_engines, int) else 1
        num_gpus = num_gpus or max(device.per_machine, workers.span[1], engines.num_gpus * count)
        for key, asked in (("workers.num_workers", workers.span[0]), ("engines", engines.num_gpus)):
            if asked > num_gpus:
                raise ConfigError(f"cluster.{key}: {asked} GPUs are asked for, and there are {num_gpus} (--num-gpus)")
        if isinstance(workers.num_workers, tuple):
            workers = workers.model_copy(update={"num_workers": (workers.span[0], min(workers.span[1], num_gpus))})
            config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"workers": workers})})
    stages = [_asking(config, shape, asked, device, kind, num_gpus) for asked in asked_by(config)]
    memory = worker_memory(config, shape, workers, kind)
    trained = _training(config, shape, memory, device, kind, num_gpus)
    misfits = [*_engine_misfits(config, shape, device, kind), *_training_misfits(config, shape, memory, device, kind)]
    return Estimate(
        device=device,
        shape=shape,
        num_gpus=num_gpus,
        stages=(*stages[:3], trained, *stages[3:]),
        worker=memory,
        step_seconds=step_seconds(shape, config, workers, device, cores=_worker_cores(workers, kind)),
        num_trainings=_num_trainings(config),
        side_by_side=_side_by_side(config, kind, num_gpus),
        checkpoint=checkpoint_bytes(shape, config.finetune),
        checkpoints=num_checkpoints(config.finetune),
        kept=kept_checkpoints(config.finetune),
        export=export_bytes(shape, config.finetune),
        gate=gate_bytes(shape, config.finetune),
        misfits=tuple(misfits),
    )


def worker_memory(config: RunConfig, shape: Shape, workers: WorkerResources, kind: Kind) -> Memory:
    """The memory of one worker in its largest pass."""
    batch = pass_of(config, workers, at_most=True)
    return training_memory(shape, config.finetune, workers, batch, device=kind)


def _kind(gpu: str) -> Kind:
    return "cpu" if gpu == "cpu" else "cuda"


def _worker_cores(workers: WorkerResources, kind: Kind) -> float:
    return max(1.0, min(workers.num_cpus, DEVICES["cpu"].per_machine / workers.span[1])) if kind == "cpu" else 1.0


def _num_trainings(config: RunConfig) -> int:
    return len(config.topics) if config.finetune.adapters == "per_topic" else 1


def _side_by_side(config: RunConfig, kind: Kind, num_gpus: int) -> int:
    wanted = config.cluster.workers.concurrent_jobs
    workers = config.cluster.workers
    if kind == "cpu":
        room = int(DEVICES["cpu"].per_machine // (workers.span[1] * workers.num_cpus))
    else:
        room = num_gpus // workers.span[1]
    room = max(1, room)
    return min(_num_trainings(config), room if wanted == "auto" else min(wanted, room))


def _asking(config: RunConfig, shape: Shape, asked: Asked, device: Device, kind: Kind, num_gpus: int) -> StageCost:
    engines = config.cluster.engines
    wanted = engines.num_engines
    most = wanted[1] if isinstance(wanted, tuple) else wanted
    if kind == "cpu":
        cores = DEVICES["cpu"].per_machine
        count = 1 if most == "auto" else int(most)
        each = max(1.0, min(engines.num_cpus * count, cores) / count)
        gpus, memory = 1, count * (2 * shape.parameters + engines.kv_cache_gib * 2**30 + 2**30)
    else:
        room = max(1, num_gpus // engines.num_gpus)
        count, each = room if most == "auto" else min(int(most), room), 1.0
        gpus, memory = count * engines.num_gpus, device.memory * engines.gpu_memory_utilization
    seconds = asking_seconds(shape, asked, engines, count, device, each)
    if engines.kind == "openai" and asked.stage != "evaluate":
        gpus, memory = 0, 0.0  # an endpoint serves the model
    seconds += START_SECONDS[kind] if asked.stage in ("questions", "evaluate") else 0.0
    tokens = asked.prompt_tokens + asked.output_tokens
    return StageCost(asked.stage, asked.rows, tokens, 2 * shape.matrix_parameters * tokens, gpus, seconds, memory)


def _training(config: RunConfig, shape: Shape, memory: Memory, device: Device, kind: Kind, num_gpus: int) -> StageCost:
    workers, together = config.cluster.workers, _side_by_side(config, kind, num_gpus)
    is_own = config.finetune.adapters == "per_topic"
    jobs = [config.of_topic(topic) for topic in config.topics] if is_own else [config]
    lanes = [0.0] * together  # each training starts in the lane that is free first
    rows, tokens, flops = 0, 0.0, 0.0
    for job in jobs:
        length, own = pass_of(job, workers, at_most=False).length, job.finetune
        number = own.num_steps * rows_per_step(own)
        rows, tokens = rows + number, tokens + number * length
        flops += training_flops(shape, own, number * length, length, workers.gradient_checkpointing)
        one = own.num_steps * step_seconds(shape, job, workers, device, cores=_worker_cores(workers, kind))
        lanes[lanes.index(min(lanes))] += one + START_SECONDS[kind]
    gpus = together * workers.span[1] if kind == "cuda" else 1
    held = memory.total * (workers.span[1] * together if kind == "cpu" else 1)
    return StageCost("finetune", rows, tokens, flops, gpus, max(lanes), held)


def _engine_misfits(config: RunConfig, shape: Shape, device: Device, kind: Kind) -> Iterator[Misfit]:
    engines = config.cluster.engines
    if kind == "cpu":
        return
    length = float(engines.max_model_len or 4096)

    def fits(parallel: int) -> bool:
        changed = engines.model_copy(update={"tensor_parallel_size": parallel})
        return num_sequences(shape, changed, device, length) > 0

    if not fits(engines.tensor_parallel_size):
        needed = (2 * shape.parameters + length * shape.kv_bytes) / engines.num_gpus + 2 * 2**30
        more = (2**power for power in range(1, 7) if shape.heads % 2**power == 0)
        found = next((size for size in more if size > engines.tensor_parallel_size and fits(size)), None)
        setting = () if found is None else (f"cluster.engines.tensor_parallel_size={found}",)
        yield Misfit("engines", needed, device.memory * engines.gpu_memory_utilization, setting)


def _training_misfits(config: RunConfig, shape: Shape, memory: Memory, device: Device, kind: Kind) -> Iterator[Misfit]:
    def there(workers: WorkerResources) -> float:
        return (device.memory if kind == "cuda" else machine_memory() / workers.span[0]) * FILLED

    workers = config.cluster.workers
    if memory.total <= there(workers):
        return
    found = nearest_fit(config, shape, kind, there)
    yield Misfit("finetune", memory.total, there(workers), found)


def nearest_fit(
    config: RunConfig, shape: Shape, kind: Kind, there: Callable[[WorkerResources], float]
) -> tuple[str, ...]:
    """The cheapest changes of `cluster.workers` that fit, as overrides; empty if none does. They do not change what is trained.

    Each change has a price: smaller passes cost least, then more sharding and recomputation, more workers, and offloading.

    Args:
        there: bytes that one worker may take under these settings.
    """
    own = config.cluster.workers
    key, largest = ("micro_batch", own.micro_batch) if own.micro_tokens is None else ("micro_tokens", own.micro_tokens)
    sizes = [largest >> halvings for halvings in range(10) if largest >> halvings]
    kinds: tuple[Recomputing, ...] = ("none", "selective", "full")
    counts = [own.span[0] << doublings for doublings in range(7) if own.span[0] << doublings <= _MAX_WORKERS]
    if kind == "cpu":
        counts = [own.span[0]]
    stages = [stage for stage in (0, 1, 2, 3) if stage >= own.zero_stage]
    offloads = (
        ["none", "optimizer", "all"][["none", "optimizer", "all"].index(own.offload) :]
        if kind == "cuda"
        else [own.offload]
    )
    best: tuple[float, WorkerResources] | None = None
    for size, again, stage, count, offload in product(
        sizes, kinds[kinds.index(own.gradient_checkpointing) :], stages, counts, offloads
    ):
        if offload == "all" and stage != 3:
            continue
        price = (
            math.log2(largest / size)
            + _PRICES[again]
            - _PRICES[own.gradient_checkpointing]
            + 1.2 * (stage - own.zero_stage)
            + 2.5 * math.log2(count / own.span[0])
            + {"none": 0, "optimizer": 6, "all": 8}[offload]
        )
        if best is not None and price >= best[0]:
            continue
        workers = own.model_copy(
            update={
                key: size,
                "gradient_checkpointing": again,
                "zero_stage": stage,
                "num_workers": count,
                "offload": offload,
            }
        )
        if worker_memory(config, shape, workers, kind).total <= there(workers):
            best = price, workers
    if best is None:
        return ()
    changed = best[1].model_dump()
    before = own.model_dump() | {"num_workers": own.span[0]}  # the minimum of an elastic number
    return tuple(
        f"cluster.workers.{key}={str(value).lower()}" for key, value in changed.items() if value != before[key]
    )
