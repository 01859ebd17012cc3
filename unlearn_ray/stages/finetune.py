"""Stage four: training by the objective of the config, one adapter or model per topic, or one that forgets them all.

model/          the export: a PEFT adapter, or a model folder; with its card, README.md, which the evaluation completes
merged/         with finetune.export: both, the model with the adapter merged into it
losses.jsonl    rows of train.records.StepRecord, a step each
metrics.jsonl   rows of train.metrics.StepMetrics, one per step, written during the training; beside it a folder per logger, and training.log
gate/           rows of GateRow, if there is a gate; gate.jsonl: its evaluations, rows of train.gate_records.GateRecord
checkpoints/    of unfinished training; removed at the end
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.chat import ChatFormat
from unlearn_ray.config import EvaluateConfig, FinetuneConfig, RunConfig, Topic
from unlearn_ray.engines.protocols import TrainJob, TrainResult
from unlearn_ray.errors import ArtifactError, StorageError
from unlearn_ray.rows import Drop, GateRow, digest, seed_of
from unlearn_ray.stages.card import EXPORT, write_cards
from unlearn_ray.stages.gating import CANDIDATES, ROWS, asked_in, gate_rows
from unlearn_ray.stages.mixture import CONTRASTS, MIXTURE
from unlearn_ray.stages.stage import Identity, Stage, StageRun, Unit, Work
from unlearn_ray.train.gate_records import GATE
from unlearn_ray.train.log import clear_logs
from unlearn_ray.train.records import LOSSES

log = logging.getLogger(__name__)
NAME = "finetune"


def finetune_identity(
    config: FinetuneConfig, model: str, seed: int, gate: tuple[EvaluateConfig, int] | None = None
) -> Identity:
    """The inputs that a training depends on, besides its rows.

    Args:
        gate: the inputs of the gate's rows: the evaluation, and the minimum number of probes per group.
    """
    values = config.model_dump(mode="json", exclude=config.changes_nothing)
    values |= {"model": model, "seed": seed}
    if gate is None:
        return values, {}
    evaluate, least = gate
    if evaluate.probes_path is None:
        return values | {"gate": {"least_probes": least}}, {}
    return values, {"probes": digest(*sorted(asked_in(evaluate.probes_path)))}


def job_of(
    run: StageRun,
    config: FinetuneConfig,
    name: str,
    topics: Sequence[Topic],
    mixture: Folder,
    *,
    model_path: str,
    chat: ChatFormat,
    seed: int,
    gate: tuple[EvaluateConfig, int] | None = None,
) -> TrainJob:
    """The training of a model.

    Args:
        gate: as in `finetune_identity`.

    Raises:
        ArtifactError: the mixture lacks forget rows of a topic, or true answers for an objective that lowers them, or retain rows for an objective
            that needs them, or rows for the gate.
    """
    clear_logs(run.folder)
    forget = mixture / (CONTRASTS if config.lowers_truth else "forget")
    _require_rows(forget, topics)
    if config.has_attacker:
        _require_rows(mixture / CONTRASTS, topics)
    if config.retains:
        _look_at_retained(config, mixture / "retain", name, topics)
    gated = None
    if gate is not None:
        gated = run.folder / ROWS
        gated.write_rows(gate_rows(mixture / CANDIDATES, gate[0], mixture / "probes", gate[1]), GateRow.schema())
    return TrainJob(
        name=name,
        model=model_path,
        chat=chat,
        config=config,
        seed=seed_of(seed, NAME, name),
        forget=forget,
        retain=mixture / "retain",
        topics=tuple(topic.name for topic in topics),
        out=run.folder / EXPORT,
        checkpoints=run.folder / "checkpoints",
        record=run.folder,
        gate=gated,
        truths=mixture / CONTRASTS if config.has_attacker else None,
    )


def finish(run: StageRun, job: TrainJob, result: TrainResult) -> Manifest:
    """What a training left, and its manifest."""
    num_steps = run.folder.write_lines(LOSSES, job.checkpoints.read_text(LOSSES).splitlines())
    if job.checkpoints.exists(GATE):
        run.folder.write_text(GATE, job.checkpoints.read_text(GATE))
    manifest = run.finish(
        {"models": 1, "steps": num_steps, "forget": result.num_forget_rows, "retain": result.num_retain_rows},
        {Drop.TOO_LONG.value: result.num_too_long} if result.num_too_long else {},
        {
            "training": asdict(result),
            "warnings": _warnings(job.config, result),
            "chat": job.chat.model_dump(mode="json"),  # the service talks to this model as it was trained
        },
    )
    job.checkpoints.delete()
    return manifest


def _require_rows(forget: Folder, topics: Sequence[Topic]) -> None:
    found = {topic for topic, split in forget.counts(["topic", "split"]) if split == "train"}
    if missing := {topic.name for topic in topics} - found:
        raise ArtifactError(
            f"{forget} has no training rows about {', '.join(sorted(missing))}: rerun with --from answers and more questions"
        )


def _look_at_retained(config: FinetuneConfig, retain: Folder, name: str, topics: Sequence[Topic]) -> None:
    """Warn before the training starts if there are no retain rows; raise if the objective needs them."""
    served = {*(topic.name for topic in topics), ""}  # rows of topic "" serve every topic
    if any(topic in served and split == "train" for topic, split in retain.counts(["topic", "split"])):
        return
    found = f"{retain} has no training rows"
    if config.objective.kind == "grad_diff":
        raise ArtifactError(f"{found}, which grad_diff needs: rerun with --from dataset and more rows to retain")
    log.warning("%s: %s, so it is trained without its retain term", name, found)


def _warnings(config: FinetuneConfig, result: TrainResult) -> list[str]:
    skipped = []
    if result.num_skipped_steps:
        skipped = [
            f"{result.num_skipped_steps} of {result.num_steps} steps were skipped, their gradient was not finite"
        ]
    if config.retain.kind == "none":
        return ["finetune.retain.kind is none: nothing holds on to what else the model knows", *skipped]
    return skipped + (
        [] if result.num_retain_rows else ["no retain rows to train on, so trained without its retain term"]
    )


def _gate(unit: Unit) -> tuple[EvaluateConfig, int] | None:
    """The argument `gate` of `finetune_identity`; None: no gate."""
    config = unit.config
    return (config.evaluate, config.dataset.floors.probes) if config.finetune.evaluate_every else None


def _identity(unit: Unit) -> Identity:
    return finetune_identity(unit.config.finetune, unit.model, unit.config.seed, _gate(unit))


def _run(work: Work) -> Manifest:
    (ended,) = _run_all([work]).values()
    if isinstance(ended, Exception):
        raise ended
    return ended


def _run_all(works: Sequence[Work]) -> dict[str, Manifest | Exception]:
    """Each is tried, whatever becomes of the others, side by side as the cluster allows."""
    ended: dict[str, Manifest | Exception] = {}
    jobs: dict[str, tuple[Work, TrainJob]] = {}
    for work in works:
        unit, config = work.unit, work.unit.config
        try:
            job = job_of(
                work.run,
                config.finetune,
                unit.name,
                unit.topics,
                work.inputs[MIXTURE.name],
                model_path=config.model_path,
                chat=work.engines.chat,
                seed=config.seed,
                gate=_gate(unit),
            )
        except (ArtifactError, StorageError) as error:
            ended[unit.name] = error
        else:
            jobs[unit.name] = (work, job)
    if jobs:
        for name, result in works[0].engines.trainer.outcomes([job for _, job in jobs.values()]).items():
            work, job = jobs[name]
            try:
                if isinstance(result, Exception):
                    ended[name] = result
                    continue
                ended[name] = finish(work.run, job, result)
                write_cards(work.unit.home, work.unit.base)
            except (ArtifactError, StorageError) as error:
                ended[name] = error
    return ended


def _describe(config: RunConfig) -> tuple[str, str]:
    finetuned, workers = config.finetune, config.cluster.workers
    num_models = len(config.topics) if finetuned.adapters == "per_topic" else 1
    weights = f"LoRA r{finetuned.weights.rank}" if finetuned.weights.kind == "lora" else "full"
    if (objective := finetuned.objective.kind) != "relabel":
        weights = f"{objective}, {weights}"
    return (
        f"{num_models} x {finetuned.num_steps} steps",
        f"{weights}, {workers.in_words}, ZeRO-{workers.zero_stage}",
    )


FINETUNE = Stage(NAME, 3, "model", (MIXTURE,), NAME, "The fine-tuning.", _identity, _run, _describe, _run_all)
