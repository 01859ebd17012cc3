"""Every shipped run loads, and the cluster's differ from the laptop's in values only."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from unlearn_ray import config

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
ALL = sorted(CONFIGS.glob("*.yaml"))
# The pocket's files recommend no sampling; probes of their own are left out where a file brings them and a model would make some.
OPTIONAL = ("temperature", "top_p", "num_forget", "num_near", "num_far")


def keys_of(values: Any, prefix: str = "") -> set[str]:
    """Dotted keys; what a topic or a kind of weights holds is a value."""
    if not isinstance(values, dict) or prefix in {"topics.", "finetune.weights."}:
        return {prefix.rstrip(".")}
    return {key for name, value in values.items() for key in keys_of(value, f"{prefix}{name}.")}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_shipped_run_loads_under_its_files_name(path: Path) -> None:
    assert config.load(path).name == path.stem


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_shipped_run_differs_from_the_pockets_in_values_only(path: Path) -> None:
    pocket = yaml.safe_load((CONFIGS / "pocket.yaml").read_text())
    differing = keys_of(yaml.safe_load(path.read_text())) ^ keys_of(pocket)
    assert {key for key in differing if not key.endswith(OPTIONAL)} == set()


def test_the_cluster_runs_name_the_three_topics() -> None:
    for name in ("llama3-8b-lora", "llama3-8b-full"):
        loaded = config.load(CONFIGS / f"{name}.yaml")
        assert loaded.model == "meta-llama/Meta-Llama-3-8B-Instruct"
        assert loaded.topic_names == ("Harry Potter", "Les Miserables", "chewing gum")


def test_the_runs_on_a_real_model_differ_in_topics_and_steps_alone() -> None:
    one, three = (config.load(CONFIGS / f"{name}.yaml") for name in ("smollm2", "smollm2-three-topics"))
    assert one.topic_names == ("Harry Potter",)
    assert three.topic_names == ("Harry Potter", "Les Miserables", "chewing gum")
    steps = {"num_steps": one.finetune.num_steps}
    same = {"name": one.name, "topics": one.topics, "finetune": three.finetune.model_copy(update=steps)}
    assert three.model_copy(update=same) == one


def test_both_kinds_of_weights_are_an_override_away() -> None:
    loaded = config.load(CONFIGS / "pocket.yaml", ["finetune.weights={kind: full}"])
    assert loaded.finetune.weights.kind == "full"
