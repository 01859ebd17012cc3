"""What a model's files tell at once, held to what transformers finds after eight seconds."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from unlearn_ray import pocket
from unlearn_ray.config import AnswersConfig, Topic
from unlearn_ray.synth.guardrails import guardrail_prefixes
from unlearn_ray.train.glance import glance, max_length_of

CONFIG = Path(__file__).parents[2] / "jobs" / "configs" / "pocket.yaml"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for file in pocket.MODEL_DIR.iterdir():
        if file.suffix in {".json", ".jinja"}:
            shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


def edited(folder: Path, name: str, **values: Any) -> None:
    (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))


@pytest.mark.parametrize("style", ["fictional", "refusal"])
def test_it_counts_and_holds_as_transformers_says(tokenizer: PreTrainedTokenizerBase, style: str) -> None:
    found = glance(str(pocket.MODEL_DIR))
    assert found is not None and found.max_length == tokenizer.model_max_length
    answers = AnswersConfig.model_validate({"guardrail": style})
    (prefix,) = guardrail_prefixes(answers, [Topic(name="Les Misérables", kind="fiction")]).values()
    for text in (prefix, "", "é" * 9, "Who?"):
        assert found.count_tokens(text) == len(tokenizer(text).input_ids)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 8192}, 8192),
        ({"max_position_embeddings": 262144}, 131072),
        ({"max_position_embeddings": 8192, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 8192),
        ({"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 131072),
        ({"max_position_embeddings": 8192, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 8192),
        ({}, 131072),
    ],
)
def test_a_tokenizer_may_promise_more_than_the_model_holds(config: dict[str, Any], expected: int) -> None:
    assert max_length_of(config, 131072) == expected


def test_a_template_may_stand_in_the_tokenizers_config(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    assert glance(str(folder)) is None
    edited(folder, "tokenizer_config.json", chat_template=template)
    assert glance(str(folder)) is not None


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: edited(folder, "config.json", architectures=["BertForMaskedLM"]),
        lambda folder: edited(folder, "config.json", architectures=None),
        lambda folder: edited(folder, "config.json", auto_map={"AutoModel": "its.own.Code"}),
        lambda folder: edited(folder, "tokenizer_config.json", eos_token=None),
        lambda folder: edited(folder, "tokenizer_config.json", model_max_length="long"),
    ],
)
def test_what_is_out_of_the_ordinary_is_left_to_transformers(folder: Path, damage: Callable[[Path], None]) -> None:
    assert glance(str(folder)) is not None
    damage(folder)
    assert glance(str(folder)) is None


def test_a_name_on_the_hub_is_read_from_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert glance("somebody/never-downloaded") is None
    monkeypatch.setattr("unlearn_ray.train.glance.try_to_load_from_cache", lambda repo, name: str(folder / name))
    assert glance("somebody/downloaded") is not None


def test_a_plan_is_made_without_torch() -> None:
    script = (
        "import sys; from unlearn_ray import config, plan\n"
        f"loaded = config.load({str(CONFIG)!r}, [])\n"
        "plan.plan(loaded, plan.STAGES)\n"
        "print(sorted({'torch', 'transformers', 'ray', 'vllm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "[]"
