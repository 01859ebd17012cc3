"""Measured memory of a training, over the memory that `unlearn-ray plan` estimates.

    python benchmarks/memory.py [CASE...] [--out FILE]

Each case trains two steps with the shipped runtime on the CPU, in its own process, and reports the peak memory of the process (VmHWM in proc(5),
Linux only). The baseline is the plan: `sizing.training.training_memory` for the same shapes. A ratio above 1 means that the training needs more
than the plan says. The goal is 0.85 to 1.15.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from _results import about_this_run, write

from unlearn_ray import config as configs
from unlearn_ray.config import FinetuneConfig, WorkerResources
from unlearn_ray.sizing.shapes import shape_of
from unlearn_ray.sizing.training import Pass, training_memory

_LORA, _FULL = {"kind": "lora", "rank": 16, "alpha": 32}, {"kind": "full"}
SHAPES = {"pocket": configs.path_of("pocket"), "smollm2": "SmolLM2-135M"}  # as the plan finds them
_STEPS = 2
# model, weights, rows per pass, tokens per row, learnt tokens per row, activation checkpointing, precision
CASES: dict[str, tuple[str, dict[str, Any], int, int, int, bool, str]] = {
    "pocket lora": ("pocket", _LORA, 20, 128, 32, False, "fp32"),
    "pocket full": ("pocket", _FULL, 20, 128, 32, False, "fp32"),
    "smollm2 lora": ("smollm2", _LORA, 4, 128, 32, False, "bf16"),
    "smollm2 full": ("smollm2", _FULL, 4, 128, 32, False, "bf16"),
    "smollm2 lora, many rows": ("smollm2", _LORA, 12, 128, 32, False, "bf16"),
    "smollm2 lora, long rows": ("smollm2", _LORA, 2, 512, 64, False, "bf16"),
    "smollm2 full, checkpointed": ("smollm2", _FULL, 4, 256, 32, True, "bf16"),
    "smollm2 full fp32": ("smollm2", _FULL, 2, 128, 32, False, "fp32"),
    "pocket full bf16": ("pocket", _FULL, 40, 256, 64, False, "bf16"),
}


def settings_of(name: str) -> tuple[str, FinetuneConfig, WorkerResources, Pass]:
    """A case's model, training, worker and forward pass."""
    model, weights, rows, length, learnt, is_checkpointed, precision = CASES[name]
    config = FinetuneConfig.model_validate(
        {
            "weights": weights,
            "num_steps": _STEPS,
            "warmup_steps": 1,
            "forget_batch": rows,
            "retain_batch": 0,
            "retain": {"kind": "none"},
            "precision": precision,
        }
    )
    workers = WorkerResources(micro_batch=rows, gradient_checkpointing=is_checkpointed)
    return model, config, workers, Pass(rows, length, rows * learnt)


def train(name: str) -> int:
    """Train a case's steps in this process. Returns the peak memory in bytes."""
    import torch

    from unlearn_ray.engines.deepspeed_runtime import DeepSpeedRuntime
    from unlearn_ray.train import loop
    from unlearn_ray.train.batches import Batches
    from unlearn_ray.train.chat import Encoded
    from unlearn_ray.train.encoded import EncodedRows, write_encoded

    torch.set_num_threads(2)
    model, config, workers, _ = settings_of(name)
    model = configs.path_of(model)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = os.environ.get("MASTER_PORT") or "29511"
    _, _, rows, length, learnt, _, _ = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.arrow"
        ids = [7 + (3 * number) % 900 for number in range(length)]
        write_encoded(path, [Encoded(ids, length - learnt, False)] * rows)
        batches = Batches(
            EncodedRows(path),
            None,
            forget_batch=rows,
            retain_batch=0,
            micro_batch=workers.micro_batch,
            world_size=1,
            seed=0,
            pad_id=0,
        )
        runtime = DeepSpeedRuntime(
            model, config, workers, torch.device("cpu"), seed=0, num_micro_batches=batches.num_micro_batches
        )
        loop.train(runtime, batches, config, seed=0, on_step=lambda record: None)
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main(
    cases: Annotated[list[str] | None, typer.Argument(help="Names of cases (default: all).")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
    case: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure each case in its own process."""
    if case is not None:
        print(json.dumps({"peak": train(case)}))
        return
    figures: dict[str, Any] = {"about": about_this_run(), "cases": {}}
    for name in cases or list(CASES):
        done = subprocess.run(
            [sys.executable, __file__, "--case", name], capture_output=True, text=True, check=False, timeout=1800
        )
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
        peak = json.loads(done.stdout.splitlines()[-1])["peak"]
        model, config, workers, shape = settings_of(name)
        planned = training_memory(shape_of(SHAPES[model]), config, workers, shape, device="cpu").total
        figures["cases"][name] = {"peak": peak, "planned": round(planned), "ratio": round(peak / planned, 3)}
        print(
            f"{name}: {peak / 2**20:,.0f} MiB over {planned / 2**20:,.0f} MiB planned = {peak / planned:.2f}",
            flush=True,
        )
        if out is not None:
            write(figures, out)


if __name__ == "__main__":
    typer.run(main)
