"""The shape of a model, from its `config.json` or, for well-known models, from a table. It needs no weights, and no hub for known models."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from unlearn_ray.errors import ModelError, gist
from unlearn_ray.train.modelfiles import cached_file, path_of_file

Source = Literal["files", "table"]
# Model types of transformers whose blocks have attention and a gated MLP, as below. Other models are created without weights and counted.
_GATED = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "ministral"}
_TIED_BY_DEFAULT = {"gemma", "gemma2", "gemma3_text"}
# Suffixes that publishers add to the name of a model of the same shape.
_SUFFIXES = re.compile(r"(-(instruct|it|pt|base|chat|hf|thinking|bf16|\d{4}|v0\.\d))+$")


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a causal language model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool  # the output layer is the embeddings
    biases: bool = False  # in the query, key and value layers
    head_norms: bool = False  # norms of queries and keys
    norms: int = 2  # per layer
    name: str = ""
    source: Source = "table"
    counted: int | None = None  # parameters, if the blocks are not gated ones
    dtype_bytes: int = 2  # per parameter, in the weights' files

    @property
    def attention(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the attention's linear layers, by Llama's names."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, wide),
            "k_proj": (self.hidden, narrow),
            "v_proj": (self.hidden, narrow),
            "o_proj": (wide, self.hidden),
        }

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of all linear layers of a block."""
        up = (self.hidden, self.intermediate)
        return self.attention | {"gate_proj": up, "up_proj": up, "down_proj": (self.intermediate, self.hidden)}

    @property
    def embedding(self) -> int:
        """Parameters of the embeddings, or of the output layer."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """The number of all parameters; a tied output layer counts once."""
        if self.counted is not None:
            return self.counted
        block = sum(inputs * outputs for inputs, outputs in self.linears.values()) + self.norms * self.hidden
        if self.biases:
            block += (self.heads + 2 * self.kv_heads) * self.head_dim
        if self.head_norms:
            block += 2 * self.head_dim
        return self.layers * block + self.hidden + self.embedding * (1 if self.tied else 2)

    @property
    def matrix_parameters(self) -> int:
        """Parameters that a token is multiplied with: all except an embedding that is only looked up."""
        return self.parameters - (0 if self.tied else self.embedding)

    @property
    def kv_bytes(self) -> int:
        """Bytes per token in an engine's cache, in bf16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim

    def lora_parameters(self, rank: int, targets: Sequence[str] | Literal["all-linear"] = "all-linear") -> int:
        """r (in + out) for each target: Hu et al. 2021, arXiv 2106.09685, section 4."""
        names = [
            name for name in self.linears if targets == "all-linear" or name in {t.rpartition(".")[2] for t in targets}
        ]
        return self.layers * rank * sum(sum(self.linears[name]) for name in names)


def _qwen2(hidden: int, layers: int, heads: int, kv: int, middle: int, vocabulary: int, tied: bool) -> Shape:
    return Shape(hidden, layers, heads, kv, 128 if hidden != 896 else 64, middle, vocabulary, tied, biases=True)


def _qwen3(hidden: int, layers: int, heads: int, middle: int, tied: bool) -> Shape:
    return Shape(hidden, layers, heads, 8, 128, middle, 151_936, tied, head_norms=True)


# From each model's own config.json on the hub.
KNOWN: dict[str, Shape] = {
    "llama-3-8b": Shape(4096, 32, 32, 8, 128, 14_336, 128_256, False),
    "llama-3-70b": Shape(8192, 80, 64, 8, 128, 28_672, 128_256, False),
    "llama-3.1-8b": Shape(4096, 32, 32, 8, 128, 14_336, 128_256, False),
    "llama-3.1-70b": Shape(8192, 80, 64, 8, 128, 28_672, 128_256, False),
    "llama-3.2-1b": Shape(2048, 16, 32, 8, 64, 8192, 128_256, True),
    "llama-3.2-3b": Shape(3072, 28, 24, 8, 128, 8192, 128_256, True),
    "llama-3.3-70b": Shape(8192, 80, 64, 8, 128, 28_672, 128_256, False),
    "qwen2.5-0.5b": _qwen2(896, 24, 14, 2, 4864, 151_936, True),
    "qwen2.5-1.5b": _qwen2(1536, 28, 12, 2, 8960, 151_936, True),
    "qwen2.5-3b": _qwen2(2048, 36, 16, 2, 11_008, 151_936, True),
    "qwen2.5-7b": _qwen2(3584, 28, 28, 4, 18_944, 152_064, False),
    "qwen2.5-14b": _qwen2(5120, 48, 40, 8, 13_824, 152_064, False),
    "qwen2.5-32b": _qwen2(5120, 64, 40, 8, 27_648, 152_064, False),
    "qwen2.5-72b": _qwen2(8192, 80, 64, 8, 29_568, 152_064, False),
    "qwen3-0.6b": _qwen3(1024, 28, 16, 3072, True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 6144, True),
    "qwen3-4b": _qwen3(2560, 36, 32, 9728, True),
    "qwen3-8b": _qwen3(4096, 36, 32, 12_288, False),
    "qwen3-14b": _qwen3(5120, 40, 40, 17_408, False),
    "qwen3-32b": _qwen3(5120, 64, 64, 25_600, False),
    "gemma-2b": Shape(2048, 18, 8, 1, 256, 16_384, 256_000, True),
    "gemma-7b": Shape(3072, 28, 16, 16, 256, 24_576, 256_000, True),
    "gemma-2-2b": Shape(2304, 26, 8, 4, 256, 9216, 256_000, True, norms=4),
    "gemma-2-9b": Shape(3584, 42, 16, 8, 256, 14_336, 256_000, True, norms=4),
    "gemma-2-27b": Shape(4608, 46, 32, 16, 128, 36_864, 256_000, True, norms=4),
    "gemma-3-270m": Shape(640, 18, 4, 1, 256, 2048, 262_144, True, head_norms=True, norms=4),
    "gemma-3-1b": Shape(1152, 26, 4, 1, 256, 6912, 262_144, True, head_norms=True, norms=4),
    "mistral-7b": Shape(4096, 32, 32, 8, 128, 14_336, 32_000, False),
    "mistral-7b-v0.3": Shape(4096, 32, 32, 8, 128, 14_336, 32_768, False),
    "ministral-8b": Shape(4096, 36, 32, 8, 128, 12_288, 131_072, False),
    "mistral-nemo": Shape(5120, 40, 32, 8, 128, 14_336, 131_072, False),
    "mistral-small-24b": Shape(5120, 40, 32, 8, 128, 32_768, 131_072, False),
    "smollm2-135m": Shape(576, 30, 9, 3, 64, 1536, 49_152, True),
    "smollm2-360m": Shape(960, 32, 15, 5, 64, 2560, 49_152, True),
    "smollm2-1.7b": Shape(2048, 24, 32, 32, 64, 8192, 49_152, True),
}


