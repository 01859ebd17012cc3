"""What is exported is what was trained."""

import copy
import json

import pytest
import torch

from unlearn_ray import pocket
from unlearn_ray.config import FinetuneConfig, FullWeights, Lora
from unlearn_ray.errors import EngineError
from unlearn_ray.train.batches import Batches
from unlearn_ray.train.export import check_export, reloaded_loss, save_adapter, save_model
from unlearn_ray.train.loop import mean_ce, train
from unlearn_ray.train.models import load_base, prepare
from unlearn_ray.train.plain import PlainRuntime

CPU = torch.device("cpu")
MODEL = str(pocket.MODEL_DIR)


@pytest.fixture(scope="module")
def base():
    torch.set_num_threads(1)
    return load_base(MODEL, torch.float32, CPU)


@pytest.fixture(scope="module")
def rows(forget, retain):
    return Batches(forget, retain, forget_batch=4, retain_batch=2, micro_batch=80, world_size=1, seed=0, pad_id=5)


def trained(base, weights, rows):
    """The runtime after three steps, and its learnt weights."""
    settings = FinetuneConfig(weights=weights, num_steps=3, learning_rate=5e-3, warmup_steps=1)
    runtime = PlainRuntime(prepare(copy.deepcopy(base), weights, seed=0, gradient_checkpointing=False), settings, CPU)
    train(runtime, rows, settings, seed=0, on_step=lambda record: None)
    runtime.module.eval()
    named = runtime.module.named_parameters()
    return runtime, {name: value.detach().clone() for name, value in named if value.requires_grad}


def test_an_adapter_loads_again_with_the_loss_it_had(base, rows, tmp_path):
    runtime, weights = trained(base, Lora(rank=4), rows)
    save_adapter(runtime.module, weights, tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["r"]) == (MODEL, 4)
    (check,) = rows.micro_batches(0, 0)
    had, has = mean_ce(runtime, check), reloaded_loss(tmp_path / "adapter", MODEL, torch.float32, check)
    assert has == pytest.approx(had, rel=1e-4)
    assert has < 0.9 * reloaded_loss(pocket.MODEL_DIR, MODEL, torch.float32, check)


def test_a_model_loads_again_in_its_own_precision_with_all_that_a_chat_needs(base, rows, tokenizer, tmp_path):
    runtime, weights = trained(base, FullWeights(), rows)
    save_model(MODEL, tokenizer, weights, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    names = {file.name for file in (tmp_path / "model").iterdir()}
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json"} <= names
    (check,) = rows.micro_batches(0, 0)
    had, has = mean_ce(runtime, check), reloaded_loss(tmp_path / "model", MODEL, torch.float32, check)
    check_export("model", had, has, is_exact=False)


def test_an_adapter_that_changes_nothing_is_refused(base, tmp_path):
    module = prepare(copy.deepcopy(base), Lora(rank=4), seed=0, gradient_checkpointing=False)
    weights = {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}
    with pytest.raises(EngineError, match="empty"):
        save_adapter(module, weights, tmp_path / "adapter")


def test_a_model_that_lacks_weights_is_refused(tokenizer, tmp_path):
    with pytest.raises(EngineError, match="lacks weights"):
        save_model(MODEL, tokenizer, {}, tmp_path / "model")


@pytest.mark.parametrize(("reloaded", "is_exact"), [(2.01, True), (2.2, False), (float("nan"), False)])
def test_an_export_of_another_loss_is_refused(reloaded, is_exact):
    with pytest.raises(EngineError, match="not the trained model"):
        check_export("joint", 2.0, reloaded, is_exact)


def test_rounding_is_borne():
    check_export("joint", 2.0, 2.0001, is_exact=True)
    check_export("joint", 2.0, 2.04, is_exact=False)
