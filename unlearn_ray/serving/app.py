"""Builds the Serve application from its settings: `import_path: unlearn_ray.serving.app:build` in serve/config.yaml."""

import os
from pathlib import Path
from typing import Any, Literal

from ray.serve import Application, ingress
from ray.serve.llm import LLMConfig, build_llm_deployment, build_openai_app

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import EngineResources
from unlearn_ray.engines import forks
from unlearn_ray.engines.capacity import capacity
from unlearn_ray.engines.vllm_engine import AS_TRANSFORMERS, EngineSpec, environment
from unlearn_ray.engines.weights import place_of
from unlearn_ray.errors import ConfigError
from unlearn_ray.serving.environment import SERVE_ENVIRONMENT
from unlearn_ray.serving.keys import Keys, read_keys
from unlearn_ray.serving.names import BASE
from unlearn_ray.serving.registry import WEIGHTS, Registry, Release
from unlearn_ray.serving.server import UnlearnServer, Weights
from unlearn_ray.serving.service import http_host, is_loopback
from unlearn_ray.serving.settings import (
    CHAT_VARIABLE,
    KEYS_VARIABLE,
    SETTINGS_VARIABLE,
    ServiceSettings,
    parse_settings,
)
from unlearn_ray.train.inspection import inspect_model

_ROUTER = "unlearn_ray.serving.routing:ConversationRouter"


def build(args: dict[str, Any]) -> Application:
    """The app of the base model and all adapters. With `release`: the app of one full fine-tune.

    Raises:
        ConfigError: a setting is unknown or has a wrong value, a key can't be used, or a service that others can reach has no keys.
    """
    settings = parse_settings(args)
    if "://" not in settings.registry and not Path(settings.registry).is_absolute():
        raise ConfigError(
            f"registry: {settings.registry} has no meaning on other machines: give s3://, gs:// or /a/path"
        )
    keys = read_keys(settings.keys_file)
    if not keys and not settings.allow_no_keys:
        raise ConfigError(
            f"no API keys: set keys_file or {KEYS_VARIABLE}, or allow_no_keys: true for a service bound to loopback"
        )
    if not keys and not is_loopback(host := http_host() or "127.0.0.1"):
        raise ConfigError(
            f"allow_no_keys: the service is open to others at {host}: set keys_file or {KEYS_VARIABLE}, "
            "or http_options.host: 127.0.0.1"
        )
    missing = [name for name, value in SERVE_ENVIRONMENT.items() if os.environ.get(name) != value]
    if missing:
        wanted = " ".join(f"{name}={SERVE_ENVIRONMENT[name]}" for name in missing)
        raise ConfigError(f"set {wanted} in the environment in which Ray is started on every node")
    config = llm_config(settings, keys, _release(settings) if settings.release is not None else None)
    if settings.scaling.max_replicas == 1:
        # There is only one replica to choose, so requests skip the router and go straight to it.
        return build_llm_deployment(config, deployment_cls=ingress()(UnlearnServer))
    return build_openai_app({"llm_configs": [config]})


def _release(settings: ServiceSettings) -> Release:
    """The full fine-tune that an app serves.

    Raises:
        ConfigError: no full fine-tune has that name.
    """
    registry = Registry(Folder(settings.registry))
    release = registry.read().releases.get(settings.release or "")
    if release is None or release.kind != "full":
        raise ConfigError(f"release: {registry.folder} has no full fine-tune {settings.release!r}: publish it first")
    return release


