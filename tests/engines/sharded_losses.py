"""Run by test_deepspeed_runtime.py: two ranks take a few steps under every way to share a model out, and under none, each by itself."""

import gc
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

from unlearn_ray import pocket
from unlearn_ray.config import FinetuneConfig, WorkerResources
from unlearn_ray.engines import deepspeed_runtime
from unlearn_ray.engines.deepspeed_runtime import DeepSpeedRuntime
from unlearn_ray.rows import Example
from unlearn_ray.train import head
from unlearn_ray.train.batches import Batches
from unlearn_ray.train.chat import ChatEncoder, load_tokenizer
from unlearn_ray.train.encoded import EncodedRows, write_encoded
from unlearn_ray.train.head import CHUNK
from unlearn_ray.train.inspection import inspect_model
from unlearn_ray.train.loop import train
from unlearn_ray.train.models import DTYPES, load_base, prepare
from unlearn_ray.train.objectives.table import OBJECTIVES
from unlearn_ray.train.plain import PlainRuntime
from unlearn_ray.train.records import StepRecord
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


def sharded(config: FinetuneConfig, workers: WorkerResources, batches: Batches) -> DeepSpeedRuntime:
    return DeepSpeedRuntime(MODEL, config, workers, CPU, seed=SEED, num_micro_batches=batches.num_micro_batches)


def num_elements() -> int:
    """Of all tensors that are alive: weights, their masters, the optimizer's moments, and what else there is."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    storages = {
        each.untyped_storage()._cdata: each.untyped_storage().nbytes() // each.element_size() for each in tensors
    }
    return sum(storages.values())


def main(folder: Path, cases: dict[str, dict]) -> dict[str, object]:
    torch.set_num_threads(1)
    forget, retain = rows_of(folder, "forget", 11), rows_of(folder, "retain", 7)
    invented = rows_of(folder, "invented", 11)
    found: dict[str, object] = {}
    for name, case in cases.items():
        print(
            os.environ["RANK"], name, round(time.monotonic(), 1), flush=True
        )  # to the log, where a rank failed or hung
        config = FinetuneConfig.model_validate(
            {"num_steps": 3, "warmup_steps": 1, "forget_batch": 5, "retain_batch": 4} | case["config"]
        )
        workers = WorkerResources.model_validate(case.get("workers", {}))
        world_size = 1 if case.get("plain") else int(os.environ["WORLD_SIZE"])
        batches = Batches(
            forget,
            retain,
            forget_batch=config.forget_batch,
            retain_batch=config.retain_batch,
            micro_batch=workers.micro_batch,
            world_size=world_size,
            seed=SEED,
            pad_id=inspect_model(MODEL).chat.pad_token_id,
            invented=invented if config.pairs else None,
            micro_tokens=workers.micro_tokens,
            num_steps=config.num_steps,
        )
        head.CHUNK = case.get("chunk", CHUNK)
        if "ranks_with_bf16" in case:
            has_bf16 = int(os.environ["RANK"]) in case["ranks_with_bf16"]
            deepspeed_runtime.has_bf16 = lambda device, answer=has_bf16: answer
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
            runtime = sharded(config, workers, batches)
        if OBJECTIVES[config.objective.kind].reads == "base_logp":
            batches.refer(base_logps(runtime, batches, config.num_steps))
        records: list[StepRecord] = []
        if case.get("resumed") and isinstance(runtime, DeepSpeedRuntime):

            def stop(record: StepRecord, records: list[StepRecord] = records) -> None:
                records.append(record)
                if len(records) == 2:
                    raise StopIteration

            with suppress(StopIteration):
                train(runtime, batches, config, seed=SEED, on_step=stop)
            runtime.save(folder.parent / "states" / name)
            runtime.close()
            runtime = sharded(config, workers, batches)
            runtime.load(folder.parent / "states" / name)
        train(runtime, batches, config, seed=SEED, first_step=len(records), on_step=records.append)
        found[name] = {"losses": [record.loss for record in records], "norms": [record.grad_norm for record in records]}
        found[name]["retain"] = [record.retain_loss for record in records]
        if isinstance(runtime, DeepSpeedRuntime):
            weights = runtime.weights()
            found[name]["weights"] = weights and sorted(
                [key, float(value.double().norm())] for key, value in weights.items()
            )
            del weights
            runtime.close()
            found[name]["left"] = num_elements() - held
        else:
            found[name]["weights"] = sorted(
                [key, float(value.detach().double().norm())]
                for key, value in runtime.module.named_parameters()
                if value.requires_grad
            )
    return found


if __name__ == "__main__":
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    other = os.fork()  # after what both import
    rank = 0 if other else 1
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    (folder / str(rank)).mkdir()
    result = main(folder / str(rank), cases)
    if other:
        (folder / "found.json").write_text(json.dumps(result))
        sys.exit(os.waitpid(other, 0)[1])
