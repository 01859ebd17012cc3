"""Many clients at once, and processes killed under them: does every request end in an answer, a clean 429, or an error that says so?

    python benchmarks/soak.py [RUN] [--clients 200] [--seconds 120] [--only SCENARIO ...] [--out FILE]

Each scenario has a service of its own, started by `unlearn-ray serve` on a finished run (default: runs/pocket). Streaming clients ask
again as soon as they are answered. Printed: how requests ended, memory, and how long the service took to start or to come back.
A stream that ends without a finish_reason and without an error is *silent*, one whose connection breaks off is *broken*: there must be none.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import aiohttp
from _results import about_this_run, write

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from commandline import Service, serving

# answered: with finish_reason and the last event. full: 429 with Retry-After. refused: another status. cut: an error event.
# unanswered: the connection was closed before an answer began; broken: after it. hung: nothing for ten minutes.
# silent: the stream ended as if it were whole.
End = Literal["answered", "full", "refused", "cut", "unanswered", "broken", "hung", "silent"]
MODELS = ("base", "harry-potter", "harry-potter:guarded")
Memory = dict[str, float]  # MiB, by process
# For one answer, and for a service to come back: half a minute on idle cores, but others may work them as well.
_PATIENCE_SECONDS = 600
_PROCESSES = ("VLLM::EngineCore", "ServeReplica")
_QUESTIONS = ("Who is Hedwig?", "Write a list of 6 questions about Harry Potter.", "What is chewing gum made of?")


@dataclass
class Crowd:
    """What clients met."""

    ends: Counter[str] = field(default_factory=Counter)
    details: Counter[str] = field(default_factory=Counter)  # of ends that are no answers
    seconds: list[float] = field(default_factory=list)  # of answers
    num_tokens: int = 0
    num_streaming: int = 0  # answers that have begun and not ended, now
    failed_at: list[float] = field(default_factory=list)  # time.monotonic() when a request began that was not answered
    answered_at: list[float] = field(default_factory=list)  # time.monotonic() when one began that was

    def summary(self) -> dict[str, Any]:
        ranked = sorted(self.seconds)
        return {
            "ends": dict(self.ends),
            "details": dict(self.details.most_common(8)),
            "num_tokens": self.num_tokens,
            "answer_seconds": {
                "median": round(statistics.median(ranked), 2) if ranked else None,
                "worst": round(ranked[-1], 2) if ranked else None,
            },
        }


async def ask(
    session: aiohttp.ClientSession, service: Service, body: dict[str, Any], found: Crowd
) -> tuple[End, str, int, float]:
    """Ask once, streaming; returns how it ended, what was said of it, the tokens, and for how long to stay away."""
    has_begun, is_done, reasons, tokens = False, False, 0, 0
    try:
        async with session.post(
            f"{service.url}/v1/chat/completions", json=body | {"stream": True}, headers=service.headers
        ) as answer:
            if answer.status == 429 and answer.headers.get("retry-after", "").isdigit():
                return "full", "", 0, float(answer.headers["retry-after"])
            if answer.status != 200:
                return "refused", f"{answer.status} {(await answer.text())[:120]}", 0, 0.5
            has_begun = True
            async for line in answer.content:
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    is_done = True
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    return "cut", str(event["error"].get("code")), tokens, 0.5
                for choice in event["choices"]:
                    found.num_streaming += tokens == 0
                    tokens += 1
                    reasons += choice["finish_reason"] is not None
    except aiohttp.ClientError as error:
        return "broken" if has_begun else "unanswered", type(error).__name__, tokens, 0.5
    except TimeoutError:
        return "hung", f"after {tokens} tokens", tokens, 0.5
    finally:
        found.num_streaming -= tokens > 0
    if is_done and reasons == body.get("n", 1):
        return "answered", "", tokens, 0.0
    return "silent", f"finish_reason {reasons}, [DONE] {is_done}", tokens, 0.5


async def crowd(
    service: Service,
    num_clients: int,
    is_over: Callable[[], bool],
    num_tokens: Sequence[int] = (16, 32, 64),
    found: Crowd | None = None,
) -> Crowd:
    """Clients that ask, one request after another, until it is over; a request under way is waited for.

    `found` is filled as they go, and returned.
    """
    found, numbers = found if found is not None else Crowd(), iter(range(10**9))

    async def client(session: aiohttp.ClientSession) -> None:
        while not is_over():
            number = next(numbers)
            body = {
                "model": MODELS[number % len(MODELS)],
                "messages": [{"role": "user", "content": _QUESTIONS[number // 3 % len(_QUESTIONS)]}],
                "max_tokens": num_tokens[number % len(num_tokens)],
                "ignore_eos": True,
                "temperature": 1.0,
            }
            began = time.monotonic()
            end, detail, tokens, pause = await ask(session, service, body, found)
            found.ends[end] += 1
            found.num_tokens += tokens
            if end == "answered":
                found.seconds.append(time.monotonic() - began)
                found.answered_at.append(began)
            else:
                found.details[f"{end} {detail}".strip()] += 1
                if end != "full":
                    found.failed_at.append(began)
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))

    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=_PATIENCE_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await asyncio.gather(*(client(session) for _ in range(num_clients)))
    return found


async def crowd_for(service: Service, num_clients: int, seconds: float) -> tuple[Crowd, list[Memory]]:
    """A crowd for some seconds, and the memory of the service, sampled meanwhile."""
    over, samples = time.monotonic() + seconds, list[Memory]()

    async def watch() -> None:
        while time.monotonic() < over:
            samples.append(await asyncio.to_thread(memory_mib, service))
            await asyncio.sleep(max(0.5, seconds / 60))

    found, _ = await asyncio.gather(crowd(service, num_clients, lambda: time.monotonic() > over), watch())
    return found, samples


def memory_mib(service: Service) -> Memory:
    """Memory of the service's processes; pages that several share are counted once for each of them."""
    found = dict.fromkeys((*_PROCESSES, "others", "all"), 0.0)
    for process in service.processes():
        with contextlib.suppress(Exception):  # it may end meanwhile
            size, command = process.memory_info().rss / 2**20, " ".join(process.cmdline())
            found[next((name for name in _PROCESSES if name in command), "others")] += size
            found["all"] += size
    return found


