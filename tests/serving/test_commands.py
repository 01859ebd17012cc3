"""`serve`, `publish`, `rollback` and `models` as a person types them: what works without a service, and every refusal."""

import json
import re
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hub
import pytest
import torch
from commandline import Run, unlearn
from safetensors.torch import load_file, save_file

from unlearn_ray import pocket
from unlearn_ray.serving.service import free_port
from unlearn_ray.train.identity import model_identity

ADAPTER = "models/joint/finetune/model"


@pytest.fixture
def cwd(quickstart: Run, tmp_path: Path) -> Path:
    """A folder with a run of one's own to damage."""
    shutil.copytree(quickstart.folder.local, tmp_path / "runs" / "pocket")
    return tmp_path


@pytest.fixture
def served(cwd: Path) -> Path:
    """The registry that a service with the pocket model has taken up."""
    record = {"model": model_identity(str(pocket.MODEL_DIR)), "max_lora_rank": 16}
    (cwd / "runs" / "registry").mkdir()
    (cwd / "runs" / "registry" / "service.json").write_text(json.dumps(record | {"shapes": _shapes()}))
    return cwd


def _shapes() -> dict[str, list[int]]:
    weights = load_file(pocket.MODEL_DIR / "model.safetensors")
    return {
        name.removesuffix(".weight"): list(tensor.shape) for name, tensor in weights.items() if "_proj.weight" in name
    }


@pytest.fixture
def adapter(cwd: Path) -> Path:
    """A bare adapter's folder."""
    shutil.copytree(cwd / "runs" / "pocket" / ADAPTER, cwd / "mine")
    return cwd / "mine"


def listing(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def refused(cwd: Path, *arguments: str | Path) -> str:
    """The one line that the command says, having written nothing."""
    before = listing(cwd)
    done = unlearn(*arguments, cwd=cwd, timeout=300)
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""
    assert listing(cwd) == before
    return done.stderr


def said(cwd: Path, *arguments: str | Path) -> str:
    done = unlearn(*arguments, cwd=cwd, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def serve(*more: str | Path) -> tuple[str | Path, ...]:
    return "serve", "pocket", "--port", str(free_port()), *more


def change_config(adapter: Path, **values: object) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_weights(adapter: Path, change: object) -> None:
    file = adapter / "adapter_model.safetensors"
    assert callable(change)
    save_file({name: change(name, tensor) for name, tensor in load_file(file).items()}, file)


# Publishing, rolling back, listing


def test_a_run_is_published_once_and_its_name_follows_what_came_last(cwd: Path) -> None:
    assert "nothing is published yet" in said(cwd, "models")
    assert "harry-potter@1 published" in said(cwd, "publish", "pocket")
    assert "harry-potter@1 is published already" in said(cwd, "publish", "runs/pocket")
    assert "wizards@1 published" in said(cwd, "publish", "pocket", "--name", "wizards")
    file = cwd / "runs/pocket/models/joint/finetune/manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fingerprint": "another result"}))
    manifest = cwd / "runs/pocket/models/joint/evaluate/manifest.json"
    inputs = json.loads(manifest.read_text())
    inputs["inputs"] = {name: value for name, value in inputs["inputs"].items() if name != "finetune"}
    manifest.write_text(json.dumps(inputs))
    assert "harry-potter is now harry-potter@2" in said(cwd, "publish", "pocket")
    assert "harry-potter is now harry-potter@1" in said(cwd, "rollback", "harry-potter")
    assert "harry-potter is now harry-potter@2" in said(cwd, "rollback", "harry-potter@2")
    shown = said(cwd, "models")
    assert re.search(r"harry-potter\W+2\W+served\W+adapter\W+Harry Potter", shown)
    assert re.search(r"harry-potter\W+1\W+adapter", shown) and "wizards" in shown


def test_a_run_is_pushed_to_the_hub_with_its_card_and_published(cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # its client speaks no HTTP that a small hub could
    with hub.serving() as there:
        monkeypatch.setenv("HF_ENDPOINT", there.url)
        monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
        assert "HF_TOKEN" in refused(cwd, "publish", "pocket", "--push-to-hub", "tester/forgets")
        monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
        text = said(cwd, "publish", "pocket", "--push-to-hub", "tester/forgets", "--private")
    assert f"pushed to {there.url}/tester/forgets" in text and "harry-potter@1 published" in text
    assert there.repos == {"tester/forgets": True}
    files = there.files["tester/forgets"]
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert (
        files["adapter_model.safetensors"] == (cwd / "runs/pocket" / ADAPTER / "adapter_model.safetensors").read_bytes()
    )
    card = (cwd / "runs/registry/versions/harry-potter@1/weights/README.md").read_text()
    assert card == files["README.md"].decode() and "| unlearned |" in card
    for content in (card, files["adapter_config.json"].decode()):
        assert str(cwd) not in content and str(pocket.MODEL_DIR) not in content


def test_a_run_that_was_evaluated_again_is_published_again(cwd: Path) -> None:
    assert "harry-potter@1 published" in said(cwd, "publish", "pocket")
    file = cwd / "runs/pocket/models/joint/evaluate/manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fingerprint": "with other probes"}))
    assert "harry-potter@2 published" in said(cwd, "publish", "pocket")
    assert "harry-potter@2 is published already" in said(cwd, "publish", "pocket")