def known_shape(model: str) -> Shape | None:
    """The shape of a well-known model by its hub name, from any publisher; None for others."""
    if Path(model).is_dir() or model.startswith(("/", ".", "~")) or model.count("/") > 1:
        return None
    name = model.rpartition("/")[2].lower().removeprefix("meta-")
    versioned = re.sub(r"-instruct(?=-v0\.\d$)", "", name)  # Mistral-7B-Instruct-v0.3 has more tokens than v0.1
    key = next((key for key in (name, versioned, _SUFFIXES.sub("", name)) if key in KNOWN), None)
    return None if key is None else replace(KNOWN[key], name=model)


def shape_of(model: str) -> Shape:
    """The shape of a model: from its folder or the hub's cache, else from the table, else from the hub.

    Args:
        model: a folder, which needs no weights, or a hub name.

    Raises:
        ModelError: the model is neither local nor known, and its `config.json` can't be fetched from the hub; or that file can't be used.
    """
    path = Path(model) / "config.json" if Path(model).is_dir() else cached_file(model, "config.json")
    if path is None:
        if (known := known_shape(model)) is not None:
            return known
        path = path_of_file(model, "config.json")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
        return replace(_of_config(values, path.parent), name=model, source="files")
    except FileNotFoundError as error:
        raise ModelError(f"model {model} is not a model folder: it has no config.json") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"model {model} can't be planned: its config.json can't be used ({gist(error)})") from error


def _of_config(values: Mapping[str, Any], folder: Path) -> Shape:
    kind = str(values.get("model_type")).replace("-", "_")
    dtype = str(values.get("dtype") or values.get("torch_dtype") or "bfloat16")
    dtype_bytes = 4 if dtype == "float32" else 2
    if kind not in _GATED:
        return replace(_made(folder), dtype_bytes=dtype_bytes)
    heads = int(values["num_attention_heads"])
    hidden = int(values["hidden_size"])
    return Shape(
        hidden=hidden,
        layers=int(values["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(values.get("num_key_value_heads") or heads),
        head_dim=int(values.get("head_dim") or hidden // heads),
        intermediate=int(values["intermediate_size"]),
        vocabulary=int(values["vocab_size"]),
        tied=bool(values.get("tie_word_embeddings", kind in _TIED_BY_DEFAULT)),
        biases=kind == "qwen2" or bool(values.get("attention_bias")),
        head_norms=kind in {"qwen3", "gemma3_text"},
        norms=4 if kind in {"gemma2", "gemma3_text"} else 2,
        dtype_bytes=dtype_bytes,
    )


def _made(folder: Path) -> Shape:
    """The shape of any other model: transformers creates it without weights, which takes seconds.

    Raises:
        ValueError: transformers can't create it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(config)
        text = config.get_text_config()
        heads, hidden = text.num_attention_heads, text.hidden_size
        return Shape(
            hidden=hidden,
            layers=text.num_hidden_layers,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or hidden // heads,
            intermediate=getattr(text, "intermediate_size", None) or 4 * hidden,
            vocabulary=text.vocab_size,
            tied=bool(text.tie_word_embeddings),
            counted=sum(parameter.numel() for parameter in made.parameters()),
        )
    except Exception as error:  # a model's class may raise anything on its config
        raise ValueError(f"transformers can't create the model: {gist(error)}") from error
