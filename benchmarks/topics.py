"""Many topics over one fleet of engines, with the pocket model: what more of them cost, and how busy they keep the engines.

    python benchmarks/topics.py [--questions 48] [--until dataset] [--out results.json] [--plot busy.svg]

Twelve topics over three, in wall time (goal: at most 3.5, where four times the rows are made), and three topics together over three runs one
after the other (goal: at most 0.8). Each run has a Ray, an engine and a folder of its own, and is timed from joining Ray to its last manifest;
the same without the time until the first engine is ready stands beside it. The engines are busy where they made a step within a quarter of a
second; the plot shows that share over the run of twelve topics.

The ten subjects of the pocket's world serve as topics, and two of them again under another name, as it has no more.
"""

import json
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import altair as alt
import ray
import typer
import vl_convert
from _results import about_this_run, write
from ray.exceptions import RayError

from unlearn_ray import config as configs
from unlearn_ray import pipeline, plan
from unlearn_ray.engines.run_engines import RunEngines
from unlearn_ray.pocket.world import load_world
from unlearn_ray.stages.table import COMMANDS

THREE = ("Harry Potter", "Les Miserables", "chewing gum")
AGAIN = ("Middle Earth", "bubble gum")  # other names that the model knows
_SECONDS_BETWEEN_LOOKS = 0.25
_SECONDS_PER_POINT = 2.0  # of the plot


def config_of(home: Path, topics: Sequence[str], num_questions: int) -> configs.RunConfig:
    """A run with data of these topics, of a size that a laptop makes in minutes."""
    values: dict[str, Any] = {
        "name": "topics",
        "model": "pocket",
        "output": str(home),
        "topics": [{"name": name} for name in topics],
        "questions": {"num_questions": num_questions, "num_entities": 8, "max_tokens": 160},
        "answers": {"num_samples": 2, "max_tokens": 48},
        "dataset": {
            "retain": {
                "num_neighbours": 1,
                "questions_per_neighbour": num_questions // 2,
                "num_general": 2,
                "questions_per_general": num_questions // 2,
                "max_tokens": 48,
            },
            "floors": {"forget_rows": 0, "retain_per_forget": 0.0, "coverage": 0.0, "probes": 0, "kept": 0.0},
        },
        "finetune": {"num_steps": 20, "max_tokens": 256},
        "evaluate": {"max_probes": 10},
        "cluster": {"engines": {"max_model_len": 1024}, "workers": {"num_workers": 1, "num_cpus": 2}},
    }
    return configs.parse(values)


@dataclass(slots=True)
class Busy:
    """Looks again and again whether the engines make steps."""

    engines: RunEngines
    looks: list[tuple[float, float]] = field(default_factory=list)  # seconds since the first; share of the engines
    began: float = 0.0  # of the first look at an engine that is ready
    ended: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        before: list[int] = []
        while not self.ended.wait(_SECONDS_BETWEEN_LOOKS):
            fleet = self.engines.evaluator.fleet
            if fleet is None:
                continue
            try:
                actors = ray.get(fleet.client.dispatcher.engines.remote())
                steps: list[int] = ray.get([actor.num_steps.remote() for actor in actors], timeout=10)
            except RayError:
                continue  # they are ended or made anew
            if sum(steps) and not self.began:
                self.began = time.monotonic()
            if self.began and len(steps) == len(before):
                moved = sum(now != then for now, then in zip(steps, before, strict=True))
                self.looks.append((time.monotonic() - self.began, moved / len(steps)))
            before = steps

    @property
    def share(self) -> float:
        return sum(share for _, share in self.looks) / max(1, len(self.looks))

    def points(self) -> list[dict[str, float]]:
        """The share in each stretch of time."""
        found: dict[int, list[float]] = {}
        for seconds, share in self.looks:
            found.setdefault(int(seconds / _SECONDS_PER_POINT), []).append(share)
        return [
            {"second": place * _SECONDS_PER_POINT, "busy": round(sum(shares) / len(shares), 3)}
            for place, shares in sorted(found.items())
        ]