def test_a_damaged_version_is_published_again(cwd: Path) -> None:
    said(cwd, "publish", "pocket")
    (cwd / "runs/registry/versions/harry-potter@1/weights/adapter_model.safetensors").write_bytes(b"")
    assert "harry-potter@2 published" in said(cwd, "publish", "pocket")


def test_a_version_stays_whole_when_its_run_is_deleted(cwd: Path) -> None:
    said(cwd, "publish", "pocket")
    shutil.rmtree(cwd / "runs/pocket")
    version = cwd / "runs/registry/versions/harry-potter@1"
    assert (version / "weights/adapter_model.safetensors").stat().st_size > 100_000
    assert json.loads((version / "data/report.json").read_text())
    assert sorted(path.name for path in (version / "data").iterdir()) == [
        "answers",
        "evaluation",
        "forget",
        "probes.json",
        "report.json",
        "retain",
    ]


def test_a_bare_adapter_is_published_under_its_folders_name(served: Path, adapter: Path) -> None:
    assert "mine@1 published" in said(served, "publish", "mine")
    assert "mine@2 published" in said(served, "publish", adapter)


@pytest.fixture
def full(cwd: Path) -> Path:
    """The weights of a run that trained all of them."""
    file, weights = cwd / "runs/pocket/models/joint/finetune/manifest.json", cwd / "runs/pocket" / ADAPTER
    manifest = json.loads(file.read_text())
    manifest["config"]["weights"] = {"kind": "full"}
    file.write_text(json.dumps(manifest))
    shutil.rmtree(weights)
    shutil.copytree(pocket.MODEL_DIR, weights)
    return weights


def test_a_full_fine_tune_is_published_whole(cwd: Path, full: Path) -> None:
    assert "harry-potter@1 published" in said(cwd, "publish", "pocket")
    assert re.search(r"harry-potter\W+1\W+served\W+full", said(cwd, "models"))
    version = cwd / "runs/registry/versions/harry-potter@1/weights"
    assert (version / "model.safetensors").read_bytes() == (full / "model.safetensors").read_bytes()


def test_two_who_publish_at_once_both_succeed(cwd: Path, adapter: Path) -> None:
    with ThreadPoolExecutor() as pool:
        lines = list(pool.map(lambda _: said(cwd, "publish", "mine"), range(2)))
    assert {re.findall(r"mine@\d", line)[0] for line in lines} == {"mine@1", "mine@2"}
    assert sorted(path.name for path in (cwd / "runs/registry/versions").iterdir()) == ["mine@1", "mine@2"]


# What can't be published


def test_an_unfinished_run(cwd: Path) -> None:
    (cwd / "runs/pocket/models/joint/evaluate/manifest.json").unlink()
    assert "is unfinished (evaluate)" in refused(cwd, "publish", "pocket")
    assert "is unfinished (evaluate)" in refused(cwd, *serve())


def test_a_run_whose_dataset_was_made_again_since(cwd: Path) -> None:
    file = cwd / "runs/pocket/topics/harry-potter/dataset/manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fingerprint": "new"}))
    assert "is unfinished (mixture)" in refused(cwd, "publish", "pocket")


def test_no_such_run(cwd: Path) -> None:
    assert "dune is neither a run nor an adapter" in refused(cwd, "publish", "dune")
    assert "dune is neither a run nor an adapter" in refused(cwd, *serve()[:1], "dune")


def test_a_run_without_its_report(cwd: Path) -> None:
    (cwd / "runs/pocket/models/joint/evaluate/report.json").unlink()
    assert "is damaged" in refused(cwd, "publish", "pocket")


def test_a_run_without_its_rows(cwd: Path) -> None:
    shutil.rmtree(cwd / "runs/pocket/models/joint/mixture/forget")
    assert "is damaged" in refused(cwd, "publish", "pocket")


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_that_lacks_a_file(cwd: Path, file: str) -> None:
    (cwd / "runs/pocket" / ADAPTER / file).unlink()
    assert file in refused(cwd, "publish", "pocket")
    assert file in refused(cwd, *serve())


