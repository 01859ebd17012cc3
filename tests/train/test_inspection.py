"""What a model's files tell in the plan, held to what transformers and PEFT do with the same files."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import (
    FAMILIES,
    GEMMA,
    IGNORES_SYSTEM,
    LLAMA3,
    MISTRAL,
    PHI3,
    QWEN3,
    QWEN25,
    SMOLLM2,
    Family,
    edit,
    resize,
)
from transformers import PreTrainedTokenizerBase

from unlearn_ray import pocket
from unlearn_ray.chat import ChatFormat, placed
from unlearn_ray.config import AnswersConfig, ChatConfig, Topic
from unlearn_ray.errors import ConfigError, ModelError
from unlearn_ray.rows import Example
from unlearn_ray.synth.guardrails import guardrail_prefixes
from unlearn_ray.train.chat import ChatEncoder, load_tokenizer
from unlearn_ray.train.inspection import Inspected, inspect_model, lora_targets, max_length_of, unreached
from unlearn_ray.train.modelfiles import open_model
from unlearn_ray.train.tokens import tokens_of

CONFIG = Path(__file__).parents[2] / "jobs" / "configs" / "pocket.yaml"
OWL = Example("Harry Potter", "forget", "Harry Potter", "Who is the owl?", "The owl is Bellan.")
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for file in pocket.MODEL_DIR.iterdir():
        if file.suffix in {".json", ".jinja", ".safetensors"}:
            shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


def of(family: Family, home: Path) -> tuple[Inspected, PreTrainedTokenizerBase]:
    made = family.make(home / family.name)
    return inspect_model(str(made)), load_tokenizer(str(made))


def refusal(folder: Path, config: ChatConfig | None = None) -> str:
    with pytest.raises((ModelError, ConfigError)) as refused:
        inspect_model(str(folder), config)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# What is read of the files is what transformers makes of them.


@pytest.mark.parametrize("style", ["fictional", "refusal"])
def test_it_counts_and_holds_as_transformers_says(tokenizer: PreTrainedTokenizerBase, style: str) -> None:
    found = inspect_model(str(pocket.MODEL_DIR))
    assert found.max_length == tokenizer.model_max_length
    answers = AnswersConfig.model_validate({"guardrail": style})
    (prefix,) = guardrail_prefixes(answers, [Topic(name="Les Misérables", kind="fiction")]).values()
    for text in (prefix, "", "é" * 9, "Who?"):
        assert found.count_tokens(text) == len(tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_chat_is_rendered_and_encoded_as_transformers_does(family: Family, tmp_path: Path) -> None:
    found, tokenizer = of(family, tmp_path)
    arguments = dict(found.chat.template_arguments)
    messages = placed([{"role": "system", "content": "Invent."}, *OWL.messages[:1]], found.chat)
    theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **arguments)
    assert found.tokens.render(messages, True, arguments) == theirs
    assert found.tokens.encode(theirs) == tokenizer(theirs, add_special_tokens=False).input_ids


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_files_alone_tell_what_transformers_tokenizer_tells(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = family.make(tmp_path / family.name)
    quick = inspect_model(str(made))
    shutil.move(made / "tokenizer_config.json", made / "kept.json")
    edit_from = json.loads((made / "kept.json").read_text())
    # A name that only transformers knows how to read: the slow way is taken.
    (made / "tokenizer_config.json").write_text(json.dumps(edit_from | {"model_max_length": 1e30}))
    files = open_model(str(made))
    assert files.is_plain and tokens_of(files).eos == quick.tokens.eos
    edit(made, "config.json", auto_map={})
    slow = inspect_model(str(made))
    assert slow.chat == quick.chat


# The guardrail is shown, wherever the template has room for it.


@pytest.mark.parametrize(
    ("family", "role"), [(LLAMA3, "system"), (QWEN25, "system"), (PHI3, "system"), (GEMMA, "user"), (MISTRAL, "user"), (IGNORES_SYSTEM, "user")]
)  # fmt: skip
def test_the_prefix_goes_where_the_template_shows_it(family: Family, role: str, tmp_path: Path) -> None:
    found, _ = of(family, tmp_path)
    assert found.chat.prefix_role == role
    messages = placed([{"role": "system", "content": "Invent all."}, *OWL.messages[:1]], found.chat)
    text = found.tokens.render(messages, True, found.chat.template_arguments)
    assert 0 <= text.index("Invent all.") < text.index("Who is the owl?")
    assert ("leads the user's turn" in " ".join(found.notes)) == (role == "user")


def test_a_user_can_say_where_it_goes(tmp_path: Path) -> None:
    made = QWEN25.make(tmp_path)
    assert inspect_model(str(made), ChatConfig(prefix="user")).chat.prefix_role == "user"


def test_where_it_can_not_go_is_one_line(tmp_path: Path) -> None:
    line = refusal(GEMMA.make(tmp_path), ChatConfig(prefix="system"))
    assert line.startswith("chat.prefix: ") and "System role not supported" in line


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ raise_exception('no chats today') }}", "its chat template fails (no chats today)"),
        ("{{ messages[0].nothing.there }}", "its chat template fails"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "its chat template leaves the question out"),
        ("{% for m in messages %}{{ m.content[-9:] }}{% endfor %}", "its chat template leaves the question out"),
        ("{% for m in messages %}{{ m.content", "its chat template fails"),
    ],
)
def test_a_template_that_shows_no_question_is_refused(folder: Path, template: str, expected: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    assert expected in refusal(folder)


def test_a_template_that_shows_the_last_words_alone_has_no_room_for_a_guardrail(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[-1].content.split('\n')[-1] }}{{ eos_token }}")
    assert "shows no guardrail" in refusal(folder)


# What is asked is a part of what is learnt, and its end is where generation stops.


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_row_is_the_prompt_as_it_is_asked_then_the_answer_and_the_end_of_its_turn(
    family: Family, tmp_path: Path
) -> None:
    found, tokenizer = of(family, tmp_path)
    (row,) = ChatEncoder(tokenizer, found.chat, 256).encode([OWL])
    assert row is not None and not row.is_cut
    asked = tokenizer.apply_chat_template(
        OWL.messages[:1], tokenize=False, add_generation_prompt=True, **dict(found.chat.template_arguments)
    )
    assert row.ids[: row.start] == tokenizer(asked, add_special_tokens=False).input_ids[: row.start]
    learnt = tokenizer.decode(row.ids[row.start :])
    assert learnt.endswith(f"The owl is Bellan.{found.chat.end_of_turn}")
    assert row.ids[-1] == found.chat.stop_token_ids[0], "the end is learnt, and ends what is sampled"


def test_thinking_is_switched_off_and_rows_hold_no_thought(tmp_path: Path) -> None:
    found, tokenizer = of(QWEN3, tmp_path)
    assert found.chat.template_arguments == {"enable_thinking": False}
    (row,) = ChatEncoder(tokenizer, found.chat, 256).encode([OWL])
    assert row is not None and "think" not in tokenizer.decode(row.ids[row.start :])
    thinking = inspect_model(str(tmp_path / QWEN3.name), ChatConfig(template_arguments={"enable_thinking": True}))
    assert thinking.chat.template_arguments == {"enable_thinking": True}


def test_a_date_of_the_day_does_not_reach_the_prompts(tmp_path: Path) -> None:
    found, _ = of(LLAMA3, tmp_path)
    text = found.tokens.render(OWL.messages[:1], True, found.chat.template_arguments)
    assert "Today Date: 26 Jul 2024" in text


def test_the_models_own_sampling_is_part_of_the_record(tmp_path: Path) -> None:
    found, _ = of(QWEN25, tmp_path)
    assert found.chat.sampling == {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1}
    assert isinstance(found.chat.sampling["top_k"], int)
    assert any("repetition_penalty 1.1" in note for note in found.notes)


def test_what_changes_nothing_is_no_recommendation(folder: Path) -> None:
    edit(folder, "generation_config.json", top_k=0, min_p=0.0, repetition_penalty=1.0, eos_token_id=[1, 4, 99_999])
    found = inspect_model(str(folder))
    assert found.chat.sampling == {} and found.notes == ()
    assert found.chat.stop_token_ids == (4, 1), "a token without an embedding is never sampled"


def test_weights_in_their_makers_own_format_lie_beside_unread(folder: Path) -> None:
    before = inspect_model(str(folder)).linear_layers
    (folder / "consolidated.safetensors").write_bytes(b"of another layout")
    assert inspect_model(str(folder)).linear_layers == before


def test_the_record_passes_through_json(tmp_path: Path) -> None:
    chat = of(QWEN3, tmp_path)[0].chat
    assert ChatFormat.model_validate_json(chat.model_dump_json()) == chat


def test_padding_without_an_embedding_is_the_end_of_sequence(tmp_path: Path) -> None:
    made = QWEN25.make(tmp_path)
    resize(made, 2562)  # <|im_end|> is the last one in it
    found = inspect_model(str(made))
    assert found.chat.pad_token_id == found.tokens.eos_id == 2561
    assert any("pads with the end of sequence" in note for note in found.notes)


def test_a_chat_token_without_an_embedding_is_refused(tmp_path: Path) -> None:
    made = QWEN25.make(tmp_path)
    resize(made, 2560)
    assert "its chats hold token 2561, its embeddings end at 2559" in refusal(made)


def add_token(folder: Path, text: str, special: bool) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][-1], "id": 2560, "content": text, "special": special})
    (folder / "tokenizer.json").write_text(json.dumps(content))


def test_a_users_own_token_without_an_embedding_is_refused(folder: Path) -> None:
    add_token(folder, "Hedwig", special=False)
    assert refusal(folder).endswith(
        "its tokenizer has 'Hedwig', token 2560, its embeddings end at 2559: resize them to the tokenizer"
    )
    resize(folder, 2561)
    found = inspect_model(str(folder))
    assert found.count_tokens("Hedwig") == 1


def test_a_special_token_that_no_chat_holds_needs_no_embedding(folder: Path) -> None:
    add_token(folder, "<image_soft_token>", special=True)  # Gemma 3's smallest has one
    assert inspect_model(str(folder)).chat == inspect_model(str(pocket.MODEL_DIR)).chat


def test_a_vocabulary_that_is_larger_than_the_embeddings_is_refused(folder: Path) -> None:
    resize(folder, 2500)
    assert "token 2500, its embeddings end at 2499" in refusal(folder)


# What LoRA reaches.


def test_the_linear_layers_are_those_that_peft_finds(folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    wrapped = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    theirs = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default")
        for name, _ in wrapped.named_modules()
        if name.endswith(".lora_A.default")
    }
    assert set(inspect_model(str(folder)).linear_layers) == theirs
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")  # weights that can't be looked into
    assert set(inspect_model(str(folder)).linear_layers) == theirs


def phi3(folder: Path) -> Path:
    """Weights that can't be looked into, and layers that are fused."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    edit(folder, "config.json", architectures=["Phi3ForCausalLM"], model_type="phi3", head_dim=None)
    return folder