@dataclass(frozen=True, slots=True)
class Timed:
    """One run."""

    seconds: float
    seconds_asking: float  # since an engine made its first step
    busy: Busy
    num_failed: int


def timed(topics: Sequence[str], num_questions: int, until: str) -> Timed:
    began = time.monotonic()
    failures: list[pipeline.Failure] = []
    with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
        config = config_of(Path(home), topics, num_questions)
        engines = RunEngines(config, lambda label, done, total: None, stack)
        engines.connect()
        busy = Busy(engines)
        assert engines.evaluator.fleet is None  # made here, not by two threads at once
        looker = threading.Thread(target=busy.look, daemon=True)
        looker.start()
        try:
            with plan.claimed(config):
                steps = COMMANDS[: COMMANDS.index(until) + 1]
                pipeline.run(config, engines, steps, pipeline.Hooks(on_failure=failures.append))
        except pipeline.PartialError as error:
            print(error)
        finally:
            busy.ended.set()
            looker.join()
        ended = time.monotonic()
    return Timed(ended - began, ended - (busy.began or ended), busy, len(failures))


def plot(busy: Busy) -> str:
    """The engines' busy share over time, as SVG."""
    chart = (
        alt.Chart(alt.Data(values=busy.points()))
        .mark_area(interpolate="step-after", opacity=0.5, line=True)
        .encode(
            x=alt.X("second:Q").title("seconds since the first step"),
            y=alt.Y("busy:Q").title("engines at work").scale(domain=[0, 1]).axis(format="%"),
        )
        .properties(width=640, height=200)
    )
    return str(vl_convert.vegalite_to_svg(chart.to_dict()))


def main(
    questions: Annotated[int, typer.Option(help="Questions per topic.")] = 48,
    until: Annotated[str, typer.Option(help="The last step of each run.")] = "dataset",
    out: Annotated[Path | None, typer.Option(help="Write the figures here as JSON.")] = None,
    plot_to: Annotated[Path | None, typer.Option("--plot", help="Write the plot here as SVG.")] = None,
) -> None:
    """Time runs of one, three and twelve topics."""
    twelve = (*(topic.name for topic in load_world().topics), *AGAIN)
    assert len(twelve) == 12 and set(THREE) < set(twelve)
    many, few = timed(twelve, questions, until), timed(THREE, questions, until)
    alone = [timed((name,), questions, until) for name in THREE]
    figures = {
        "benchmark": "topics",
        "questions": questions,
        "until": until,
        "seconds": {
            "twelve": round(many.seconds, 1),
            "three": round(few.seconds, 1),
            "alone": [round(each.seconds, 1) for each in alone],
        },
        "failed": {"twelve": many.num_failed, "three": few.num_failed},
        "twelve_over_three": round(many.seconds / few.seconds, 2),
        "twelve_over_three_asking": round(many.seconds_asking / few.seconds_asking, 2),
        "together_over_one_after_the_other": round(few.seconds / sum(each.seconds for each in alone), 2),
        "busy": {"twelve": round(many.busy.share, 2), "three": round(few.busy.share, 2)},
        "busy_over_time": many.busy.points(),
        **about_this_run(),
    }
    print(
        f"12 topics {many.seconds:.0f} s, 3 topics {few.seconds:.0f} s: ratio {figures['twelve_over_three']} (goal: at most 3.5); "
        f"since the first step {figures['twelve_over_three_asking']}\n"
        f"3 topics together over one after the other: ratio {figures['together_over_one_after_the_other']} (goal: at most 0.8)\n"
        f"engines at work: {many.busy.share:.0%} of the time with 12 topics, {few.busy.share:.0%} with 3"
    )
    print(json.dumps(figures))
    if out is not None:
        write(figures, out)
    if plot_to is not None:
        plot_to.parent.mkdir(parents=True, exist_ok=True)
        plot_to.write_text(plot(many.busy), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
