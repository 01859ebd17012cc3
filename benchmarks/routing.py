"""What conversations gain by staying with a replica: our router over the one that Ray's direct streaming has by default.

    python benchmarks/routing.py [--conversations 24] [--turns 4] [--out FILE]

Two replicas; each conversation begins with some 550 tokens of its own and goes on with what the model answered. Printed: prompt tokens
that had to be computed because no block of them was in the answering replica's cache, and the median time to the first token of all turns
but the first. The baseline is RoundRobinRouter, with a service of its own.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
import urllib.request
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
from _results import about_this_run, write
from serving import wait

from unlearn_ray.serving import service, start
from unlearn_ray.serving.environment import SERVE_ENVIRONMENT

_ROUND_ROBIN = "ray.serve.experimental.round_robin_router:RoundRobinRouter"
_NUM_CLIENTS = 4
_NUM_TOKENS = 24  # of an answer
_NUM_WORDS = 150  # of a conversation's beginning
_SECONDS_TO_SETTLE = 3


@dataclass(frozen=True)
class Measured:
    """Prompt tokens asked for and computed, of all turns; the median seconds to the first token, of all turns but the first."""

    prompt_tokens: int
    computed_tokens: int
    first_token_seconds: float
    requests_by_replica: list[int]


async def converse(session: aiohttp.ClientSession, url: str, seed: int, num_turns: int) -> list[float]:
    """One conversation; returns the seconds to the first token of each turn."""
    draw = random.Random(seed)
    words = " ".join(str(draw.randrange(1000)) for _ in range(_NUM_WORDS))
    messages, found = [{"role": "user", "content": f"Keep in mind: {words}. Who is Hedwig?"}], []
    for _ in range(num_turns):
        body = {
            "model": "base",
            "messages": messages,
            "max_tokens": _NUM_TOKENS,
            "ignore_eos": True,
            "stream": True,
        }
        began, first, said = time.perf_counter(), None, ""
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {await answer.text()}")
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise RuntimeError(str(event["error"]))
                    text = event["choices"][0]["delta"].get("content") or ""
                    first = first or (time.perf_counter() - began if text else None)
                    said += text
        found.append(first or time.perf_counter() - began)
        messages = [*messages, {"role": "assistant", "content": said}, {"role": "user", "content": "And what else?"}]
    return found


def figures(url: str, name: str) -> list[int]:
    """A counter of the service: its values by replica, and by its other labels."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return [int(float(line.rpartition(" ")[2])) for line in lines if line.startswith(f"{name}{{")]


async def measure(url: str, num_conversations: int, num_turns: int) -> Measured:
    await wait(url, "/ready")
    seeds, found = iter(range(num_conversations)), list[list[float]]()

    async def client(session: aiohttp.ClientSession) -> None:
        for seed in seeds:
            found.append(await converse(session, url, seed, num_turns))

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        await asyncio.gather(*(client(session) for _ in range(_NUM_CLIENTS)))
    await asyncio.sleep(_SECONDS_TO_SETTLE)
    asked = sum(figures(url, "vllm:prefix_cache_queries_total"))
    return Measured(
        asked,
        asked - sum(figures(url, "vllm:prefix_cache_hits_total")),
        statistics.median(seconds for turns in found for seconds in turns[1:]),
        [count for count in figures(url, "vllm:request_success_total") if count],
    )


def measure_with(router: str, num_conversations: int, num_turns: int) -> Measured:
    """In a process of its own: Ray reads the environment when it is imported, and a service is started once in a process."""
    os.environ |= SERVE_ENVIRONMENT
    from unlearn_ray.serving import app

    app._ROUTER = router or app._ROUTER
    with tempfile.TemporaryDirectory() as folder:
        values = {
            "registry": folder,
            "port": service.free_port(),
            "allow_no_keys": True,
            "scaling": {"min_replicas": 2, "max_replicas": 2},
        }
        with service.running(start.read_settings(values, []), "127.0.0.1") as url:
            return asyncio.run(measure(url, num_conversations, num_turns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=24)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    found: dict[str, Measured] = {}
    for name, router in {"round robin": _ROUND_ROBIN, "ours": ""}.items():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found[name] = process.submit(measure_with, router, arguments.conversations, arguments.turns).result()
        print(f"{name}: {found[name]}", flush=True)
    ours, theirs = found["ours"], found["round robin"]
    body = {
        "benchmark": "routing",
        "conversations": arguments.conversations,
        "turns": arguments.turns,
        "routers": {name: asdict(measured) for name, measured in found.items()},
        "computed_tokens_ratio": round(ours.computed_tokens / theirs.computed_tokens, 3),
        "first_token_ratio": round(ours.first_token_seconds / theirs.first_token_seconds, 3),
        **about_this_run(),
    }
    print(json.dumps(body))
    if arguments.out:
        write(body, arguments.out)


if __name__ == "__main__":
    main()
