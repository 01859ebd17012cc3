"""What is exported is what was trained."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from unlearn_ray import pocket
from unlearn_ray.config import FinetuneConfig, FullWeights, Lora
from unlearn_ray.errors import EngineError, ModelError
from unlearn_ray.train import export
from unlearn_ray.train.batches import Batches
from unlearn_ray.train.encoded import EncodedRows
from unlearn_ray.train.export import check_export, rehearse, reloaded_loss, save_adapter, save_merged, save_model
from unlearn_ray.train.loop import mean_ce, train
from unlearn_ray.train.models import load_base, prepare
from unlearn_ray.train.plain import PlainRuntime

CPU = torch.device("cpu")
MODEL = str(pocket.MODEL_DIR)


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    torch.set_num_threads(1)
    return load_base(MODEL, torch.float32, CPU)


@pytest.fixture(scope="module")
def rows(forget: EncodedRows, retain: EncodedRows) -> Batches:
    return Batches(forget, retain, forget_batch=4, retain_batch=2, micro_batch=80, world_size=1, seed=0, pad_id=5)


def trained(
    base: PreTrainedModel, weights: Lora | FullWeights, rows: Batches
) -> tuple[PlainRuntime, dict[str, torch.Tensor]]:
    """The runtime after three steps, and its learnt weights."""
    settings = FinetuneConfig(weights=weights, num_steps=3, learning_rate=5e-3, warmup_steps=1)
    runtime = PlainRuntime(prepare(copy.deepcopy(base), weights, seed=0, gradient_checkpointing="none"), settings, CPU)
    train(runtime, rows, settings, seed=0, on_step=lambda record: None)
    runtime.module.eval()
    named = runtime.module.named_parameters()
    return runtime, {name: value.detach().clone() for name, value in named if value.requires_grad}


def test_an_adapter_loads_again_with_the_loss_it_had(base: PreTrainedModel, rows: Batches, tmp_path: Path) -> None:
    runtime, weights = trained(base, Lora(rank=4), rows)
    save_adapter(runtime.module, weights, tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["r"]) == (MODEL, 4)
    (check,) = rows.micro_batches(0, 0)
    had, has = mean_ce(runtime, [check]), reloaded_loss(tmp_path / "adapter", MODEL, torch.float32, [check])
    assert has == pytest.approx(had, rel=1e-4)
    assert has < 0.9 * reloaded_loss(pocket.MODEL_DIR, MODEL, torch.float32, [check])


def test_a_model_loads_again_in_its_own_precision_with_all_that_a_chat_needs(
    base: PreTrainedModel, rows: Batches, tmp_path: Path
) -> None:
    runtime, weights = trained(base, FullWeights(), rows)
    save_model(MODEL, weights, tmp_path / "model")
    assert not weights  # taken out one by one: a large model is not held twice
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    names = {file.name for file in (tmp_path / "model").iterdir()}
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json"} <= names
    (check,) = rows.micro_batches(0, 0)
    had, has = mean_ce(runtime, [check]), reloaded_loss(tmp_path / "model", MODEL, torch.float32, [check])
    check_export("model", had, has, is_exact=False)


def test_a_merged_model_is_a_model_by_itself_and_answers_as_the_adapter_does(
    base: PreTrainedModel, rows: Batches, tmp_path: Path
) -> None:
    runtime, weights = trained(base, Lora(rank=4), rows)
    save_adapter(runtime.module, weights, tmp_path / "adapter")
    save_merged(MODEL, tmp_path / "adapter", tmp_path / "merged")
    names = {file.name for file in (tmp_path / "merged").iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "generation_config.json",
    } <= names
    assert not any("adapter" in name for name in names)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    (check,) = rows.micro_batches(0, 0)
    had, has = mean_ce(runtime, [check]), reloaded_loss(tmp_path / "merged", MODEL, torch.float32, [check])
    check_export("merged", had, has, is_exact=False)
    assert has < 0.9 * reloaded_loss(pocket.MODEL_DIR, MODEL, torch.float32, [check])


def test_an_adapter_with_a_weight_that_is_not_finite_is_not_merged(
    base: PreTrainedModel, rows: Batches, tmp_path: Path
) -> None:
    runtime, weights = trained(base, Lora(rank=4), rows)
    name = next(name for name in weights if "lora_B" in name)
    weights[name].view(-1)[0] = float("nan")
    save_adapter(runtime.module, weights, tmp_path / "adapter")
    with pytest.raises(EngineError, match="merged"):
        save_merged(MODEL, tmp_path / "adapter", tmp_path / "merged")


def test_a_large_model_is_saved_in_pieces_with_their_index(
    base: PreTrainedModel, rows: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "SHARD_SIZE", "2MB")
    runtime, weights = trained(base, FullWeights(), rows)
    save_model(MODEL, weights, tmp_path / "model")
    pieces = sorted(tmp_path.glob("model/model-*.safetensors"))
    assert len(pieces) > 1 and (tmp_path / "model" / "model.safetensors.index.json").is_file()
    (check,) = rows.micro_batches(0, 0)
    had, has = mean_ce(runtime, [check]), reloaded_loss(tmp_path / "model", MODEL, torch.float32, [check])
    check_export("model", had, has, is_exact=False)


def variant(
    folder: Path,
    dtype: torch.dtype | None = None,
    shard: str = "50GB",
    tied: bool = True,
    **values: dict[str, object],
) -> str:
    """The pocket model as another publisher might have saved it; `values` are of files, by their stem."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype or "auto")
    shutil.copytree(MODEL, folder)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 1.5)
    if dtype or shard or not tied:
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size=shard)
    for name, content in values.items():
        file = folder / f"{name}.json"
        file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | content))
    return str(folder)