def test_a_full_fine_tune_that_lacks_a_file(cwd: Path, full: Path) -> None:
    index = {"weight_map": {"model.embed_tokens.weight": "a", "model.layers.31.mlp.up_proj.weight": "b"}}
    (full / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks weights, such as model.layers.31" in refused(cwd, "publish", "pocket")
    (full / "config.json").unlink()
    assert "is not a model: config.json or its *.safetensors are missing" in refused(cwd, "publish", "pocket")


@pytest.mark.parametrize("keep", [0, 6, 300, 200_000])
def test_an_adapter_that_was_cut_off(cwd: Path, keep: int) -> None:
    file = cwd / "runs/pocket" / ADAPTER / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "adapter_model.safetensors is corrupt" in refused(cwd, "publish", "pocket")


def test_an_adapter_whose_config_is_no_json(cwd: Path, adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text("{half")
    assert "adapter_config.json is missing or corrupt" in refused(cwd, "publish", "mine")


def test_an_adapter_of_another_kind(cwd: Path, adapter: Path) -> None:
    change_config(adapter, peft_type="IA3")
    assert "only LORA can be served" in refused(cwd, "publish", "mine")


@pytest.mark.parametrize("extra", ["use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "bias"])
def test_an_adapter_that_has_more_than_factors(cwd: Path, adapter: Path, extra: str) -> None:
    value = {"use_dora": True, "modules_to_save": ["lm_head"], "bias": "all"}.get(extra, {"q_proj": 8})
    change_config(adapter, **{extra: value})
    assert f"was trained with {extra}" in refused(cwd, "publish", "mine")


def test_an_adapter_on_layers_that_no_engine_is_started_for(cwd: Path, adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    for factor, shape in (("A", (16, 192)), ("B", (2560, 16))):
        weights[f"base_model.model.lm_head.lora_{factor}.weight"] = torch.zeros(shape)
    save_file(weights, file)
    assert "changes lm_head: only linear layers within the model can be served" in refused(cwd, "publish", "mine")


def test_an_adapter_whose_files_differ_in_rank(cwd: Path, adapter: Path) -> None:
    change_config(adapter, r=8)
    assert "differ in rank" in refused(cwd, "publish", "mine")


def test_an_adapter_of_a_rank_above_the_services(served: Path, adapter: Path) -> None:
    change_config(adapter, r=32)
    change_weights(adapter, lambda name, tensor: torch.cat([tensor, tensor], 0 if "lora_A" in name else 1).contiguous())
    message = refused(served, "publish", "mine")
    assert "has rank 32, the service was started for at most 16: raise engine.max_lora_rank" in message


def test_a_service_started_for_a_rank_below_the_runs(cwd: Path) -> None:
    assert "has rank 16, the service was started for at most 8" in refused(cwd, *serve("engine.max_lora_rank=8"))


def test_an_adapter_whose_layers_have_another_shape(served: Path, adapter: Path) -> None:
    change_config(adapter, base_model_name_or_path="")
    change_weights(
        adapter, lambda name, tensor: torch.zeros(tensor.shape[0], 256) if "q_proj.lora_A" in name else tensor
    )
    assert "mine is for another base model: its model.layers.0.self_attn.q_proj is 192 x 256" in refused(
        served, "publish", "mine"
    )


def test_an_adapter_of_a_model_with_more_layers(served: Path, adapter: Path) -> None:
    change_config(adapter, base_model_name_or_path="")
    file = adapter / "adapter_model.safetensors"
    save_file({name.replace("layers.5", "layers.31"): tensor for name, tensor in load_file(file).items()}, file)
    assert "this one has no model.layers.31.mlp.down_proj" in refused(served, "publish", "mine")


def test_an_adapter_trained_on_a_model_of_the_same_shape(served: Path, adapter: Path) -> None:
    shutil.copytree(pocket.MODEL_DIR, served / "other")
    weights = load_file(served / "other/model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, served / "other/model.safetensors")
    change_config(adapter, base_model_name_or_path=str(served / "other"))
    assert "mine is made from other:" in refused(served, "publish", "mine")


def test_an_adapter_trained_on_a_copy_of_the_base_model_fits(served: Path, adapter: Path) -> None:
    shutil.copytree(pocket.MODEL_DIR, served / "copy")
    change_config(adapter, base_model_name_or_path=str(served / "copy"))
    assert "mine@1 published" in said(served, "publish", "mine")


def test_a_run_of_another_base_model(served: Path) -> None:
    file = served / "runs/pocket/models/joint/finetune/manifest.json"
    manifest = json.loads(file.read_text())
    manifest["config"]["model"] = "meta-llama/Meta-Llama-3-8B-Instruct"
    file.write_text(json.dumps(manifest))
    for arguments in (("publish", "pocket"), serve()):
        message = refused(served, *arguments)
        assert "harry-potter is made from meta-llama/Meta-Llama-3-8B-Instruct, the service's base model is" in message


def test_a_registry_with_models_of_another_base_model(cwd: Path) -> None:
    said(cwd, "publish", "pocket")
    shutil.copytree(pocket.MODEL_DIR, cwd / "other")
    weights = load_file(cwd / "other/model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, cwd / "other/model.safetensors")
    assert "(--registry)" in refused(cwd, *serve("model=other"))


def test_a_registry_with_a_damaged_version(cwd: Path, adapter: Path) -> None:
    said(cwd, "publish", "mine")
    (cwd / "runs/registry/versions/mine@1/weights/adapter_model.safetensors").write_bytes(b"")
    message = refused(cwd, *serve())
    assert "mine@1 can't be served" in message and "is corrupt" in message
    assert "unlearn-ray rollback mine, or publish it again" in message


@pytest.mark.parametrize("name", ["Harry Potter", "base", "guarded", "a/b", "x@2", "../x", ""])
def test_names_that_can_name_no_model(cwd: Path, name: str) -> None:
    assert "can't name a model" in refused(cwd, "publish", "pocket", "--name", name)


# What can't be rolled back


def test_rolling_back_what_is_not_there(cwd: Path) -> None:
    assert "nothing is published yet" in refused(cwd, "rollback", "harry-potter")
    said(cwd, "publish", "pocket")
    assert "no model 'dune' (harry-potter)" in refused(cwd, "rollback", "dune")
    assert "it has no earlier one" in refused(cwd, "rollback", "harry-potter")
    assert "has no version 7 (it has 1)" in refused(cwd, "rollback", "harry-potter@7")
    assert "is not a model's name" in refused(cwd, "rollback", "Harry Potter")
    assert "is not a model's name" in refused(cwd, "rollback", "harry-potter:guarded")


def test_a_damaged_registry(cwd: Path) -> None:
    said(cwd, "publish", "pocket")
    (cwd / "runs/registry/events/00000001.json").write_text("{half")
    assert "the registry is damaged" in refused(cwd, "models")
    assert "the registry is damaged" in refused(cwd, *serve())


# What can't be served


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_taken_port(cwd: Path, taken_port: int) -> None:
    message = refused(cwd, "serve", "pocket", "--port", str(taken_port))
    assert f"--port {taken_port}: Address already in use: choose another port" in message


def test_a_port_that_is_none(cwd: Path) -> None:
    assert "port: give 65535 or less" in refused(cwd, "serve", "pocket", "--port", "99999")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("engine.max_lorras=3", "unknown key engine.max_lorras: did you mean 'max_loras'?"),
        ("limits.nothing=3", "unknown key limits.nothing: valid keys: max_body_bytes"),
        ("engine.max_loras=many", "engine.max_loras: give a whole number"),
        ("engine.max_lora_rank=12", "engine.max_lora_rank: give 1, 8, 16"),
        ("scaling.min_replicas=3", "scaling: min_replicas: 3 is above max_replicas, 1"),
        ("engine", "write it as key.path=value"),
    ],
)
def test_settings_that_are_none(cwd: Path, setting: str, message: str) -> None:
    assert message in refused(cwd, *serve(setting))


def test_a_host_beyond_loopback_without_keys(cwd: Path) -> None:
    assert "--host 0.0.0.0 is open to others: give API keys" in refused(cwd, *serve("--host", "0.0.0.0"))


@pytest.mark.parametrize(
    ("text", "message"), [(None, "can't be read"), ("", "holds no key"), ("short\n", "16 characters or more")]
)
def test_keys_that_can_not_be_used(cwd: Path, text: str | None, message: str) -> None:
    if text is not None:
        (cwd / "keys").write_text(text)
    assert message in refused(cwd, *serve("--keys", cwd / "keys"))


def test_an_adapter_can_not_be_served_by_itself(cwd: Path, adapter: Path) -> None:
    assert "is an adapter: serve a run" in refused(cwd, "serve", "mine")


def test_a_registry_that_is_a_file(cwd: Path) -> None:
    (cwd / "file").write_text("")
    for registry in (cwd / "file", cwd / "file/below"):
        assert "is not a folder of published models" in refused(cwd, "models", "--registry", registry)
        assert "is not a folder of published models" in refused(cwd, "rollback", "mine", "--registry", registry)


def test_a_storage_that_is_none(cwd: Path) -> None:
    assert "can't be opened" in refused(cwd, "publish", "ftp://somewhere/run")
    assert "can't be opened" in refused(cwd, "models", "--registry", "ftp://somewhere/registry")
