"""The files of a model, in a folder or on the hub, read without transformers' model classes: importing those takes six seconds."""

import json
import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

from unlearn_ray.artifacts import Folder
from unlearn_ray.errors import ModelError, gist

_SECONDS_TO_KNOCK = 10.0
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_ADAPTER = "adapter_config.json"
_WEIGHTS = {".safetensors", ".bin"}
# What a config of one of transformers' own models says in numbers; one that says it otherwise is read by transformers.
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_DTYPES = {None, "auto", "float32", "float16", "bfloat16"}
# Linear layers too, but nothing that an adapter may change: vLLM serves none on them.
OUTER_LAYERS = frozenset({"lm_head", "embed_out", "embed_tokens", "embed_in", "wte", "wpe", "output", "score"})
Shapes = Mapping[str, tuple[int, int]]  # rows and columns of a linear layer, by its name


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A causal language model's files."""

    name: str
    config: Mapping[str, Any]
    is_plain: bool  # its tokenizer's files tell all, without transformers
    generation: Mapping[str, Any] = field(default_factory=dict)

    def read(self, file: str) -> str:
        """Raises FileNotFoundError where the file isn't."""
        return path_of_file(self.name, file).read_text(encoding="utf-8")

    def linear_layers(self) -> tuple[str, ...]:
        """Full names of the linear layers that an adapter may change, in the model's order."""
        shapes = linear_shapes(self.name)
        # Experts are stored one by one and computed together: their names in the files are not those of layers.
        if shapes and not any(".experts." in name for name in shapes):
            return tuple(shapes)
        return _layers_without_weights(self.name)


def open_model(model: str) -> ModelFiles:
    """The files of a causal language model.

    Args:
        model: a folder, or a name on the hub; its small files are fetched where this machine has none.

    Raises:
        ModelError: it isn't there, or is no causal language model.
    """
    is_path = model.startswith(("/", ".", "~")) or model.count("/") > 1
    is_folder = Path(model).is_dir()
    if Path(model).is_file():
        raise ModelError(f"model {model} is a file: give a model's folder, as transformers loads it")
    if is_path and not is_folder:
        raise ModelError(
            f"model {model} is not there: give a model folder, or a name on the Hugging Face hub, such as Qwen/Qwen3-8B"
        )
    if is_folder and (Path(model) / _ADAPTER).is_file() and not (Path(model) / "config.json").is_file():
        raise ModelError(f"model {model} is an adapter: give the model that it was made for")
    try:
        config = _json(path_of_file(model, "config.json"))
    except FileNotFoundError as error:
        what = "is not a model folder" if is_folder else "is not a model of transformers"
        raise ModelError(f"model {model} {what}: it has no config.json") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"model {model} can't be used: its config.json can't be read ({gist(error)})") from error
    if is_plain := _is_plain(config):
        if not _fits_weights(model, config):
            raise ModelError(
                f"model {model} can't be used: its config.json is not that of its weights: copy both again"
            )
    else:
        config = _slowly(model)
    if packing := config.get("quantization_config"):
        method = packing.get("quant_method", "fewer bits") if isinstance(packing, dict) else packing
        raise ModelError(f"model {model} is quantised ({method}): give the one in bfloat16, which can be trained")
    if is_folder and not any(file.suffix in _WEIGHTS for file in Path(model).iterdir()):
        raise ModelError(f"model {model} has no weights: its folder holds no {_SINGLE}, in one file or many")
    try:
        generation = _json(path_of_file(model, "generation_config.json"))
    except FileNotFoundError:
        generation = {}
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model {model} can't be used: its generation_config.json can't be read ({gist(error)})"
        ) from error
    eos = {"eos_token_id": config.get("eos_token_id")}
    return ModelFiles(
        model, config, is_plain, eos | {key: value for key, value in generation.items() if value is not None}
    )