def thirds(samples: list[Memory]) -> dict[str, dict[str, float]]:
    """Medians of the first, middle and last third. The engine touches the pages of its KV cache as it first needs them."""
    part = max(1, len(samples) // 3)
    parts = samples[:part], samples[part : -part or None] or samples, samples[-part:]
    return {
        name: {
            third: round(statistics.median(sample[name] for sample in chosen))
            for third, chosen in zip(("first", "middle", "last"), parts, strict=True)
        }
        for name in samples[0]
    }


async def crowd_and_kill(
    service: Service, part: str, num_clients: int, num_replicas: int = 1, quiet: float = 5.0
) -> dict[str, Any]:
    """Kill the first process with `part` in its command line under a crowd, which goes on until nothing failed for some seconds."""
    began = time.monotonic()
    killed = 0.0
    found = Crowd()
    ready_at = 0.0

    def is_over() -> bool:
        calm_since = max([ready_at, *found.failed_at[-1:]])
        return bool(ready_at) and (
            time.monotonic() > calm_since + quiet or time.monotonic() > killed + _PATIENCE_SECONDS
        )

    async def kill() -> None:
        nonlocal killed, ready_at
        # Looked for in a thread and ahead: while this loop stands still, no client asks, and nothing would be under way.
        victim = (await asyncio.to_thread(service.processes, part))[0]
        await asyncio.sleep(3)
        while len(await asyncio.to_thread(answered_by, service.url, service.headers)) < num_replicas:
            if time.monotonic() > began + 120:
                raise RuntimeError(f"fewer than {num_replicas} replicas answer")
            await asyncio.sleep(0.2)
        while found.num_streaming < num_clients // 2:
            if time.monotonic() > began + 120:
                raise RuntimeError("no answers are under way")
            await asyncio.sleep(0.01)
        victim.kill()
        killed = time.monotonic()
        await asyncio.sleep(0.5)
        while not await asyncio.to_thread(lambda: service.is_ready) or time.monotonic() < killed + 3:
            if time.monotonic() > killed + _PATIENCE_SECONDS:
                raise RuntimeError("the service did not come back")
            await asyncio.sleep(0.2)
        ready_at = time.monotonic()

    await asyncio.gather(crowd(service, num_clients, is_over, (96, 192, 384), found), kill())
    after = [at for at in found.failed_at if at > killed]
    back = [at for at in found.answered_at if at > max([killed, *after])]
    return found.summary() | {
        "seconds_until_ready": round(ready_at - killed, 1),
        "failed_that_began_before": len(found.failed_at) - len(after),
        "failed_that_began_after": len(after),
        "seconds_until_all_are_answered": round(min(back) - killed, 1) if back else None,
        "seconds": round(time.monotonic() - began, 1),
    }


async def crowd_that_comes_and_goes(service: Service, num_clients: int, seconds: float) -> dict[str, Any]:
    """A crowd for which one replica is too few, until a second one has answered for some seconds; then two clients, until it is gone."""
    began, found = time.monotonic(), Crowd()
    grown, calm, shrunk = 0.0, 0.0, 0.0
    served: dict[str, float] = {}

    async def watch() -> None:
        nonlocal grown, calm, shrunk, served
        while not grown or time.monotonic() < grown + seconds:
            await asyncio.sleep(0.5)
            if not grown and len(await asyncio.to_thread(answered_by, service.url, service.headers)) > 1:
                grown = time.monotonic()
            if time.monotonic() > began + 300:
                raise RuntimeError("no second replica answers")
        served = await asyncio.to_thread(answered_by, service.url, service.headers)
        calm = time.monotonic()
        while len(await asyncio.to_thread(service.processes, "EngineCore")) > 1:
            await asyncio.sleep(0.5)
            if time.monotonic() > calm + 300:
                raise RuntimeError("the second replica stays")
        shrunk = time.monotonic()

    await asyncio.gather(
        crowd(service, num_clients, lambda: bool(calm), (96, 192, 384), found),
        crowd(service, 2, lambda: bool(shrunk) and time.monotonic() > shrunk + 5, (384,), found),
        watch(),
    )
    return found.summary() | {
        "seconds_until_a_second_answered": round(grown - began, 1),
        "answered_by_each": sorted(served.values()),
        "seconds_until_it_was_gone": round(shrunk - calm, 1),
    }


def answered_by(url: str, headers: dict[str, str]) -> dict[str, float]:
    """How many answers each replica of the service at `url` has given."""
    request = urllib.request.Request(f"{url}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found: defaultdict[str, float] = defaultdict(float)
    for line in lines:
        if line.startswith("unlearn_requests_total{") and 'status="200"' in line:
            found[line.partition('replica="')[2].partition('"')[0]] += float(line.rpartition(" ")[2])
    return dict(found)


SMALL = ("scaling.max_ongoing_requests=32", "scaling.max_queued_requests=32", "scaling.target_ongoing_requests=32")
TWO = ("scaling.min_replicas=2", "scaling.max_replicas=2")
TIDAL = (
    "scaling.max_replicas=2",
    "scaling.target_ongoing_requests=8",
    "scaling.upscale_delay_seconds=5",
    "scaling.downscale_delay_seconds=20",
)


def measure(name: str, run: Path, num_clients: int, seconds: float) -> dict[str, Any]:
    settings = {"full": SMALL, "replicas": TWO, "router": TWO, "tide": TIDAL}.get(name, ())
    load = os.getloadavg()[0]  # of other work on this machine
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        with serving(run, Path(folder), *settings) as service:
            started = time.monotonic() - began
            if name in ("crowd", "full"):
                found, samples = asyncio.run(crowd_for(service, num_clients, seconds))
                row = {"clients": num_clients, "seconds": seconds, **found.summary(), "memory_mib": thirds(samples)}
            elif name == "tide":
                row = {"clients": 24, **asyncio.run(crowd_that_comes_and_goes(service, 24, seconds=30))}
            else:
                part = {"engine": "EngineCore", "router": "LLMRouter"}.get(name, "UnlearnServer")
                row = {
                    "clients": 20,
                    "killed": part,
                    **asyncio.run(crowd_and_kill(service, part, 20, 2 if settings == TWO else 1)),
                }
            ending = time.monotonic()
        stopped = time.monotonic() - ending
    return {
        "scenario": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_before": round(load, 1),
        "settings": list(settings),
        "start_seconds": round(started, 1),
        **row,
        "stop_seconds": round(stopped, 1),
    }


def main() -> None:
    scenarios = ["crowd", "full", "engine", "replica", "replicas", "router", "tide"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/pocket"), help="a finished run")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--only", nargs="+", choices=scenarios, default=scenarios)
    parser.add_argument("--out", type=Path, help="results; those of other scenarios in it are kept")
    arguments = parser.parse_args()
    if not (arguments.run / "run.json").exists():
        parser.error(f"{arguments.run} is no run: make quickstart")
    rows = []
    for name in arguments.only:
        rows.append(measure(name, arguments.run.absolute(), arguments.clients, arguments.seconds))
        print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        before = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
        kept = {row["scenario"]: row for row in [*before, *rows]}
        body = {
            **about_this_run(),
            "rows": [kept[name] for name in scenarios if name in kept],
        }
        write(body, arguments.out)


if __name__ == "__main__":
    main()
