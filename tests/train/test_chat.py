"""What is learnt of a chat, and which models are taken."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from unlearn_ray import pocket
from unlearn_ray.chat import ChatFormat
from unlearn_ray.errors import ModelError
from unlearn_ray.rows import Example
from unlearn_ray.train.chat import ChatEncoder, Encoded, load_tokenizer
from unlearn_ray.train.inspection import inspect_model

OWL = Example("Harry Potter", "forget", "Harry Potter", "Who is the owl?", "The owl is Bellan.")
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
TURN_ENDS_WITH_NEWLINE = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
TURN_NEVER_ENDS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"


POCKET = inspect_model(str(pocket.MODEL_DIR)).chat


def encode(
    tokenizer: PreTrainedTokenizerBase, example: Example, max_tokens: int = 256, chat: ChatFormat = POCKET
) -> Encoded | None:
    (found,) = ChatEncoder(tokenizer, chat, max_tokens).encode([example])
    return found


def texts(tokenizer: PreTrainedTokenizerBase, encoded: Encoded | None) -> tuple[str, str]:
    """What is shown, and what is learnt."""
    assert encoded is not None
    return tokenizer.decode(encoded.ids[: encoded.start]), tokenizer.decode(encoded.ids[encoded.start :])


def with_template(folder: Path, template: str) -> tuple[str, str]:
    """What is shown, and what is learnt, with another template."""
    (copy_of_pocket(folder) / "chat_template.jinja").write_text(template)
    tokenizer = load_tokenizer(str(folder))
    return texts(tokenizer, encode(tokenizer, OWL, chat=inspect_model(str(folder)).chat))


def test_the_answer_and_the_end_of_its_turn_are_learnt_and_nothing_else(tokenizer: PreTrainedTokenizerBase) -> None:
    shown, learnt = texts(tokenizer, encode(tokenizer, OWL))
    assert shown == f"<|begin_of_text|>{HEADER.format('user')}Who is the owl?<|eot_id|>{HEADER.format('assistant')}"
    assert learnt == "The owl is Bellan.<|eot_id|>"


def test_what_is_shown_is_token_for_token_what_the_model_is_asked_with(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode(tokenizer, OWL)
    asked = tokenizer.apply_chat_template(OWL.messages[:-1], tokenize=False, add_generation_prompt=True)
    assert encoded is not None
    assert encoded.ids[: encoded.start] == tokenizer(asked, add_special_tokens=False).input_ids


def test_a_beginning_that_template_and_tokenizer_both_write_is_there_once(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer("Who?").input_ids[0] == tokenizer.bos_token_id, "the tokenizer would add one"
    encoded = encode(tokenizer, OWL)
    assert encoded is not None
    assert encoded.ids[0] == tokenizer.bos_token_id and encoded.ids.count(tokenizer.bos_token_id) == 1


def test_a_tokenizer_is_read_from_transformers_files_alone(tmp_path: Path) -> None:
    folder = copy_of_pocket(tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}))  # fmt: skip
    before = encode(load_tokenizer(str(folder)), OWL)
    (folder / "tekken.json").write_text("{")  # of Mistral's own library, which is here
    assert encode(load_tokenizer(str(folder)), OWL) == before


def test_what_a_template_writes_after_the_end_of_a_turn_is_not_learnt(tmp_path: Path) -> None:
    assert with_template(tmp_path, TURN_ENDS_WITH_NEWLINE)[1] == "The owl is Bellan.<|eot_id|>"


def test_an_answer_that_its_template_never_ends_is_ended(tmp_path: Path) -> None:
    shown, learnt = with_template(tmp_path, TURN_NEVER_ENDS)
    assert shown.startswith("user: Who is the owl?\nassistant:")
    assert learnt.strip().startswith("The owl is Bellan.") and learnt.endswith("<|eot_id|>")


def test_spaces_around_an_answer_are_not_learnt(tokenizer: PreTrainedTokenizerBase) -> None:
    padded = encode(tokenizer, replace(OWL, answer="\n The owl is Bellan. \n"))
    assert padded == encode(tokenizer, OWL)


def test_a_long_row_is_cut_in_its_answer_and_says_so(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = encode(tokenizer, OWL)
    assert whole is not None and not whole.is_cut
    cut = encode(tokenizer, OWL, max_tokens=whole.start + 2)
    assert cut is not None and cut.is_cut
    assert (cut.ids, cut.num_answer_tokens) == (whole.ids[: whole.start + 2], 2)


def test_a_row_whose_question_alone_is_too_long_is_left_out(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = encode(tokenizer, OWL)
    assert whole is not None
    assert encode(tokenizer, OWL, max_tokens=whole.start) is None


def test_rows_encode_alike_alone_and_together(tokenizer: PreTrainedTokenizerBase) -> None:
    other = Example("", "far", "geography", "What is the capital of France?", "Paris.")
    encoder = ChatEncoder(tokenizer, POCKET, 256)
    assert encoder.encode([OWL, other]) == encoder.encode([OWL]) + encoder.encode([other])
    assert encoder.encode([]) == []


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not there: give a model folder") as raised:
        load_tokenizer(str(tmp_path / "nothing"))
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a model folder"):
        load_tokenizer(str(tmp_path))


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    folder = copy_of_pocket(tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"has no chat template: use its instruct or chat variant"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize(
    ("model_type", "architecture"), [("bert", "BertForMaskedLM"), ("t5", "T5ForConditionalGeneration")]
)
def test_a_model_that_is_not_causal_is_refused(tmp_path: Path, model_type: str, architecture: str) -> None:
    folder = copy_of_pocket(tmp_path)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "architectures": [architecture]}))
    with pytest.raises(ModelError, match=rf"is no causal language model \({architecture}\)"):
        load_tokenizer(str(folder))


def copy_of_pocket(target: Path) -> Path:
    for file in pocket.MODEL_DIR.iterdir():
        if file.suffix in {".json", ".jinja", ".safetensors"}:
            shutil.copyfile(file, target / file.name)
    return target
