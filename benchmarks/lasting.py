"""What objectives forget, and what an attacker's fine-tuning brings back, on the rows of a finished run: a table for docs/lasting.md.

    python benchmarks/lasting.py [CONFIG RUN "weights.kind=full lasting=meta" ...] [--seeds 0,1,2] [--max-facts 24] [--steps 5,10,20] [--out FILE]

As benchmarks/objectives.py, neither vLLM nor Ray is started. Half of the topics' facts, by a hash, are taught to the trained model with their true answers
(LoRA and all weights, three rates each, `unlearn_ray.attacks.relearn`). Recall and choice of the other half are printed for the worst case over rates and
weights, at each number of steps. Base is beside them, and for the pocket model the twin that never knew the topics.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from _results import about_this_run, write
from objectives import Bench

from unlearn_ray.artifacts import Folder
from unlearn_ray.attacks.attack import Setup, Target
from unlearn_ray.attacks.relearn import run as relearn
from unlearn_ray.config import FinetuneConfig, Lora, RunConfig, load, twin_path
from unlearn_ray.evals.probes import PlacedProbe
from unlearn_ray.rows import GROUPS, seed_of
from unlearn_ray.stages.evaluate import PROBE_TOKENS
from unlearn_ray.train.export import save_adapter, save_model

METRICS = ("recall", "choice")


def halves(probes: Sequence[PlacedProbe]) -> tuple[list[PlacedProbe], list[PlacedProbe]]:
    """The facts that the attacker teaches, and those that are asked."""
    found: tuple[list[PlacedProbe], list[PlacedProbe]] = ([], [])
    for each in probes:
        found[seed_of("half", each.probe.fact_id) % 2].append(each)
    return found


def saved(bench: Bench, config: FinetuneConfig, module: Any, folder: Path) -> Target:
    """The trained model as a target."""
    weights = {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}
    if isinstance(config.weights, Lora):
        save_adapter(module, weights, folder)
        return Target("unlearned", bench.config.model_path, str(folder))
    save_model(bench.config.model_path, weights, folder)
    return Target("unlearned", str(folder))


def relearnt(target: Target, probes: Sequence[PlacedProbe], steps: Sequence[int], seed: int) -> dict[str, float]:
    """The highest recall and choice of the untaught half over all fine-tunings, by metric and steps."""
    taught, untaught = halves(probes)
    rows = [(each.probe.question, each.probe.reference or each.probe.answer) for each in taught]
    setup = Setup([target], probes, rows, untaught, [], [], seed, max_tokens=PROBE_TOKENS)
    values = defaultdict(list)
    for hit in relearn(setup, steps=steps, max_probes=None, every=True):
        values[hit.metric, int(hit.at), hit.setting].append(hit.value)
    worst: dict[str, float] = defaultdict(float)
    for (metric, at, _), each in values.items():
        worst[f"{metric} {at}"] = max(worst[f"{metric} {at}"], mean(each))
    return dict(worst)


def main(
    config: Annotated[Path, typer.Argument(help="Of the run.")] = Path("jobs/configs/pocket.yaml"),
    run: Annotated[Path, typer.Argument(help="Its folder; it is finished.")] = Path("runs/pocket"),
    settings: Annotated[list[str] | None, typer.Argument(help="Keys of finetune, each set in quotes.")] = None,
    seeds: str = "0",
    steps: str = "5,10,20",
    max_facts: Annotated[int | None, typer.Option(help="Of a group; none: all.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file.")] = None,
) -> None:
    """Train at each setting, attack what came out, and print a row for it."""
    (mixture,) = run.glob("models/*/mixture")
    loaded, at = load(config), [int(each) for each in steps.split(",")]
    precision = "fp32" if loaded.finetune.precision == "auto" else loaded.finetune.precision
    bench = Bench(loaded, Folder(mixture), max_facts)
    if loaded.evaluate.counts_known_only:
        bench.keep_known(bench.choices(bench.fresh(loaded.finetune, 0).eval()))
    forget = [each for each in bench.probes if each.group == "forget"]
    columns = [f"{metric} {each}" for metric in METRICS for each in (0, *at)]
    kept = [f"{group} choice" for group in GROUPS]
    about = about_this_run()
    print(f"`{about['command']}`, {about['date'][:10]}, {about['machine']['cores']} cores.\n")
    print(f"| setting | {' | '.join(kept)} | {' | '.join(columns)} | seconds |")
    print("| --- " * (len(kept) + len(columns) + 2) + "|")
    rows = []

    def show(name: str, found: Sequence[dict[str, float]], seconds: Sequence[float] = ()) -> None:
        cells = [_cell([each[key] for each in found if key in each]) for key in (*kept, *columns)]
        print(f"| {name} | {' | '.join(cells)} | {mean(seconds) if seconds else 0:.0f} |", flush=True)
        rows.append({"setting": name, "seconds": list(seconds), "found": list(found)})

    for name, path in _beside(loaded):
        show(name, [relearnt(Target("base", path), forget, at, 0)])
    for setting in settings or ["objective=relabel", "objective=relabel lasting=sam", "objective=relabel lasting=meta"]:
        tuned = load(config, [*(f"finetune.{each}" for each in setting.split()), f"finetune.precision={precision}"])
        found, seconds = [], []
        for seed in map(int, seeds.split(",")):
            module, took = bench.trained(tuned.finetune, seed_of(seed, "objectives"))
            choices = bench.choices(module)
            with tempfile.TemporaryDirectory() as folder:
                target = saved(bench, tuned.finetune, module, Path(folder) / "model")
                del module
                after = relearnt(target, forget, at, seed)
            found.append({f"{group} choice": bench.mean(choices, group) for group in GROUPS} | after)
            seconds.append(took)
        show(setting, found, seconds)
    if out:
        write({**about, "rows": rows}, out)


def _beside(config: RunConfig) -> Iterator[tuple[str, str]]:
    yield "base", config.model_path
    if (twin := twin_path(config.model_path, config.topic_names)) is not None:
        yield "twin, which never knew", twin


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    each = f" ({', '.join(f'{100 * value:.0f}' for value in values)})" if len(values) > 1 else ""
    return f"{100 * mean(values):.0f} %{each}"


if __name__ == "__main__":
    typer.run(main)
