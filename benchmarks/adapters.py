"""Eight adapters on one engine, over the base model alone: memory of all the service's processes, and throughput.

    python benchmarks/adapters.py [--adapters 8] [--turns 3] [--out FILE]

The baseline is the same service with nothing published, and then its base model's own throughput in turns with that of requests spread
over all adapters. Goal: at most 1.1 of the memory.
"""

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from pathlib import Path

import psutil
from _results import about_this_run, write
from serving import load

from unlearn_ray.pocket import MODEL_DIR

_NUM_CLIENTS = 16
_NUM_REQUESTS = 160
_SECONDS_TO_SETTLE = 5


def make_adapter(folder: Path, seed: int) -> None:
    """A PEFT adapter of random weights on every linear layer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(MODEL_DIR), config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    tuned.save_pretrained(folder)


def memory_mib() -> float:
    """Of all processes that this one started, each shared page counted once."""
    found = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += process.memory_full_info().pss
    return found / 2**20


async def compare(address: str, names: list[str], turns: int) -> dict[str, float]:
    """Tokens a second of the base model and of all adapters together, in turns."""
    found: dict[str, list[float]] = {"base": [], "adapters": []}
    for turn in range(turns + 1):  # the first warms up
        for key, models in (("base", ["base"]), ("adapters", names)):
            measured = await load(address, models, _NUM_CLIENTS, _NUM_REQUESTS)
            if turn:
                found[key].append(measured.tokens_per_second)
    return {key: statistics.median(values) for key, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    from unlearn_ray.serving import service, start

    with tempfile.TemporaryDirectory() as home:
        registry = str(Path(home) / "registry")
        names = [f"topic-{number}" for number in range(arguments.adapters)]
        for number, name in enumerate(names):
            make_adapter(Path(home) / name, number)
        values = {
            "registry": registry,
            "port": service.free_port(),
            "allow_no_keys": True,
            "engine": {"max_model_len": 1024, "max_loras": arguments.adapters},
        }
        with service.running(start.read_settings(values, []), "127.0.0.1") as address:
            asyncio.run(load(address, ["base"], _NUM_CLIENTS, _NUM_REQUESTS))
            time.sleep(_SECONDS_TO_SETTLE)
            alone = memory_mib()
            for name in names:
                start.publish_all(str(Path(home) / name), name, registry)
            time.sleep(_SECONDS_TO_SETTLE)
            asyncio.run(load(address, names, _NUM_CLIENTS, _NUM_REQUESTS))
            time.sleep(_SECONDS_TO_SETTLE)
            together = memory_mib()
            speed = asyncio.run(compare(address, names, arguments.turns))
    figures = {
        "benchmark": "adapters",
        "adapters": arguments.adapters,
        "memory_mib": {"base": round(alone), "base and adapters": round(together)},
        "memory_ratio": round(together / alone, 3),
        "tokens_per_second": {key: round(value, 1) for key, value in speed.items()},
        "throughput_ratio": round(speed["adapters"] / speed["base"], 3),
        **about_this_run(),
    }
    print(
        f"memory: base {alone:.0f} MiB, with {arguments.adapters} adapters {together:.0f} MiB: ratio {together / alone:.3f}\n"
        f"throughput: base {speed['base']:.0f} tokens/s, spread over the adapters {speed['adapters']:.0f}: "
        f"ratio {speed['adapters'] / speed['base']:.2f}"
    )
    if arguments.out:
        write(figures, arguments.out)


if __name__ == "__main__":
    main()
