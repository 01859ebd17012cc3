"""What a chat model's files say of it, read without transformers and torch: importing those takes a core eight seconds."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Glance:
    """A model that can be unlearned, as far as its files tell."""

    tokenizer: Tokenizer
    max_length: int  # tokens of prompt and answer

    def count_tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text).ids)


def glance(model: str) -> Glance | None:
    """What the files tell of a model in a folder, or in the hub's cache on this machine.

    None where anything is missing or out of the ordinary: `chat.load_tokenizer` then finds out, and says what is wrong.
    """
    try:
        config = _read_json(model, "config.json")
        names = config["architectures"]
        if not names or "auto_map" in config or not all(name.endswith("ForCausalLM") for name in names):
            return None
        settings = _read_json(model, "tokenizer_config.json")
        if not settings["eos_token"] or not (settings.get("chat_template") or _read(model, "chat_template.jinja")):
            return None
        tokenizer = Tokenizer.from_str(_read(model, "tokenizer.json"))
        return Glance(tokenizer, max_length_of(config, int(settings["model_max_length"])))
    except Exception:  # of many kinds: a file is missing, is no JSON, lacks a key; and those of the tokenizer's Rust
        return None


def max_length_of(config: Mapping[str, Any], tokenizer_length: int) -> int:
    """Tokens of prompt and answer that an engine takes, as vLLM works it out.

    Args:
        config: of the model.
        tokenizer_length: what its tokenizer says, often more than the model holds.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type")
    if rope.get("factor") and kind not in {"llama3", "longrope", "su"}:
        return tokenizer_length  # positions are stretched beyond what the config counts
    return min(tokenizer_length, config.get("max_position_embeddings") or tokenizer_length)


def _read_json(model: str, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(_read(model, name))
    return content


def _read(model: str, name: str) -> str:
    """Raises OSError where the file isn't."""
    path = Path(model) / name if Path(model).is_dir() else try_to_load_from_cache(model, name)
    if not isinstance(path, str | Path):
        raise FileNotFoundError(name)
    return Path(path).read_text(encoding="utf-8")
