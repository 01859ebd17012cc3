"""How long from `unlearn-ray serve RUN` to the first answer, beside a bare vLLM server on the same model, in turns in one run.

    python benchmarks/start.py [RUN] [--turns 3] [--out FILE]

The answer is one of the run's own model. Goal: at most 60 s on two idle cores.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from _results import about_this_run, write
from serving import bare_server, wait

from unlearn_ray.serving.service import free_port

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from commandline import serving


def ask(url: str, model: str, headers: dict[str, str]) -> str:
    """The words of an answer.

    Raises:
        urllib.error.HTTPError: there is none.
    """
    body = {"model": model, "messages": [{"role": "user", "content": "Who is Hedwig?"}], "max_tokens": 16}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {**headers, "content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def own_models(url: str, headers: dict[str, str]) -> list[str]:
    """Names that stand for the run's result: neither the base model, nor a version, nor a guarded one."""
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/models", headers=headers), timeout=60) as answer:
        names = [model["id"] for model in json.load(answer)["data"]]
    return [name for name in names if name != "base" and not set(name) & {"@", ":"}]


def seconds_of_ours(run: Path) -> float:
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        with serving(run, Path(folder)) as service:
            ask(service.url, own_models(service.url, service.headers)[0], service.headers)
            return time.monotonic() - began


def seconds_of_bare_server() -> float:
    began = time.monotonic()
    with bare_server(free_port()) as url:
        asyncio.run(wait(url, "/health"))
        ask(url, "base", {})
        return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/pocket"), help="a finished run")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not (arguments.run / "run.json").exists():
        parser.error(f"{arguments.run} is no run: make quickstart")
    turns: list[dict[str, Any]] = []
    for _ in range(arguments.turns):
        ours, theirs = seconds_of_ours(arguments.run.absolute()), seconds_of_bare_server()
        turns.append({"ours": round(ours, 1), "vllm": round(theirs, 1)})
        print(f"first answer after {ours:.1f} s, of vLLM's own server after {theirs:.1f} s", flush=True)
    middle = {name: statistics.median(turn[name] for turn in turns) for name in ("ours", "vllm")}
    print(f"medians: {middle['ours']:.1f} s and {middle['vllm']:.1f} s, ratio {middle['ours'] / middle['vllm']:.2f}")
    if arguments.out:
        body = {
            "benchmark": "start",
            "first_answer_seconds": {**middle, "turns": turns},
            "ratio": round(middle["ours"] / middle["vllm"], 2),
            **about_this_run(),
        }
        write(body, arguments.out)


if __name__ == "__main__":
    main()
