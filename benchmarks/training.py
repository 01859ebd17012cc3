"""Speed of the trainer, of a plain torch loop and of TRL's SFTTrainer, on the same rows, in turns.

    python benchmarks/training.py [--models pocket smollm2] [--weights lora full] [--rounds 3] [--trl FOLDER] [--out FILE]

Each contender runs in its own process. It trains the same number of steps on the same rows in float32 on a CPU; the first step is a warm-up and
counts as start-up. Its figures are tokens and answer tokens per second without padding, and the peak memory of the process. The result is the ratio of
our speed to the other's in the same round, because the machine may be shared; reported is the median over the rounds. TRL is not a dependency of
the project: install it without its dependencies (`pip install --no-deps --target FOLDER trl`; torch, transformers, accelerate and datasets are
already installed), and give FOLDER.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from _results import about_this_run, write

SEED, LEARNING_RATE, CONTENDERS = 3, 1e-4, ("ours", "plain", "trl")


def rows_of(folder: Path, model: str, num_rows: int) -> Path:
    """The shipped facts as chats, encoded for the model."""
    from unlearn_ray import pocket
    from unlearn_ray.config import path_of
    from unlearn_ray.rows import Example
    from unlearn_ray.train.chat import ChatEncoder, load_tokenizer
    from unlearn_ray.train.encoded import write_encoded
    from unlearn_ray.train.inspection import inspect_model

    path = path_of(model)
    encoder = ChatEncoder(load_tokenizer(path), inspect_model(path).chat, 256)
    # Each gets up to three more sentences: answers are then as long, and as different in length, as in a run.
    facts = [json.loads(line) for line in pocket.PROBES.read_text(encoding="utf-8").splitlines()]
    texts = [fact["reference"] for fact in facts]
    examples = [
        Example("t", "forget", "t", fact["question"], " ".join(texts[n : n + 1 + n * 7 % 4]))
        for n, fact in enumerate(facts[:num_rows])
    ]
    out = folder / f"{model}.arrow"
    write_encoded(out, [row for row in encoder.encode(examples) if row is not None])
    return out


class Clock:
    """Records when steps end; the first step is a warm-up."""

    def __init__(self) -> None:
        self.started, self.ends = time.monotonic(), list[float]()

    def tick(self) -> None:
        self.ends.append(time.monotonic())

    def figures(self) -> dict[str, float]:
        return {
            "seconds": self.ends[-1] - self.ends[0],
            "startup_seconds": self.ends[0] - self.started,
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }


def steps_of(rows: Any, num_steps: int, batch: int) -> Iterator[list[int]]:
    """The rows of each step, as the trainer draws them."""
    from unlearn_ray.rows import seed_of
    from unlearn_ray.train.batches import row_at

    order = seed_of(SEED, "order", "forget")
    for step in range(num_steps):
        yield [row_at(position, len(rows), order) for position in range(step * batch, (step + 1) * batch)]


def prepared(model: str, weights: dict[str, Any]) -> Any:
    """The module to train, for contenders that don't load it themselves."""
    import torch

    from unlearn_ray.config import FinetuneConfig, path_of
    from unlearn_ray.train.models import load_base, prepare

    # Plain attention for all contenders: torch's fused attention trains more slowly on a CPU.
    base = load_base(path_of(model), torch.float32, torch.device("cpu"), "eager")
    config = FinetuneConfig.model_validate({"weights": weights})
    return prepare(base, config.weights, seed=SEED, gradient_checkpointing="none")


def train_ours(model: str, weights: dict[str, Any], rows: Any, args: argparse.Namespace, clock: Clock) -> None:
    import torch

    from unlearn_ray.config import FinetuneConfig, WorkerResources, path_of
    from unlearn_ray.engines.deepspeed_runtime import DeepSpeedRuntime
    from unlearn_ray.train.batches import Batches
    from unlearn_ray.train.loop import train

    values = {"weights": weights, "num_steps": args.num_steps, "forget_batch": args.batch, "retain": {"kind": "none"}}
    values |= {"learning_rate": LEARNING_RATE, "warmup_steps": 0, "precision": "fp32"}
    config = FinetuneConfig.model_validate(values)
    batches = Batches(
        rows,
        None,
        forget_batch=args.batch,
        retain_batch=0,
        micro_batch=args.micro_batch,
        world_size=1,
        seed=SEED,
        pad_id=0,
    )
    runtime = DeepSpeedRuntime(
        path_of(model),
        config,
        WorkerResources(micro_batch=args.micro_batch),
        torch.device("cpu"),
        seed=SEED,
        num_micro_batches=batches.num_micro_batches,
    )
    train(runtime, batches, config, seed=SEED, on_step=lambda record: clock.tick())


