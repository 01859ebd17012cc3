"""What the generation stage costs and saves, each as a ratio to a named baseline of the same run:

- `bare`: rows/s of `RayDataGenerator.map`, from files to files, over those of `LLM.generate` on the same prompts, in turns;
- `ray_data_llm`: over those of `ray.data.llm`'s processor;
- `transformers`: over those of a transformers pipeline of batch 8 that may write 200 new tokens, as the project had it that ours began with;
- `prefix_cache`: with vLLM's prefix cache over without it, on rows behind one guardrail prefix;
- `samples`: 4 samples of a prompt over four rows with one sample each.

The engines of `bare` run in an actor each on the same number of threads, with the same settings, and idle while the other works.
Both sides render the chat template and tokenise within the measured time, and take the same seed per row: their texts are compared.
The baseline is timed inside its actor, so that Ray costs it nothing; ours pays for Ray Data, files and transfers. `ray.data.llm` starts its engine
with each dataset: a few rows are timed first, and their time is taken off.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from unlearn_ray.engines.encoding import Encoder, tokenizer_of
from unlearn_ray.engines.generation import RayDataGenerator
from unlearn_ray.engines.protocols import MapCounts, Reply, Request, RowDict
from unlearn_ray.engines.session import connect, device_of
from unlearn_ray.engines.settings import WITHOUT_GPU
from unlearn_ray.engines.vllm_engine import EngineSpec, environment
from unlearn_ray.train.inspection import inspect_model

GOALS = {"bare": 0.97, "ray_data_llm": 1.0, "transformers": 5.0, "prefix_cache": 1.0, "samples": 1.0}
TITLES = {
    "bare": "bare LLM.generate",
    "ray_data_llm": "ray.data.llm",
    "transformers": "transformers, batch 8, 200 tokens",
    "prefix_cache": "without the prefix cache",
    "samples": "a row per sample",
}
FEW = 64  # rows of a warm-up
SEED_TOKENS, SEED_BATCH = 200, 8
NUM_SAMPLES = 4
PREFIX_WORDS = 240  # of a guardrail prefix, which takes some 300 tokens
ROWS = pa.schema(
    [
        ("id", pa.string()),
        ("prefix", pa.string()),
        ("question", pa.string()),
        ("seed", pa.int64()),
        ("max_tokens", pa.int64()),
        ("num_samples", pa.int64()),
    ]
)
TEXTS = pa.schema([("id", pa.string()), ("text", pa.string()), ("num_tokens", pa.int64())])
TOPICS = ("Harry Potter", "chewing gum", "Les Miserables", "Narnia", "the history of the bicycle")
ANGLES = (
    "Who created",
    "Tell me about the history of",
    "What are the unique traits of",
    "Describe",
    "How do people use",
)


def rows_of(num_rows: int, max_tokens: int, *, num_samples: int = 1, prefix: str = "") -> list[RowDict]:
    return [
        {
            "id": f"{number:06d}",
            "prefix": prefix,
            "question": f"{ANGLES[number % len(ANGLES)]} {TOPICS[number // len(ANGLES) % len(TOPICS)]}? ({number})",
            "seed": number * num_samples,
            "max_tokens": max_tokens,
            "num_samples": num_samples,
        }
        for number in range(num_rows)
    ]


def render(row: RowDict) -> list[Request]:
    sampling: dict[str, Any] = {key: row[key] for key in ("seed", "max_tokens", "num_samples")}
    return [Request(messages_of(row), temperature=1.0, **sampling)]


def messages_of(row: RowDict) -> list[Any]:
    lead = [{"role": "system", "content": row["prefix"]}] if row["prefix"] else []
    return [*lead, {"role": "user", "content": row["question"]}]


def parse(row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
    return [{"id": row["id"], "text": replies[0].texts[0], "num_tokens": replies[0].num_output_tokens}]


class BareVllm:
    """`LLM.generate` on the engine settings of `vllm_engine`."""

    def __init__(self, spec: EngineSpec) -> None:
        from vllm import LLM

        resources = spec.resources
        self._llm = LLM(
            spec.model,
            dtype=resources.dtype,
            max_num_seqs=resources.max_num_seqs,
            enable_prefix_caching=True,
            generation_config="vllm",
            seed=0,
            **settings_of(spec),
        )

    def generate(self, rows: list[RowDict]) -> tuple[float, list[str]]:
        """Seconds and texts."""
        from vllm import SamplingParams

        began = time.perf_counter()
        tokenizer = self._llm.get_tokenizer()
        chats = [messages_of(row) for row in rows]
        texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
        prompts = [{"prompt_token_ids": ids} for ids in tokenizer(texts, add_special_tokens=False).input_ids]
        parameters = [SamplingParams(temperature=1.0, max_tokens=row["max_tokens"], seed=row["seed"]) for row in rows]
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        return time.perf_counter() - began, [output.outputs[0].text for output in outputs]


def settings_of(spec: EngineSpec) -> dict[str, Any]:
    """Of baselines: what our engine has."""
    return (
        dict(WITHOUT_GPU) if spec.device == "cpu" else {"gpu_memory_utilization": spec.resources.gpu_memory_utilization}
    )


class Pipeline:
    """A transformers pipeline, whose every answer may have 200 tokens."""

    def __init__(self, model: str, device: str, cores: int) -> None:
        import torch
        from transformers import pipeline

        torch.set_num_threads(cores)
        self._pipeline = pipeline("text-generation", model=model, device=device, dtype="auto")
        self._pipeline.tokenizer.padding_side = "left"

    def generate(self, rows: list[RowDict]) -> float:
        """Seconds."""
        began = time.perf_counter()
        chats = [messages_of(row) for row in rows]
        self._pipeline(chats, batch_size=SEED_BATCH, max_new_tokens=SEED_TOKENS, do_sample=True, temperature=1.0)
        return time.perf_counter() - began


class Bench:
    """What all measurements share."""

    def __init__(self, arguments: argparse.Namespace, home: str) -> None:
        self.model, self.cores, self.home, self.repeats = (
            arguments.model,
            arguments.cores,
            Path(home),
            arguments.repeats,
        )
        self.num_rows, self.max_tokens = arguments.rows, arguments.max_tokens
        self.resources = EngineResources(num_engines=1, num_cpus=self.cores, gpu_memory_utilization=0.4)
        self.cluster = ClusterConfig(num_cpus=max(8, 2 * self.cores + 2), engines=self.resources)
        self._num_maps = 0

    @property
    def spec(self) -> EngineSpec:
        return EngineSpec(self.model, self.resources, device_of(self.cluster), inspect_model(self.model).chat)

    @property
    def options(self) -> dict[str, Any]:
        """Of a baseline's actor. No GPU in Ray's accounts: it sees the one that the other engine holds, and each is idle in its turn."""
        return {"num_cpus": self.cores, "num_gpus": 0, "runtime_env": {"env_vars": environment(self.spec)}}

    @contextmanager
    def ours(self, **arguments: Any) -> Iterator[Callable[[list[RowDict]], tuple[MapCounts, Folder]]]:
        """A warm generator, with these arguments of vLLM's."""
        engines = self.resources.model_copy(update={"args": arguments})
        generator = RayDataGenerator(self.model, self.cluster.model_copy(update={"engines": engines}))

        def mapped(rows: list[RowDict]) -> tuple[MapCounts, Folder]:
            self._num_maps += 1
            source, out = (Folder(f"{self.home}/{self._num_maps}/{name}") for name in ("in", "out"))
            source.write_rows(rows, ROWS)
            return generator.map(source, out, render, parse, TEXTS, label="measured"), out

        try:
            mapped(rows_of(FEW, self.max_tokens))
            yield mapped
        finally:
            generator.close()

    def bare(self) -> dict[str, Any]:
        rows = rows_of(self.num_rows, self.max_tokens)
        bare = ray.remote(BareVllm).options(**self.options).remote(self.spec)
        ours: list[float] = []
        theirs: list[float] = []
        with self.ours() as mapped:
            expected = ray.get(bare.generate.remote(rows))[1]  # warm as well
            mapped(rows)
            for _ in range(self.repeats):
                counts, out = mapped(rows)
                ours.append(len(rows) / counts.seconds)
                taken, texts = ray.get(bare.generate.remote(rows))
                theirs.append(len(rows) / taken)
                written = {row["id"]: row["text"] for row in out.read_rows()}
                num_equal = sum(written[row["id"]] == text for row, text in zip(rows, texts, strict=True))
                assert len(written) == len(rows) and texts == expected
        ray.kill(bare)
        return compared(ours, theirs) | {
            "output_tokens": counts.num_output_tokens,
            "equal_texts": round(num_equal / len(rows), 4),
        }

    def ray_data_llm(self) -> dict[str, Any]:
        few, rows = rows_of(FEW, self.max_tokens), rows_of(self.num_rows, self.max_tokens)
        ours, theirs = [], []
        for _ in range(self.repeats):
            theirs.append((len(rows) - FEW) / (self._processed(rows) - self._processed(few)))
        with self.ours() as mapped:
            for _ in range(self.repeats):
                ours.append((len(rows) - FEW) / (mapped(rows)[0].seconds - mapped(few)[0].seconds))
        return compared(ours, theirs)

    def _processed(self, rows: list[RowDict]) -> float:
        """Seconds that `ray.data.llm` takes, the start of its engine included."""
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        spec = self.spec
        settings = {
            "max_num_seqs": self.resources.max_num_seqs,
            "enable_prefix_caching": True,
            "generation_config": "vllm",
        }
        shape = {"CPU": spec.shape["CPU"]} | ({"GPU": spec.shape["GPU"]} if spec.shape["GPU"] else {})
        config = vLLMEngineProcessorConfig(
            model_source=self.model,
            engine_kwargs=settings | settings_of(spec),
            placement_group_config={"bundles": [shape]},
            runtime_env={"env_vars": environment(spec)},
            batch_size=self.resources.batch_size,
            concurrency=1,
            log_engine_metrics=False,
        )
        processor = build_processor(config, preprocess=for_processor, postprocess=from_processor)
        began = time.perf_counter()
        dataset = processor(
            ray.data.from_items(rows, override_num_blocks=max(1, len(rows) // self.resources.batch_size))
        )
        num_rows = sum(1 for _ in dataset.iter_rows())
        assert num_rows == len(rows)
        return time.perf_counter() - began

    def transformers(self) -> dict[str, Any]:
        rows = rows_of(self.num_rows, SEED_TOKENS)
        few = rows[: max(SEED_BATCH, len(rows) // 16)]
        device = "cpu" if self.spec.device == "cpu" else "cuda"
        theirs = ray.remote(Pipeline).options(**self.options).remote(self.model, device, self.cores)
        ray.get(theirs.generate.remote(few[:SEED_BATCH]))
        with self.ours() as mapped:
            ours, baseline = [], []
            for _ in range(self.repeats):
                ours.append(len(rows) / mapped(rows)[0].seconds)
                baseline.append(len(few) / ray.get(theirs.generate.remote(few)))
        ray.kill(theirs)
        return compared(ours, baseline)

    def prefix_cache(self) -> dict[str, Any]:
        rows = rows_of(self.num_rows, self.max_tokens, prefix="You know nothing of it. " * (PREFIX_WORDS // 5))
        rates, shares = [], []
        for is_on in (True, False):
            with self.ours(enable_prefix_caching=is_on) as mapped:
                found = [mapped(rows)[0] for _ in range(self.repeats)]
            rates.append([len(rows) / counts.seconds for counts in found])
            shares.append(found[0].num_prefix_hits / max(1, found[0].num_prefix_queries))
        encoder = Encoder(tokenizer_of(self.model), self.spec.chat)
        num_tokens = len(encoder.encode(render(rows[0]))[0][0])
        return compared(*rates) | {"share_cached": [round(share, 3) for share in shares], "prompt_tokens": num_tokens}

    def samples(self) -> dict[str, Any]:
        """Rates are of samples."""
        num_rows, prefix = self.num_rows // NUM_SAMPLES, "You know nothing of it. " * (PREFIX_WORDS // 5)
        together = rows_of(num_rows, self.max_tokens, num_samples=NUM_SAMPLES, prefix=prefix)
        apart = [
            row | {"id": f"{row['id']}.{sample}", "seed": row["seed"] + sample, "num_samples": 1}
            for row in together
            for sample in range(NUM_SAMPLES)
        ]
        with self.ours() as mapped:
            pairs = [(mapped(together)[0], mapped(apart)[0]) for _ in range(self.repeats)]
        assert all(one.num_output_tokens == other.num_output_tokens for one, other in pairs), "the same samples"
        ours, theirs = ([len(apart) / counts.seconds for counts in each] for each in zip(*pairs, strict=True))
        return compared(ours, theirs)


def for_processor(row: RowDict) -> RowDict:
    sampling = {"temperature": 1.0, "max_tokens": row["max_tokens"], "seed": row["seed"]}
    return {"id": row["id"], "messages": messages_of(row), "sampling_params": sampling}


def from_processor(row: RowDict) -> RowDict:
    return {"id": row["id"], "text": row["generated_text"]}


def compared(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Ratios are of neighbouring turns: what else the machine does changes from minute to minute."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return {
        "rows_per_second": {"ours": [round(rate, 1) for rate in ours], "baseline": [round(rate, 1) for rate in theirs]},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def show(results: dict[str, dict[str, Any]], console: Console) -> None:
    table = Table("over", "ours, rows/s", "baseline, rows/s", "ratio", "goal")
    for name, result in results.items():
        rates = [f"{statistics.median(result['rows_per_second'][side]):.1f}" for side in ("ours", "baseline")]
        verdict = "met" if result["ratio"] >= GOALS[name] else "missed"
        table.add_row(TITLES[name], *rates, f"{result['ratio']:.3f}", f">= {GOALS[name]} {verdict}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurements", nargs="*", metavar="MEASUREMENT", help=f"of {', '.join(GOALS)}; none: all")
    parser.add_argument("--model", default=str(pocket.MODEL_DIR))
    parser.add_argument("--rows", type=int, default=12_000, help="enough that starting a call, 0.6 s, is little of it")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=1, help="of each engine, without a GPU; 1 is what configs give it")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if unknown := set(arguments.measurements) - set(GOALS):
        parser.error(f"there is no measurement {', '.join(sorted(unknown))}: choose of {', '.join(GOALS)}")
    console, results = Console(), {}
    with tempfile.TemporaryDirectory() as home:
        bench = Bench(arguments, home)
        with connect(bench.cluster):
            device = bench.spec.device
            for name in arguments.measurements or GOALS:
                results[name] = getattr(bench, name)()
                console.print(f"{name}: {results[name]}", highlight=False)
    show(results, console)
    model = "pocket" if arguments.model == str(pocket.MODEL_DIR) else Path(arguments.model).name
    sizes = {"rows": arguments.rows, "max_tokens": arguments.max_tokens, "device": device}
    report = {"benchmark": "generation", "model": model, **sizes, "results": results, **about_this_run()}
    print(json.dumps(report))
    if arguments.out:
        write(report, arguments.out)


if __name__ == "__main__":
    main()