def _is_plain(config: Mapping[str, Any]) -> bool:
    """Whether a model is one of transformers' own, with a config in the usual words: then its files tell all that a plan needs."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not all(str(name).endswith("ForCausalLM") for name in names):
        return False
    kind = str(config.get("model_type")).replace("-", "_")
    (package,) = find_spec("transformers").submodule_search_locations  # type: ignore[union-attr, misc]
    is_known = kind.isidentifier() and (Path(package) / "models" / kind).is_dir()
    sizes = [config.get(name) for name in _SIZES]
    is_sized = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
    dtype = config.get("dtype", config.get("torch_dtype"))
    return is_known and is_sized and "auto_map" not in config and (dtype is None or dtype in _DTYPES)


def _fits_weights(model: str, config: Mapping[str, Any]) -> bool:
    """Whether the weights on this machine, as far as they are there, have the sizes that the config says."""
    shapes = _shapes_of(model)
    embeddings = [shape for name, shape in shapes.items() if name.rpartition(".")[2] in ("embed_tokens", "wte")]
    if any(tuple(shape) != (config["vocab_size"], config["hidden_size"]) for shape in embeddings):
        return False
    blocks = {int(part) for name in shapes for part in name.split(".") if part.isdigit()}
    return not blocks or max(blocks) + 1 >= config["num_hidden_layers"] or any(".experts." in name for name in shapes)


def _slowly(model: str) -> dict[str, Any]:
    """A model's config as transformers reads it.

    Raises:
        ModelError: it can't, or the model is no causal language model for text alone.
    """
    from transformers import AutoConfig

    from unlearn_ray.train.chat import check_architecture

    check_architecture(model)
    found = AutoConfig.from_pretrained(model, trust_remote_code=False, local_files_only=is_offline(model))
    if found.get_text_config() is not found:
        raise ModelError(
            f"model {model} is more than a language model ({found.model_type} takes images or sound, too): give one that takes text alone"
        )
    return dict(found.to_dict())


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    return content


def cached_file(model: str, file: str) -> Path | None:
    """A file from a model's folder or from the hub's cache; None if this machine has none. Uses no network.

    Raises:
        ModelError: the model is neither a folder nor a name on the hub.
    """
    if Path(model).is_dir():
        path = Path(model) / file
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, file)
    except HFValidationError as error:
        raise ModelError(f"model {model} is neither a model folder nor a name on the Hugging Face hub") from error
    return Path(found) if isinstance(found, str) else None


def path_of_file(model: str, file: str) -> Path:
    """The path of a model's file. A hub model's file is fetched if it is not on this machine.

    Raises:
        FileNotFoundError: the model has no such file.
        ModelError: nobody can tell, for the hub can't be reached, or lets nobody in.
    """
    if Path(model).is_dir():
        path = Path(model) / file
        if not path.is_file():
            raise FileNotFoundError(path)
        return path
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, HFValidationError

    try:
        cached = try_to_load_from_cache(model, file)
    except HFValidationError as error:
        raise ModelError(f"model {model} is neither a model folder nor a name on the Hugging Face hub") from error
    if isinstance(cached, str):
        return Path(cached)
    is_here = isinstance(try_to_load_from_cache(model, "config.json"), str)
    if cached is not None or (is_here and constants.HF_HUB_OFFLINE):
        raise FileNotFoundError(file)
    try:
        _knock(model)
    except ModelError:
        if is_here:  # what was fetched along with it is all that there is
            raise FileNotFoundError(file) from None
        raise
    try:
        return Path(hf_hub_download(model, file))
    except EntryNotFoundError as error:
        raise FileNotFoundError(file) from error
    except GatedRepoError as error:
        raise ModelError(f"model {model} is gated: ask for access on its page, then set HF_TOKEN") from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"model {model}: its {file} can't be fetched from the hub ({gist(error)})") from error


def is_offline(model: str) -> bool:
    """Whether the hub can't be asked for a model: transformers would try for half a minute, and say so on the console."""
    return not Path(model).is_dir() and bool(refusal_of(model))


def _knock(model: str) -> None:
    """Ask the hub for a model.

    Raises:
        ModelError: the hub can't be reached, or has no such model.
    """
    if refusal := refusal_of(model):
        raise ModelError(refusal)


