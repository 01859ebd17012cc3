"""The settings of a service: the `args` of serve/config.yaml. They are checked as strictly as a run's config."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from unlearn_ray.config import ChatConfig, Fraction, Strict, first_message, path_of
from unlearn_ray.engines.vllm_engine import LoraRank
from unlearn_ray.errors import ConfigError
from unlearn_ray.reading import as_json

KEYS_VARIABLE = "UNLEARN_RAY_API_KEYS"
SETTINGS_VARIABLE = "UNLEARN_RAY_SERVICE"  # a replica's settings, as JSON
CHAT_VARIABLE = "UNLEARN_RAY_CHAT"  # the chat format of a replica's model, as JSON


class EngineSettings(Strict):
    """The vLLM engine of each replica."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    tensor_parallel_size: PositiveInt = 1
    max_model_len: PositiveInt | None = None  # tokens of prompt and answer; None: the model's own
    max_num_seqs: PositiveInt = 256  # answers in one batch
    max_loras: PositiveInt = 8  # adapters in one batch; more are swapped in and out
    max_lora_rank: LoraRank = 16
    gpu_memory_utilization: Fraction = 0.9
    kv_cache_gib: PositiveFloat = 1.0  # only without a GPU
    num_cpus: PositiveFloat = 1.0  # Ray's logical CPUs; without a GPU also the engine's threads
    stream_interval: PositiveInt = 1  # tokens per event of a stream; the first token never waits


class ScalingSettings(Strict):
    min_replicas: PositiveInt = 1
    max_replicas: PositiveInt = 1
    target_ongoing_requests: PositiveInt = 128  # per replica; above it another replica is started
    upscale_delay_seconds: NonNegativeFloat = 30.0  # time above the target before a replica is added
    downscale_delay_seconds: NonNegativeFloat = 600.0  # time below the target before a replica is removed
    max_ongoing_requests: PositiveInt = 256  # per replica
    max_queued_requests: NonNegativeInt = 256  # per replica, in addition; above both a request gets 429
    retry_after_seconds: PositiveInt = 2
    drain_seconds: PositiveFloat = 60.0  # time for a stopped replica to finish its answers

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> "ScalingSettings":
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas: {self.min_replicas} is above max_replicas, {self.max_replicas}")
        if self.target_ongoing_requests > self.max_ongoing_requests:
            raise ValueError("target_ongoing_requests: is above max_ongoing_requests, so that no replica is ever added")
        return self


class Limits(Strict):
    max_body_bytes: PositiveInt = 1 << 20
    max_output_tokens: PositiveInt = 4096  # per answer
    max_choices: PositiveInt = 16  # `n`
    max_prompts: PositiveInt = 64  # per request to /v1/completions


class ServiceSettings(Strict):
    """A service."""

    model: str = "pocket"  # the base model: "pocket", "smollm2", a folder, or a name on the Hugging Face hub
    registry: str = "runs/registry"  # folder of published versions: local and shared by all nodes, s3:// or gs://
    registry_seconds: PositiveFloat = 1.0  # time between looks at the registry
    keys_file: str | None = None  # one API key per line; None: those in UNLEARN_RAY_API_KEYS, separated by commas
    allow_no_keys: bool = False  # without keys every request passes: only for a service bound to loopback
    port: int = Field(default=8000, ge=1, le=65535)  # the port in `http_options`
    chat: ChatConfig = ChatConfig()  # the base model's chat format, as in a run's config
    engine: EngineSettings = EngineSettings()
    scaling: ScalingSettings = ScalingSettings()
    limits: Limits = Limits()
    release: str | None = None  # a full fine-tune's app serves this version alone, such as harry-potter@3

    @property
    def model_path(self) -> str:
        return path_of(self.model)


def parse_settings(values: Mapping[str, Any]) -> ServiceSettings:
    """Settings from plain values.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or is out of bounds.
    """
    try:
        # From JSON, because there strict mode accepts lists for tuples, and only numbers for numbers.
        return ServiceSettings.model_validate_json(as_json(dict(values)), strict=True)
    except ValidationError as error:
        raise ConfigError(f"service settings: {first_message(error, ServiceSettings)}") from error
    except ValueError as error:
        raise ConfigError(f"service settings: {error}") from error
