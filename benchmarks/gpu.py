"""The training runtime on one GPU, in one process, without Ray and vLLM.

    python benchmarks/gpu.py [--shape 8b] [--out FILE]
    python benchmarks/gpu.py --shape tiny

It needs torch, transformers, peft and deepspeed, and the small libraries that `unlearn_ray.config` and `unlearn_ray.rows` import (pydantic, PyYAML,
Jinja2, NumPy, PyArrow). A model with Llama-3-8B's shape and random weights learns random rows, with LoRA and with full weights, for several values of
`micro_tokens`. If full training does not fit the card, the model gets fewer layers, and the line says how many. It prints tokens/s, MFU (model FLOPs
over the data sheet's dense bf16 rate) and peak memory. Then a small model trains under every ZeRO stage, and its losses are compared with those of a
plain process (the baseline). `tiny` is for machines without a GPU: it runs all code, but its figures mean nothing.
"""

import argparse
import gc
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _results import about_this_run, write
from transformers import AutoModelForCausalLM, LlamaConfig

from unlearn_ray.config import FinetuneConfig, WorkerResources
from unlearn_ray.engines import deepspeed_runtime
from unlearn_ray.engines.deepspeed_runtime import DeepSpeedRuntime
from unlearn_ray.train.batches import Batches
from unlearn_ray.train.chat import Encoded
from unlearn_ray.train.encoded import EncodedRows, write_encoded
from unlearn_ray.train.loop import train
from unlearn_ray.train.models import DTYPES, load_base, prepare
from unlearn_ray.train.plain import PlainRuntime
from unlearn_ray.train.records import StepRecord

SEED = 3
# Dense bf16, in FLOP/s, from the makers' data sheets.
PEAKS = {"H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
BYTES_PER_LEARNT = (
    18  # bf16 weight and gradient, fp32 gradient, master and two moments, less what is freed: an upper bound
)


@dataclass(frozen=True)
class Shape:
    """The shape of a model, and the batches to measure it with."""

    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    micro_tokens: tuple[int, ...]
    rows: int  # per step, of each kind
    longest: int  # tokens of a row

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=8192,
            rope_theta=500_000.0,
            pad_token_id=0,
        )

    @property
    def layer_parameters(self) -> int:
        """Number of parameters in the matrices of all layers."""
        kv = self.width * self.kv_heads // self.heads
        return self.layers * (2 * self.width**2 + 2 * self.width * kv + 3 * self.width * self.inner)

    @property
    def parameters(self) -> int:
        return self.layer_parameters + 2 * self.vocabulary * self.width

    def flops(self, num_tokens: int, num_learnt: int, mean_length: float, is_full: bool) -> float:
        """FLOPs of a forward and a backward pass: two per weight and token, two more for gradients of activations, and two more for gradients of
        weights if all are learnt. The head counts for learnt tokens only. Attention as in PaLM (arXiv 2204.02311, appendix B), halved because it is
        causal."""
        factor = 6 if is_full else 4
        attention = 6 * self.layers * self.width * mean_length * num_tokens
        return factor * (self.layer_parameters * num_tokens + self.vocabulary * self.width * num_learnt) + attention


SHAPES = {
    "8b": Shape(4096, 14336, 32, 32, 8, 128_256, (4096, 8192, 16384), 48, 512),
    "tiny": Shape(32, 64, 2, 4, 2, 512, (128,), 6, 48),
}
SMALL = replace(SHAPES["tiny"], width=128, inner=256, heads=8, layers=4)


