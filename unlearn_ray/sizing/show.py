"""The output of `unlearn-ray plan CONFIG --gpu GPU`."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unlearn_ray import config as configs
from unlearn_ray.config import Lora, RunConfig
from unlearn_ray.errors import ConfigError, ModelError
from unlearn_ray.sizing.estimate import Estimate, Misfit, estimate
from unlearn_ray.sizing.gpus import GIB
from unlearn_ray.sizing.shapes import shape_of
from unlearn_ray.sizing.training import learnt_parameters
from unlearn_ray.train.modelfiles import weights_of


def show_plan(
    console: Console, path: Path, overrides: Sequence[str], gpu: str, price: float | None, num_gpus: int | None
) -> None:
    """Print the plan of a config. Reads the model's `config.json` or the table of known models, but no weights. Writes nothing.

    Raises:
        ConfigError: the config, the GPU or the price is not valid.
        ModelError: the model's shape can't be found.
    """
    config = configs.load(path, overrides)
    if price is not None and not 0 <= price < float("inf"):
        raise ConfigError(f"--usd-per-gpu-hour: give a number of dollars, 0 or more (it is {price:g})")
    shape = shape_of(shape_source(config))
    found = estimate(config, shape, gpu.lower(), num_gpus)
    for line in lines_of(config, found):
        console.print(line, soft_wrap=True)
    console.print(cost_table(found, price))
    for line in space_lines(config, found):
        console.print(line, soft_wrap=True)
    for misfit in found.misfits:
        console.print(misfit_line(misfit), soft_wrap=True)


def shape_source(config: RunConfig) -> str:
    """Folder or name to read the model's shape from: as for a run, except that SmolLM2 needs no folder."""
    return "SmolLM2-135M" if config.model == "smollm2" else config.model_path


def cost_table(found: Estimate, price: float | None) -> Table:
    """A line per stage, and a line with the sums."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("stage")
    unit = "GPU" if found.device.memory else "machine"
    for name in ("rows", "tokens", "FLOPs", f"{unit}s", f"{unit}-hours", "wall time", f"memory/{unit}"):
        table.add_column(name, justify="right")
    if price is not None:
        table.add_column("USD", justify="right")
    for stage in found.stages:
        cells = [
            f"{stage.rows:,}",
            in_words(stage.tokens),
            f"{stage.flops:.1e}",
            str(stage.gpus),
            f"{stage.gpu_hours:.2f}",
            duration(stage.seconds),
            gib(stage.memory),
        ]
        table.add_row(stage.name, *cells, *([f"{stage.gpu_hours * price:.2f}"] if price is not None else []))
    total = ["", "", f"{sum(stage.flops for stage in found.stages):.1e}", "", f"{found.gpu_hours:.2f}"]
    total += [duration(found.seconds), ""]
    table.add_row("[bold]all[/]", *total, *([f"{found.cost(price):.2f}"] if price is not None else []))
    return table


def lines_of(config: RunConfig, found: Estimate) -> list[str]:
    """The model, the source of its shape, and the device."""
    shape = found.shape
    source = "its config.json" if shape.source == "files" else "the table of known models"
    lines = [
        f"[bold]{escape(config.name)}[/]: {escape(config.model)}, {count_in_words(shape.parameters)} parameters (by {source}), on {device_in_words(found)}"
    ]
    if not _has_weights(config):
        lines.append("  [yellow]![/] the model's weights are not on this machine; a plan needs none")
    return lines


def _has_weights(config: RunConfig) -> bool:
    try:
        return bool(weights_of(config.model_path))
    except ModelError:
        return False  # a damaged folder, or SmolLM2's, which is not made yet


def device_in_words(found: Estimate) -> str:
    return f"{found.num_gpus} x {found.device.name}" if found.device.memory else f"{found.device.per_machine} CPU cores"


def space_lines(config: RunConfig, found: Estimate) -> list[str]:
    """The memory of a training worker by its parts, the time per step, and the disk space of checkpoints and exports."""
    finetune, worker, learnt = config.finetune, found.worker, learnt_parameters(found.shape, config.finetune)
    kind = "LoRA" if isinstance(finetune.weights, Lora) else "full weights"
    parts = {
        name: getattr(worker, name)
        for name in ("weights", "optimizer", "gradients", "activations", "logits", "reference")
    }
    held = ", ".join(f"{name} {gib(size)}" for name, size in parts.items() if size)
    gate = f"its gate's best state {gb(found.gate)}; " if found.gate else ""
    lines = [
        f"Peak memory of a finetune worker ({kind}, {learnt / 1e6:,.1f} M learnt parameters): {gib(worker.total)}: {held}",
        f"A step takes {found.step_seconds:.2g} s; {found.num_trainings} training{'s' if found.num_trainings > 1 else ''} of {finetune.num_steps} steps, {found.side_by_side} at a time",
        f"Checkpoints: {checkpoints_in_words(config, found)}; {gate}export {gb(found.export)} per training",
    ]
    return lines


def checkpoints_in_words(config: RunConfig, found: Estimate) -> str:
    """Number and size of the kept checkpoints: `2 x 96.4 GB = 192.7 GB at most (17 are written, every 50 of 900 steps)`."""
    if not found.checkpoints:
        return f"none in {config.finetune.num_steps} steps (one every {config.finetune.checkpoint_every})"
    kept = f"{found.kept} x {gb(found.checkpoint)} = {gb(found.checkpoint * found.kept)} at most"
    every = f"{found.checkpoints} are written, every {config.finetune.checkpoint_every} of {config.finetune.num_steps} steps"
    of_all = f", {gb(found.checkpoint_space)} for {found.num_trainings} trainings" if found.num_trainings > 1 else ""
    return f"{kept} ({every}{of_all})"


def misfit_line(misfit: Misfit) -> str:
    """A red line: the stage that does not fit, and settings that do."""
    hint = (
        f"it fits with {' '.join(misfit.settings)}"
        if misfit.settings
        else "no number of workers, sharding or offloading makes it fit: choose a larger GPU, finetune.weights.kind=lora, or a smaller model"
    )
    return f"[red]✗ {misfit.stage} does not fit: it needs {gib(misfit.needed)} per GPU or machine, and may use {gib(misfit.there)}: {escape(hint)}[/]"


def gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB"


def gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def in_words(count: float) -> str:
    """A large number of tokens, such as 1.2 M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count:.0f}"


def count_in_words(number: int) -> str:
    """A number of parameters, such as 8.03 B or 134.5 M."""
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def duration(seconds: float) -> str:
    """Such as 1:05 h, 12 min or 40 s."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02d} h"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