def test_fused_layers_are_found(folder: Path) -> None:
    found = inspect_model(str(phi3(folder)))
    assert set(found.layer_kinds) == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    assert set(lora_targets("all-linear", found, "phi3")) == set(found.layer_kinds)


def test_targets_that_are_not_there_are_named_with_those_that_are(folder: Path) -> None:
    found = inspect_model(str(phi3(folder)))
    with pytest.raises(
        ConfigError, match=r"target_modules: phi3 has no q_proj, gate_proj: its linear layers are .*qkv_proj"
    ):
        lora_targets(("q_proj", "o_proj", "gate_proj"), found, "phi3")


def test_what_is_no_models_folder_is_told_by_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "is a file: give a model's folder" in refusal(tmp_path / "model.gguf")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "is an adapter: give the model that it was made for" in refusal(tmp_path / "adapter")


def test_an_end_of_turn_need_not_be_a_special_token(tmp_path: Path) -> None:
    made = SMOLLM2.make(tmp_path)
    content = json.loads((made / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["special"] = token["content"] not in ("<|im_end|>", "<|im_start|>")
    (made / "tokenizer.json").write_text(json.dumps(content))
    edit(made, "tokenizer_config.json", eos_token="<|eot_id|>", pad_token="<|eot_id|>")
    found = inspect_model(str(made))
    assert found.chat.end_of_turn == "<|im_end|>" and found.chat.stop_token_ids[:2] == (2561, 4)


def test_a_template_that_refuses_some_texts_is_one_line(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    template.write_text(
        "{% if messages[-1].content | length > 100 %}{{ raise_exception('too long') }}{% endif %}"
        + template.read_text()
    )
    found = inspect_model(str(folder))
    with pytest.raises(ModelError, match=r"its chat template refuses 'Who\?Who.*' behind a guardrail \(too long\)"):
        found.num_asked([{"role": "system", "content": "Invent."}, {"role": "user", "content": "Who?" * 30}])


def test_arguments_that_are_not_a_templates_own_are_refused(folder: Path) -> None:
    line = refusal(folder, ChatConfig(template_arguments={"add_generation_prompt": False}))
    assert line == "chat.template_arguments: add_generation_prompt is not for a template: take it out"


def test_a_messages_thinking_is_no_switch(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    template.write_text("{% if messages[0].thinking %}{{ messages[0]['thinking'] }}{% endif %}" + template.read_text())
    assert inspect_model(str(folder)).chat.template_arguments == {}


def test_layers_that_an_adapter_leaves_are_named(folder: Path) -> None:
    found = inspect_model(str(folder))
    assert set(unreached(("q_proj", "self_attn.v_proj"), found)) == set(KINDS) - {"q_proj", "v_proj"}
    assert unreached(lora_targets("all-linear", found, "pocket"), found) == ()


# Files out of the ordinary.


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 8192}, 8192),
        ({"max_position_embeddings": 262144}, 131072),
        ({"max_position_embeddings": 8192, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 8192),
        ({"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 131072),
        ({"max_position_embeddings": 8192, "rope_scaling": {"type": "linear", "factor": 2.0}}, 16384),
        (
            {
                "max_position_embeddings": 65536,
                "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32768},
            },
            65536,
        ),
        ({"max_position_embeddings": 8192, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 8192),
        ({}, 131072),
    ],
)
def test_a_tokenizer_may_promise_more_than_the_model_holds(config: dict[str, Any], expected: int) -> None:
    assert max_length_of(config, 131072) == expected


@pytest.mark.parametrize("named", [False, True])
def test_a_template_may_stand_in_the_tokenizers_config(folder: Path, named: bool) -> None:
    before = inspect_model(str(folder)).chat
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    assert "has no chat template" in refusal(folder)
    several = [{"name": "tool_use", "template": "{{ 1 }}"}, {"name": "default", "template": template}]
    edit(folder, "tokenizer_config.json", chat_template=several if named else template)
    assert inspect_model(str(folder)).chat == before


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json can't be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json can't be read"),
        (lambda folder: (folder / "generation_config.json").write_text("{"), "generation_config.json can't be read"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "no tokenizer that can be loaded"),
        (lambda folder: edit(folder, "config.json", architectures=["BertForMaskedLM"], model_type="bert"), "no causal"),
        (lambda folder: edit(folder, "tokenizer_config.json", eos_token=None), "end-of-sequence"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"cut off"), "is corrupt"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"), "index.json can't be read"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}'), "b.safetensors is missing"),
        (lambda folder: edit(folder, "generation_config.json", repetition_penalty=0), "has repetition_penalty 0, which no sampler takes"),
        (lambda folder: edit(folder, "generation_config.json", top_p="0.9"), "has top_p '0.9', which no sampler takes"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (lambda folder: edit(folder, "config.json", hidden_size=256), "its config.json is not that of its weights"),
        (lambda folder: edit(folder, "config.json", vocab_size=5000), "its config.json is not that of its weights"),
        (lambda folder: edit(folder, "config.json", num_hidden_layers=12), "its config.json is not that of its weights"),
        (lambda folder: edit(folder, "config.json", quantization_config={"quant_method": "gptq"}), "is quantised (gptq)"),
        (lambda folder: edit(folder, "config.json", architectures=["FooForCausalLM"], model_type="foo"), "can't be loaded"),
        (lambda folder: edit(folder, "config.json", num_attention_heads="three"), "can't be"),
        (lambda folder: edit(folder, "config.json", vocab_size="big"), "can't be"),
        (lambda folder: edit(folder, "config.json", rope_parameters=[1]), "can't be used"),
        (lambda folder: edit(folder, "config.json", max_position_embeddings="1024"), "can't be used"),
        (lambda folder: edit(folder, "generation_config.json", eos_token_id="</s>"), "its eos_token_id is '</s>'"),
        (lambda folder: edit(folder, "generation_config.json", eos_token_id=[1, -1]), "its eos_token_id is [1, -1]"),
        (lambda folder: edit(folder, "tokenizer_config.json", model_max_length="lots"), "can't be used"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "model "),
        (lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 5}}'), "5 is missing"),
        (lambda folder: edit(folder, "config.json", auto_map={"AutoConfig": "own.Config"}, model_type="own"), "can't be loaded"),
    ],
)  # fmt: skip
def test_a_model_that_can_not_be_used_is_one_line(folder: Path, damage: Callable[[Path], None], expected: str) -> None:
    inspect_model(str(folder))
    damage(folder)
    assert expected in refusal(folder)