def rows_of(folder: Path, name: str, shape: Shape) -> EncodedRows:
    """Random rows with log-normal lengths, as real answers have; a third of each row is the question."""
    random = np.random.default_rng([SEED, len(name)])
    lengths = np.clip(random.lognormal(np.log(shape.longest / 3), 0.5, 4 * shape.rows), 8, shape.longest).astype(int)
    path = folder / f"{name}.arrow"
    write_encoded(path, [Encoded(random.integers(1, shape.vocabulary, n).tolist(), int(n) // 3) for n in lengths])
    return EncodedRows(path)


def batches_of(folder: Path, shape: Shape, config: FinetuneConfig, micro_tokens: int) -> Batches:
    return Batches(
        rows_of(folder, "forget", shape),
        rows_of(folder, "retain", shape),
        forget_batch=config.forget_batch,
        retain_batch=config.retain_batch,
        micro_batch=1,
        micro_tokens=micro_tokens,
        num_steps=config.num_steps,
        world_size=1,
        seed=SEED,
        pad_id=0,
    )


def built(shape: Shape) -> Callable[..., Any]:
    """A replacement for loading a model's files: the same random weights each time."""

    def build(model: str, dtype: torch.dtype, device: torch.device, attention: str = "auto") -> Any:
        torch.manual_seed(SEED)
        kind = ("eager" if device.type == "cpu" else "sdpa") if attention == "auto" else attention
        with device:
            return AutoModelForCausalLM.from_config(shape.config(), dtype=dtype, attn_implementation=kind)

    return build


class Bench:
    def __init__(self, device: torch.device, folder: Path) -> None:
        self.device, self.folder = device, folder
        self.card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
        self.peak = next((peak for name, peak in PEAKS.items() if name in self.card), None)

    def config(self, shape: Shape, kind: str, num_steps: int, **more: Any) -> FinetuneConfig:
        values = {
            "weights": {"kind": kind},
            "num_steps": num_steps,
            "warmup_steps": 0,
            "forget_batch": shape.rows,
            "retain_batch": shape.rows,
        }
        return FinetuneConfig.model_validate(values | more)

    def runtime(
        self, model: str, config: FinetuneConfig, workers: WorkerResources, batches: Batches
    ) -> DeepSpeedRuntime:
        return DeepSpeedRuntime(
            model,
            config,
            workers,
            self.device,
            seed=SEED,
            num_micro_batches=batches.num_micro_batches,
        )

    def speed(self, shape: Shape, kind: str, micro_tokens: int, num_steps: int, **workers: Any) -> dict[str, Any]:
        """Speed and memory of a training; the first two steps warm up."""
        shape = self.fitting(shape) if kind == "full" else shape
        retain = workers.pop("retain", "gd")
        point = {"weights": kind, "retain": retain, "layers": shape.layers, "micro_tokens": micro_tokens} | workers
        config = self.config(shape, kind, num_steps, precision="bf16", retain={"kind": retain})
        batches = batches_of(self.folder, shape, config, micro_tokens)
        started, ends = time.monotonic(), list[float]()

        def on_step(record: StepRecord) -> None:
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            ends.append(time.monotonic())

        runtime = None
        try:
            deepspeed_runtime.load_base = built(shape)
            runtime = self.runtime("random weights", config, WorkerResources.model_validate(workers), batches)
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            train(runtime, batches, config, seed=SEED, on_step=on_step)
            peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None
        except torch.OutOfMemoryError:
            return point | {"fits": False}
        finally:
            deepspeed_runtime.load_base = load_base
            if runtime is not None:
                runtime.close()
            gc.collect()
        seconds = ends[-1] - ends[1]
        counted = [batches.placed(step) for step in range(2, num_steps)]
        num_tokens = sum(placed.num_tokens for step in counted for placed in step)
        counts = [batches.counts(step) for step in range(2, num_steps)]
        num_learnt = sum(each.forget_tokens + each.retain_tokens for each in counts)
        mean = num_tokens / sum(len(step) for step in counted)
        flops = shape.flops(num_tokens, num_learnt, mean, kind == "full")
        if retain == "kl":
            share = sum(each.num_tokens for step in counted for each in step if each.is_retain) / num_tokens
            flops += 2 * shape.layer_parameters * num_tokens * share  # the base model's pass
        return point | {
            "fits": True,
            "tokens_per_second": round(num_tokens / seconds),
            "answer_tokens_per_second": round(num_learnt / seconds),
            "mfu": round(flops / seconds / self.peak, 3) if self.peak else None,
            "peak_gib": None if peak is None else round(peak, 2),
            "startup_seconds": round(ends[0] - started, 1),
            "passes_per_step": batches.num_micro_batches,
        }

    def fitting(self, shape: Shape) -> Shape:
        """The shape with as many layers as full training fits into 70 % of the memory; activations take the rest."""
        if self.device.type == "cpu":
            return shape
        room = 0.7 * torch.cuda.get_device_properties(0).total_memory / BYTES_PER_LEARNT
        layer = shape.layer_parameters // shape.layers
        return replace(
            shape, layers=max(1, min(shape.layers, int((room - 2 * shape.vocabulary * shape.width) // layer)))
        )

    def parity(self, kind: str, stage: int, precision: str, micro_tokens: int = 96) -> dict[str, Any]:
        """Train three steps under a ZeRO stage, and compare the losses with those of a plain process."""
        config = self.config(SMALL, kind, 3, precision=precision, retain={"kind": "kl"}, learning_rate=1e-3)
        batches = batches_of(self.folder, SMALL, config, micro_tokens)
        model = str(self.folder / "small")
        built(SMALL)("", torch.float32, torch.device("cpu")).save_pretrained(model)
        base = load_base(model, DTYPES[precision], self.device)
        plain = PlainRuntime(
            prepare(base, config.weights, seed=SEED, gradient_checkpointing="none"), config, self.device
        )
        runtime = self.runtime(model, config, WorkerResources.model_validate({"zero_stage": stage}), batches)
        losses = []
        for each in (plain, runtime):
            records: list[StepRecord] = []
            train(each, batches, config, seed=SEED, on_step=records.append)
            losses.append([record.loss or float("nan") for record in records])
        runtime.close()
        difference = max(abs(one - other) for one, other in zip(*losses, strict=True))
        allowed = 1e-4 if precision == "fp32" else 0.03
        return {
            "weights": kind,
            "zero_stage": stage,
            "precision": precision,
            "largest_difference": round(difference, 6),
            "is_equal": difference <= allowed,  # also false for a loss that is not finite
        }


def one_process(device: torch.device) -> None:
    """Set the environment variables of a training with one rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ.update(own | ({"DS_ACCELERATOR": "cpu"} if device.type == "cpu" else {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--num-steps", type=int, default=6, help="of each training; two of them warm up")
    parser.add_argument("--out", type=Path, help="JSON file; none: benchmarks/results/gpu-CARD.json on a GPU")
    arguments = parser.parse_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cpu" and arguments.shape != "tiny":
        parser.error(f"--shape {arguments.shape} needs a GPU, and torch sees none: give --shape tiny")
    if arguments.num_steps < 3:
        parser.error(f"--num-steps must be 3 or more (it is {arguments.num_steps}): two of them warm up")
    one_process(device)
    shape, speeds, parities = SHAPES[arguments.shape], [], []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(device, Path(folder))
        for kind, micro_tokens, more in points(shape):
            speeds.append(bench.speed(shape, kind, micro_tokens, arguments.num_steps, **more))
            print(json.dumps(speeds[-1]), flush=True)
        for kind in ("lora", "full"):
            for stage in (0, 1, 2, 3):
                for precision in ("bf16",) if device.type == "cuda" else ("fp32",):
                    parities.append(bench.parity(kind, stage, precision))
                    print(json.dumps(parities[-1]), flush=True)
        card = bench.card
    figures = {"benchmark": "gpu", "card": card, "shape": arguments.shape, "speeds": speeds, "parity": parities}
    if device.type == "cuda":
        figures["cuda"] = torch.version.cuda
    out = arguments.out
    if out is None and device.type == "cuda":
        out = Path(__file__).parent / "results" / f"gpu-{card.lower().replace(' ', '-')}.json"
    if out is not None:
        write(figures | about_this_run(), out)
    with suppress(ValueError):
        torch.distributed.destroy_process_group()
    if not all(each["is_equal"] for each in parities):
        raise SystemExit("the losses of a ZeRO stage differ from those of a plain process")


def points(shape: Shape) -> list[tuple[str, int, dict[str, Any]]]:
    """The settings to measure: weights, micro_tokens and further keys of the workers."""
    largest = shape.micro_tokens[-1]
    found: list[tuple[str, int, dict[str, Any]]] = []
    for kind in ("lora", "full"):
        found += [(kind, micro_tokens, {}) for micro_tokens in shape.micro_tokens]
        found += [(kind, largest, {"gradient_checkpointing": how}) for how in ("selective", "full")]
    return [*found, ("lora", shape.micro_tokens[0], {"retain": "kl"})]


if __name__ == "__main__":
    main()
