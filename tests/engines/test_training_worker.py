"""What a worker does around the loop, without Ray or DeepSpeed."""

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from storage import Storage

from unlearn_ray import pocket
from unlearn_ray.artifacts import Folder
from unlearn_ray.config import FinetuneConfig, FullWeights, Lora, WorkerResources
from unlearn_ray.engines import training_worker
from unlearn_ray.engines.protocols import TrainJob
from unlearn_ray.engines.training import Launch
from unlearn_ray.engines.training_job import Assignment
from unlearn_ray.engines.training_worker import Check
from unlearn_ray.errors import ArtifactError
from unlearn_ray.rows import Example
from unlearn_ray.train.batches import Batches
from unlearn_ray.train.chat import ChatEncoder, load_tokenizer
from unlearn_ray.train.encoded import EncodedRows, write_encoded
from unlearn_ray.train.inspection import inspect_model
from unlearn_ray.train.loop import mean_ce, train
from unlearn_ray.train.models import load_base, prepare
from unlearn_ray.train.objectives.table import needs_base_model
from unlearn_ray.train.plain import PlainRuntime
from unlearn_ray.train.watch import Watch

MODEL = str(pocket.MODEL_DIR)
CHAT = inspect_model(MODEL).chat


def assigned(home: Path, device: Any = "cpu", num_cpus: float = 3, **values: Any) -> Assignment:
    config = FinetuneConfig(weights=FullWeights(), **values)
    folder = Folder(home / "out" / "models" / "joint")
    job = TrainJob(
        "joint", MODEL, CHAT, config, 0, Folder(home), Folder(home), ("t",), folder, Folder(home / "checkpoints")
    )
    return Assignment(job, WorkerResources(num_cpus=num_cpus, offload="none"), "run", "scratch", device, None)


def test_workers_compute_where_they_are_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # a machine with GPUs
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    assert training_worker._device(assigned(tmp_path, "cpu")) == torch.device("cpu")
    assert training_worker._device(assigned(tmp_path, "cuda")) == torch.device("cuda", 1)


def test_the_environment_of_workers_follows_from_where_they_compute(tmp_path: Path) -> None:
    on_cpu, on_gpu = (Launch(assigned(tmp_path, device)).environment() for device in ("cpu", "cuda"))
    assert (on_cpu["DS_ACCELERATOR"], on_cpu["CUDA_VISIBLE_DEVICES"]) == ("cpu", "")
    assert on_cpu["OMP_NUM_THREADS"] == on_gpu["OMP_NUM_THREADS"] == "3"  # an offloaded optimizer computes with them
    assert not {"DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES"} & on_gpu.keys()
    assert Launch(assigned(tmp_path, num_cpus=0.5)).environment()["OMP_NUM_THREADS"] == "1"


def test_the_check_is_of_both_kinds_of_rows_and_does_not_depend_on_the_passes(tmp_path: Path) -> None:
    encoder = ChatEncoder(load_tokenizer(MODEL), CHAT, 128)
    for name, number in (("forget", 11), ("retain", 5)):
        rows = [Example("t", "forget", "t", f"What is {i}?", "It is that." + " Oh!" * (i % 3)) for i in range(number)]
        write_encoded(tmp_path / name, [row for row in encoder.encode(rows) if row])
    forget, retain = EncodedRows(tmp_path / "forget"), EncodedRows(tmp_path / "retain")
    module = load_base(MODEL, torch.float32, torch.device("cpu")).train()
    runtime: Any = PlainRuntime(module, FinetuneConfig(weights=FullWeights()), torch.device("cpu"))
    for source in (retain, None):
        one, all_at_once, by_tokens = (
            Check.of(
                Batches(
                    forget,
                    source,
                    forget_batch=11,
                    retain_batch=5,
                    micro_batch=micro_batch,
                    world_size=1,
                    seed=0,
                    pad_id=5,
                    micro_tokens=micro_tokens,
                )
            )
            for micro_batch, micro_tokens in ((1, None), (64, None), (1, 100))
        )
        losses = one.losses(runtime)
        for other in (all_at_once, by_tokens):
            assert losses.forget == pytest.approx(other.losses(runtime).forget, rel=1e-4)
        assert len(by_tokens.passes["forget"]) < len(one.passes["forget"])
        assert (losses.retain is None) is (source is None)
        assert one.mean(losses) == pytest.approx(mean_ce(runtime, all_at_once.to(runtime.device)), rel=1e-4)
        assert losses.fault(losses, guessing=8.0) is None
    assert module.training


def test_an_output_that_cannot_be_written_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = assigned(tmp_path).job
    training_worker._rehearse(job)
    assert not list((tmp_path / "out" / "models").iterdir())  # nothing is left of the trial
    monkeypatch.setattr(training_worker, "weight_bytes", lambda model: 2**60)
    with pytest.raises(ArtifactError, match=r"models/joint can't be written: the model takes 1073741824\.0 GiB, "):
        training_worker._rehearse(job)

    def full(folder: Folder, name: str, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Folder, "write_text", full)
    with pytest.raises(ArtifactError, match=r"models/joint can't be written: \[Errno 28\] No space left"):
        training_worker._rehearse(job)


