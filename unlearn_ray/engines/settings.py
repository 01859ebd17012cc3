"""Checks `cluster.engines` before anything starts, and writes the plan's notes on it. Imports neither Ray nor vLLM, so that a plan is quick."""

import ast
import difflib
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from unlearn_ray.config import EndpointSettings, FleetSettings, RunConfig
from unlearn_ray.errors import ConfigError

SCORED = (
    "which the checks of entities (questions.num_entities), of questions (questions.check_topic) and of retained questions (dataset.retain) need: "
    "set cluster.engines.scoring: local, so that engines of the run's own score, or switch those off with 0, false and a dataset.retain.file"
)
_OWN_KEYS = (
    "dtype max_model_len max_num_seqs tensor_parallel_size pipeline_parallel_size gpu_memory_utilization".split()
)
_FILES = "plan, training and evaluation must read the model's files in the same way"
_ADAPTERS = "it follows from the adapters that are evaluated"
_PARALLEL = "num_engines is how many engines there are"
_REFUSED = {
    **{name: f"set cluster.engines.{name}" for name in _OWN_KEYS},
    "model": "set model",
    **dict.fromkeys(
        "tokenizer hf_config_path config_format load_format tokenizer_mode revision tokenizer_revision".split(), _FILES
    ),
    **dict.fromkeys("enable_lora max_loras max_lora_rank lora_target_modules default_mm_loras".split(), _ADAPTERS),
    **dict.fromkeys("generation_config override_generation_config".split(), "each request has its own sampling"),
    "seed": "each row has its own seed",
    "disable_log_stats": "hits of the prefix cache are counted",
    **dict.fromkeys(
        "runner convert skip_tokenizer_init enable_prompt_embeds tokens_only".split(), "engines must generate text"
    ),
    "hf_token": "a key has no place in a config: set HF_TOKEN in the environment",
}
WITHOUT_GPU = {"enforce_eager": True, "distributed_executor_backend": "uni", "enable_chunked_prefill": False}


def check_arguments(settings: FleetSettings) -> None:
    """Refuse an engine argument that vLLM does not have, or that unlearn-ray sets itself.

    Raises:
        ConfigError: names the argument, and similar ones that exist.
    """
    known = argument_names()
    for name in settings.args:
        if name in _REFUSED:
            raise ConfigError(f"cluster.engines.args.{name} can't be set here: {_REFUSED[name]}")
        if name.startswith("data_parallel_"):
            raise ConfigError(f"cluster.engines.args.{name} can't be set here: {_PARALLEL}")
        if known and name not in known:
            near = difflib.get_close_matches(name, known - set(_REFUSED), 3, 0.6)
            hint = f"did you mean {' or '.join(near)}?" if near else "they are the fields of vllm.EngineArgs"
            raise ConfigError(f"cluster.engines.args.{name} is not an argument of vLLM's engine: {hint}")


def check_arguments_without_gpu(settings: FleetSettings) -> None:
    """Refuse arguments that must keep their value on engines without a GPU.

    Raises:
        ConfigError: names the argument.
    """
    for name, value in WITHOUT_GPU.items():
        if settings.args.get(name, value) != value:
            raise ConfigError(
                f"cluster.engines.args.{name} can't be set without a GPU, where it is {str(value).lower()}"
            )


@cache
def argument_names() -> frozenset[str]:
    """The fields of vLLM's EngineArgs, read from its source, because importing vLLM takes over ten seconds. Empty if it is not installed."""
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        return frozenset()
    source = Path(found.submodule_search_locations[0]) / "engine" / "arg_utils.py"
    module = ast.parse(source.read_text(encoding="utf-8"))
    fields = next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "EngineArgs")
    names = (
        each.target.id for each in fields.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    )
    return frozenset(name for name in names if not name.startswith("_"))


def notes_on(config: RunConfig) -> Iterator[str]:
    """The plan's notes on the engines."""
    settings = config.cluster.engines
    if not isinstance(settings, EndpointSettings):
        return
    yield (
        f"cluster.engines: {settings.base_url} answers for questions, answers and dataset, and must serve {config.model}; it takes no adapter of a "
        "run: evaluation compares base and unlearned on vLLM engines of this cluster, which start from model (--until dataset needs none)"
    )
    if settings.api == "chat" and settings.scoring == "endpoint":
        yield f"cluster.engines.api: chat can't score a given answer, {SCORED}"
    if settings.scoring == "local":
        yield "cluster.engines.scoring: local starts vLLM engines of this cluster with the first answers that are to be scored"
