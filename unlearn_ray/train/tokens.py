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
    added: Mapping[str, int]  # ids of the tokens that are whole in any text, special or not, by their texts
    special: frozenset[str]  # those of them that no text of a user's has
    ids: Callable[[], Mapping[str, int]]  # of all tokens there are, by their texts
    eos: str
    eos_id: int
    pad_id: int | None
    max_length: int  # what the tokenizer promises, often more than the model holds

    def beyond(self, number: int) -> str | None:
        """A token with an id of `number` or more that may come out of any text; None where there is none."""
        found = {text: each for text, each in self.ids().items() if each >= number and text not in self.special}
        return min(found, key=lambda text: found[text]) if found else None

    def first_of(self, text: str) -> str | None:
        """The token that a text begins with, else the special one that comes first in it; of two at one place the longer."""
        begins = [token for token in self.added if token.strip() and text.lstrip().startswith(token)]
        if begins:
            return max(begins, key=len)
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
    if tokenizer.normalizer is not None and b'"Prepend"' in tokenizer.normalizer.__getstate__():
        raise ValueError("transformers' classes for SentencePiece vocabularies begin a text otherwise than this file")
    named = {name: _text(settings[name]) for name in _SPECIAL if settings.get(name)}
    eos_id = tokenizer.token_to_id(named["eos_token"])
    pad_id = tokenizer.token_to_id(named["pad_token"]) if "pad_token" in named else None
    if eos_id is None or ("pad_token" in named and pad_id is None):
        raise KeyError("eos_token")
    added = tokenizer.get_added_tokens_decoder()
    return Tokens(
        template=template,
        render=partial(_render, template, named),
        encode=partial(_encode, tokenizer),
        added={token.content: number for number, token in added.items()} | {named["eos_token"]: eos_id},
        special=frozenset({token.content for token in added.values() if token.special} | {named["eos_token"]}),
        ids=tokenizer.get_vocab,
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

    added = tokenizer.added_tokens_decoder
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return Tokens(
        template=str(tokenizer.chat_template),
        render=render,
        encode=lambda text: list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids),
        added={token.content: number for number, token in added.items()} | named,
        special=frozenset({token.content for token in added.values() if token.special} | set(named)),
        ids=tokenizer.get_vocab,
        eos=str(tokenizer.eos_token),
        eos_id=int(tokenizer.eos_token_id),
        pad_id=tokenizer.pad_token_id,
        max_length=int(tokenizer.model_max_length),
    )
