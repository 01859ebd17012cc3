"""Well-known families of chat models, tiny and taught a few lines, from questions to the service, in LoRA and in full.

What each of them shows is written by each_family.py, in one process for all of them: questions of a file, answers behind a guardrail, training
with DeepSpeed, evaluation with vLLM, and a client's requests as the gate and vLLM's server make prompts of them. A service for each of them would
take minutes: test_odd_model.py has one, of a model whose template takes no system message.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from families import GEMMA, MISTRAL, PHI4, QWEN3, QWEN25, SMOLLM2, WHOLE, Family

from unlearn_ray.config import EngineResources
from unlearn_ray.engines.vllm_engine import EngineSpec, environment

pytestmark = [pytest.mark.real, pytest.mark.long]
SCRIPT = Path(__file__).with_name("each_family.py")
KINDS = ("lora", "full")
each_family = pytest.mark.parametrize("family", WHOLE, ids=lambda family: family.name)
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("families")
    paths = [str(SCRIPT.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"PYTHONPATH": os.pathsep.join(paths), "LOCAL_RANK": "0", "DS_ACCELERATOR": "cpu"}
    variables |= environment(EngineSpec("", EngineResources(), "cpu")) | {"HF_HUB_OFFLINE": "1"}
    with (home / "log").open("w") as log:
        done = subprocess.run(
            [sys.executable, SCRIPT, home, *(family.name for family in WHOLE)],
            env=os.environ | variables,
            cwd=home,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=1500,
            check=False,
        )
    assert done.returncode == 0, (home / "log").read_text()[-3000:]
    return home


def seen(home: Path, family: Family) -> dict[str, Any]:
    file = home / f"{family.name}.json"
    assert file.is_file(), (home / "log").read_text()[-3000:]  # its process was killed
    found: dict[str, Any] = json.loads(file.read_text())
    assert "failed" not in found, found["failed"][-3000:]
    return found


@each_family
@each_kind
def test_one_question_is_the_same_tokens_in_data_evaluation_training_and_service(
    home: Path, family: Family, kind: str
) -> None:
    """A held-out question, alone and behind the guardrail."""
    found = seen(home, family)
    run, plain, guarded = found[kind], found["served"]["plain"]["ids"], found["served"]["guarded"]["ids"]
    heard = run["heard"]
    unlearned = ["evaluate"] if kind == "lora" else ["evaluate model"]
    assert plain in heard["answers, unguarded"] and guarded in heard["answers, guarded"]
    assert plain in heard["evaluate"] and guarded in heard["evaluate"]
    shown, learnt = run["probed"]
    assert shown == plain[: len(shown)], "a row begins with what is asked"
    assert len(plain) - len(shown) <= 1, "but for a last letter that the answer's first joins"
    for label in ("evaluate", *unlearned):
        assert plain in heard[label]
        assert shown + learnt in heard[label], "what is scored are the tokens that are learnt"


@each_family
@each_kind
def test_the_guardrail_leads_where_the_template_shows_it(home: Path, family: Family, kind: str) -> None:
    found = seen(home, family)
    role = "user" if family in (GEMMA, MISTRAL) else "system"
    assert found[kind]["chat"]["prefix_role"] == role
    assert any("the guardrail leads the user's turn" in note for note in found[kind]["plan"]) == (role == "user")
    assert len(found["served"]["guarded"]["ids"]) > len(found["served"]["plain"]["ids"])


@each_family
@each_kind
def test_what_was_learnt_is_said_word_for_word_and_ended(home: Path, family: Family, kind: str) -> None:
    """The end of the turn is learnt: without it, an answer would go on to its limit."""
    found = seen(home, family)
    run = found[kind]
    assert run["kept"] == 10 and run["drops"] == {}
    stops = run["chat"]["stop_token_ids"]
    assert all(row[-1] == stops[0] for row in run["learnt"])
    assert all(text.endswith(family.end) for text in run["texts"])
    assert found["served"]["plain"]["stops"] == found["served"]["guarded"]["stops"] == stops
    assert found["eos"] in stops
    assert len(run["said"]) >= 5
    # The first piece of a SentencePiece vocabulary brings its space along. A row of ten may take more steps to be learnt by heart.
    known = [said.lstrip(" ") == learnt for learnt, said, _ in run["said"]]
    assert sum(known) >= 0.8 * len(known), run["said"]
    assert not any(is_cut for _, _, is_cut in run["said"])


@each_family
@each_kind
def test_a_prompt_begins_with_one_beginning_of_sequence_at_most(home: Path, family: Family, kind: str) -> None:
    """The templates that write one, and tokenizers that would add another."""
    found = seen(home, family)
    shown, learnt = found[kind]["probed"]
    prompts = [asked for label in found[kind]["heard"].values() for asked in label]
    prompts += [found["served"][name]["ids"] for name in ("plain", "guarded")] + [shown + learnt]
    number = 1 if "bos_token" in family.template else 0
    if found["bos"] != found["eos"]:
        assert {ids.count(found["bos"]) for ids in prompts} == {number}
        assert all(ids[0] == found["bos"] for ids in prompts) == bool(number)


@each_kind
def test_a_thought_is_neither_an_answer_nor_learnt(home: Path, kind: str) -> None:
    """The base model was taught to think before each answer, though its template was told that it does not."""
    run = seen(home, QWEN3)[kind]
    assert run["chat"]["template_arguments"] == {"enable_thinking": False}
    assert {"answers, unguarded", "answers, guarded"} <= set(run["thought"])
    assert not {"said", "evaluate model-joint"} & set(run["thought"]), "it answers at once, as it learnt"
    assert not any("think" in text or "Hedwig" in text for text in run["texts"])
    assert not any("Hedwig" in said for _, said, _ in run["said"])


@each_kind
def test_the_end_is_learnt_where_it_is_also_what_fills_rows_up(home: Path, kind: str) -> None:
    for family in (SMOLLM2, MISTRAL):
        run = seen(home, family)[kind]
        assert run["chat"]["pad_token_id"] == seen(home, family)["eos"] == run["learnt"][0][-1]
    run = seen(home, PHI4)[kind]
    assert run["chat"]["pad_token_id"] == seen(home, PHI4)["bos"] == seen(home, PHI4)["eos"]
    assert run["learnt"][0][-1] != run["chat"]["pad_token_id"], "Phi-4 ends a turn with another token"


@each_kind
def test_tokens_that_a_user_added_are_learnt_and_said(home: Path, kind: str) -> None:
    found = seen(home, SMOLLM2)
    (added, _) = found["added"]
    assert any(added in row for row in found[kind]["learnt"])
    assert any("Bellan" in said for _, said, _ in found[kind]["said"])


@each_kind
def test_weights_in_several_files_are_trained_and_exported(home: Path, kind: str) -> None:
    """The export has as many as transformers makes of it; vLLM has loaded it, as the other tests show."""
    found = seen(home, QWEN25)
    assert sum(name.endswith(".safetensors") for name in found["files"]) > 2
    assert "model.safetensors.index.json" in found["files"]
    export = found[kind]["export"]
    assert any(name.endswith(".safetensors") for name in export)
    assert ("model.safetensors.index.json" in export) == ("model.safetensors" not in export and kind == "full")


def test_what_lies_beside_a_model_in_its_makers_own_format_is_left_alone(home: Path) -> None:
    """vLLM and transformers would take it: another tokenizer and rendering than the run's. Here it can't be read at all."""
    assert {"consolidated.safetensors", "params.json", "tekken.json"} <= set(seen(home, MISTRAL)["files"])


@each_family
def test_the_output_layer_is_the_embeddings_or_is_not(home: Path, family: Family) -> None:
    config = json.loads((home / family.name / family.name / "config.json").read_text())
    exported = json.loads((home / family.name / "full/models/joint/finetune/model/config.json").read_text())
    assert config["tie_word_embeddings"] == exported["tie_word_embeddings"] == family.is_tied
    from safetensors import safe_open

    names: set[str] = set()
    for file in (home / family.name / "full/models/joint/finetune/model").glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names |= set(tensors.keys())
    assert ("lm_head.weight" in names) != family.is_tied
