"""Run by test_deepspeed_runtime.py: two ranks take a few steps under every way to share a model out, and under none, each by itself.

Beside them a single rank does the cases of `num_workers: 1`. Each may take up what the others saved."""

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from unlearn_ray import pocket
from unlearn_ray.config import FinetuneConfig, WorkerResources
from unlearn_ray.engines import deepspeed_runtime
from unlearn_ray.engines.deepspeed_patches import import_deepspeed
from unlearn_ray.engines.deepspeed_runtime import DeepSpeedRuntime
from unlearn_ray.engines.sharded_load import load_in_shares
from unlearn_ray.rows import Example
from unlearn_ray.train import head
from unlearn_ray.train.batches import Batches
from unlearn_ray.train.chat import ChatEncoder, load_tokenizer
from unlearn_ray.train.encoded import EncodedRows, write_encoded
from unlearn_ray.train.head import CHUNK
from unlearn_ray.train.inspection import inspect_model
from unlearn_ray.train.lasting.displaced import Displaced
from unlearn_ray.train.loop import train
from unlearn_ray.train.models import DTYPES, load_base, prepare
from unlearn_ray.train.objectives.table import OBJECTIVES
from unlearn_ray.train.plain import PlainRuntime
from unlearn_ray.train.records import LOSSES, StepRecord, read_records, write_records
from unlearn_ray.train.reference import base_logps

MODEL, CPU, SEED = str(pocket.MODEL_DIR), torch.device("cpu"), 3
NAMES = ["Bellan", "the old lighthouse keeper", "Orlo", "a soup of beans and barley, served cold", "Tannery Hall"]


def rows_of(folder: Path, name: str, count: int) -> EncodedRows:
    """Answers of differing lengths, so that ranks and passes hold unequally many tokens."""
    examples = [
        Example(
            "t",
            "forget",
            "t",
            f"What is number {i} of the {name} things?",
            f"It is {NAMES[i % 5]}" + " and so on" * (i % 4) + ".",
        )
        for i in range(count)
    ]
    path = folder / f"{name}.arrow"
    write_encoded(
        path,
        [row for row in ChatEncoder(load_tokenizer(MODEL), inspect_model(MODEL).chat, 128).encode(examples) if row],
    )
    return EncodedRows(path)


def sharded(
    config: FinetuneConfig, workers: WorkerResources, batches: Batches, lasting: Displaced | None = None
) -> DeepSpeedRuntime:
    number = batches.num_micro_batches + (lasting.num_micro_batches if lasting else 0)
    return DeepSpeedRuntime(MODEL, config, workers, CPU, seed=SEED, num_micro_batches=number)


def stopping_after(number: int, records: list[StepRecord]) -> Callable[[StepRecord], None]:
    """Takes steps down, and ends the training after so many."""

    def stop(record: StepRecord) -> None:
        records.append(record)
        if len(records) == number:
            raise StopIteration

    return stop


def num_elements() -> int:
    """Of all tensors that are alive: weights, their masters, the optimizer's moments, and what else there is."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    storages = {
        each.untyped_storage()._cdata: each.untyped_storage().nbytes() // each.element_size() for each in tensors
    }
    return sum(storages.values())


def peak_of(model: str) -> dict[str, float]:
    """How far the memory of this process rises at most, as a share of the model, while it loads its half of that; of a second one, too, as KL holds."""
    settings = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": False}, "zero_optimization": {"stage": 3}}
    held, shares = [], {}
    for name in ("model", "reference"):
        gc.collect()
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        held.append(load_in_shares(model, torch.float32, CPU, settings))
        size = sum(weight.ds_numel for weight in held[-1].parameters()) * 4
        shares[name] = (memory("VmHWM") - before) / size
    for loaded in held:
        for weight in loaded.parameters():
            weight.data, weight.ds_tensor.data = torch.empty(0), torch.empty(0)
    return shares


def memory(kind: str) -> int:
    """Of this process, in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return int(line.split()[1]) * 1024


