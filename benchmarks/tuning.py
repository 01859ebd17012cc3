"""Steps and learning rates of the shipped configs: chosen on the tuning probes, then reported on the others.

    python benchmarks/tuning.py [jobs/configs/pocket.yaml lora 80:2e-3 120:2e-3 80:3e-3] [--out FILE]

The pairs are generated once. Each point is trained on them and asked the probes of split `tune`. The best one (least recall on the
topics, of those that keep the bars beside them; of equals, the one that keeps most) is then asked the probes of split `report`. The
baseline is the base model: all figures are shares of its recall.
"""

import json
import shutil
import tempfile
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from _results import about_this_run, write

from unlearn_ray import config as configs
from unlearn_ray import pipeline
from unlearn_ray.config import RunConfig
from unlearn_ray.engines.run_engines import RunEngines
from unlearn_ray.evals.report import Report
from unlearn_ray.rows import Group
from unlearn_ray.stages.table import COMMANDS

POCKET = Path(__file__).parents[1] / "jobs" / "configs" / "pocket.yaml"
_BARS = {("near", "template"): 0.97, ("far", "template"): 0.97, ("near", "unseen"): 0.90, ("far", "unseen"): 0.90}
EVALUATION = "models/joint/evaluate"
_GROUPS: tuple[Group, ...] = ("forget", "near", "far")


class Kind(StrEnum):
    lora = "lora"
    full = "full"


_POINTS = {Kind.lora: ["80:1e-3", "80:2e-3", "80:3e-3"], Kind.full: ["80:2e-4", "80:3e-4", "80:4e-4"]}


def main(
    config: Annotated[Path, typer.Argument(help="The run to tune.")] = POCKET,
    kind: Annotated[Kind, typer.Argument(help="Which weights are trained.")] = Kind.lora,
    points: Annotated[list[str] | None, typer.Argument(help="STEPS:LEARNING_RATE, as many as wanted.")] = None,
    out: Annotated[Path | None, typer.Option(help="Add the figures to this JSON file.")] = None,
) -> None:
    """Train at every point, choose one on the tuning probes, report it on the others."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        first = load(config, folder, "data", [])
        engines = RunEngines(first, lambda *progress: None, stack)
        engines.connect()
        pipeline.run(first, engines, COMMANDS[:3])
        tried: list[dict[str, Any]] = []
        for point in points or _POINTS[kind]:
            steps, rate = point.split(":")
            chosen = [f"finetune.num_steps={steps}", f"finetune.learning_rate={rate}"]
            if kind == Kind.full:
                chosen.append("finetune.weights={kind: full}")
            run = load(config, folder, f"{kind}-{steps}-{rate}", [*chosen, "evaluate.split=tune"])
            for name in ("pool", "topics", "models"):
                shutil.copytree(first.folder.local / name, run.folder.local / name)
            pipeline.run(run, engines, COMMANDS[3:])
            tried.append({"point": point, "tune": shares(run), "overrides": chosen})
            print(f"{kind} {point}: {shares(run)}", flush=True)
        best = min(tried, key=lambda each: worth(each["tune"]))
        name = f"{kind}-{best['point'].replace(':', '-')}"
        run = load(config, folder, name, [*best["overrides"], "evaluate.split=report"])
        (run.folder / EVALUATION).delete()
        pipeline.run(run, engines, COMMANDS[4:])
        figures = {
            "benchmark": "tuning",
            "config": config.stem,
            "weights": str(kind),
            "tried": [{key: each[key] for key in ("point", "tune")} for each in tried],
            "chosen": best["point"],
            "report": shares(run),
            "report_by_topic": by_topic(run),
            **about_this_run(),
        }
    print(json.dumps(figures))
    if out is not None:
        found = json.loads(out.read_text()) if out.exists() else []
        kept = [old for old in found if (old["config"], old["weights"]) != (config.stem, str(kind))]
        write([*kept, figures], out)


def load(config: Path, folder: str, name: str, overrides: list[str]) -> RunConfig:
    return configs.load(config, [f"output={folder}", f"name={name}", *overrides])


def shares(run: RunConfig) -> dict[str, float]:
    """Fact recall of the unlearned model as a share of the base model's, by group and wording."""
    report = Report.load(run.folder / EVALUATION)
    found = {}
    for wording, models in sorted(report.by_wording.items()):
        for group in _GROUPS:
            base, unlearned = (models[model].get(group, {}).get("fact_recall") for model in ("base", "unlearned"))
            if base and unlearned:
                found[f"{group} {wording}"] = round(unlearned.agg_value / base.agg_value, 4)
    return found


def by_topic(run: RunConfig) -> dict[str, float]:
    report = Report.load(run.folder / EVALUATION)
    return {
        topic: round(
            models["unlearned"]["forget"]["fact_recall"].agg_value / models["base"]["forget"]["fact_recall"].agg_value,
            4,
        )
        for topic, models in report.by_topic.items()
    }


def worth(found: dict[str, float]) -> tuple[Any, ...]:
    """Less is better: bars that are missed, then recall on the topics, then what is lost beside them."""
    missed = sum(found.get(f"{group} {wording}", 1.0) < bar for (group, wording), bar in _BARS.items())
    forgotten = max(share for name, share in found.items() if name.startswith("forget"))
    return missed, forgotten, -sum(share for name, share in found.items() if not name.startswith("forget"))


if __name__ == "__main__":
    typer.run(main)