class Alone(PlainRuntime):
    """With what an export asks of a sharded one."""

    is_adapter, precision = True, "fp32"

    def weights(self) -> dict[str, torch.Tensor]:
        named = self.module.named_parameters()
        return {name: value.detach().clone() for name, value in named if value.requires_grad}

    def close(self) -> None:
        return


@pytest.mark.parametrize(
    ("export", "left"),
    [
        (None, {"model": "adapter_model.safetensors"}),
        ("adapter", {"model": "adapter_model.safetensors"}),
        ("merged", {"model": "model.safetensors"}),
        ("both", {"model": "adapter_model.safetensors", "merged": "model.safetensors"}),
    ],
)
def test_what_is_exported_is_what_was_asked_for(tmp_path: Path, export: Any, left: dict[str, str]) -> None:
    torch.set_num_threads(1)
    encoder = ChatEncoder(load_tokenizer(MODEL), CHAT, 128)
    rows = [Example("t", "forget", "t", f"What is {i}?", "It is a pear.") for i in range(4)]
    write_encoded(tmp_path / "rows", [row for row in encoder.encode(rows) if row])
    batches = Batches(
        EncodedRows(tmp_path / "rows"),
        None,
        forget_batch=4,
        retain_batch=0,
        micro_batch=4,
        world_size=1,
        seed=0,
        pad_id=5,
    )
    config = FinetuneConfig(weights=Lora(rank=4), export=export, num_steps=2, learning_rate=1e-2, warmup_steps=1)
    module = prepare(
        load_base(MODEL, torch.float32, torch.device("cpu")), config.weights, seed=0, gradient_checkpointing="none"
    )
    runtime: Any = Alone(module, config, torch.device("cpu"))
    train(runtime, batches, config, seed=0, on_step=lambda record: None)
    job = replace(assigned(tmp_path).job, config=config, out=Folder(tmp_path / "finetune" / "model"))
    check, watch = Check.of(batches), Watch(job.name, config, vocab_size=2560)
    found = training_worker._export(runtime, job, check, check.losses(runtime), watch, gate=None, num_done=2)
    assert found is not None and found["reloaded"] == pytest.approx(found["engine"], rel=0.03)
    assert {folder.name for folder in (tmp_path / "finetune").iterdir()} == set(left)
    for name, weights in left.items():
        files = {file.name for file in (tmp_path / "finetune" / name).iterdir()}
        assert weights in files
        # A model is one by itself: it has what a chat needs, and nothing of an adapter.
        assert ("tokenizer.json" in files) is ("adapter_config.json" not in files)


def test_what_a_killed_export_left_goes_and_nothing_stays_of_one_that_fails(tmp_path: Path) -> None:
    job = assigned(tmp_path).job
    left = tmp_path / "out" / "models" / ".joint.partial" / "joint"
    left.mkdir(parents=True)
    with pytest.raises(ValueError, match="no"), training_worker._beside(job) as folder:
        assert not list(folder.iterdir())
        raise ValueError("no")
    assert not list((tmp_path / "out" / "models").iterdir())


def test_an_output_in_remote_storage_is_tried_as_well(
    tmp_path: Path, s3_storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, s3_storage.environment[name])
    options = f"?scheme=http&endpoint_override={s3_storage.endpoint}"
    job = assigned(tmp_path).job
    there, nowhere = (Folder(f"s3://{bucket}/out/models/joint{options}") for bucket in ("bucket", "no-such-bucket"))
    training_worker._rehearse(replace(job, out=there))
    assert there.parent.names() == []
    with pytest.raises(ArtifactError, match=r"no-such-bucket/out/models/joint.* can't be written"):
        training_worker._rehearse(replace(job, out=nowhere))
    (tmp_path / "export" / "additional_chat_templates").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "additional_chat_templates/tools.jinja"):
        (tmp_path / "export" / name).write_text(name)
    training_worker._publish(tmp_path / "export", there)
    assert there.names() == ["additional_chat_templates", "config.json", "model.safetensors"]
    assert (there / "additional_chat_templates").read_text("tools.jinja") == "additional_chat_templates/tools.jinja"


@pytest.mark.parametrize("retain", [{"kind": "kl"}, {"kind": "kl", "weight": 0.0}])
def test_no_base_model_is_held_for_retain_rows_that_are_not_there(retain: dict[str, Any], tmp_path: Path) -> None:
    config = FinetuneConfig.model_validate({"retain": retain})
    write_encoded(tmp_path / "retain", [])
    there: Any = training_worker._of_what_is_there(config, EncodedRows(tmp_path / "retain"))
    assert needs_base_model(there) and there is config
    assert not needs_base_model(training_worker._of_what_is_there(config, None))
