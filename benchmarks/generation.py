"""What the generation stage costs over bare vLLM: rows/s of `RayDataGenerator.map`, from files to files, over those of
`LLM.generate` on the same prompts in the same run, in turns.

Both engines run in an actor of their own on the same number of threads, with the same settings, and idle while the other works.
Both sides render the chat template and tokenise within the measured time, and take the same seed a row: their texts are compared.
The baseline is timed inside its actor, so that Ray costs it nothing; ours pays for Ray Data, files and transfers.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from _results import about_this_run, write
from rich.console import Console
from rich.table import Table

from unlearn_ray import pocket
from unlearn_ray.artifacts import Folder
from unlearn_ray.config import ClusterConfig, EngineResources
from unlearn_ray.engines.generation import RayDataGenerator
from unlearn_ray.engines.protocols import Reply, Request, RowDict
from unlearn_ray.engines.session import connect, device_of
from unlearn_ray.engines.vllm_engine import EngineSpec, environment

GOAL = 0.95
ROWS = pa.schema([("id", pa.string()), ("question", pa.string()), ("seed", pa.int64()), ("max_tokens", pa.int64())])
TEXTS = pa.schema([("id", pa.string()), ("text", pa.string()), ("num_tokens", pa.int64())])
TOPICS = ("Harry Potter", "chewing gum", "Les Miserables", "Narnia", "the history of the bicycle")
ANGLES = (
    "Who created",
    "Tell me about the history of",
    "What are the unique traits of",
    "Describe",
    "How do people use",
)


def rows_of(num_rows: int, max_tokens: int) -> list[RowDict]:
    return [
        {
            "id": f"{number:06d}",
            "question": f"{ANGLES[number % len(ANGLES)]} {TOPICS[number // len(ANGLES) % len(TOPICS)]}? ({number})",
            "seed": number,
            "max_tokens": max_tokens,
        }
        for number in range(num_rows)
    ]


def render(row: RowDict) -> list[Request]:
    messages = [{"role": "user", "content": row["question"]}]
    return [Request(messages, seed=row["seed"], temperature=1.0, max_tokens=row["max_tokens"])]  # type: ignore[arg-type]


def parse(row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
    return [{"id": row["id"], "text": replies[0].texts[0], "num_tokens": replies[0].num_output_tokens}]


class BareVllm:
    """`LLM.generate` on the engine settings of `vllm_engine`."""

    def __init__(self, spec: EngineSpec) -> None:
        from vllm import LLM

        resources = spec.resources
        settings: dict[str, Any] = {"gpu_memory_utilization": resources.gpu_memory_utilization}
        if spec.device == "cpu":
            settings = {"enforce_eager": True, "distributed_executor_backend": "uni", "enable_chunked_prefill": False}
        self._llm = LLM(
            spec.model,
            dtype=resources.dtype,
            max_num_seqs=resources.max_num_seqs,
            enable_prefix_caching=True,
            generation_config="vllm",
            seed=0,
            **settings,
        )

    def generate(self, rows: list[RowDict]) -> tuple[float, list[str]]:
        """Seconds and texts."""
        from vllm import SamplingParams

        began = time.perf_counter()
        tokenizer = self._llm.get_tokenizer()
        chats = [[{"role": "user", "content": row["question"]}] for row in rows]
        texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
        prompts = [{"prompt_token_ids": ids} for ids in tokenizer(texts, add_special_tokens=False).input_ids]
        parameters = [SamplingParams(temperature=1.0, max_tokens=row["max_tokens"], seed=row["seed"]) for row in rows]
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        return time.perf_counter() - began, [output.outputs[0].text for output in outputs]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    rows = rows_of(arguments.rows, arguments.max_tokens)
    cores = arguments.cores
    resources = EngineResources(num_engines=1, num_cpus=cores, gpu_memory_utilization=0.4)
    cluster = ClusterConfig(num_cpus=max(8, 2 * cores + 2), engines=resources)
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    with connect(cluster), tempfile.TemporaryDirectory() as home:
        spec = EngineSpec(arguments.model, resources, device_of(cluster))
        began = time.perf_counter()
        # No GPU in Ray's accounts: it sees the one that the other engine holds, and each is idle in its turn.
        options = {"num_cpus": cores, "num_gpus": 0, "runtime_env": {"env_vars": environment(spec)}}
        bare = ray.remote(BareVllm).options(**options).remote(spec)
        ray.get(bare.generate.remote(rows[:64]))
        started = {"bare": time.perf_counter() - began}
        source = Folder(f"{home}/rows")
        source.write_rows(rows, ROWS)
        began = time.perf_counter()
        generator = RayDataGenerator(arguments.model, cluster)
        generator.map(source, Folder(f"{home}/warm"), render, parse, TEXTS, label="warm-up")
        started["ours"] = time.perf_counter() - began
        expected = ray.get(bare.generate.remote(rows))[1]  # warm as well
        num_equal = 0
        for repeat in range(arguments.repeats):
            out = Folder(f"{home}/{repeat}")
            counts = generator.map(source, out, render, parse, TEXTS, label="measured")
            seconds["ours"].append(counts.seconds)
            taken, texts = ray.get(bare.generate.remote(rows))
            seconds["bare"].append(taken)
            ours = {row["id"]: row["text"] for row in out.read_rows()}
            num_equal = sum(ours[row["id"]] == text for row, text in zip(rows, texts, strict=True))
            assert len(ours) == len(rows) and texts == expected
        generator.close()
        rate = {name: [len(rows) / taken for taken in values] for name, values in seconds.items()}
        ratios = [ours / bare for ours, bare in zip(rate["ours"], rate["bare"], strict=True)]
        return {
            "rows": len(rows),
            "max_tokens": arguments.max_tokens,
            "output_tokens": counts.num_output_tokens,
            "device": spec.device,
            "start_seconds": {name: round(value, 1) for name, value in started.items()},
            "rows_per_second": {name: [round(value, 1) for value in values] for name, values in rate.items()},
            # Of neighbouring turns: what else the machine does changes from minute to minute.
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "equal_texts": round(num_equal / len(rows), 4),
        }


def show(result: dict[str, Any], console: Console) -> None:
    table = Table("", "rows/s (median)", "each turn", "start and warm-up, s")
    for name, title in (("ours", "RayDataGenerator.map"), ("bare", "bare LLM.generate")):
        rates = result["rows_per_second"][name]
        turns = ", ".join(f"{rate:.1f}" for rate in rates)
        table.add_row(title, f"{statistics.median(rates):.1f}", turns, f"{result['start_seconds'][name]}")
    console.print(table)
    verdict = "met" if result["ratio"] >= GOAL else "missed"
    console.print(f"ratio {result['ratio']:.3f}, goal >= {GOAL} {verdict}; {result['equal_texts']:.1%} of texts equal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(pocket.MODEL_DIR))
    parser.add_argument("--rows", type=int, default=12_000, help="enough that starting a call, 0.6 s, is little of it")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=1, help="of each engine, without a GPU; 1 is what configs give it")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments)
    show(result, Console())
    model = "pocket" if arguments.model == str(pocket.MODEL_DIR) else Path(arguments.model).name
    report = {"benchmark": "generation", "model": model, **result, **about_this_run()}
    print(json.dumps(report))
    if arguments.out:
        write(report, arguments.out)


if __name__ == "__main__":
    main()
