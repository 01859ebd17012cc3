"""A model's sizes without its weights."""

import json
from pathlib import Path

import pytest

from unlearn_ray import pocket
from unlearn_ray.errors import ModelError
from unlearn_ray.sizing.shapes import KNOWN, known_shape, shape_of

# As the models' own cards, or the index of their weights' files, have it.
PUBLISHED = {
    "llama-3-8b": 8_030_261_248, "llama-3.1-70b": 70_553_706_496, "llama-3.2-1b": 1_235_814_400, "llama-3.2-3b": 3_212_749_824,
    "qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304, "qwen2.5-3b": 3_085_938_688, "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664, "qwen2.5-32b": 32_763_876_352, "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920, "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096, "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200, "qwen3-32b": 32_762_123_264, "gemma-2b": 2_506_172_416, "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888, "gemma-2-9b": 9_241_705_984, "gemma-2-27b": 27_227_128_320, "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952, "mistral-7b": 7_241_732_096, "mistral-7b-v0.3": 7_248_023_552, "ministral-8b": 8_019_808_256,
    "mistral-nemo": 12_247_782_400, "mistral-small-24b": 23_572_403_200, "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120, "smollm2-1.7b": 1_711_376_384,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_known_model_has_as_many_parameters_as_its_publisher_says(name: str) -> None:
    assert KNOWN[name].parameters == PUBLISHED[name]


def test_every_known_model_is_held_to_a_published_number() -> None:
    same = {"llama-3-70b": "llama-3.1-70b", "llama-3.1-8b": "llama-3-8b", "llama-3.3-70b": "llama-3.1-70b"}
    assert set(KNOWN) - set(PUBLISHED) == set(same)
    for name, twin in same.items():
        assert KNOWN[name] == KNOWN[twin]


@pytest.mark.parametrize(
    ("model", "known"),
    {
        "meta-llama/Meta-Llama-3-8B-Instruct": "llama-3-8b",
        "unsloth/Llama-3.2-1B-Instruct": "llama-3.2-1b",
        "meta-llama/Llama-3.3-70B-Instruct": "llama-3.3-70b",
        "Qwen/Qwen3-4B-Instruct-2507": "qwen3-4b",
        "Qwen/Qwen3-8B": "qwen3-8b",
        "google/gemma-2-9b-it": "gemma-2-9b",
        "google/gemma-3-1b-it": "gemma-3-1b",
        "mistralai/Mistral-7B-Instruct-v0.2": "mistral-7b",
        "mistralai/Mistral-7B-Instruct-v0.3": "mistral-7b-v0.3",
        "mistralai/Mistral-Nemo-Instruct-2407": "mistral-nemo",
        "HuggingFaceTB/SmolLM2-135M-Instruct": "smollm2-135m",
    }.items(),
)
def test_a_known_model_is_found_by_the_names_that_it_is_published_under(model: str, known: str) -> None:
    found = known_shape(model)
    assert found is not None and found.name == model
    assert found.parameters == KNOWN[known].parameters


@pytest.mark.parametrize("model", ["somebody/else-8b", "Qwen/Qwen2.5-VL-7B-Instruct", "./Qwen3-8B", "/models/Qwen3-8B"])
def test_another_model_is_not_taken_for_a_known_one(model: str) -> None:
    assert known_shape(model) is None


def test_a_folder_needs_its_config_and_no_weights(tmp_path: Path) -> None:
    config = json.loads((pocket.MODEL_DIR / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 12}))
    small, large = shape_of(str(pocket.MODEL_DIR)), shape_of(str(tmp_path))
    assert (small.layers, large.layers, large.source) == (6, 12, "files")
    assert large.parameters > small.parameters


def test_the_pocket_models_parameters_are_those_of_its_weights() -> None:
    from safetensors import safe_open

    with safe_open(pocket.MODEL_DIR / "model.safetensors", "pt") as file:
        sizes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118, no mapping
    assert shape_of(str(pocket.MODEL_DIR)).parameters == sum(one[0] * (one[1] if len(one) > 1 else 1) for one in sizes)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("qwen2", {}), ("qwen3", {"head_dim": 16}), ("mistral", {}), ("gemma2", {"head_dim": 16}),
        ("llama", {"attention_bias": False, "tie_word_embeddings": True}), ("phi3", {"pad_token_id": 0}), ("gpt_neox", {}),
    ],
)  # fmt: skip
def test_sizes_are_those_of_the_model_that_transformers_makes(
    tmp_path: Path, kind: str, more: dict[str, object]
) -> None:
    """Of families that are counted by formula, and of two that are not."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 160, "vocab_size": 300}
    config = AutoConfig.for_model(kind, **sizes, **more)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
    assert shape_of(str(tmp_path)).parameters == sum(parameter.numel() for parameter in made.parameters())


@pytest.mark.parametrize("text", ["{", "[1]", '{"model_type": "llama"}', '{"model_type": "no_such_model"}'])
def test_a_config_that_tells_no_sizes_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError) as refused:
        shape_of(str(tmp_path))
    assert "config.json" in str(refused.value) and "\n" not in str(refused.value)


def test_a_folder_without_a_config_and_an_unknown_name_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for model in (str(tmp_path), "somebody/unknown", str(tmp_path / "not-there")):
        with pytest.raises(ModelError) as refused:
            shape_of(model)
        assert "\n" not in str(refused.value)


def test_an_adapters_factors_are_counted_by_their_targets() -> None:
    shape = KNOWN["llama-3-8b"]
    assert shape.lora_parameters(64) == 167_772_160  # as PEFT's print_trainable_parameters says
    assert shape.lora_parameters(8, ("q_proj", "v_proj")) == 3_407_872
