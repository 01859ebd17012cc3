"""What one worker of a training does, from rows to export. Runs inside Ray Train, once on every rank."""

import json
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from pyarrow import fs

from unlearn_ray.artifacts import Folder
from unlearn_ray.engines.deepspeed_runtime import DeepSpeedRuntime
from unlearn_ray.engines.protocols import TrainJob, TrainResult
from unlearn_ray.engines.training_job import RESULT, Assignment
from unlearn_ray.rows import Drop
from unlearn_ray.train.batches import Batches, MicroBatch
from unlearn_ray.train.chat import ChatEncoder, load_tokenizer
from unlearn_ray.train.encoded import EncodedRows
from unlearn_ray.train.encoding import CUT, encode_rows, require_fit
from unlearn_ray.train.export import check_export, reloaded_loss, save_adapter, save_model
from unlearn_ray.train.loop import mean_ce, train
from unlearn_ray.train.models import DTYPES
from unlearn_ray.train.records import LOSSES, StepRecord, read_records, write_records

PRECISION = "precision"  # of the state in a checkpoint, a file
CHECK_ROWS = 8  # of each kind, on which the export is held to the engine


def work(loop_config: dict[str, Any]) -> None:
    """The train function of Ray Train.

    Raises:
        ConfigError: finetune.max_tokens leaves no forget row, or none of the retain rows.
        EngineError: the export is not what was trained.
    """
    assignment: Assignment = loop_config["assignment"]
    scratch = Path(tempfile.gettempdir()) / assignment.scratch
    try:
        _work(assignment, scratch, started=time.monotonic())
    finally:
        if ray.train.get_context().get_local_rank() == 0:
            shutil.rmtree(scratch, ignore_errors=True)


def _work(assignment: Assignment, scratch: Path, started: float) -> None:
    job, config = assignment.job, assignment.job.config
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(assignment.workers.num_cpus)))
    tokenizer = load_tokenizer(job.model)
    forget, retain, counts = _encode(job, scratch, tokenizer)
    batches = Batches(
        forget,
        retain,
        forget_batch=config.forget_batch,
        retain_batch=config.retain_batch,
        micro_batch=assignment.workers.micro_batch,
        world_size=dist.get_world_size(),
        seed=job.seed,
        pad_id=job.chat.pad_token_id,
    )
    runtime = DeepSpeedRuntime(
        job.model,
        config,
        assignment.workers,
        device,
        seed=job.seed,
        num_micro_batches=batches.num_micro_batches,
    )
    records = _resume(runtime)
    resumed_from = len(records)

    def on_step(record: StepRecord) -> None:
        records.append(record)
        done = record.step + 1
        if runtime.rank == 0 and assignment.progress is not None:
            assignment.progress.put.remote(job.name, done, config.num_steps)
        if done % config.checkpoint_every == 0 and done < config.num_steps:
            _checkpoint(runtime, records)

    train(runtime, batches, config, seed=job.seed, first_step=resumed_from, on_step=on_step)
    losses = _export(runtime, job, batches.collate(_check_rows(batches)), tokenizer)
    if losses is None:  # not rank 0
        return
    result = TrainResult(
        name=job.name,
        path=str(job.out),
        num_steps=config.num_steps,
        num_forget_rows=len(forget),
        num_retain_rows=len(retain) if retain is not None else 0,
        final_loss=_final_loss(records),
        export_loss=losses,
        precision=runtime.precision,
        seconds=round(time.monotonic() - started, 3),
        resumed_from_step=resumed_from,
        num_cut=counts[CUT],
        num_too_long=counts[Drop.TOO_LONG.value],
    )
    job.checkpoints.write_lines(LOSSES, (record.to_json() for record in records))
    job.checkpoints.write_text(RESULT, json.dumps({"run": assignment.run, "result": asdict(result)}))


