"""Times the stages of a real run, start-up and steady state apart, and tells how much memory it needs.

    python benchmarks/quickstart.py [CONFIG] [--out results.json]

The baseline is the run itself: the seconds in which rows or steps were computed, over all seconds. Start-up is what Ray, the
engines and the trainer's workers take before their first row or step. Memory is that of all processes of the run together, pages that
several share counted once (their proportional set sizes), looked at twice a second. Goal: within 8 GiB.
"""

import contextlib
import json
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import psutil
import typer
from _results import about_this_run, write
from rich.console import Console
from rich.table import Table

from unlearn_ray import config as configs
from unlearn_ray import pipeline
from unlearn_ray.artifacts import Manifest
from unlearn_ray.engines.run_engines import RunEngines
from unlearn_ray.stages.stage import Stage, Unit

_SECONDS_BETWEEN_LOOKS = 0.5

POCKET = Path(__file__).parents[1] / "jobs" / "configs" / "pocket.yaml"


class Clock:
    """Seconds of each stage, and those of them that went into waiting for its engine."""

    def __init__(self) -> None:
        self.stage = ""
        self.seconds: dict[str, float] = {}
        self.starting: dict[str, float] = defaultdict(float)
        self._began = self._label_began = 0.0
        self._has_worked = False

    def start(self, stage: Stage, unit: Unit) -> None:
        self.stage, self._began, self._has_worked = stage.name, time.monotonic(), False

    def finish(self, stage: Stage, unit: Unit, manifest: Manifest) -> None:
        self.seconds[stage.name] = manifest.seconds

    def progress(self, label: str, done: int, total: int) -> None:
        if label.startswith("starting"):
            if done == 0:
                self._label_began = time.monotonic()
            else:
                self.starting[self.stage] += time.monotonic() - self._label_began
        elif self.stage == "finetune" and done and not self._has_worked:
            self._has_worked = True
            self.starting[self.stage] += time.monotonic() - self._began


class Memory(threading.Thread):
    """The most that this process and all that it started had at once, in GiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0

    def run(self) -> None:
        me = psutil.Process()
        while True:
            size = 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):  # it ended meanwhile
                    size += process.memory_full_info().pss
            self.peak = max(self.peak, size / 2**30)
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def main(
    config: Annotated[Path, typer.Argument(help="The run to time.")] = POCKET,
    out: Annotated[Path | None, typer.Option(help="Write the figures here as JSON.")] = None,
) -> None:
    """Run CONFIG in an empty folder and print where the time went."""
    clock, memory, began = Clock(), Memory(), time.monotonic()
    memory.start()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        run = configs.load(config, [f"output={folder}"])
        engines = RunEngines(run, clock.progress, stack)
        engines.connect()
        connected = time.monotonic() - began
        pipeline.run(run, engines, hooks=pipeline.Hooks(clock.start, clock.finish))
    total = time.monotonic() - began
    table = Table("stage", "seconds", "start-up", "steady", title=f"{config.stem}: {total:.0f} s in all")
    for stage, seconds in clock.seconds.items():
        waited = clock.starting[stage]
        table.add_row(stage, f"{seconds:.1f}", f"{waited:.1f}", f"{seconds - waited:.1f}")
    table.add_row("imports, Ray", f"{connected:.1f}", f"{connected:.1f}", "")
    Console().print(table)
    print(f"memory: at most {memory.peak:.1f} GiB")
    steady = sum(clock.seconds.values()) - sum(clock.starting.values())
    figures = {
        "benchmark": "quickstart",
        "config": config.stem,
        "seconds": round(total, 1),
        "stage_seconds": {stage: round(seconds, 1) for stage, seconds in clock.seconds.items()},
        "startup_seconds": {stage: round(seconds, 1) for stage, seconds in clock.starting.items()}
        | {"ray": round(connected, 1)},
        "peak_memory_gib": round(memory.peak, 2),
        "steady_over_all": round(steady / total, 3),
        **about_this_run(),
    }
    print(json.dumps(figures))
    if out is not None:
        write(figures, out)


if __name__ == "__main__":
    typer.run(main)
