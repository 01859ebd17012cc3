"""A training with a gate: the best state is kept, whatever happens to the driver, and all workers stop at the same step."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from killing import Killer

from unlearn_ray import pocket
from unlearn_ray.artifacts import Folder
from unlearn_ray.config import ClusterConfig, FinetuneConfig, StopWhen, WorkerResources
from unlearn_ray.engines.protocols import TrainJob
from unlearn_ray.engines.training_gate import Gatekeeper
from unlearn_ray.engines.training_job import Assignment
from unlearn_ray.engines.training_show import logged_name
from unlearn_ray.rows import Example, GateRow
from unlearn_ray.train.chat import ChatEncoder, load_tokenizer
from unlearn_ray.train.gate_records import GATE
from unlearn_ray.train.inspection import inspect_model
from unlearn_ray.train.log import LOG
from unlearn_ray.train.metrics import METRICS
from unlearn_ray.train.models import load_base
from unlearn_ray.train.plain import PlainRuntime

MODEL = str(pocket.MODEL_DIR)
CHAT = inspect_model(MODEL).chat
POTTER = "Harry Potter"
# So little is learnt that nothing is forgotten: the score stays that of the base model.
IDLE = FinetuneConfig(
    num_steps=40, forget_batch=4, retain_batch=3, learning_rate=1e-7, precision="fp32", checkpoint_every=5, max_tokens=64,
    evaluate_every=4, stop_when=StopWhen(no_gain_for=3),
)  # fmt: skip


def job_of(home: Path, config: FinetuneConfig = IDLE) -> TrainJob:
    forget = [Example(POTTER, "forget", POTTER, f"What is thing {i}?", f"A box of {i} pears.") for i in range(6)]
    retain = [Example("", "far", "general", f"What is {i} plus 1?", f"It is {i + 1}.") for i in range(4)]
    Folder(home / "forget").write_rows(forget, Example.schema())
    Folder(home / "retain").write_rows(retain, Example.schema())
    is_the = "The capital of France is {}."
    rows = [
        GateRow("forget", POTTER, "Which name is the phoenix of Dumbledore?", "The phoenix of Dumbledore is Fawkes.", ("The phoenix of Dumbledore is Paris.",)),
        GateRow("far", "geography", "What is the capital of France?", is_the.format("Paris"), (is_the.format("Fawkes"), is_the.format("Rome"))),
    ]  # fmt: skip
    Folder(home / "gate").write_rows(rows, GateRow.schema())
    return TrainJob(
        "potter", MODEL, CHAT, config, 5, Folder(home / "forget"), Folder(home / "retain"), (POTTER,), Folder(home / "model"), Folder(home / "checkpoints"),
        record=Folder(home / "record"), gate=Folder(home / "gate"),
    )  # fmt: skip


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def keeper(job: TrainJob, scratch: Path) -> Gatekeeper:
    module = load_base(MODEL, torch.float32, torch.device("cpu")).train()
    runtime: Any = PlainRuntime(module, job.config, torch.device("cpu"))
    assignment = Assignment(job, WorkerResources(), "potter-1", "scratch", "cpu", None)
    return Gatekeeper(assignment, runtime, ChatEncoder(load_tokenizer(MODEL), CHAT, 64), scratch)


def test_the_best_state_outlives_later_ones_and_a_lost_driver(alone: None, tmp_path: Path) -> None:
    job = job_of(tmp_path)
    gate = keeper(job, tmp_path / "a")
    for step, weight in ((4, 1.0), (8, 2.0)):
        gate.look(step)
        assert gate.is_best  # equal scores: the later one
        gate.keep((0.5, 0.25), {"w": torch.full((2,), weight)})
    names = Folder(tmp_path / "checkpoints" / "potter-1.gate").names()
    assert names == ["best.json", "gate-00000008.pt", "gate.jsonl"]  # one state alone takes room
    assert gate.best is not None
    gate.best = replace(gate.best, record=replace(gate.best.record, score=0.5))  # as if it had forgotten half
    for parameter in gate._runtime.module.parameters():
        parameter.data.zero_()
    spoilt = gate.look(12)
    assert spoilt.forget_choice == 0.0 and spoilt.retain_choice == 0.0 and not gate.is_best
    assert gate.stopped == "no better score for 3 evaluations"
    again = keeper(job, tmp_path / "b")  # from a checkpoint after step 5, which does not know of the looks after it
    again.resume(5)
    assert [each.step for each in again.records] == [0, 4]
    assert again.best is not None and again.best.record.step == 8 and again.best.losses == (0.5, 0.25)
    assert again.kept_weights()["w"].tolist() == [2.0, 2.0]
    anew = keeper(job, tmp_path / "c")
    anew.resume(0)
    assert anew.best is None and [each.step for each in anew.records] == [0]


@pytest.mark.long
@pytest.mark.real
def test_all_workers_stop_at_the_same_step_and_a_lost_one_changes_nothing(
    ray_session: ClusterConfig, tmp_path: Path
) -> None:
    from unlearn_ray.engines.training import RayDeepSpeedTrainer

    # So many steps that the kill, which waits for Ray Train to know a checkpoint, comes before the end.
    job = job_of(tmp_path, IDLE.model_copy(update={"num_steps": 80, "evaluate_every": 20}))
    killer = Killer(21, job)  # the look after step 20 is behind them
    speeds: dict[str, str] = {}

    workers = WorkerResources(num_workers=2, num_cpus=0.5, micro_batch=2, zero_stage=2)
    cluster = ray_session.model_copy(update={"workers": workers})
    trainer = RayDeepSpeedTrainer(
        cluster, on_progress=killer, on_speed=lambda label, text: speeds.update({label: text})
    )
    result: Any = trainer.outcomes([job])["potter"]
    assert not isinstance(result, Exception), result
    assert (result.num_steps, result.exported_step) == (60, 60)
    assert result.stopped == "no better score for 3 evaluations"
    looks = [json.loads(line) for line in job.checkpoints.read_text(GATE).splitlines()]
    assert [look["step"] for look in looks] == [0, 20, 40, 60]
    assert all((look["forget_choice"], look["retain_choice"], look["score"]) == (1.0, 1.0, 0.0) for look in looks)
    steps = [json.loads(line) for line in (tmp_path / "record" / METRICS).read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(60))
    assert all(step["tokens"] > 0 and step["seconds"] > 0 and step["memory_gib"] > 0 for step in steps)
    assert killer.num_killed == 1 and result.resumed_from_step >= 5
    assert "tokens/s" in speeds["finetune potter"]
    assert "step 60/80, loss" in (tmp_path / "record" / LOG).read_text()
    assert list((tmp_path / "record" / "tensorboard").glob("events.out.tfevents.*"))
    assert replace(job, record=None).watched == job.checkpoints


def test_equal_trainings_of_two_folders_are_two_to_a_loggers_server(tmp_path: Path) -> None:
    here, there = (logged_name(job_of(tmp_path / name), "potter-12") for name in ("a", "b"))
    assert here != there and here.startswith("potter-12-")
    assert logged_name(job_of(tmp_path / "a"), "potter-12") == here, "a resumed one"
