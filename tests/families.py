"""Tiny models with the chat templates and special tokens of well-known families, written after their documented formats.

`make` takes the pocket model's weights: what differs is what each family's files say of a chat. `make_own` has the family's own layers,
with weights at random.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

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
    pieces: Literal["", "llama", "gemma"] = (
        ""  # whose SentencePiece vocabulary it has; none: bytes, as the pocket model
    )
    strips: bool = False  # its special tokens swallow the spaces around them, as Phi's do
    kind: str = "llama"  # of architecture, as transformers calls it
    is_tied: bool = True  # the output layer is the embeddings
    shape: Mapping[str, Any] = field(default_factory=dict)  # what else its config says

    def make(self, folder: Path) -> Path:
        """A model's folder, with the pocket model's weights, its embeddings made larger or smaller for the vocabulary."""
        folder.mkdir(parents=True, exist_ok=True)
        for file in pocket.MODEL_DIR.iterdir():
            if file.suffix in {".json", ".jinja"} or file.suffix == ".safetensors":
                shutil.copyfile(file, folder / file.name)
        (folder / "chat_template.jinja").write_text(self.template)
        special = list(dict.fromkeys(token for token in (*self.tokens, self.eos, self.bos, self.pad) if token))
        make = _pieces if self.pieces else _bytes
        ids, size = make(folder / "tokenizer.json", special, self)
        end = self.eos or self.end
        names = {
            "eos_token": end,
            "bos_token": self.bos,
            "pad_token": self.pad or end,
            "unk_token": "<unk>" if self.pieces else None,
        }
        edit(folder, "tokenizer_config.json", **names)
        if self.pieces:
            edit(folder, "tokenizer_config.json", backend=None, **_PIECES[self.pieces])
        edit(folder, "config.json", eos_token_id=ids[end], pad_token_id=None)
        ends = list(dict.fromkeys([ids[end], ids[self.end]]))
        (folder / "generation_config.json").write_text(
            json.dumps({"eos_token_id": ends if len(ends) > 1 else ends[0], **self.generation})
        )
        resize(folder, size)
        return folder

    def make_own(
        self, folder: Path, user_tokens: Sequence[str] = (), shard: str = "", has_makers_own: bool = False
    ) -> Path:
        """A tiny model of the family's own architecture, with weights at random.

        Args:
            user_tokens: what its user added to the vocabulary, and to the embeddings.
            shard: the size of a weights file, such as 100KB; else there is one.
            has_makers_own: the same in Mistral's own format lies beside it, here unreadable: nothing may look at it.
        """
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        self.make(folder)
        kept = {name: (folder / name).read_text() for name in ("generation_config.json", "tokenizer_config.json")}
        (folder / "model.safetensors").unlink()
        told = json.loads((folder / "config.json").read_text())
        config = AutoConfig.for_model(
            self.kind,
            **{"vocab_size": told["vocab_size"], "eos_token_id": told["eos_token_id"], "pad_token_id": None},
            **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
            **{"num_key_value_heads": 1, "max_position_embeddings": 1024, "tie_word_embeddings": self.is_tied},
            **({} if self.kind == "phi3" else {"head_dim": 32}),
            **self.shape,
        )
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        if user_tokens:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            tokenizer.add_tokens(list(user_tokens))
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            tokenizer.save_pretrained(folder)
            kept.pop("tokenizer_config.json")
        model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
        for name, text in kept.items():
            (folder / name).write_text(text)
        for name in ("consolidated.safetensors", "params.json", "tekken.json", "tokenizer.model.v3") * has_makers_own:
            (folder / name).write_text("{")
        return folder


_PIECES: Mapping[str, Mapping[str, Any]] = {
    "llama": {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": True, "add_prefix_space": None},
    "gemma": {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True},
}


def edit(folder: Path, file: str, **values: Any) -> None:
    """Set keys of a JSON file; None takes one out."""
    content = json.loads((folder / file).read_text()) | values
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def _flags(strips: bool = False) -> dict[str, bool]:
    return {"single_word": False, "lstrip": strips, "rstrip": strips, "normalized": False, "special": True}


def _bytes(file: Path, special: list[str], family: Family) -> tuple[dict[str, int], int]:
    """The pocket's vocabulary with the special tokens that it lacks behind it; returns the ids of all of them, and how many there are."""
    content = json.loads(file.read_text())
    ids = {token["content"]: int(token["id"]) for token in content["added_tokens"]}
    size = max(*ids.values(), *content["model"]["vocab"].values()) + 1
    new = {token: size + index for index, token in enumerate(token for token in special if token not in ids)}
    content["added_tokens"] += [
        {"id": number, "content": token, **_flags(family.strips)} for token, number in new.items()
    ]
    file.write_text(json.dumps(content))
    return ids | new, size + len(new)


@cache
def _learnt_pieces() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Pieces of words and the merges that make them, from the words of the pocket's world."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    text = pocket.MODEL_DIR.parent.joinpath("world.yaml").read_text(encoding="utf-8")
    trainer = trainers.BpeTrainer(vocab_size=1200, show_progress=False)
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    content = json.loads(tokenizer.to_str())["model"]
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in content["merges"]]
    return tuple(sorted(content["vocab"], key=content["vocab"].get)), tuple((left, right) for left, right in merges)


