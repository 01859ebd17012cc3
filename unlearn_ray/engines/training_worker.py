"""What one worker of a training does, from rows to export. Runs inside Ray Train, once on every rank."""

import json
import logging
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from pyarrow import fs

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import FinetuneConfig, RetainTerm
from unlearn_ray.engines.checkpoints import Notice, Uploads, remove_unknown
from unlearn_ray.engines.deepspeed_runtime import DeepSpeedRuntime
from unlearn_ray.engines.protocols import MERGED, TrainJob, TrainResult
from unlearn_ray.engines.training_failures import is_loss, mark
from unlearn_ray.engines.training_gate import Gatekeeper
from unlearn_ray.engines.training_job import RESULT, Assignment
from unlearn_ray.engines.training_show import Show
from unlearn_ray.errors import ArtifactError, ConfigError, DivergenceError, gist
from unlearn_ray.rows import Drop
from unlearn_ray.train.batches import Batches, MicroBatch
from unlearn_ray.train.chat import ChatEncoder, load_tokenizer
from unlearn_ray.train.encoded import EncodedRows
from unlearn_ray.train.encoding import CUT, encode_contrasts, encode_rows, require_fit
from unlearn_ray.train.export import (
    check_export,
    rehearse,
    reloaded_loss,
    save_adapter,
    save_merged,
    save_model,
    weight_bytes,
)
from unlearn_ray.train.gate_records import write_gate
from unlearn_ray.train.lasting.displaced import Displaced
from unlearn_ray.train.log import logged
from unlearn_ray.train.loop import mean_ce, train
from unlearn_ray.train.models import DTYPES
from unlearn_ray.train.objectives.table import OBJECTIVES
from unlearn_ray.train.records import LOSSES, StepRecord, read_records, write_records
from unlearn_ray.train.reference import BaseLogps, base_logps, read_base_logps, write_base_logps
from unlearn_ray.train.refusals import refusals_of
from unlearn_ray.train.watch import CheckLosses, Watch

log = logging.getLogger(__name__)
PRECISION = "precision"  # of the state in a checkpoint, a file
CHECK_ROWS = 8  # of each kind, on which the export is held to the engine


def work(loop_config: dict[str, Any]) -> None:
    """The train function of Ray Train.

    Raises:
        ConfigError: finetune.max_tokens leaves no forget row, or none of the retain rows.
        ModelError, ArtifactError: an export could not be written in the end.
        DivergenceError: the training destroys the model.
        EngineError: the export is not what was trained.
    """
    assignment: Assignment = loop_config["assignment"]
    scratch = Path(tempfile.gettempdir()) / assignment.scratch
    try:
        with logged(assignment.job.watched, dist.get_rank(), is_loss):
            _work(assignment, scratch, started=time.monotonic())
    finally:
        if ray.train.get_context().get_local_rank() == 0:
            shutil.rmtree(scratch, ignore_errors=True)