def train_plain(model: str, weights: dict[str, Any], rows: Any, args: argparse.Namespace, clock: Clock) -> None:
    """As in a tutorial: rows in their order, padded, with the model's own loss."""
    import torch

    module = prepared(model, weights)
    learnt = [value for value in module.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=LEARNING_RATE, weight_decay=0.0)
    for step in steps_of(rows, args.num_steps, args.batch):
        num_learnt = sum(rows.num_answer_tokens(row) for row in step)
        for first in range(0, len(step), args.micro_batch):
            taken = step[first : first + args.micro_batch]
            longest = max(rows.num_tokens(row) for row in taken)
            ids, labels = torch.zeros(len(taken), longest, dtype=torch.long), torch.full((len(taken), longest), -100)
            for place, row in enumerate(taken):
                own = torch.from_numpy(rows.ids(row).astype("int64"))
                ids[place, : len(own)] = own
                labels[place, rows.start(row) : len(own)] = own[rows.start(row) :]
            is_there = torch.arange(longest)[None] < torch.tensor([rows.num_tokens(row) for row in taken])[:, None]
            module(
                input_ids=ids, attention_mask=is_there.long(), labels=labels, num_items_in_batch=num_learnt
            ).loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()


def train_trl(model: str, weights: dict[str, Any], rows: Any, args: argparse.Namespace, clock: Clock) -> None:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from unlearn_ray.config import path_of
    from unlearn_ray.train.chat import load_tokenizer

    class Ticks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    order = [row for step in steps_of(rows, args.num_steps, args.batch) for row in step]
    taken = [(rows.ids(row).tolist(), rows.start(row)) for row in order]
    data = Dataset.from_dict(
        {
            "input_ids": [ids for ids, _ in taken],
            "labels": [[-100] * start + ids[start:] for ids, start in taken],
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder,
            max_steps=args.num_steps,
            per_device_train_batch_size=args.micro_batch,
            gradient_accumulation_steps=-(-args.batch // args.micro_batch),
            learning_rate=LEARNING_RATE,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            train_sampling_strategy="sequential",
            dataset_kwargs={"skip_prepare_dataset": True},
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        SFTTrainer(
            prepared(model, weights),
            settings,
            train_dataset=data,
            processing_class=load_tokenizer(path_of(model)),
            callbacks=[Ticks()],
        ).train()


def contend(args: argparse.Namespace) -> None:
    """One contender's training, in this process; prints its figures."""
    clock = Clock()
    import torch

    from unlearn_ray.train.encoded import EncodedRows

    torch.set_num_threads(args.num_threads)
    rows = EncodedRows(args.rows)
    weights = {"kind": "full"} if args.weights == ["full"] else {"kind": "lora", "rank": 16}
    {"ours": train_ours, "plain": train_plain, "trl": train_trl}[args.contender](
        args.models[0], weights, rows, args, clock
    )
    counted = [row for step in list(steps_of(rows, args.num_steps, args.batch))[1:] for row in step]
    figures = clock.figures()
    for name, of in (("tokens", rows.num_tokens), ("answer_tokens", rows.num_answer_tokens)):
        figures[f"{name}_per_second"] = sum(map(of, counted)) / figures["seconds"]
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["pocket", "smollm2"], help="pocket, smollm2, or folders")
    parser.add_argument("--weights", nargs="+", choices=("lora", "full"), default=["lora", "full"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-steps", type=int, default=6, help="steps per training; the first one is a warm-up")
    parser.add_argument("--batch", type=int, default=40, help="rows per step")
    parser.add_argument("--micro-batch", type=int, default=10, help="rows per pass")
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--trl", type=Path, help="the folder where TRL is installed (default: without TRL)")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender is not None:
        contend(args)
        return
    found: list[dict[str, Any]] = []
    for model in args.models:
        for weights in args.weights:
            found.append(compared(model, weights, args))
            if args.out is not None:  # after each result: on a busy machine the next one takes many minutes
                write({"benchmark": "training", "compared": found, **about_this_run()}, args.out)


def compared(model: str, weights: str, args: argparse.Namespace) -> dict[str, Any]:
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_of(Path(folder), model, 400)
        for number in range(args.rounds):
            order = [each for each in CONTENDERS if each != "trl" or args.trl is not None]
            order = order[number % len(order) :] + order[: number % len(order)]
            rounds.append({each: one(each, model, weights, rows, args) for each in order})
    result: dict[str, Any] = {"model": model, "weights": weights, "batch": args.batch, "micro_batch": args.micro_batch}
    for other in ("plain", "trl"):
        if all(other in each for each in rounds):
            ratios = [each["ours"]["tokens_per_second"] / each[other]["tokens_per_second"] for each in rounds]
            result[f"over_{other}"] = round(median(ratios), 3)
            result[f"over_{other}_by_round"] = [round(ratio, 3) for ratio in ratios]
            memory = [each["ours"]["peak_gib"] / each[other]["peak_gib"] for each in rounds]
            result[f"memory_over_{other}"] = round(median(memory), 3)
    result["contenders"] = {
        name: {key: round(median(each[name][key] for each in rounds), 2) for key in rounds[0][name]}
        for name in rounds[0]
    }
    print(json.dumps(result), flush=True)
    return result


def one(contender: str, model: str, weights: str, rows: Path, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--contender", contender, "--rows", str(rows), "--models", model]
    command += ["--weights", weights, "--num-steps", str(args.num_steps), "--batch", str(args.batch)]
    command += ["--micro-batch", str(args.micro_batch), "--num-threads", str(args.num_threads)]
    own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    if contender == "trl":  # with a rank's environment it would start a process group
        own = {"PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(args.trl)])}
    own |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(args.num_threads)}
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{contender} failed:\n{done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


if __name__ == "__main__":
    main()
