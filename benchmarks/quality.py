"""What a config's runs forget and keep, over several seeds: tables for docs/results.md.

    python benchmarks/quality.py CONFIG ... [--seeds 0,1,2] [--folder runs/quality] [--accept-thin-data] > tables.md

Each run is `unlearn-ray run CONFIG seed=SEED`; what is finished is not done again. The baselines stand in the same table: the base model, base behind the
guardrail prefix, and chance, which is what a model without any knowledge gets of choice. A cell has the mean over the seeds and, in brackets,
every seed's figure with its 95 % interval.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from _results import about_this_run

from unlearn_ray.rows import GROUPS

COMMAND = [sys.executable, "-c", "from unlearn_ray.cli import app; app()"]
MODELS = {"base": "base", "guarded": "base + prefix", "unlearned": "unlearned"}
STAGES = ("questions", "answers", "general", "dataset", "mixture", "finetune", "evaluate")
METRICS = {
    "choice": ("choice", GROUPS),
    "recall": ("fact_recall", GROUPS),
    "leak": ("keyword_leak", ("forget",)),
    "fluency, bits": ("fluency", ("far",)),
}


@dataclass(frozen=True)
class Run:
    """A finished run's folder."""

    home: Path

    @property
    def report(self) -> dict[str, Any]:
        """Of the one model that forgets all topics."""
        (path,) = self.home.glob("models/*/evaluate/report.json")
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def manifests(self, stage: str) -> list[dict[str, Any]]:
        """Of a stage on every topic, or on the model, or in the pool."""
        paths = self.home.glob(f"*/{stage}/manifest.json"), self.home.glob(f"*/*/{stage}/manifest.json")
        return [json.loads(path.read_text(encoding="utf-8")) for found in paths for path in found]

    def num(self, stage: str, name: str) -> int:
        """Rows of a kind, over all manifests of a stage."""
        return sum(each["num_rows"].get(name, 0) for each in self.manifests(stage))

    def num_dropped(self, stage: str, reason: str) -> int:
        return sum(each["drops"].get(reason, 0) for each in self.manifests(stage))

    def seconds(self, stage: str) -> float:
        """Topics are at work side by side: the longest of them."""
        return max(each["seconds"] for each in self.manifests(stage))

    def metric(self, model: str, group: str, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.report["models"].get(model, {}).get(group, {}).get(name)
        return found


def main(
    configs: Annotated[list[Path], typer.Argument(help="Configs, each run with every seed.")],
    seeds: str = "0,1,2",
    folder: Annotated[Path, typer.Option(help="Where the runs are kept.")] = Path("runs/quality"),
    accept_thin_data: bool = False,
) -> None:
    """Run what is not finished, then print the tables."""
    numbers = [int(seed) for seed in seeds.split(",")]
    about = about_this_run()
    for config in configs:
        runs = [_run(config, seed, folder, accept_thin_data) for seed in numbers]
        print(f"## {config.name}\n")
        print(f"`{about['command']}`, {about['date'][:10]}, {about['machine']['cores']} cores. Seeds {seeds}.\n")
        print("\n".join([*_data(runs), "", *_figures(runs), "", *_verdicts(runs, numbers), "", *_seconds(runs), ""]))


def _run(config: Path, seed: int, folder: Path, accept_thin_data: bool) -> Run:
    output = folder / f"{config.stem}-{seed}"
    flags = ["--accept-thin-data"] if accept_thin_data else []
    command = [*COMMAND, "run", str(config), f"seed={seed}", f"output={output}", *flags]
    subprocess.run(command, check=True, stdout=sys.stderr)
    (home,) = (path.parent for path in output.glob("*/run.json"))
    return Run(home)


def _data(runs: Sequence[Run]) -> Iterator[str]:
    """What each stage made."""

    def line(title: str, values: Sequence[float], form: str = "{:,.0f}") -> str:
        each = ", ".join(form.format(value) for value in values)
        return f"| {title} | {form.format(mean(values))} | {each} |"

    sampled = [run.num("answers", "rows") for run in runs]
    kept = [run.num("answers", "kept") for run in runs]
    shapeless = [run.num_dropped("answers", "malformed") for run in runs]
    yield from ("| data | mean | each seed |", "| --- | --- | --- |")
    yield line("questions kept", [run.num("questions", "kept") for run in runs])
    yield line("guarded answers sampled", sampled)
    yield line("of them kept", [part / whole for part, whole in zip(kept, sampled, strict=True)], "{:.0%}")
    yield line(
        "of them dropped for length or shape",
        [part / whole for part, whole in zip(shapeless, sampled, strict=True)],
        "{:.1%}",
    )
    yield line("rows to forget", [run.num("mixture", "forget_train") for run in runs])
    yield line("rows to retain", [run.num("mixture", "retain_train") for run in runs])
    for group in GROUPS:
        known = [run.report["probes"].get("known") for run in runs]
        nums = [each[group]["num_probes"] for each in known if each and group in each]
        if nums:
            yield line(f"{group} probes that base knows", nums)


def _figures(runs: Sequence[Run]) -> Iterator[str]:
    columns = [(title, name, group) for title, (name, groups) in METRICS.items() for group in groups]
    yield "| | " + " | ".join(f"{group} {title}" for title, _, group in columns) + " |"
    yield "| --- |" + " --- |" * len(columns)
    for model, title in MODELS.items():
        yield f"| {title} | " + " | ".join(_cell(runs, model, group, name) for _, name, group in columns) + " |"
    chances = []
    for _, name, group in columns:
        found = [metric["chance"] for run in runs if (metric := run.metric("base", group, name)) and "chance" in metric]
        chances.append(f"{mean(found):.0%}" if found else "")
    yield "| chance | " + " | ".join(chances) + " |"


def _cell(runs: Sequence[Run], model: str, group: str, name: str) -> str:
    found = [metric for run in runs if (metric := run.metric(model, group, name))]
    if not found:
        return "n/a"
    form = "{:.2f}" if name == "fluency" else "{:.0%}"
    each = []
    for metric in found:
        interval = metric.get("interval")
        between = f" ({form.format(interval[0])} to {form.format(interval[1])})" if interval else ""
        each.append(form.format(metric["agg_value"]) + between + ("*" if metric.get("doubts") else ""))
    return f"**{form.format(mean(metric['agg_value'] for metric in found))}** [{'; '.join(each)}]"


def _verdicts(runs: Sequence[Run], seeds: Sequence[int]) -> Iterator[str]:
    for seed, run in zip(seeds, runs, strict=True):
        forgetting = run.report["forgetting"]
        lost = "; ".join(
            f"{name} {value['agg_value']:+.0%} of probes ({value['interval'][0]:+.0%} to {value['interval'][1]:+.0%})"
            for name, value in forgetting["lost"].items()
        )
        yield f"- Seed {seed}: {forgetting['verdict'].replace('_', ' ')}; lost by {lost}."


def _seconds(runs: Sequence[Run]) -> Iterator[str]:
    yield "| seconds | " + " | ".join(STAGES) + " |"
    yield "| --- |" + " --- |" * len(STAGES)
    for number, run in enumerate(runs, start=1):
        yield f"| run {number} | " + " | ".join(f"{run.seconds(stage):.0f}" for stage in STAGES) + " |"


if __name__ == "__main__":
    typer.run(main)