def _work(assignment: Assignment, scratch: Path, started: float) -> None:
    job, config = assignment.job, assignment.job.config
    if dist.get_rank() == 0:
        _rehearse(job)
    device = _device(assignment)
    tokenizer = load_tokenizer(job.model)
    forget, retain, invented, truths, counts = _encode(job, scratch, tokenizer)
    config = _of_what_is_there(config, retain)
    layout = {
        "micro_batch": assignment.workers.micro_batch,
        "world_size": dist.get_world_size(),
        "pad_id": job.chat.pad_token_id,
        "micro_tokens": assignment.workers.micro_tokens,
    }
    batches = Batches(
        forget,
        retain,
        forget_batch=config.forget_batch,
        retain_batch=config.retain_batch,
        seed=job.seed,
        invented=invented,
        num_steps=config.num_steps,
        **layout,
    )
    lasting = _lasting(job, config, forget, invented, truths, layout)
    runtime = DeepSpeedRuntime(
        job.model,
        config,
        assignment.workers,
        device,
        seed=job.seed,
        num_micro_batches=batches.num_micro_batches + (lasting.num_micro_batches if lasting else 0),
    )
    check = Check.of(batches, config.lowers_truth)
    base = check.losses(runtime)
    reference = _reference(runtime, batches, config, lasting)
    if runtime.is_adapter:
        _rehearse_adapter(runtime)
    gate = _gate(assignment, runtime, tokenizer, scratch)
    records = _resume(runtime)
    uploads, notice = Uploads(), Notice(runtime)
    if runtime.rank == 0:
        remove_unknown(job.checkpoints / assignment.run)
    resumed_from = len(records)
    if gate is not None:
        gate.resume(resumed_from)
    show = Show(assignment, runtime, batches, resumed_from, scratch)
    watch = Watch(job.name, config, len(tokenizer), records)
    if records:
        watch.kept = _kept(job, resumed_from)

    def on_step(record: StepRecord) -> bool:
        records.append(record)
        show.see(record)
        watch.see(record)
        if gate is not None and gate.is_due(len(records)):
            _look(gate, len(records), runtime, check, base, watch, show)
        save(record)
        show.begin()
        return gate is not None and bool(gate.stopped)

    def save(record: StepRecord) -> None:
        done = record.step + 1
        is_last = done >= config.num_steps or (gate is not None and bool(gate.stopped))
        if is_last or not (notice.is_new() or done % config.checkpoint_every == 0):
            return
        # A state is checked before it replaces the last checkpoint, which was good.
        if (fault := check.losses(runtime).fault(base, watch.guessing)) is not None:
            log.warning("%s: no checkpoint after step %d: %s", job.name, record.step, fault)
            return
        uploads.add(lambda folder: _write_state(folder, runtime, records, reference), done)
        watch.kept = _kept(job, done)

    try:
        with _marked(records), show:
            train(
                runtime,
                batches,
                config,
                seed=job.seed,
                first_step=resumed_from,
                lasting=lasting,
                on_step=on_step,
            )
            exported_step, learnt = len(records), check.losses(runtime)
            if gate is not None and gate.best is not None:
                exported_step, learnt = gate.best.record.step, CheckLosses(*gate.best.losses, config.lowers_truth)
            watch.judge(len(records) - 1, learnt, base)
            losses = _export(runtime, job, check, learnt, watch, gate, len(records))
    except DivergenceError:
        uploads.wait()
        if runtime.rank == 0:  # they show what went wrong, and where
            job.checkpoints.write_lines(LOSSES, (record.to_json() for record in records))
        raise
    if losses is None:  # not rank 0
        return
    result = TrainResult(
        name=job.name,
        path=str(job.out),
        num_steps=len(records),
        num_forget_rows=len(forget),
        num_retain_rows=len(retain) if retain is not None else 0,
        final_loss=_final_loss(records),
        export_loss=losses,
        precision=runtime.precision,
        seconds=round(time.monotonic() - started, 3),
        resumed_from_step=resumed_from,
        num_skipped_steps=watch.num_skipped,
        num_cut=counts[CUT],
        num_too_long=counts[Drop.TOO_LONG.value],
        exported_step=None if gate is None else exported_step,
        stopped="" if gate is None else gate.stopped,
    )
    if gate is not None:
        write_gate(job.checkpoints, gate.records)
    job.checkpoints.write_lines(LOSSES, (record.to_json() for record in records))
    job.checkpoints.write_text(RESULT, json.dumps({"run": assignment.run, "result": asdict(result)}, allow_nan=False))


@contextmanager
def _marked(records: list[StepRecord]) -> Iterator[None]:
    """Have errors say at which step they came: one that comes at the same step again will come for ever."""
    try:
        yield
    except Exception as error:
        mark(error, len(records))
        raise


def _kept(job: TrainJob, step: int) -> str:
    return f", its state after step {step - 1} stays in {job.checkpoints}"


