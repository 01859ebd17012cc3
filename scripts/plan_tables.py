"""Write the figures of the shipped 8B configs into docs/cluster.md, as `unlearn-ray plan` computes them.

    python scripts/plan_tables.py

A test checks that the page matches. The figures are for a machine with eight H100 GPUs of 80 GB.
"""

from pathlib import Path

from unlearn_ray import config as configs
from unlearn_ray.config import RunConfig, WorkerResources
from unlearn_ray.sizing.estimate import Estimate, estimate, worker_memory
from unlearn_ray.sizing.gpus import DEVICES
from unlearn_ray.sizing.shapes import shape_of
from unlearn_ray.sizing.show import checkpoints_in_words, duration, gb, gib
from unlearn_ray.sizing.training import step_seconds

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "cluster.md"
BEGIN, END = "<!-- figures of scripts/plan_tables.py -->", "<!-- end of figures -->"
GPU = "h100"
_WEIGHED = ((2, 4, False), (2, 8, False), (2, 8, True), (3, 4, False), (3, 8, False), (3, 8, True))


def figures() -> str:
    """The tables as Markdown."""
    runs = {kind: configs.load(ROOT / "jobs" / "configs" / f"llama3-8b-{kind}.yaml") for kind in ("lora", "full")}
    plans = {kind: estimate(config, shape_of(config.model), GPU) for kind, config in runs.items()}
    lines = ["| | LoRA | full |", "| --- | --- | --- |"]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in _rows(runs, plans).items()]
    lines += [
        "",
        "Settings compared for full weights (rows per pass: `workers.micro_batch`; recomputed: `workers.gradient_checkpointing`):",
        "",
    ]
    lines += [
        "| ZeRO stage | rows per pass | recomputed | memory per GPU | time per step |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join(lines + [_weighed(runs["full"], *each) for each in _WEIGHED])


def _rows(runs: dict[str, RunConfig], plans: dict[str, Estimate]) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = {}
    for kind, config in runs.items():
        found, workers = plans[kind], config.cluster.workers
        trained = next(stage for stage in found.stages if stage.name == "finetune")
        memory = found.worker
        cells = {
            "config": f"`jobs/configs/llama3-8b-{kind}.yaml`",
            "GPUs of 80 GB a training": f"{workers.span[1]}",
            "GPUs in use": f"{trained.gpus} of {found.num_gpus}",
            "ZeRO": f"{workers.zero_stage}",
            "rows per pass": f"{workers.micro_batch}",
            "recomputed": "nothing" if workers.gradient_checkpointing == "none" else workers.gradient_checkpointing,
            "peak memory per GPU": gib(memory.total),
            "weights, optimizer, gradients in it": f"{gib(memory.weights)}, {gib(memory.optimizer)}, {gib(memory.gradients)}",
            "activations, logits in it": f"{gib(memory.activations)}, {gib(memory.logits)}",
            "base model for `retain.kind: kl` in it": gib(memory.reference)
            if memory.reference
            else "none: the adapter is switched off for it",
            "time per step, per training, of all trainings": f"{found.step_seconds:.2f} s, {duration(found.step_seconds * config.finetune.num_steps)}, {duration(trained.seconds)}",
            "checkpoints per training": checkpoints_in_words(config, found),
            "export per training": gb(found.export),
        }
        for name, cell in cells.items():
            rows.setdefault(name, []).append(cell)
    return rows


def _weighed(config: RunConfig, stage: int, rows: int, is_checkpointed: bool) -> str:
    shape = shape_of(config.model)
    own = config.cluster.workers.model_dump() | {"zero_stage": stage, "micro_batch": rows}
    workers = WorkerResources.model_validate(own | {"gradient_checkpointing": is_checkpointed})
    memory = worker_memory(config, shape, workers, "cuda").total
    seconds = step_seconds(shape, config, workers, DEVICES[GPU])
    return f"| {stage} | {rows} | {'yes' if is_checkpointed else 'no'} | {gib(memory)} | {seconds:.2f} s |"


def with_figures(page: str) -> str:
    """The page with new tables between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{figures()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_figures(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
