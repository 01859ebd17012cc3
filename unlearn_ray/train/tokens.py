"""A model's tokenizer and chat template, from its files where they tell all, else through transformers' tokenizer class."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from unlearn_ray.rows import Message
from unlearn_ray.train.modelfiles import ModelFiles

Render = Callable[[Sequence[Message], bool, Mapping[str, Any]], str]
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class Tokens:
    """What turns chats into token ids."""

    template: str  # Jinja
    render: Render  # messages, whether an answer is asked for, arguments of the template
    encode: Callable[[str], list[int]]  # adds no special tokens: a template has written them
    special: Mapping[str, int]  # the special tokens' ids by their texts
    eos: str
    eos_id: int
    pad_id: int | None
    max_length: int  # what the tokenizer promises, often more than the model holds

    def first_special(self, text: str) -> str | None:
        """The special token that comes first in a text; of two at one place the longer."""
        places = [(text.find(token), -len(token), token) for token in self.special if token in text]
        return min(places)[2] if places else None


def tokens_of(files: ModelFiles) -> Tokens:
    """The tokenizer of a chat model.

    Raises:
        ModelError: it can't be loaded, or has no chat template or no end of sequence.
    """
    if files.is_plain:
        try:
            return _from_files(files)
        except (
            Exception
        ):  # of many kinds: a file is missing, is no JSON, lacks a key; and those of the tokenizer's Rust
            return _from_transformers(files)  # which finds out, and says what is wrong
    return _from_transformers(files)


def _from_files(files: ModelFiles) -> Tokens:
    import json

    from tokenizers import Tokenizer

    settings = json.loads(files.read("tokenizer_config.json"))
    template = _template(files, settings)
    tokenizer = Tokenizer.from_str(files.read("tokenizer.json"))
    named = {name: _text(settings[name]) for name in _SPECIAL if settings.get(name)}
    eos_id = tokenizer.token_to_id(named["eos_token"])
    pad_id = tokenizer.token_to_id(named["pad_token"]) if "pad_token" in named else None
    if eos_id is None or ("pad_token" in named and pad_id is None):
        raise KeyError("eos_token")
    special = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return Tokens(
        template=template,
        render=partial(_render, template, named),
        encode=partial(_encode, tokenizer),
        special=special | {named["eos_token"]: eos_id},
        eos=named["eos_token"],
        eos_id=eos_id,
        pad_id=pad_id,
        max_length=int(settings["model_max_length"]),
    )


def _template(files: ModelFiles, settings: Mapping[str, Any]) -> str:
    try:
        return files.read("chat_template.jinja")
    except FileNotFoundError:
        template = settings["chat_template"]
    if isinstance(template, list):  # several, by name
        template = {each["name"]: each["template"] for each in template}["default"]
    if not isinstance(template, str) or not template:
        raise KeyError("chat_template")
    return template


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _render(
    template: str, named: Mapping[str, str], messages: Sequence[Message], is_asked: bool, arguments: Mapping[str, Any]
) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, _ = render_jinja_template(
        [list(messages)], chat_template=template, add_generation_prompt=is_asked, **{**named, **arguments}
    )
    return str(texts[0])


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _from_transformers(files: ModelFiles) -> Tokens:
    from unlearn_ray.train.chat import load_tokenizer

    tokenizer = load_tokenizer(files.name)

    def render(messages: Sequence[Message], is_asked: bool, arguments: Mapping[str, Any]) -> str:
        return str(
            tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=is_asked, **dict(arguments)
            )
        )

    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return Tokens(
        template=str(tokenizer.chat_template),
        render=render,
        encode=lambda text: list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids),
        special=special | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)),
        eos=str(tokenizer.eos_token),
        eos_id=int(tokenizer.eos_token_id),
        pad_id=tokenizer.pad_token_id,
        max_length=int(tokenizer.model_max_length),
    )