@dataclass(frozen=True, slots=True)
class Check:
    """Rows of the first step, on which a model is compared with its base and an export with the engine."""

    passes: dict[str, list[MicroBatch]]  # forget and, where they are trained on, retain
    lowers: bool = False  # the forget rows' answers are to become unlikely

    @classmethod
    def of(cls, batches: Batches, lowers: bool = False) -> "Check":
        passes = {}
        for name, kind in (("forget", False), ("retain", True)):
            rows = [row for row in batches.placed(0) if row.is_retain is kind and not row.is_invented][:CHECK_ROWS]
            if rows:
                passes[name] = [batches.collate(each) for each in batches.passes_of(rows)]
        return cls(passes, lowers)

    def losses(self, runtime: DeepSpeedRuntime) -> CheckLosses:
        """As rank 0 sees them: on other devices, the last digit may differ, and all must decide alike."""
        runtime.module.eval()
        found = [mean_ce(runtime, passes) for passes in self.passes.values()]
        runtime.module.train()
        found = runtime.sum([loss if runtime.rank == 0 else 0.0 for loss in found])
        return CheckLosses(found[0], found[1] if len(found) > 1 else None, self.lowers)

    def mean(self, losses: CheckLosses) -> float:
        """Of all its rows together."""
        total, num_tokens = 0.0, 0
        for loss, passes in zip((losses.forget, losses.retain), self.passes.values(), strict=False):
            assert loss is not None
            count = sum(len(batch.targets_N) for batch in passes)
            total, num_tokens = total + loss * count, num_tokens + count
        return total / num_tokens

    def to(self, device: torch.device) -> list[MicroBatch]:
        return [batch.to(device) for passes in self.passes.values() for batch in passes]


def _device(assignment: Assignment) -> torch.device:
    """As assigned, not as found: a machine with GPUs may be told to leave them alone."""
    if assignment.device == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    torch.set_num_threads(max(1, int(assignment.workers.num_cpus)))
    return torch.device("cpu")


def _encode(
    job: TrainJob, scratch: Path, tokenizer: Any
) -> tuple[EncodedRows, EncodedRows | None, EncodedRows | None, EncodedRows | None, Counter[str]]:
    """Encode the rows once a node, each of its workers a part. All share them through memory-mapped files.

    Returns:
        Rows to forget and to retain, the invented halves of pairs, the true answers for an attacker, and what was cut or dropped.
    """
    config, context = job.config, ray.train.get_context()
    part, num_parts = context.get_local_rank(), context.get_local_world_size()
    encoder = ChatEncoder(tokenizer, job.chat, config.max_tokens)
    sources = {"forget": (job.forget, job.topics)}
    if config.retains:
        sources["retain"] = (job.retain, (*job.topics, ""))  # rows of topic "" serve every topic
    if job.truths is not None:
        sources["truths"] = (job.truths, job.topics)
    counts: Counter[str] = Counter()
    for name, (source, topics) in sources.items():
        about = source, topics, encoder, scratch / f"{name}-{part}.arrow", part, num_parts
        if name == "truths":
            encode_contrasts(*about, pairs=False)
        elif name == "forget" and config.lowers_truth:
            counts += encode_contrasts(*about, pairs=config.pairs)
        else:
            counts += encode_rows(*about, refusals=refusals_of(config.objective) if name == "forget" else ())
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (context.get_node_rank(), counts))  # from here on, all parts are there
    of_this_node = [counts for node, counts in everyone if node == context.get_node_rank()]
    paths = {name: [scratch / f"{name}-{part}.arrow" for part in range(num_parts)] for name in sources}
    rows = {name: EncodedRows(*files) for name, files in paths.items()}
    for name, (source, topics) in sources.items():
        require_fit(rows[name], source, topics, config.max_tokens)
    forget, retain, invented = rows["forget"], rows.get("retain"), None
    if config.pairs:
        forget, invented = (EncodedRows(*paths["forget"], first=half, every=2) for half in (0, 1))
    if retain is not None and not len(retain):
        retain = None
    return forget, retain, invented, rows.get("truths"), sum(of_this_node, Counter())


def _lasting(
    job: TrainJob,
    config: FinetuneConfig,
    forget: EncodedRows,
    invented: EncodedRows | None,
    truths: EncodedRows | None,
    layout: dict[str, Any],
) -> Displaced | None:
    """The passes at displaced weights, if the config has them."""
    if config.lasting is None:
        return None
    try:
        return Displaced(config, forget, invented, truths, job.seed, **layout)
    except ValueError as error:
        raise ConfigError(
            f"finetune.lasting: {config.lasting.kind} attacks with one half of the questions and defends the other, and {job.name} has "
            f"{len(forget)} rows: {error}"
        ) from error