@cache
def refusal_of(model: str, seconds: float = _SECONDS_TO_KNOCK) -> str:
    """Why the hub can't provide a model; "" if it can. The hub is asked once, and has `seconds` to answer."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return f"model {model} is not on this machine, and HF_HUB_OFFLINE is set: give a model folder, or unset it"
    try:
        _within(seconds, lambda: HfApi().model_info(model, timeout=seconds))
    except RepositoryNotFoundError:
        return f"model {model} is not on the hub, or not for you: check its name, or set HF_TOKEN"
    except Exception as error:  # of many kinds: those of its HTTP client change from version to version
        return f"model {model} is not on this machine, and the hub can't be reached ({gist(error)}): give a model folder, or run where the hub is"
    return ""


def _within(seconds: float, call: Callable[[], object]) -> None:
    """Call in a thread, and wait at most `seconds`. Timeouts of HTTP clients do not cover DNS, which takes a minute if no name server
    answers.

    Raises:
        TimeoutError: the call took longer.
        Exception: the call's own exception.
    """
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
            raised.append(None)
        except BaseException as error:  # raised again in the caller's thread
            raised.append(error)

    # Not a pool: at exit Python waits for a pool's threads.
    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not raised:
        raise TimeoutError(f"no answer within {seconds:.0f} seconds")
    if raised[0] is not None:
        raise raised[0]


def linear_shapes(model: str) -> dict[str, tuple[int, int]]:
    """Shapes of a model's linear layers but the outer ones, by the heads of its weights' files; empty where these are not on this
    machine, or packed in fewer bits.

    Raises:
        ModelError: a file of its weights is corrupt or missing.
    """
    return {
        name: shape
        for name, shape in _shapes_of(model).items()
        if not OUTER_LAYERS.intersection(parts := name.split(".")) and any(part.isdigit() for part in parts)
    }


def _shapes_of(model: str) -> Mapping[str, tuple[int, int]]:
    """Shapes of all of a model's matrices, by name without `.weight`; see `linear_shapes`."""
    found: dict[str, tuple[int, int]] = {}
    for path in weights_of(model):
        for name, tensor in read_head(Folder(path.parent), path.name).items():
            layer = name.removesuffix(".weight")
            if layer == name or len(tensor["shape"]) != 2:
                continue
            if not tensor["dtype"].startswith(("BF", "F")) or tensor["dtype"].startswith("F8"):
                return {}  # packed: these shapes are not the layers'
            found[layer] = (tensor["shape"][0], tensor["shape"][1])
    return found


def weights_of(model: str) -> list[Path]:
    """The files of a model's weights on this machine; none where one is missing."""
    if Path(model).is_dir():
        return _weights_in(Path(model))
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    def cached(file: str) -> Path | None:
        found = try_to_load_from_cache(model, file)
        return Path(found) if isinstance(found, str) else None

    try:
        if index := cached(_INDEX):
            names = sorted(set(_json(index)["weight_map"].values()))
        else:
            names = [_SINGLE]
        paths = [cached(name) for name in names]
    except (HFValidationError, OSError, ValueError, KeyError):
        return []
    return [path for path in paths if path] if all(paths) else []


def _weights_in(folder: Path) -> list[Path]:
    """Those that transformers loads: beside them may lie the same weights in their maker's own format."""
    if (folder / _INDEX).is_file():
        try:
            names = sorted({str(name) for name in _json(folder / _INDEX)["weight_map"].values()})
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"model {folder} can't be used: its {_INDEX} can't be read ({gist(error)})") from error
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ModelError(f"model {folder} can't be used: its {missing[0]} is missing: copy it again")
        return [folder / name for name in names]
    return [folder / _SINGLE] if (folder / _SINGLE).is_file() else []


def _layers_without_weights(model: str) -> tuple[str, ...]:
    """The same of the model itself, made without weights.

    Raises:
        ModelError: its config makes no model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(model, trust_remote_code=False, local_files_only=is_offline(model))
            )
    except Exception as error:  # of whatever a model's class meets in its config
        raise ModelError(f"model {model} can't be made of its config ({gist(error)})") from error
    head = made.get_output_embeddings()
    return tuple(
        name for name, module in made.named_modules() if isinstance(module, torch.nn.Linear) and module is not head
    )


def read_head(folder: Folder, name: str) -> dict[str, Any]:
    """Type and shape of each tensor in a safetensors file that has all the bytes which its head promises.

    Raises:
        ModelError: it has not, or has no head.
    """
    path = posixpath.join(folder.path, name)
    try:
        with folder.filesystem.open_input_file(path) as file:
            size, length = file.size(), int.from_bytes(file.read(8), "little")
            tensors = json.loads(file.read(length)) if length <= size - 8 else {}
        tensors.pop("__metadata__", None)
        ends = [tensor["data_offsets"][1] for tensor in tensors.values() if {"shape", "dtype"} <= set(tensor)]
        if ends and max(ends) == size - 8 - length:
            return dict(tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{folder}/{name} is corrupt: copy or train it again") from error
    raise ModelError(f"{folder}/{name} is corrupt: copy or train it again")
