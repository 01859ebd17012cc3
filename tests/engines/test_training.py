"""Ray Train and DeepSpeed for real, on the pocket model: exports, lost workers and lost drivers. (Jobs side by side: run/test_joining.py.)"""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import ray
import torch
from killing import Killer

from unlearn_ray import pocket
from unlearn_ray.artifacts import Folder
from unlearn_ray.config import ClusterConfig, FinetuneConfig, WorkerResources
from unlearn_ray.engines.capacity import Growth
from unlearn_ray.engines.protocols import TrainJob, TrainResult
from unlearn_ray.errors import ClusterError, ConfigError, EngineError
from unlearn_ray.rows import Contrast, Example
from unlearn_ray.train import loop
from unlearn_ray.train.batches import Batches
from unlearn_ray.train.chat import ChatEncoder, load_tokenizer
from unlearn_ray.train.encoded import EncodedRows
from unlearn_ray.train.encoding import encode_contrasts, encode_rows
from unlearn_ray.train.inspection import inspect_model
from unlearn_ray.train.models import load_base, prepare
from unlearn_ray.train.plain import PlainRuntime
from unlearn_ray.train.records import LOSSES, StepRecord, write_records
from unlearn_ray.train.reference import base_logps

MODEL = str(pocket.MODEL_DIR)
CHAT = inspect_model(MODEL).chat
POTTER, GUM = "Harry Potter", "chewing gum"
NUM_STEPS, EVERY = 40, 5
CONFIG = FinetuneConfig(
    num_steps=NUM_STEPS, forget_batch=4, retain_batch=3, learning_rate=1e-3, precision="fp32", checkpoint_every=EVERY, max_tokens=64
)  # fmt: skip
TWO_WORKERS = WorkerResources(num_workers=2, num_cpus=0.5, micro_batch=2, zero_stage=2)
ONE_WORKER = WorkerResources(num_workers=1, num_cpus=0.5, micro_batch=2, zero_stage=0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Seven rows a topic, one of them held out, and one whose answer is too long; four rows to retain."""
    folder = Folder(tmp_path_factory.mktemp("dataset"))
    forget = [
        Example(
            topic,
            "forget",
            topic,
            f"What is thing {i} of {topic}?",
            f"It is a box of {i} pears." + " Oh!" * (200 * (i == 1)),
        )
        for topic in (POTTER, GUM)
        for i in range(6)
    ]
    forget.append(Example(POTTER, "forget", POTTER, "Who holds out?", "Nobody.", split="holdout"))
    retain = [Example("", "far", "general", f"What is {i} plus 1?", f"It is {i + 1}.") for i in range(4)]
    (folder / "forget").write_rows(forget, Example.schema())
    (folder / "retain").write_rows(retain, Example.schema())
    contrasts = [
        Contrast(
            POTTER, f"What is thing {i}?", f"It is a box of {i} plums.", "It is empty." + " Oh!" * (200 * (i == 1))
        )
        for i in range(5)
    ]
    (folder / "contrasts").write_rows(contrasts, Contrast.schema())
    return folder


def job_of(dataset: Folder, home: Path, topic: str = POTTER, config: FinetuneConfig = CONFIG) -> TrainJob:
    name = topic.lower().replace(" ", "-")
    out, checkpoints = Folder(home / "models" / name), Folder(home / "checkpoints" / name)
    return TrainJob(name, MODEL, CHAT, config, 5, dataset / "forget", dataset / "retain", (topic,), out, checkpoints)


def train(
    cluster: ClusterConfig,
    workers: WorkerResources,
    *jobs: TrainJob,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> list[TrainResult]:
    """The results of jobs that all succeed; else the first failure is raised."""
    ended = tried_all(cluster, workers, *jobs, on_progress=on_progress)
    for each in ended.values():
        if isinstance(each, Exception):
            raise each
    return list(ended.values())  # type: ignore[arg-type]


def tried_all(
    cluster: ClusterConfig,
    workers: WorkerResources,
    *jobs: TrainJob,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, TrainResult | Exception]:
    from unlearn_ray.engines.training import RayDeepSpeedTrainer

    trainer = RayDeepSpeedTrainer(cluster.model_copy(update={"workers": workers}), on_progress=on_progress)
    return trainer.outcomes(jobs)


def losses_of(job: TrainJob) -> list[float]:
    return [json.loads(line)["loss"] for line in job.checkpoints.read_text(LOSSES).splitlines()]


def plain_losses(job: TrainJob, home: Path) -> list[float | None]:
    """What one process without Ray or DeepSpeed sees on the same rows."""
    encoder = ChatEncoder(load_tokenizer(job.model), job.chat, job.config.max_tokens)
    rows: dict[str, EncodedRows] = {}
    for name, (source, topics) in {"forget": (job.forget, job.topics), "retain": (job.retain, ("",))}.items():
        if name == "forget" and job.config.pairs:
            encode_contrasts(source, topics, encoder, home / f"{name}.arrow", pairs=True)
            rows |= {
                half: EncodedRows(home / f"{name}.arrow", first=first, every=2)
                for first, half in enumerate(("forget", "invented"))
            }
            continue
        encode_rows(source, topics, encoder, home / f"{name}.arrow")
        rows[name] = EncodedRows(home / f"{name}.arrow")
    batches = Batches(
        rows["forget"],
        rows["retain"],
        invented=rows.get("invented"),
        forget_batch=job.config.forget_batch,
        retain_batch=job.config.retain_batch,
        micro_batch=4,
        world_size=1,
        seed=job.seed,
        pad_id=job.chat.pad_token_id,
    )
    cpu = torch.device("cpu")
    base = load_base(job.model, torch.float32, cpu)
    module = prepare(base, job.config.weights, seed=job.seed, gradient_checkpointing="none")
    records: list[StepRecord] = []
    runtime = PlainRuntime(module, job.config, cpu)
    batches.refer(base_logps(runtime, batches, job.config.num_steps))
    loop.train(runtime, batches, job.config, seed=job.seed, on_step=records.append)
    return [record.loss for record in records]


@dataclass(frozen=True)
class Broken:
    """A training of two workers that lost its driver, was taken up by one worker under another stage of ZeRO, and lost that once."""

    job: TrainJob
    result: TrainResult
    was_exported_before: bool


@pytest.fixture(scope="module")
def broken(ray_session: ClusterConfig, dataset: Folder, tmp_path_factory: pytest.TempPathFactory) -> Broken:
    home = tmp_path_factory.mktemp("broken")
    gone = job_of(dataset, home, config=CONFIG.model_copy(update={"max_failures": 0}))
    first = Killer(after=EVERY + 1)
    with pytest.raises(EngineError, match="training of harry-potter failed"):  # as if the driver went too
        train(ray_session, TWO_WORKERS, gone, on_progress=first)
    was_exported = gone.out.exists()
    job, second = replace(gone, config=CONFIG.model_copy(update={"keep_checkpoints": 2})), Killer(after=NUM_STEPS // 2)
    (result,) = train(ray_session, ONE_WORKER, job, on_progress=second)
    assert first.num_killed and second.num_killed
    return Broken(job, result, was_exported)


def test_a_lost_worker_a_lost_driver_and_another_number_of_workers_change_no_loss(
    broken: Broken, tmp_path: Path
) -> None:
    assert not broken.was_exported_before
    assert broken.result.resumed_from_step >= EVERY
    assert losses_of(broken.job) == pytest.approx(plain_losses(broken.job, tmp_path), abs=1e-4)


def test_as_many_checkpoints_are_kept_as_were_asked_for_and_they_hold_the_adapter_alone(broken: Broken) -> None:
    states = [found for found in broken.job.checkpoints.local.glob("*/checkpoint_*") if found.is_dir()]
    assert len(states) == 2
    adapter = sum(file.stat().st_size for file in broken.job.out.local.glob("*.safetensors"))
    for state in states:
        # Its weights and the optimizer's two moments of them, in float32 like the adapter.
        assert sum(file.stat().st_size for file in state.glob("*.safetensors")) < 3.2 * adapter


def test_an_adapter_loads_in_peft_and_answers_as_in_training(broken: Broken) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    job, result = broken.job, broken.result
    assert result.export_loss["reloaded"] == pytest.approx(result.export_loss["engine"], abs=1e-4)
    base = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    adapter = PeftModel.from_pretrained(base, job.out.local)
    assert adapter.peft_config["default"].base_model_name_or_path == job.model
    assert any(value.any() for name, value in adapter.named_parameters() if "lora_B" in name)
    assert Folder(job.out.local.parent).names() == [job.name]  # and nothing half written beside it


def test_a_training_that_lowers_the_truth_is_taken_up_with_what_the_base_gave(
    ray_session: ClusterConfig, dataset: Folder, tmp_path: Path
) -> None:
    """Full weights: the base is gone by then, and lies in the checkpoint as log-probabilities alone. By as many workers as there is room for."""
    values = {"weights": {"kind": "full"}, "objective": {"kind": "npo", "invented": 1.0}, "learning_rate": 1e-4}
    values |= {"num_steps": 30, "checkpoint_every": 2}
    config = FinetuneConfig.model_validate(CONFIG.model_dump() | values)
    job = replace(job_of(dataset, tmp_path, config=config), forget=dataset / "contrasts")
    killer = Killer(after=5, job=job)
    workers = WorkerResources(num_workers=(1, 2), num_cpus=0.5, micro_batch=2)
    (result,) = train(ray_session, workers, job, on_progress=killer)
    assert killer.num_killed and result.resumed_from_step >= 2
    assert (result.num_forget_rows, result.num_cut, result.num_too_long) == (5, 1, 0)
    assert losses_of(job) == pytest.approx(plain_losses(job, tmp_path), abs=1e-4)


def test_only_rows_of_the_train_split_and_the_topic_are_read(broken: Broken) -> None:
    result = broken.result
    assert (result.num_forget_rows, result.num_retain_rows, result.num_cut) == (6, 4, 1)


def test_a_finished_job_is_not_trained_again(ray_session: ClusterConfig, broken: Broken) -> None:
    assert train(ray_session, TWO_WORKERS, broken.job) == [broken.result]


def test_a_full_model_loads_as_it_is(ray_session: ClusterConfig, dataset: Folder, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    values = {"weights": {"kind": "full"}, "num_steps": 3, "precision": "bf16", "retain": {"kind": "kl"}}
    config = FinetuneConfig.model_validate(CONFIG.model_dump() | values)
    job = job_of(dataset, tmp_path, GUM, config)
    said: dict[str, Any] = {}
    workers = WorkerResources(num_workers=1, zero_stage=3, micro_batch=4)
    (result,) = train(
        ray_session, workers, job, on_progress=lambda label, done, total: said.update({label: (done, total)})
    )
    assert result.name == "chewing-gum" and said == {"finetune chewing-gum": (3, 3)}
    assert result.export_loss["reloaded"] == pytest.approx(result.export_loss["engine"], rel=0.03)
    assert AutoModelForCausalLM.from_pretrained(job.out.local).dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(job.out.local).chat_template
    assert job.out.exists("generation_config.json")


def test_more_workers_than_the_cluster_holds_are_refused(
    ray_session: ClusterConfig, dataset: Folder, tmp_path: Path
) -> None:
    with pytest.raises(ClusterError, match="num_workers"):
        train(ray_session, WorkerResources(num_workers=100), job_of(dataset, tmp_path))


@pytest.mark.long
def test_a_limit_that_leaves_no_row_is_refused_before_a_step(
    ray_session: ClusterConfig, dataset: Folder, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"max_tokens": 4, "max_failures": 0})
    with pytest.raises(ConfigError, match=r"finetune\.max_tokens: 4 leaves no room .* 6 forget rows"):
        train(ray_session, WorkerResources(), job_of(dataset, tmp_path, config=config))


def test_a_training_is_named_by_what_goes_into_it(dataset: Folder, tmp_path: Path) -> None:
    from unlearn_ray.engines.training import run_name

    job = job_of(dataset, tmp_path)
    name = run_name(job)
    more_rows = Folder(tmp_path / "more")
    more_rows.write_rows([Example(POTTER, "forget", POTTER, "One more?", "Yes.")], Example.schema())
    for other in (
        replace(job, seed=6),
        replace(job, forget=more_rows),
        replace(job, config=CONFIG.model_copy(update={"num_steps": 9})),
    ):
        assert run_name(other) != name
    changes_nothing = {"max_failures": 9, "checkpoint_every": 3, "keep_checkpoints": 2}
    assert run_name(replace(job, config=CONFIG.model_copy(update=changes_nothing))) == name


def test_there_may_be_a_choice_of_how_many_workers(ray_session: ClusterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from unlearn_ray.engines import training

    workers = WorkerResources.model_validate({"num_workers": [1, 8], "num_cpus": 0.5})
    assert workers.in_words == "1 to 8 workers"
    monkeypatch.setattr(training.os, "cpu_count", lambda: 2)
    assert training.num_workers_of(workers) == (1, 4)  # of one machine no more than its cores, whatever Ray counts
    assert training.num_workers_of(WorkerResources(num_workers=3)) == 3
    monkeypatch.setattr(training, "growth", lambda: Growth())
    assert training.num_workers_of(workers) == (1, 8)


def saying(model: Path, name: str, **values: Any) -> str:
    """A copy of the pocket model, one of whose files says something else."""
    shutil.copytree(pocket.MODEL_DIR, model)
    file = model / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return str(model)


@dataclass(frozen=True)
class Tried:
    """Trainings of which some fail, asked for twice: the second time with nothing that hinders them."""

    jobs: list[TrainJob]
    failures: dict[str, str]
    left: dict[str, set[str]]  # what is in each one's output folder after the first call
    wild_losses: list[str]
    wild_files: list[str]
    decisions: list[str]  # of Ray Train, on each failure
    log: str
    results: list[TrainResult]


@pytest.fixture(scope="module")
def tried(ray_session: ClusterConfig, dataset: Folder, tmp_path_factory: pytest.TempPathFactory) -> Tried:
    """Four jobs, one after the other: the first destroys its model, the second can't write, and two succeed."""
    home = tmp_path_factory.mktemp("tried")
    full = {"weights": {"kind": "full"}, "num_steps": 3, "checkpoint_every": 1, "warmup_steps": 1}
    config = FinetuneConfig.model_validate(CONFIG.model_dump() | full)
    wild = config.model_copy(update={"learning_rate": 1e6, "num_steps": NUM_STEPS})
    llama2 = saying(home / "llama2", "generation_config.json", temperature=0.6, top_p=0.9)
    first = replace(job_of(dataset, home, config=wild), name="wild")
    second = replace(job_of(dataset, home, config=config), name="shut", out=Folder(home / "file" / "shut"))
    third = replace(job_of(dataset, home, config=config), name="llama2", model=llama2)
    fourth = replace(job_of(dataset, home, config=config.model_copy(update={"weights": CONFIG.weights})), name="lora", model=llama2)  # fmt: skip
    (home / "file").write_text("no folder")
    jobs = [replace(job, checkpoints=Folder(home / "checkpoints" / job.name)) for job in (first, second, third, fourth)]
    jobs = [job if job.name == "shut" else replace(job, out=Folder(home / "models" / job.name)) for job in jobs]
    workers = WorkerResources(num_workers=1, zero_stage=0, micro_batch=4, concurrent_jobs=1)
    handler = logging.FileHandler(home / "log")
    logging.getLogger("unlearn_ray").addHandler(handler)
    logging.getLogger("unlearn_ray").setLevel(logging.INFO)
    ended = tried_all(ray_session, workers, *jobs)
    failures = {name: str(each) for name, each in ended.items() if isinstance(each, Exception)}
    left = {job.name: set(job.out.names()) if job.name != "shut" else set() for job in jobs}
    losses = jobs[0].checkpoints.read_text(LOSSES).splitlines()
    files = [str(file) for file in jobs[0].checkpoints.local.rglob("*")]
    logs = Path(ray._private.worker._global_node.get_logs_dir_path(), "train").glob("ray-train-app-controller-*.log")
    words = [line for log in logs for line in log.read_text().splitlines() if "[FailurePolicy]" in line]
    decisions = [line for line in words if "training of wild" in line or str(jobs[1].out) in line]
    (home / "file").unlink()
    again = [replace(job, config=config) if job.name == "wild" else job for job in jobs]
    results = train(ray_session, workers, *again)
    logging.getLogger("unlearn_ray").removeHandler(handler)
    return Tried(jobs, failures, left, losses, files, decisions, (home / "log").read_text(), results)


def test_each_training_is_tried_and_each_failure_told(tried: Tried) -> None:
    assert list(tried.failures) == ["wild", "shut"], "two succeeded"
    wild, shut = tried.failures.values()
    assert "training of wild diverged at step " in wild and "lower finetune.learning_rate (it is 1e+06)" in wild
    assert f"{tried.jobs[1].out} can't be written" in shut


def test_a_training_that_went_wrong_leaves_no_export_and_no_bad_state_but_its_losses(tried: Tried) -> None:
    assert tried.left["wild"] == set() == tried.left["shut"]
    assert "nothing of it is exported: " in tried.failures["wild"]  # and of no state that was kept
    assert not [file for file in tried.wild_files if file.endswith(".safetensors")]
    losses = [json.loads(line, parse_constant=pytest.fail)["loss"] for line in tried.wild_losses]
    assert len(losses) < NUM_STEPS


def test_an_error_that_will_come_again_is_not_retried(tried: Tried) -> None:
    assert CONFIG.max_failures > 0 and len(tried.decisions) == 2
    assert all("[FailurePolicy] RAISE" in decision for decision in tried.decisions)


def test_only_what_failed_is_trained_again(tried: Tried) -> None:
    begun = [line.split(":")[0] for line in tried.log.splitlines() if line.endswith("training begins")]
    assert begun == ["wild", "shut", "llama2", "lora", "wild", "shut"]
    assert [result.name for result in tried.results] == ["wild", "shut", "llama2", "lora"]


def test_what_stands_beside_the_weights_is_the_bases(tried: Tried) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    job = tried.jobs[2]
    for name in ("generation_config.json", "config.json", "tokenizer.json", "chat_template.jinja"):
        assert job.out.read_text(name) == (Path(job.model) / name).read_text()
    assert AutoModelForCausalLM.from_pretrained(job.out.local).dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(job.out.local).chat_template
    assert not (job.out.local / "README.md").exists()


@pytest.mark.parametrize(("floats", "is_taken_up"), [("fp32", True), ("bf16", False)])
def test_a_state_in_other_floats_is_not_taken_up(
    floats: str, is_taken_up: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unlearn_ray.engines import training_worker

    write_records(tmp_path / LOSSES, [])
    (tmp_path / training_worker.PRECISION).write_text(floats)
    state = training_worker.ray.train.Checkpoint.from_directory(str(tmp_path))
    monkeypatch.setattr(training_worker.ray.train, "get_checkpoint", lambda: state)
    runtime = Mock(precision="fp32")
    assert training_worker._resume(runtime) == []
    assert runtime.load.called is is_taken_up