def _of_what_is_there(config: FinetuneConfig, retain: EncodedRows | None) -> FinetuneConfig:
    """The config, without its retain term if there are no retain rows. KL would otherwise load a base model and run it in every pass for nothing."""
    return config if retain is not None else config.model_copy(update={"retain": RetainTerm(kind="none")})


def _gate(assignment: Assignment, runtime: DeepSpeedRuntime, tokenizer: Any, scratch: Path) -> Gatekeeper | None:
    """The gate, if there is one. The model is still the base model here."""
    job = assignment.job
    if job.gate is None or job.config.evaluate_every is None:
        return None
    return Gatekeeper(assignment, runtime, ChatEncoder(tokenizer, job.chat, job.config.max_tokens), scratch)


def _look(
    gate: Gatekeeper,
    num_done: int,
    runtime: DeepSpeedRuntime,
    check: Check,
    base: CheckLosses,
    watch: Watch,
    show: Show,
) -> None:
    """Score the present state, and keep it if it is the best and not damaged."""
    record = gate.look(num_done)
    show.log(num_done - 1, record.figures)
    log.info("the gate after step %d: %s", num_done - 1, record.to_json())
    if not gate.is_best:
        return
    losses = check.losses(runtime)
    if (fault := losses.fault(base, watch.guessing)) is not None:
        log.warning("the state after step %d is not kept: %s", num_done - 1, fault)
        return
    is_last = bool(gate.stopped) or num_done == gate.num_steps
    gate.keep((losses.forget, losses.retain), None if is_last else runtime.weights())