def llm_config(settings: ServiceSettings, keys: Keys, release: Release | None = None) -> LLMConfig:
    """The settings for ray.serve.llm and vLLM.

    Args:
        release: the full fine-tune that `settings.release` names.
    """
    engine, scaling = settings.engine, settings.scaling
    device = engine.accelerator if engine.accelerator != "auto" else _device()
    source, model = settings.model_path, inspect_model(settings.model_path, settings.chat)
    chat = (release.chat if release else None) or model.chat
    if settings.release is not None:
        source = (Registry(Folder(settings.registry)).version_folder(settings.release) / WEIGHTS).uri
    callback: dict[str, Any] = {}
    if is_remote := "://" in source:
        callback, source = {"callback_kwargs": {"uri": source}}, str(place_of(source))
    if is_remote or Path(source).is_dir():
        callback["callback_class"] = Weights
    resources = EngineResources(num_cpus=engine.num_cpus, kv_cache_gib=engine.kv_cache_gib)
    variables = environment(EngineSpec(source, resources, device))
    # The engine runs in a process of its own, so that the replica's event loop is free for the streams.
    variables.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    if is_remote:
        variables["HF_HUB_OFFLINE"] = "1"  # the model is copied to a local folder: the hub is not needed
    # The watchdog finds a connection by its real client address: a forwarded header must not replace it.
    variables["FORWARDED_ALLOW_IPS"] = "none"
    variables[SETTINGS_VARIABLE] = settings.model_dump_json()
    variables[CHAT_VARIABLE] = chat.model_dump_json()
    variables[KEYS_VARIABLE] = str(keys)  # hashed; the replica's machine needs no key file
    kwargs: dict[str, Any] = {
        "max_num_seqs": engine.max_num_seqs,
        "tensor_parallel_size": engine.tensor_parallel_size,
        "enable_prefix_caching": True,
        "stream_interval": engine.stream_interval,
        # The gate fills in what a client leaves open, with the same defaults as runs.
        "generation_config": "vllm",
        "override_generation_config": {"max_new_tokens": settings.limits.max_output_tokens},
        "enable_log_requests": False,
        **AS_TRANSFORMERS,
    }
    if engine.max_model_len is not None:
        kwargs["max_model_len"] = engine.max_model_len
    if settings.release is None:
        kwargs |= {
            "enable_lora": True,
            "max_loras": engine.max_loras,
            "max_cpu_loras": 4 * engine.max_loras,
            "max_lora_rank": engine.max_lora_rank,
            # Without the output layer: vLLM's CPU engine can't score prompts with an adapter on it.
            "lora_target_modules": list(model.layer_kinds),
        }
    if device == "cpu":
        # Seeded sampling crashes the CPU engine with chunked prefill. Compiling takes a minute.
        kwargs |= {"enforce_eager": True, "enable_chunked_prefill": False}
        variables[forks.VARIABLE] = "1"
    else:
        kwargs["gpu_memory_utilization"] = engine.gpu_memory_utilization
    bundle = {"CPU": engine.num_cpus} if device == "cpu" else {"CPU": 1.0, "GPU": 1.0}
    deployment: dict[str, Any] = {
        # Above the gate's limits, so that the gate refuses first.
        "max_ongoing_requests": scaling.max_ongoing_requests + scaling.max_queued_requests + 64,
        "max_queued_requests": -1,
        "graceful_shutdown_timeout_s": scaling.drain_seconds,
        "health_check_period_s": 2,
        "health_check_timeout_s": 30,
        "ray_actor_options": {"runtime_env": {"env_vars": variables}},
        "autoscaling_config": {
            "min_replicas": scaling.min_replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_ongoing_requests,
            "upscale_delay_s": scaling.upscale_delay_seconds,
            "downscale_delay_s": scaling.downscale_delay_seconds,
        },
    }
    if scaling.max_replicas > 1:
        deployment["request_router_config"] = {"request_router_class": _ROUTER}
    return LLMConfig(
        model_loading_config={"model_id": BASE, "model_source": source},
        runtime_env={"env_vars": variables},
        placement_group_config={"bundles": [bundle] * (1 if device == "cpu" else engine.tensor_parallel_size)},
        engine_kwargs=kwargs,
        deployment_config=deployment,
        server_cls=UnlearnServer,
        **({"callback_config": callback} if callback else {}),
        log_engine_metrics=False,  # /metrics shows vLLM's figures already: Ray's wrappers cost a tenth of the event loop
    )


def _device() -> Literal["cpu", "cuda"]:
    """CUDA if the cluster has a GPU or can add one."""
    import ray

    has_gpu = ray.is_initialized() and capacity("GPU") >= 1
    return "cuda" if has_gpu or Path("/dev/nvidia0").exists() else "cpu"