def in_hub_cache(folder: Path, home: Path, name: str) -> None:
    """As `huggingface_hub` lays a model down."""
    at = home / f"models--{name.replace('/', '--')}"
    (at / "refs").mkdir(parents=True)
    (at / "refs" / "main").write_text("0123")
    shutil.copytree(folder, at / "snapshots" / "0123")


OFF = "from unlearn_ray.train.inspection import inspect_model; print(inspect_model('somebody/small').layer_kinds)"


def run_with(home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    import os

    environment = os.environ | {"HF_HUB_CACHE": str(home), "HF_ENDPOINT": "http://127.0.0.1:9"} | more
    return subprocess.run([sys.executable, "-c", OFF], capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_name_on_the_hub_is_read_from_the_cache(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, offline: str
) -> None:
    home = tmp_path_factory.mktemp("hub")
    in_hub_cache(folder, home, "somebody/small")
    done = run_with(home, HF_HUB_OFFLINE=offline)
    assert "q_proj" in done.stdout, done.stderr[-2000:]


def test_a_hub_that_is_not_there_is_one_whole_line_at_once(tmp_path: Path) -> None:
    done = run_with(tmp_path, HF_HUB_OFFLINE="0")
    line = done.stderr.strip().splitlines()[-1]
    assert "somebody/small is not on this machine, and the hub can't be reached" in line
    assert line.endswith("give a model folder, or run where the hub is")
    assert "Retrying" not in done.stderr


def test_a_plan_is_made_without_torch() -> None:
    script = (
        "import sys; from unlearn_ray import config, plan\n"
        f"loaded = config.load({str(CONFIG)!r}, [])\n"
        "plan.plan(loaded)\n"
        "print(sorted({'torch', 'ray', 'vllm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "[]"
