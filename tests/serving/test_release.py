"""Versions whose files no replica would load."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import Run
from safetensors.torch import save_file

from unlearn_ray.artifacts import MANIFEST, Folder
from unlearn_ray.errors import ModelError
from unlearn_ray.serving.registry import WEIGHTS, Registry, Release, ServiceRecord, now
from unlearn_ray.serving.release import Candidate, candidates, check_files, publish

LAYER = "model.layers.0.self_attn.q_proj"
SERVICE = ServiceRecord(model="m", max_lora_rank=8, shapes={LAYER: (6, 4)})


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(Folder(tmp_path / "registry"))


@pytest.fixture
def adapter(tmp_path: Path) -> Folder:
    """An adapter on the layer of the service's model."""
    folder = Folder(tmp_path / "adapter")
    folder.write_text("adapter_config.json", '{"peft_type": "LORA", "r": 2}')
    factors = {"A": torch.zeros(2, 4), "B": torch.zeros(6, 2)}
    tensors = {f"base_model.model.{LAYER}.lora_{factor}.weight": value for factor, value in factors.items()}
    save_file(tensors, folder.local / "adapter_model.safetensors")
    return folder


def candidate(adapter: Folder, fingerprint: str = "result") -> Candidate:
    return Candidate("dune", adapter, "adapter", 2, "m", (), fingerprint=fingerprint)


def cut(registry: Registry, release: Release) -> None:
    file = registry.version_folder(release.id).local / WEIGHTS / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def test_a_version_whose_adapter_was_cut_off(registry: Registry, adapter: Folder) -> None:
    release, _ = publish(registry, candidate(adapter))
    check_files(registry, release, SERVICE)
    cut(registry, release)
    with pytest.raises(ModelError, match=r"^dune@1 can't be served \(.*is corrupt.*\): unlearn-ray rollback dune, or"):
        check_files(registry, release, SERVICE)


def test_a_version_for_a_model_of_another_shape(registry: Registry, adapter: Folder) -> None:
    release, _ = publish(registry, candidate(adapter))
    with pytest.raises(ModelError, match=r"dune@1 can't be served \(.*another base model"):
        check_files(registry, release, SERVICE.model_copy(update={"shapes": {LAYER: (6, 8)}}))


def test_a_full_fine_tune_without_its_weights(registry: Registry) -> None:
    release = Release(name="dune", version=registry.begin("dune"), kind="full", model="m", created=now())
    with pytest.raises(ModelError, match=r"dune@1 can't be served \(.*missing"):
        check_files(registry, registry.finish(release), SERVICE)


def test_the_same_result_is_published_again_only_where_it_is_damaged(registry: Registry, adapter: Folder) -> None:
    release, is_new = publish(registry, candidate(adapter))
    assert is_new and publish(registry, candidate(adapter)) == (release, False)
    cut(registry, release)
    again, is_new = publish(registry, candidate(adapter))
    assert is_new and again.id == "dune@2" and registry.read().aliases == {"dune": 2}
    assert publish(registry, candidate(adapter, "another"))[0].id == "dune@3"


def test_a_topic_called_joint_is_a_topic_like_others(quickstart: Run, tmp_path: Path) -> None:
    """The config says whether a model is of all topics, not the model's name."""
    run = tmp_path / "run"
    shutil.copytree(quickstart.folder.local, run, ignore=shutil.ignore_patterns("run.lock", "logs"))
    for place in ("models/joint", "topics/harry-potter"):
        shutil.copytree(
            run / place, run / place.replace("joint", "harry-potter").replace("topics/harry-potter", "topics/joint")
        )
    rewrite(run / "run.json", lambda said: said["config"]["topics"].append({"name": "Joint"}))
    rewrite(run / "run.json", lambda said: said["config"]["finetune"].update(adapters="per_topic"))
    rewrite(run / "models/joint/mixture" / MANIFEST, lambda said: said["details"].update(topics={"joint": "Joint"}))
    found = {candidate.name: [topic.name for topic in candidate.topics] for candidate in candidates(Folder(run))}
    assert found == {"harry-potter": ["Harry Potter"], "joint": ["Joint"]}


def rewrite(file: Path, change: Callable[[Any], object]) -> None:
    said = json.loads(file.read_text())
    change(said)
    file.write_text(json.dumps(said))