def _pieces(file: Path, special: list[str], family: Family) -> tuple[dict[str, int], int]:
    """A tokenizer.json as those that were made of SentencePiece's: special tokens first, then bytes, then pieces; returns as `_bytes`."""
    pieces, merges = _learnt_pieces()
    first = list(dict.fromkeys([*([family.pad] if family.pad else []), "<unk>", *special]))
    vocab = {token: number for number, token in enumerate([*first, *(f"<0x{byte:02X}>" for byte in range(256))])}
    for piece in pieces:
        vocab.setdefault(piece, len(vocab))
    marks = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    spaces = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    decoders = [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]
    normalizer: Mapping[str, object] = marks
    if family.pieces == "llama":
        normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, marks]}
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    bos = {"id": family.bos, "ids": [vocab[family.bos]], "tokens": [family.bos]} if family.bos else None
    begins = [{"SpecialToken": {"id": family.bos, "type_id": 0}}] if family.bos else []
    sequences = [{"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB")]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocab[token], "content": token, **_flags(family.strips and token in family.tokens)}
            for token in first
        ],
        "normalizer": normalizer,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*begins, sequences[0]],
            "pair": [*begins, sequences[0], *begins, sequences[1]],
            "special_tokens": {family.bos: bos} if family.bos else {},
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [list(pair) for pair in merges],
        },
    }
    file.write_text(json.dumps(content))
    return {token: vocab[token] for token in first}, len(vocab)


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
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ' + date_string + '\n\n' + system + '<|eot_id|>' }}"
    + _EACH
    + "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    + _ASKED
    + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|end_of_text|>"),
    "<|eot_id|>",
    bos="<|begin_of_text|>",
    pad="<|finetune_right_pad_id|>",
    is_tied=False,
    generation={"do_sample": True, "temperature": 0.6, "top_p": 0.9},
)
QWEN25 = Family(
    "qwen2.5",
    _DEFAULT_SYSTEM + _CHATML.replace("CONTENT", "message['content']"),
    ("<|im_start|>", "<|im_end|>"),
    "<|im_end|>",
    pad="<|endoftext|>",
    kind="qwen2",
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
    kind="qwen3",
    is_tied=False,
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
    pieces="gemma",
    kind="gemma2",
    shape={"query_pre_attn_scalar": 32, "sliding_window": 64},
)
GEMMA3 = replace(
    GEMMA,
    name="gemma-3",
    template="{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% if messages[0]['content'] is string %}{% set lead = messages[0]['content'] + '\n\n' %}"
    "{% else %}{% set lead = messages[0]['content'][0]['text'] + '\n\n' %}{% endif %}{% set loop_messages = messages[1:] %}"
    "{% else %}{% set lead = '' %}{% set loop_messages = messages %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + (lead if loop.first else '') }}{% if message['content'] is string %}{{ message['content'] | trim }}"
    "{% elif message['content'] is iterable %}{% for item in message['content'] %}{% if item['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}{% else %}{{ raise_exception('Invalid content type') }}{% endif %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}" + _ASKED + "{{ '<start_of_turn>model\n' }}{% endif %}",
    kind="gemma3_text",
    shape={"query_pre_attn_scalar": 32, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]},
    generation={"do_sample": True, "top_k": 64, "top_p": 0.95},
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
    pieces="llama",
    kind="mistral",
    is_tied=False,
    shape={"sliding_window": None},
)
MISTRAL_V3 = replace(
    MISTRAL,
    name="mistral-v0.3",
    template="{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}{% set loop_messages = messages[1:] %}"
    "{% else %}{% set loop_messages = messages %}{% endif %}{{ bos_token }}{% for message in loop_messages %}{% if message['role'] == 'user' %}"
    "{% if loop.last and system_message is defined %}{{ '[INST] ' + system_message + '\n\n' + message['content'] + '[/INST]' }}"
    "{% else %}{{ '[INST] ' + message['content'] + '[/INST]' }}{% endif %}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported, with the exception of an initial optional system message!') }}{% endif %}{% endfor %}",
    tokens=("[INST]", "[/INST]"),
)
PHI3 = Family(
    "phi-3",
    _EACH
    + "{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '<|end|>\n' }}{% elif message['role'] == 'user' %}"
    + "{{ '<|user|>\n' + message['content'] + '<|end|>\n' }}{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + '<|end|>\n' }}"
    + "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "<|end|>",
    bos="<s>",
    eos="<|endoftext|>",
    pieces="llama",
    strips=True,
    kind="phi3",
    is_tied=False,
    shape={"original_max_position_embeddings": 1024, "bos_token_id": None},
)
PHI4 = Family(
    "phi-4",
    _EACH
    + "{% if message['role'] == 'system' %}{{ '<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>' }}"
    + "{% elif message['role'] == 'user' %}{{ '<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>' }}"
    + "{% elif message['role'] == 'assistant' %}{{ '<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    + _ASKED
    + "{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
    ("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    "<|im_end|>",
    bos="<|endoftext|>",
    eos="<|endoftext|>",  # and padding
    strips=True,
    kind="phi3",
    is_tied=False,
    shape={"original_max_position_embeddings": 1024, "bos_token_id": None},
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
    pieces="llama",
)
# Those that go through all stages, and those whose files alone are looked at.
WHOLE = (LLAMA3, QWEN25, QWEN3, GEMMA, GEMMA3, MISTRAL, PHI3, PHI4, SMOLLM2)
FAMILIES = (*WHOLE, LLAMA2, MISTRAL_V3, IGNORES_SYSTEM, ALWAYS_THINKS)
