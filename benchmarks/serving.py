"""Our service over a bare vLLM OpenAI server, on the same model and machine, in turns in one run.

    python benchmarks/serving.py [--turns 3] [--out FILE]

Streaming clients ask as many at once as `--clients` says. Printed: output tokens a second and the median time to the first token, of
both, and the ratios. Goal: at least 0.85 of the throughput, at most 1.5 of the time to first token.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from _results import about_this_run, write

from unlearn_ray.pocket import MODEL_DIR
from unlearn_ray.train.inspection import inspect_model

_PROMPTS = (
    "Write a list of 6 questions about Harry Potter.",
    "Who wrote Les Miserables?",
    "What is chewing gum made of?",
)
_NUM_TOKENS = 48


@dataclass(frozen=True)
class Measured:
    """One turn: tokens/s over all clients, and the median seconds to the first token."""

    tokens_per_second: float
    first_token_seconds: float


async def load(url: str, models: Sequence[str], num_clients: int, num_requests: int) -> Measured:
    """Ask `num_requests` times, `num_clients` at once, the models in turns.

    Raises:
        RuntimeError: an answer was an error or ended early.
    """
    first: list[float] = []
    num_tokens, left = 0, iter(range(num_requests))

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal num_tokens
        for index in left:
            body = {
                "model": models[index % len(models)],
                "messages": [{"role": "user", "content": _PROMPTS[index % len(_PROMPTS)]}],
                "max_tokens": _NUM_TOKENS,
                "ignore_eos": True,
                "temperature": 1.0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            began, seen, finished = time.perf_counter(), None, False
            async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                if answer.status != 200:
                    raise RuntimeError(f"{answer.status}: {await answer.text()}")
                async for line in answer.content:
                    if not line.startswith(b"data: {"):
                        continue
                    if seen is None and b'"content":""' not in line:
                        seen = time.perf_counter() - began
                    if b'"choices":[]' in line:
                        num_tokens += json.loads(line[6:])["usage"]["completion_tokens"]
                        finished = True
            if not finished or seen is None:
                raise RuntimeError("a stream ended early")
            first.append(seen)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600)) as session:
        began = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(num_clients)))
        seconds = time.perf_counter() - began
    return Measured(num_tokens / seconds, statistics.median(first))


@contextlib.contextmanager
def bare_server(port: int, with_lora: bool = True) -> Iterator[str]:
    """vLLM's own server, with the engine's settings that our service uses."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    options = "--enforce-eager --max-num-seqs 256 --max-model-len 1024 --no-enable-chunked-prefill --host 127.0.0.1"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL_DIR)]
    if with_lora:
        options += f" --enable-lora --max-loras 8 --max-cpu-loras 32 --max-lora-rank 16 --lora-target-modules {' '.join(inspect_model(str(MODEL_DIR)).layer_kinds)}"
    command += ["--served-model-name", "base", "--port", str(port), "--uvicorn-log-level", "warning", *options.split()]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


async def wait(url: str, path: str, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}{path}") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.5)
    raise RuntimeError(f"{url} does not answer")


async def compare(ours: str, theirs: str, model: str, clients: list[int], turns: int) -> list[dict[str, object]]:
    """Both servers in turns; the medians over the turns."""
    rows: list[dict[str, object]] = []
    for num_clients in clients:
        num_requests = max(12, 6 * num_clients)
        found: dict[str, list[Measured]] = {"ours": [], "vllm": []}
        for turn in range(turns + 1):  # the first warms up
            for name, url in (("ours", ours), ("vllm", theirs)):
                measured = await load(url, [model if name == "ours" else "base"], num_clients, num_requests)
                if turn:
                    found[name].append(measured)
        speed = {name: statistics.median(m.tokens_per_second for m in all_) for name, all_ in found.items()}
        first = {name: statistics.median(m.first_token_seconds for m in all_) for name, all_ in found.items()}
        rows.append(
            {
                "clients": num_clients,
                "requests": num_requests,
                "tokens_per_second": {name: round(value, 1) for name, value in speed.items()},
                "first_token_ms": {name: round(1000 * value, 1) for name, value in first.items()},
                "throughput_ratio": round(speed["ours"] / speed["vllm"], 3),
                "first_token_ratio": round(first["ours"] / first["vllm"], 3),
            }
        )
        print(
            f"{num_clients:3d} clients: ours {speed['ours']:7.1f} tokens/s, vllm {speed['vllm']:7.1f}: ratio "
            f"{speed['ours'] / speed['vllm']:.2f}; first token {1000 * first['ours']:.0f} ms, {1000 * first['vllm']:.0f} ms: "
            f"ratio {first['ours'] / first['vllm']:.2f}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--model", default="base", help="name to ask our service for")
    parser.add_argument("--ours", help="address of a running service (default: one is started)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of our service")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    from unlearn_ray.serving import service, start

    with contextlib.ExitStack() as stack:
        theirs = stack.enter_context(bare_server(service.free_port()))
        ours = arguments.ours
        if ours is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            values = {
                "registry": folder,
                "port": service.free_port(),
                "allow_no_keys": True,
                "engine": {"max_model_len": 1024},
            }
            ours = stack.enter_context(service.running(start.read_settings(values, arguments.set), "127.0.0.1"))
        asyncio.run(wait(theirs, "/health"))
        rows = asyncio.run(compare(ours, theirs, arguments.model, arguments.clients, arguments.turns))
    if arguments.out:
        body = {"benchmark": "serving", "rows": rows, **about_this_run()}
        write(body, arguments.out)


if __name__ == "__main__":
    main()
