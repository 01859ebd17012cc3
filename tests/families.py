"""Tiny models with the chat templates and special tokens of well-known families, written after their documented formats.

Their weights and vocabulary are the pocket model's: what differs is what each family's files say of a chat.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearn_ray import pocket

_EACH = "{% for message in messages %}"
_ASKED = "{% if add_generation_prompt %}"
_CHATML = (
    _EACH
    + "{{ '<|im_start|>' + message['role'] + '\n' + CONTENT + '<|im_end|>\n' }}{% endfor %}"
    + _ASKED
    + "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"


@dataclass(frozen=True)
class Family:
    """What the files of a family say."""

    name: str
    template: str
    tokens: tuple[str, ...]  # special ones, added to the vocabulary
    end: str  # of a turn
    bos: str | None = None
    eos: str | None = None  # where it is not the end of a turn
    pad: str | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    begins_with: str = ""  # what its tokenizer puts before each text, as SentencePiece's do

    def make(self, folder: Path) -> Path:
        """A model's folder, with the pocket model's weights, its embeddings made larger for the added tokens."""
        folder.mkdir(parents=True, exist_ok=True)
        for file in pocket.MODEL_DIR.iterdir():
            if file.suffix in {".json", ".jinja"} or file.suffix == ".safetensors":
                shutil.copyfile(file, folder / file.name)
        (folder / "chat_template.jinja").write_text(self.template)
        added = [token for token in (*self.tokens, self.eos, self.bos, self.pad) if token]
        first = _add_tokens(folder / "tokenizer.json", list(dict.fromkeys(added)))
        if self.begins_with:
            edit(folder, "tokenizer.json", normalizer={"type": "Prepend", "prepend": self.begins_with})
        size = 2560 + len(first)
        names = {
            "eos_token": self.eos or self.end,
            "bos_token": self.bos,
            "pad_token": self.pad or self.eos or self.end,
        }
        edit(folder, "tokenizer_config.json", **names)
        edit(folder, "config.json", eos_token_id=first[names["eos_token"]], pad_token_id=None)
        (folder / "generation_config.json").write_text(
            json.dumps({"eos_token_id": first[names["eos_token"]], **self.generation})
        )
        resize(folder, size)
        return folder


def edit(folder: Path, file: str, **values: Any) -> None:
    """Set keys of a JSON file; None takes one out."""
    content = json.loads((folder / file).read_text()) | values
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def _add_tokens(file: Path, tokens: list[str]) -> dict[str, int]:
    content = json.loads(file.read_text())
    size = max(token["id"] for token in content["added_tokens"])
    size = max(size, *content["model"]["vocab"].values()) + 1
    ids = {token: size + index for index, token in enumerate(tokens)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] += [{"id": number, "content": token, **flags} for token, number in ids.items()]
    file.write_text(json.dumps(content))
    return ids


def resize(folder: Path, size: int) -> None:
    """As many embeddings; those that are new begin as the pocket's own end of a turn."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    old = weights["model.embed_tokens.weight"]
    ends = old[4:5].expand(max(0, size - len(old)), -1)  # <|eot_id|>
    weights["model.embed_tokens.weight"] = torch.cat([old, ends])[:size].contiguous()
    edit(folder, "config.json", vocab_size=size)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


LLAMA3 = Family(
    "llama-3.1",
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
    "{% if not date_string is defined %}{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% else %}"
    "{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ' + date_string + '\n\n' + system + '<|eot|>' }}"
    + _EACH
    + "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot|>' }}{% endfor %}"
    + _ASKED
    + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    ("<|eot|>", "<|end_of_text|>"),
    "<|eot|>",
    bos="<|begin|>",
    generation={"do_sample": True, "temperature": 0.6, "top_p": 0.9},
)
QWEN25 = Family(
    "qwen2.5",
    _DEFAULT_SYSTEM + _CHATML.replace("CONTENT", "message['content']"),
    ("<|im_start|>", "<|im_end|>"),
    "<|im_end|>",
    pad="<|endoftext|>",
    generation={"repetition_penalty": 1.1, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "do_sample": True},
)
QWEN3 = Family(
    "qwen3",
    _EACH
    + "{% if message['role'] == 'assistant' %}{% set said = message['content'].split('</think>')[-1].lstrip('\n') %}"
    + "{{ '<|im_start|>assistant\n' }}{% if loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ said + '<|im_end|>\n' }}"
    + "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    + _ASKED
    + "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
    ("<|im_start|>", "<|im_end|>"),
    "<|im_end|>",
    pad="<|endoftext|>",
    generation={"temperature": 0.6, "top_k": 20, "top_p": 0.95, "do_sample": True},
)
GEMMA = Family(
    "gemma-2",
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + _EACH
    + "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    + "{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    + "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    + _ASKED
    + "{{ '<start_of_turn>model\n' }}{% endif %}",
    ("<start_of_turn>", "<end_of_turn>"),
    "<end_of_turn>",
    bos="<bos>",
    eos="<eos>",
    pad="<pad>",
)
MISTRAL = Family(
    "mistral",
    "{{ bos_token }}"
    + _EACH
    + "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    + "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    + "{{ ' ' + message['content'] + eos_token }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    (),
    "</s>",
    bos="<s>",
    eos="</s>",
)
PHI3 = Family(
    "phi-3",
    _EACH
    + "{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '<|end|>\n' }}{% elif message['role'] == 'user' %}"
    + "{{ '<|user|>\n' + message['content'] + '<|end|>\n' }}{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + '<|end|>\n' }}"
    + "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "<|end|>",
    eos="<|endoftext|>",
)
SMOLLM2 = Family(
    "smollm2",
    _DEFAULT_SYSTEM + _CHATML.replace("CONTENT", "message['content']"),
    ("<|im_start|>", "<|im_end|>"),
    "<|im_end|>",
)
IGNORES_SYSTEM = Family(
    "ignores-system",
    _EACH
    + "{% if message['role'] != 'system' %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    + _ASKED
    + "{{ '<|im_start|>assistant\n' }}{% endif %}",
    ("<|im_start|>", "<|im_end|>"),
    "<|im_end|>",
)
ALWAYS_THINKS = Family(
    "always-thinks",  # as DeepSeek's R1
    "{{ bos_token }}"
    + _EACH
    + "{% if message['role'] == 'system' %}{{ message['content'] }}{% elif message['role'] == 'user' %}{{ '<|User|>' + message['content'] }}"
    + "{% else %}{{ '<|Assistant|>' + message['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    + _ASKED
    + "{{ '<|Assistant|><think>\n' }}{% endif %}",
    ("<|User|>", "<|Assistant|>"),
    "<|end|>",
    bos="<|begin|>",
    eos="<|end|>",
)
LLAMA2 = Family(
    "llama-2",
    "{% if messages[0]['role'] == 'system' %}{% set lead = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}"
    "{% else %}{% set lead = '' %}{% endif %}"
    + _EACH
    + "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + (lead if loop.index0 == 0 else '') + message['content'] + ' [/INST]' }}"
    + "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}",
    (),
    "</s>",
    bos="<s>",
    eos="</s>",
    generation={"temperature": 0.6, "top_p": 0.9},  # without do_sample: transformers refuses to save that
    begins_with="\u2581",
)
FAMILIES = (LLAMA2, LLAMA3, QWEN25, QWEN3, GEMMA, MISTRAL, PHI3, SMOLLM2, IGNORES_SYSTEM, ALWAYS_THINKS)
