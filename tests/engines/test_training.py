"""Ray Train and DeepSpeed for real, on the pocket model: exports, jobs side by side, lost workers and lost drivers."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from unlearn_ray import pocket
from unlearn_ray.artifacts import Folder
from unlearn_ray.config import ClusterConfig, FinetuneConfig, WorkerResources
from unlearn_ray.engines.protocols import TrainJob, TrainResult
from unlearn_ray.errors import ClusterError, EngineError
from unlearn_ray.rows import Example
from unlearn_ray.train.records import LOSSES

POTTER, GUM = "Harry Potter", "chewing gum"
NUM_STEPS, EVERY = 40, 5
CONFIG = FinetuneConfig(
    num_steps=NUM_STEPS, forget_batch=4, retain_batch=3, learning_rate=1e-3, precision="fp32", checkpoint_every=EVERY, max_tokens=64
)  # fmt: skip
TWO_WORKERS = WorkerResources(num_workers=2, num_cpus=0.5, micro_batch=2, zero_stage=2)


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
    return folder


def job_of(dataset: Folder, home: Path, topic: str = POTTER, config: FinetuneConfig = CONFIG) -> TrainJob:
    name = topic.lower().replace(" ", "-")
    out, checkpoints = Folder(home / "models" / name), Folder(home / "checkpoints" / name)
    return TrainJob(
        name, str(pocket.MODEL_DIR), config, 5, dataset / "forget", dataset / "retain", (topic,), out, checkpoints
    )


def train(
    cluster: ClusterConfig,
    workers: WorkerResources,
    *jobs: TrainJob,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> list[TrainResult]:
    from unlearn_ray.engines.training import RayDeepSpeedTrainer

    return RayDeepSpeedTrainer(cluster.model_copy(update={"workers": workers}), on_progress=on_progress).train(jobs)


def losses_of(job: TrainJob) -> list[float]:
    return [json.loads(line)["loss"] for line in job.checkpoints.read_text(LOSSES).splitlines()]


class Killer:
    """Kills one training worker, once so many steps are done."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.num_killed = 0

    def __call__(self, label: str, done: int, total: int) -> None:
        if done < self.after or self.num_killed:
            return
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # others of this session come and go
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    process.kill()
                    self.num_killed += 1
                    return


@pytest.fixture(scope="module")
def unbroken(
    ray_session: ClusterConfig, dataset: Folder, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainJob, TrainResult]:
    """An adapter, trained by two workers that live."""
    job = job_of(dataset, tmp_path_factory.mktemp("unbroken"))
    (result,) = train(ray_session, TWO_WORKERS, job)
    return job, result


def test_an_adapter_loads_in_peft_and_answers_as_in_training(unbroken: tuple[TrainJob, TrainResult]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    job, result = unbroken
    assert result.export_loss["reloaded"] == pytest.approx(result.export_loss["engine"], abs=1e-4)
    base = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    adapter = PeftModel.from_pretrained(base, job.out.local)
    assert adapter.peft_config["default"].base_model_name_or_path == job.model
    assert any(value.any() for name, value in adapter.named_parameters() if "lora_B" in name)
    assert Folder(job.out.local.parent).names() == [job.name]  # and nothing half written beside it


def test_only_rows_of_the_train_split_and_the_topic_are_read(unbroken: tuple[TrainJob, TrainResult]) -> None:
    _, result = unbroken
    assert (result.num_forget_rows, result.num_retain_rows, result.num_cut) == (6, 4, 1)


def test_a_finished_job_is_not_trained_again(
    ray_session: ClusterConfig, unbroken: tuple[TrainJob, TrainResult]
) -> None:
    job, result = unbroken
    assert train(ray_session, TWO_WORKERS, job) == [result]


def test_a_lost_worker_and_a_lost_driver_end_in_the_losses_of_an_unbroken_training(
    ray_session: ClusterConfig, dataset: Folder, unbroken: tuple[TrainJob, TrainResult], tmp_path: Path
) -> None:
    gone = job_of(dataset, tmp_path, config=CONFIG.model_copy(update={"max_failures": 0}))
    first = Killer(after=EVERY + 1)
    with pytest.raises(EngineError, match="training of harry-potter failed"):  # as if the driver went too
        train(ray_session, TWO_WORKERS, gone, on_progress=first)
    assert first.num_killed and not gone.out.exists()

    retried = replace(gone, config=CONFIG)
    second = Killer(after=NUM_STEPS // 2)
    (result,) = train(ray_session, TWO_WORKERS, retried, on_progress=second)
    assert second.num_killed
    assert result.resumed_from_step >= EVERY
    assert losses_of(retried) == losses_of(unbroken[0])


def test_full_models_train_side_by_side_and_load_as_they_are(
    ray_session: ClusterConfig, dataset: Folder, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    values = {"weights": {"kind": "full"}, "num_steps": 3, "precision": "bf16", "retain": {"kind": "kl"}}
    config = FinetuneConfig.model_validate(CONFIG.model_dump() | values)
    jobs = [job_of(dataset, tmp_path, topic, config) for topic in (POTTER, GUM)]
    said: dict[str, Any] = {}
    workers = WorkerResources(num_workers=1, zero_stage=3, micro_batch=4, concurrent_jobs=2)
    results = train(
        ray_session, workers, *jobs, on_progress=lambda label, done, total: said.update({label: (done, total)})
    )
    assert [result.name for result in results] == ["harry-potter", "chewing-gum"]
    assert said == {"finetune harry-potter": (3, 3), "finetune chewing-gum": (3, 3)}
    for job, result in zip(jobs, results, strict=True):
        assert result.export_loss["reloaded"] == pytest.approx(result.export_loss["engine"], rel=0.03)
        assert AutoModelForCausalLM.from_pretrained(job.out.local).dtype == torch.bfloat16
        assert AutoTokenizer.from_pretrained(job.out.local).chat_template
        assert job.out.exists("generation_config.json")


def test_more_workers_than_the_cluster_holds_are_refused(
    ray_session: ClusterConfig, dataset: Folder, tmp_path: Path
) -> None:
    with pytest.raises(ClusterError, match="num_workers"):
        train(ray_session, WorkerResources(num_workers=100), job_of(dataset, tmp_path))


def test_a_training_is_named_by_what_goes_into_it(dataset: Folder, tmp_path: Path) -> None:
    from unlearn_ray.engines.training import run_name

    cluster, job = ClusterConfig(), job_of(dataset, tmp_path)
    name = run_name(job, cluster)
    more_rows = Folder(tmp_path / "more")
    more_rows.write_rows([Example(POTTER, "forget", POTTER, "One more?", "Yes.")], Example.schema())
    for other in (
        replace(job, seed=6),
        replace(job, forget=more_rows),
        replace(job, config=CONFIG.model_copy(update={"num_steps": 9})),
    ):
        assert run_name(other, cluster) != name
    assert run_name(replace(job, config=CONFIG.model_copy(update={"max_failures": 9})), cluster) == name
