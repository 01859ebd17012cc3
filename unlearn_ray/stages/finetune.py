"""Stage four: relabelled gradient descent, one adapter or model a topic, or one that forgets them all.

models/<slug of a topic, or "joint">/   exports: a PEFT adapter, or a model folder
losses/<name>.jsonl                     rows of train.records.StepRecord, a step each
checkpoints/<name>/                     of unfinished training; removed at the end
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.chat import ChatFormat
from unlearn_ray.config import FinetuneConfig, Topic
from unlearn_ray.engines.protocols import Trainer, TrainJob, TrainResult
from unlearn_ray.errors import ArtifactError
from unlearn_ray.rows import Drop, seed_of
from unlearn_ray.stages.stage import finished_manifest, open_stage
from unlearn_ray.train.records import LOSSES

STAGE, VERSION = "finetune", 2
JOINT = "joint"


def finetune_identity(
    config: FinetuneConfig, model: str, seed: int, dataset: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """Config and inputs that make this stage's fingerprint; `dataset` is that of the dataset stage."""
    # How often a checkpoint is taken, and how many lost workers are borne, changes no result.
    values = config.model_dump(mode="json", exclude={"checkpoint_every", "max_failures"})
    return values | {"model": model, "seed": seed}, {"dataset": dataset}


def finetune(
    config: FinetuneConfig,
    topics: Sequence[Topic],
    dataset: Folder,
    out: Folder,
    trainer: Trainer,
    *,
    model: str,
    model_path: str,
    chat: ChatFormat,
    seed: int,
) -> Manifest:
    """Make the model forget the topics: exports in `out/models`.

    Raises:
        ArtifactError: the dataset is unfinished, or has no forget rows of a topic.
        ClusterError: the cluster has no room for one training's workers.
        PartialError: some trainings failed for good; the exports of the others stay, and a rerun trains only those that failed.
        FailedError, DivergenceError, EngineError, ...: all failed for good.
    """
    fingerprint = finished_manifest(dataset).fingerprint
    stage = open_stage(out, STAGE, VERSION, *finetune_identity(config, model, seed, fingerprint))
    if stage.is_finished:
        return finished_manifest(out)
    _require_forget_rows(dataset, topics)
    jobs = [
        TrainJob(
            name=name,
            model=model_path,
            chat=chat,
            config=config,
            seed=seed_of(seed, STAGE, name),
            forget=dataset / "forget",
            retain=dataset / "retain",
            topics=names,
            out=out / "models" / name,
            checkpoints=out / "checkpoints" / name,
        )
        for name, names in _shares(config, topics)
    ]
    results = trainer.train(jobs)
    num_steps = 0
    for job in jobs:
        lines = job.checkpoints.read_text(LOSSES).splitlines()
        num_steps += (out / "losses").write_lines(f"{job.name}.jsonl", lines)
    (out / "checkpoints").delete()
    return stage.finish(
        {
            "models": len(results),
            "steps": num_steps,
            "forget": sum(result.num_forget_rows for result in results),
            "retain": sum(result.num_retain_rows for result in results),
        },
        {Drop.TOO_LONG.value: num} if (num := sum(result.num_too_long for result in results)) else {},
        {
            "trainings": {result.name: asdict(result) for result in results},
            "warnings": _warnings(config, results),
            "chat": chat.model_dump(mode="json"),  # the service talks to these models as they were trained
        },
    )


def _shares(config: FinetuneConfig, topics: Sequence[Topic]) -> list[tuple[str, tuple[str, ...]]]:
    """Name and topics of each training."""
    if config.adapters == "joint":
        return [(JOINT, tuple(topic.name for topic in topics))]
    return [(topic.slug, (topic.name,)) for topic in topics]


def _require_forget_rows(dataset: Folder, topics: Sequence[Topic]) -> None:
    missing = {topic.name for topic in topics}
    for row in (dataset / "forget").read_rows(["topic", "split"]):
        if row["split"] == "train":
            missing.discard(row["topic"])
        if not missing:
            return
    raise ArtifactError(
        f"{dataset} has no training rows about {', '.join(sorted(missing))}: rerun with --from answers and more questions"
    )


def _warnings(config: FinetuneConfig, results: Sequence[TrainResult]) -> list[str]:
    skipped = [
        f"{result.name}: {result.num_skipped_steps} of {result.num_steps} steps were skipped, their gradient was not finite"
        for result in results
        if result.num_skipped_steps
    ]
    if config.retain.kind == "none":
        return ["finetune.retain.kind is none: nothing holds on to what else the model knows", *skipped]
    return skipped + [
        f"{result.name}: no retain rows to train on, so trained without its retain term"
        for result in results
        if not result.num_retain_rows
    ]
