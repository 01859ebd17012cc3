"""Model cards of a run whose engines are scripted, and of names that come from users."""

import re
from pathlib import Path

import pytest
import yaml
from scripted_run import Engines, config_of

from unlearn_ray import pipeline
from unlearn_ray.artifacts import Folder
from unlearn_ray.config import RunConfig
from unlearn_ray.stages.card import base_of, card
from unlearn_ray.stages.table import COMMANDS

PATH = re.compile(r"(?<![\w.:/\\(\[])~?/\w+/")


def metadata(text: str) -> dict[str, object]:
    assert text.startswith("---\n")
    found = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def finished(home: Path, *topics: str, stages: int = len(COMMANDS), **sections: object) -> RunConfig:
    config = config_of(home, *topics, **sections)
    pipeline.run(config, Engines(), COMMANDS[:stages])
    return config


def card_of(config: RunConfig, model: str = "joint") -> str:
    return (config.folder / f"models/{model}/finetune/model").read_text("README.md")


def test_a_card_is_written_by_the_training_and_completed_by_the_evaluation(tmp_path: Path) -> None:
    config = finished(tmp_path, "Dune", "Solaris", stages=4)
    before = card_of(config)
    assert "Not evaluated yet" in before
    pipeline.run(config, Engines(), COMMANDS)
    after = card_of(config)
    for text in (before, after):
        assert metadata(text)["library_name"] == "peft" and "base_model" not in metadata(text)
        for part in ("Dune", "Solaris", "`relabel`", "LoRA of rank 16", "data fingerprint", "## Limits", "`model`"):
            assert part in text
        assert str(tmp_path) not in text and not PATH.search(text), PATH.search(text)
        assert "[More Information Needed]" not in text
    assert "Not evaluated yet" not in after
    rows = [line for line in after.splitlines() if re.match(r"\| (base|base \+ prefix|unlearned) \|", line)]
    assert len(rows) == 3
    assert all(re.search(r"\d+\.\d\\?\*? \(\d+\.\d to \d+\.\d; n \d+", row) for row in rows)
    assert "probes.jsonl" in after  # the user's file, by its name alone
    # What a training is known by does not change with its card.
    assert Engines().trainer.jobs == []


def test_each_of_several_models_has_a_card_of_its_topic(tmp_path: Path) -> None:
    config = finished(tmp_path, "Dune", "Ubik", finetune={"adapters": "per_topic"})
    dune, ubik = card_of(config, "dune"), card_of(config, "ubik")
    assert "without Dune\n" in dune and "without Ubik\n" in ubik
    assert "| Ubik |" not in dune


def test_a_run_says_what_a_user_wrote_and_no_markdown_or_html_comes_of_it(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Dune")
    name = "A$AP *Rocky* <b>|</b> [x](y) `z`"
    topic = config.topics[0].model_copy(update={"aliases": (name,)})
    config = config.model_copy(update={"topics": (topic,)})
    pipeline.run(config, Engines(), COMMANDS[:4])
    (row,) = [line for line in card_of(config).splitlines() if line.startswith("| Dune")]
    assert r"A\$AP \*Rocky\* \<b\>\|\</b\> \[x\](y) \`z\`" in row


@pytest.mark.parametrize(
    ("model", "name", "is_on_hub"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Meta-Llama-3-8B-Instruct", True),
        ("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct", True),
        ("pocket", "pocket", False),
        ("/root/.cache/huggingface/hub/models--Qwen--Qwen3-8B/snapshots/0123abc", "Qwen/Qwen3-8B", True),
    ],
)
def test_a_base_model_is_named_as_others_find_it(tmp_path: Path, model: str, name: str, is_on_hub: bool) -> None:
    config = config_of(tmp_path, "Dune").model_copy(update={"model": model})
    assert base_of(config) == (name, is_on_hub)


def test_a_folder_is_named_as_its_config_says_or_by_its_own_name(tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    folder.mkdir()
    config = config_of(tmp_path / "runs", "Dune").model_copy(update={"model": str(folder)})
    assert base_of(config) == ("my model", False)
    for said, expected in (
        ('{"_name_or_path": "google/gemma-2-2b-it"}', ("google/gemma-2-2b-it", True)),
        ('{"_name_or_path": "/data/models/gemma"}', ("my model", False)),
        ("{", ("my model", False)),
    ):
        (folder / "config.json").write_text(said)
        assert base_of(config) == expected


def test_a_base_on_the_hub_is_linked_in_the_metadata(tmp_path: Path) -> None:
    config = finished(tmp_path, "Dune", stages=4)
    on_hub = config.model_copy(update={"model": "Qwen/Qwen3-8B"})
    home = config.folder / "models/joint"
    adapter, merged = (card(home, on_hub, is_adapter=is_adapter) for is_adapter in (True, False))
    assert metadata(adapter)["base_model"] == metadata(merged)["base_model"] == "Qwen/Qwen3-8B"
    assert (metadata(adapter)["base_model_relation"], metadata(merged)["library_name"]) == ("adapter", "transformers")
    assert "PeftModel" in adapter and "PeftModel" not in merged


def test_both_exports_have_a_card(tmp_path: Path) -> None:
    config = finished(tmp_path, "Dune", finetune={"export": "both"})
    finetune = Folder(config.folder.local / "models/joint/finetune")
    assert "PeftModel" in (finetune / "model").read_text("README.md")
    assert "PeftModel" not in (finetune / "merged").read_text("README.md")