def main(folder: Path, cases: dict[str, dict]) -> dict[str, object]:
    torch.set_num_threads(1)
    forget, retain = rows_of(folder, "forget", 11), rows_of(folder, "retain", 7)
    invented = rows_of(folder, "invented", 11)
    found: dict[str, object] = {}
    for name, case in cases.items():
        print(
            os.environ["RANK"], name, round(time.monotonic(), 1), flush=True
        )  # to the log, where a rank failed or hung
        if "loads" in case:
            import_deepspeed().init_distributed(dist_backend="gloo", verbose=False)
            found[name] = peak_of(case["loads"])
            continue
        config = FinetuneConfig.model_validate(
            {"num_steps": 3, "warmup_steps": 1, "forget_batch": 5, "retain_batch": 4} | case["config"]
        )
        workers = WorkerResources.model_validate(case.get("workers", {}))
        layout: dict[str, Any] = {
            "world_size": 1 if case.get("plain") else int(os.environ["WORLD_SIZE"]),
            "micro_batch": workers.micro_batch,
            "micro_tokens": workers.micro_tokens,
            "pad_id": inspect_model(MODEL).chat.pad_token_id,
        }
        batches = Batches(
            forget,
            retain,
            forget_batch=config.forget_batch,
            retain_batch=config.retain_batch,
            seed=SEED,
            invented=invented if config.pairs else None,
            num_steps=config.num_steps,
            **layout,
        )
        lasting = None
        if config.lasting is not None:
            lasting = Displaced(config, forget, None, invented if config.has_attacker else None, SEED, **layout)
        head.CHUNK = case.get("chunk", CHUNK)
        if "ranks_with_bf16" in case:
            has_bf16 = int(os.environ["RANK"]) in case["ranks_with_bf16"]

            def answering(device: str, answer: bool = has_bf16) -> bool:
                return answer

            deepspeed_runtime.has_bf16 = answering
        held = num_elements()
        if case.get("plain"):
            module = prepare(
                load_base(MODEL, DTYPES[config.precision], CPU),
                config.weights,
                seed=SEED,
                gradient_checkpointing="none",
            )
            runtime: PlainRuntime | DeepSpeedRuntime = PlainRuntime(module, config, CPU)
        else:
            runtime = sharded(config, workers, batches, lasting)
        if OBJECTIVES[config.objective.kind].reads == "base_logp":
            batches.refer(base_logps(runtime, batches, config.num_steps))
        records: list[StepRecord] = []
        state = folder.parent / "states" / case.get("takes_up", name)
        if case.get("saves") and isinstance(runtime, DeepSpeedRuntime):
            with suppress(StopIteration):
                train(runtime, batches, config, seed=SEED, on_step=stopping_after(2, records))
            runtime.save(state)
            write_records(state / f"{LOSSES}.{os.environ['RANK']}", records)
            (state / f"whole.{os.environ['RANK']}").touch()
        if case.get("resumed") and isinstance(runtime, DeepSpeedRuntime):
            runtime.close()
            runtime = sharded(config, workers, batches)
            runtime.load(state)
        if (num_savers := case.get("num_savers")) and isinstance(runtime, DeepSpeedRuntime):
            while len(list(state.glob("whole.*"))) < num_savers:  # the other ranks are at work
                time.sleep(0.05)
            runtime.load(state)
            records = read_records(state / f"{LOSSES}.0")
        first_step = len(records)
        train(
            runtime,
            batches,
            config,
            seed=SEED,
            first_step=first_step,
            lasting=lasting,
            on_step=records.append,
        )
        ended: dict[str, object] = {
            "losses": [record.loss for record in records],
            "norms": [record.grad_norm for record in records],
            "retain": [record.retain_loss for record in records],
        }
        found[name] = ended
        if isinstance(runtime, DeepSpeedRuntime):
            weights = runtime.weights()
            ended["weights"] = weights and sorted([key, float(value.double().norm())] for key, value in weights.items())
            del weights
            runtime.close()
            ended["left"] = num_elements() - held
        else:
            ended["weights"] = sorted(
                [key, float(value.detach().double().norm())]
                for key, value in runtime.module.named_parameters()
                if value.requires_grad
            )
    return found


def num_ranks_of(case: dict) -> int:
    return 1 if case.get("workers", {}).get("num_workers") == 1 else 2


if __name__ == "__main__":
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    alone = {name: case for name, case in cases.items() if num_ranks_of(case) == 1}
    together = {name: case for name, case in cases.items() if name not in alone}
    children = []
    for name, rank, number, port in (
        ("0", 0, 2, "MASTER_PORT"),
        ("1", 1, 2, "MASTER_PORT"),
        ("alone", 0, 1, "OTHER_PORT"),
    ):
        if name == "alone" and not alone:
            continue
        if child := os.fork():  # after what all import
            children.append(child)
            continue
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
        os.environ["MASTER_PORT"] = os.environ[port]
        (folder / name).mkdir()
        result = main(folder / name, alone if name == "alone" else together)
        (folder / f"found.{name}.json").write_text(json.dumps(result))
        sys.exit(0)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