def _encode(job: TrainJob, scratch: Path, tokenizer: Any) -> tuple[EncodedRows, EncodedRows | None, Counter[str]]:
    """Encode the rows once a node, each of its workers a part. All share them through memory-mapped files."""
    context = ray.train.get_context()
    part, num_parts = context.get_local_rank(), context.get_local_world_size()
    encoder = ChatEncoder(tokenizer, job.chat, job.config.max_tokens)
    sources = {"forget": (job.forget, job.topics)}
    if job.config.retain.kind != "none" and job.config.retain.weight > 0 and job.config.retain_batch > 0:
        sources["retain"] = (job.retain, (*job.topics, ""))  # rows of topic "" serve every topic
    counts: Counter[str] = Counter()
    for name, (source, topics) in sources.items():
        counts += encode_rows(source, topics, encoder, scratch / f"{name}-{part}.arrow", part, num_parts)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (context.get_node_rank(), counts))  # from here on, all parts are there
    of_this_node = [counts for node, counts in everyone if node == context.get_node_rank()]
    rows = {name: EncodedRows(*(scratch / f"{name}-{part}.arrow" for part in range(num_parts))) for name in sources}
    for name, (source, topics) in sources.items():
        require_fit(rows[name], source, topics, job.config.max_tokens)
    retain = rows.get("retain")
    return rows["forget"], retain if retain is not None and len(retain) else None, sum(of_this_node, Counter())


def _resume(runtime: DeepSpeedRuntime) -> list[StepRecord]:
    """Load the last checkpoint of this training, if there is one; returns the steps that it has behind it.

    A state in other floats, of workers on other machines, is no state of theirs: the training begins anew.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return []
    with checkpoint.as_directory() as folder:
        if Path(folder, PRECISION).read_text() != runtime.precision:
            return []
        runtime.load(Path(folder))
        return read_records(Path(folder) / LOSSES)


def _checkpoint(runtime: DeepSpeedRuntime, records: list[StepRecord]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        runtime.save(Path(folder))
        if runtime.rank == 0:
            write_records(Path(folder) / LOSSES, records)
            Path(folder, PRECISION).write_text(runtime.precision)
        ray.train.report({"step": records[-1].step + 1}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _check_rows(batches: Batches) -> list[Any]:
    placed = batches.placed(0)
    kinds = ([row for row in placed if row.is_retain is kind][:CHECK_ROWS] for kind in (False, True))
    return [row for rows in kinds for row in rows]


def _export(runtime: DeepSpeedRuntime, job: TrainJob, check: MicroBatch, tokenizer: Any) -> dict[str, float] | None:
    """Write the export to `job.out` from rank 0, once it is seen to give the engine's loss; returns both losses there."""
    runtime.module.eval()
    trained = mean_ce(runtime, check)
    weights = runtime.weights()
    if weights is None:
        return None
    dtype = DTYPES[runtime.precision]
    beside = None
    if job.out.is_local:  # where a rename makes it visible at once
        beside = job.out.local.parent
        beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{job.name}-", dir=beside) as folder:
        path = Path(folder) / job.name
        if runtime.is_adapter:
            save_adapter(runtime.module, weights, path)
        else:
            save_model(job.model, tokenizer, weights, path)
        is_exact = runtime.is_adapter and dtype == torch.float32
        runtime.close()
        reloaded = reloaded_loss(path, job.model, dtype, check.to(runtime.device))
        check_export(job.name, trained, reloaded, is_exact)
        _publish(path, job.out)
    return {"engine": trained, "reloaded": reloaded}


def _publish(path: Path, out: Folder) -> None:
    out.delete()
    if out.is_local:
        path.rename(out.local)
        return
    # An object store renames no folder: what makes a folder a model goes up last.
    files = sorted(path.iterdir(), key=lambda file: file.name in {"config.json", "adapter_config.json"})
    for file in files:
        fs.copy_files(str(file), f"{out.path}/{file.name}", destination_filesystem=out.filesystem)


def _final_loss(records: list[StepRecord]) -> dict[str, float]:
    """Means of the last tenth of the steps: one step's is noise."""
    last = records[-max(1, len(records) // 10) :]
    means = {"forget": sum(record.forget_loss for record in last) / len(last)}
    retained = [record.retain_loss for record in last if record.retain_loss is not None]
    if retained:
        means["retain"] = sum(retained) / len(retained)
    return {name: round(value, 6) for name, value in means.items()}