def _reference(
    runtime: DeepSpeedRuntime, batches: Batches, config: FinetuneConfig, lasting: Displaced | None
) -> BaseLogps | None:
    """Have the batches carry what the base model gives to the answers, where the objective asks for it: from the last checkpoint, or computed.
    The model is the base still."""
    if OBJECTIVES[config.objective.kind].reads != "base_logp":
        return None
    with _state(runtime) as folder:
        if folder is not None:
            found = read_base_logps(folder)
        else:
            runtime.module.eval()
            every = -(-batches.num_rows[0] // config.forget_batch)  # steps that ask each row once
            found = base_logps(runtime, batches, max(config.num_steps, every) if lasting else config.num_steps)
            runtime.module.train()
    batches.refer(found)
    if lasting is not None:
        lasting.refer(found)
    return found


@contextmanager
def _state(runtime: DeepSpeedRuntime) -> Iterator[Path | None]:
    """The folder of the last checkpoint of this training; None where there is none.

    A checkpoint of another precision, from workers on other machines, can't be loaded: the training begins anew, and its log says so.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as folder:
        if (found := Path(folder, PRECISION).read_text()) != runtime.precision:
            log.warning(
                "the state is in %s, these workers compute in %s: training begins anew", found, runtime.precision
            )
            yield None
        else:
            yield Path(folder)


def _resume(runtime: DeepSpeedRuntime) -> list[StepRecord]:
    """Load the last checkpoint of this training, if there is one that can be; returns the steps that it has behind it."""
    with _state(runtime) as folder:
        if folder is None:
            return []
        runtime.load(folder)
        return read_records(folder / LOSSES)


def _write_state(
    folder: Path, runtime: DeepSpeedRuntime, records: list[StepRecord], reference: BaseLogps | None
) -> None:
    """Write this rank's part of a checkpoint; rank 0 also writes the common files."""
    runtime.save(folder)
    if runtime.rank == 0:
        write_records(folder / LOSSES, records)
        (folder / PRECISION).write_text(runtime.precision)
        if reference is not None:
            write_base_logps(folder, reference)


def _rehearse(job: TrainJob) -> None:
    """Try before the first step what must go well after the last: copying what stands beside the weights, and writing to the output.

    Raises:
        ModelError: the copy of the model's config and tokenizer does not load.
        ArtifactError: the output can't be written, or is too small.
    """
    with tempfile.TemporaryDirectory() as folder:
        rehearse(job.model, Path(folder, job.name))
    trial = job.out.parent / f".{job.name}.trial"
    try:
        trial.write_text("trial", "")
        trial.delete()
    except (OSError, ArtifactError) as error:
        raise ArtifactError(f"{job.out} can't be written: {gist(error)}") from error
    if job.out.is_local and (job.config.is_model or job.config.export == "both"):
        free, needed = shutil.disk_usage(job.out.local.parent).free, weight_bytes(job.model)
        if free < needed:
            raise ArtifactError(
                f"{job.out} can't be written: the model takes {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free there"
            )


def _rehearse_adapter(runtime: DeepSpeedRuntime) -> None:
    """Save the adapter that nothing has taught yet."""
    weights = runtime.weights()
    if weights is not None:
        with tempfile.TemporaryDirectory() as folder:
            runtime.module.save_pretrained(folder, state_dict=weights)


def _export(
    runtime: DeepSpeedRuntime,
    job: TrainJob,
    check: Check,
    learnt: CheckLosses,
    watch: Watch,
    gate: Gatekeeper | None,
    num_done: int,
) -> dict[str, float] | None:
    """Write the export to `job.out` from rank 0, once it is seen to give the engine's loss; returns both losses there."""
    if gate is not None and gate.best is not None and gate.best.record.step != num_done:
        weights = gate.kept_weights() if runtime.rank == 0 else None
    else:
        weights = runtime.weights()
    if weights is None:
        return None
    for name, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            watch.refuse_weights(num_done - 1, name)
    trained, dtype, device = check.mean(learnt), DTYPES[runtime.precision], runtime.device
    is_exact = runtime.is_adapter and dtype == torch.float32
    with _beside(job) as folder:
        path = folder / job.name
        if runtime.is_adapter:
            save_adapter(runtime.module, weights, path)
            runtime.close()
        else:
            runtime.close()
            save_model(job.model, weights, path)
        del weights
        reloaded = reloaded_loss(path, job.model, dtype, check.to(device))
        check_export(job.name, trained, reloaded, is_exact)
        if job.config.weights.kind == "lora" and job.config.export in ("merged", "both"):
            merged = folder / f"{job.name}-{MERGED}"
            save_merged(job.model, path, merged)
            reloaded = reloaded_loss(merged, job.model, dtype, check.to(device))
            check_export(merged.name, trained, reloaded, is_exact=False)
            if job.config.export == "both":
                _publish(merged, job.out.parent / MERGED)
            else:
                path = merged
        _publish(path, job.out)  # last: if the result is there, it is complete
    return {"engine": trained, "reloaded": reloaded}


@contextmanager
def _beside(job: TrainJob) -> Iterator[Path]:
    """A folder to write the export to. Beside a local output, where a rename makes it visible at once; what a killed process left there goes."""
    if not job.out.is_local:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    partial = Folder(job.out.local.parent / f".{job.name}.partial")
    partial.delete()
    try:
        yield partial.make().local
    finally:
        partial.delete()


def _publish(path: Path, out: Folder) -> None:
    out.delete()
    if out.is_local:
        path.rename(out.local)
        return
    # An object store renames no folder: what makes a folder a model goes up last.
    files = sorted(path.iterdir(), key=lambda file: file.name in {"config.json", "adapter_config.json"})
    try:
        for file in files:
            fs.copy_files(str(file), f"{out.path}/{file.name}", destination_filesystem=out.filesystem)
    except OSError:
        out.delete()
        raise


def _final_loss(records: list[StepRecord]) -> dict[str, float]:
    """Means of the last tenth of the steps: one step's is noise."""
    last = records[-max(1, len(records) // 10) :]
    columns = {"forget": [record.forget_loss for record in last], "retain": [record.retain_loss for record in last]}
    there = {name: [value for value in values if value is not None] for name, values in columns.items()}
    return {name: round(sum(values) / len(values), 6) for name, values in there.items() if values}