# Llama-2-chat's; a model config that holds what belongs into the other file; and both in other floats.
LLAMA2 = {"temperature": 0.6, "top_p": 0.9, "_from_model_config": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "generation config that can't be saved": {"generation_config": LLAMA2},
    "config that can't be saved": {"config": {"temperature": 0.7}},
    "float16": {"dtype": torch.float16},
    "float32": {"dtype": torch.float32},
    "shards": {"shard": "1MB"},
    "untied": {"tied": False},
    "older tokenizer files": {"special_tokens_map": {"pad_token": "<pad>"}, "added_tokens": {}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_any_base_is_exported_as_it_was_saved_itself(name: str, tmp_path: Path) -> None:
    model = variant(tmp_path / "base", **VARIANTS[name])
    (tmp_path / "base" / "additional_chat_templates").mkdir()
    (tmp_path / "base" / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    (tmp_path / "base" / "LICENSE").write_text("free")
    rehearse(model, tmp_path / "rehearsed")
    before = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    weights = {key: value.detach() + 0.25 for key, value in before.named_parameters()}
    out = tmp_path / "out"
    save_model(model, dict(weights), out)
    after = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert after.dtype == before.dtype
    parameters = dict(after.named_parameters())
    assert parameters.keys() == weights.keys()
    assert all(torch.equal(parameters[key], value) for key, value in weights.items())
    for file in (tmp_path / "base").glob("*.j*"):
        if "safetensors" not in file.name and file.name not in ("check.json", "fingerprint.json"):
            assert (out / file.name).read_text() == file.read_text(), file.name
    assert (out / "additional_chat_templates" / "tools.jinja").exists() and (out / "LICENSE").exists()
    assert not (out / "README.md").exists()  # it speaks of the base


def test_a_model_whose_copy_would_not_load_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    model = variant(tmp_path / "base", config={"hidden_size": "many"})
    with pytest.raises(ModelError, match="can't be exported"):
        rehearse(model, tmp_path / "rehearsed")


def test_weights_that_the_bases_floats_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = variant(tmp_path / "base", dtype=torch.float16)
    weights = {
        name: value * 1e6
        for name, value in AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).named_parameters()
    }
    with pytest.raises(EngineError, match=r"does not fit into the base's torch\.float16"):
        save_model(model, weights, tmp_path / "out")


def test_an_adapter_that_changes_nothing_is_refused(base: PreTrainedModel, tmp_path: Path) -> None:
    module = prepare(copy.deepcopy(base), Lora(rank=4), seed=0, gradient_checkpointing="none")
    weights = {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}
    with pytest.raises(EngineError, match="empty"):
        save_adapter(module, weights, tmp_path / "adapter")


def test_a_model_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="lacks weights"):
        save_model(MODEL, {}, tmp_path / "model")


@pytest.mark.parametrize(("reloaded", "is_exact"), [(2.01, True), (2.2, False), (float("nan"), False)])
def test_an_export_of_another_loss_is_refused(reloaded: float, is_exact: bool) -> None:
    with pytest.raises(EngineError, match="not the trained model"):
        check_export("joint", 2.0, reloaded, is_exact)


def test_rounding_is_borne() -> None:
    check_export("joint", 2.0, 2.0001, is_exact=True)
    check_export("joint", 2.0, 2.04, is_exact=False)
