"""Exports on their way to a hub: huggingface_hub's own client over HTTP, to a small hub of ours.

What is left out: the hub's Xet storage, whose client is no HTTP of its own; it takes the same files.
"""

import json
from pathlib import Path

import hub
import pytest
from huggingface_hub import HfApi, constants
from scripted_run import Engines, config_of

from unlearn_ray import pipeline
from unlearn_ray.artifacts import Folder
from unlearn_ray.errors import ArtifactError, InputError
from unlearn_ray.plan import claimed
from unlearn_ray.serving.hub import push, repositories
from unlearn_ray.serving.release import Candidate, Chain
from unlearn_ray.stages.table import COMMANDS

WEIGHTS = b"weights of an adapter" * 1000


@pytest.fixture(autouse=True)
def plain_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def candidates_of(home: Path, *topics: str, **finetune: object) -> list[Candidate]:
    """What a run with scripted engines has to publish, its adapters with a file of weights."""
    config = config_of(home, *topics, finetune=finetune)
    with claimed(config):
        pipeline.run(config, Engines(), COMMANDS)
    found = []
    for name in (folder.name for folder in (config.folder.local / "models").iterdir()):
        chain = Chain(config.folder, name, config.topics, {})
        export = chain.home / "finetune" / "model"
        (export.local / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": config.model, "r": 16})
        )
        (export.local / "adapter_model.safetensors").write_bytes(WEIGHTS)
        found.append(Candidate(name, export, "adapter", 16, "m", (), chain=chain))
    return found


def test_an_export_arrives_with_its_card_and_no_path(tmp_path: Path) -> None:
    (candidate,) = candidates_of(tmp_path, "Dune")
    with hub.serving() as there:
        for _ in range(2):  # the second time over what is there
            address = push(
                "tester/dune", candidate, candidate.weights, is_private=True, api=HfApi(there.url, hub.TOKEN)
            )
    assert address.endswith("/tester/dune") and there.repos == {"tester/dune": True}
    files = there.files["tester/dune"]
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert files["adapter_model.safetensors"] == WEIGHTS
    assert json.loads(files["adapter_config.json"]) == {"base_model_name_or_path": "model", "r": 16}
    card = files["README.md"].decode()
    assert "95 % interval" in card and "| unlearned |" in card
    assert not any(str(tmp_path).encode() in content for content in files.values())
    # The run's own files stay as they were.
    assert json.loads(candidate.weights.read_text("adapter_config.json"))["base_model_name_or_path"].startswith("/")


def test_each_of_several_exports_has_a_repository_of_its_own(tmp_path: Path) -> None:
    found = candidates_of(tmp_path, "Dune", "Ubik", adapters="per_topic", export="both")
    names = {name: export.name for name, _, export in repositories(found, "tester/books")}
    assert names == {
        "tester/books-dune": "model",
        "tester/books-dune-merged": "merged",
        "tester/books-ubik": "model",
        "tester/books-ubik-merged": "merged",
    }
    with hub.serving() as there:
        for name, candidate, export in repositories(found, "tester/books"):
            push(name, candidate, export, api=HfApi(there.url, hub.TOKEN))
    assert set(there.files) == set(names)
    assert b"PeftModel" in there.files["tester/books-dune"]["README.md"]
    assert b"PeftModel" not in there.files["tester/books-dune-merged"]["README.md"]
    assert b"without Ubik" in there.files["tester/books-ubik"]["README.md"]


def test_what_the_hub_does_not_take_is_one_line(tmp_path: Path) -> None:
    (candidate,) = candidates_of(tmp_path, "Dune")
    with hub.serving(refuses_commits=True) as there:
        wrong = (HfApi(there.url, "hf_of_another"), HfApi(there.url, hub.TOKEN), HfApi("http://127.0.0.1:9", hub.TOKEN))
        for api in wrong:
            with pytest.raises(ArtifactError) as refused:
                push("tester/dune", candidate, candidate.weights, api=api)
            assert "tester/dune can't be pushed" in str(refused.value) and "HF_TOKEN" in str(refused.value)
            assert "\n" not in str(refused.value)
    assert there.files == {}


@pytest.mark.parametrize("repo", ["two/many/parts", "with space/x", "-/-", ""])
def test_a_name_that_no_repository_can_have_is_refused_before_anything_is_sent(tmp_path: Path, repo: str) -> None:
    chain = Chain(Folder(tmp_path), "joint", (), {})
    with pytest.raises(InputError, match="--push-to-hub"):
        repositories([Candidate("dune", Folder(tmp_path), "adapter", 2, "m", (), chain=chain)], repo)


def test_a_bare_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bare adapter"):
        repositories([Candidate("dune", Folder(tmp_path), "adapter", 2, "m", ())], "tester/dune")
