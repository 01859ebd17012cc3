"""What the builder of the Serve application refuses, and what it tells ray.serve.llm and vLLM.

It is imported in the tests: it imports vLLM, every test process collects this file, and one runs it.
"""

from pathlib import Path
from typing import Any

import pytest

from unlearn_ray.artifacts import Folder
from unlearn_ray.errors import ConfigError
from unlearn_ray.serving.environment import SERVE_ENVIRONMENT
from unlearn_ray.serving.keys import read_keys
from unlearn_ray.serving.registry import Registry, Release, now
from unlearn_ray.serving.settings import KEYS_VARIABLE, ServiceSettings

KEY = "sk-0123456789abcdef"


@pytest.fixture(autouse=True)
def _started_for_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, KEY)
    for name, value in SERVE_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def refusal(**args: Any) -> str:
    from unlearn_ray.serving.app import build

    with pytest.raises(ConfigError) as refused:
        build(args)
    return str(refused.value)


def test_a_mistyped_setting_is_named_with_the_nearest() -> None:
    assert "unknown key scaling.max_replica: did you mean 'max_replicas'?" in refusal(scaling={"max_replica": 2})


def test_a_registry_that_means_nothing_on_other_machines() -> None:
    assert "registry: runs/registry" in refusal()


def test_no_keys_where_none_is_allowed_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS_VARIABLE)
    assert "no API keys" in refusal(registry="s3://bucket/registry")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1"])
def test_no_keys_where_serve_listens_to_others(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.delenv(KEYS_VARIABLE)
    monkeypatch.setattr("unlearn_ray.serving.app.http_host", lambda: host)
    message = refusal(registry="s3://bucket/registry", allow_no_keys=True)
    assert f"allow_no_keys: the service is open to others at {host}" in message and "http_options.host" in message


def test_a_ray_that_was_not_started_for_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SERVE_ENVIRONMENT:
        monkeypatch.delenv(name)
    message = refusal(registry="s3://bucket/registry")
    assert all(f"{name}={value}" in message for name, value in SERVE_ENVIRONMENT.items())


def test_a_release_that_is_no_full_fine_tune(tmp_path: Path) -> None:
    registry = Registry(Folder(tmp_path))
    registry.finish(Release(name="dune", version=registry.begin("dune"), kind="adapter", model="m", created=now()))
    for release in ("dune@1", "dune@2"):
        assert f"no full fine-tune '{release}'" in refusal(registry=str(tmp_path), release=release)


def test_ray_is_told_hashes_of_the_keys_for_it_writes_them_into_its_logs(tmp_path: Path) -> None:
    from unlearn_ray.serving.app import llm_config

    file = tmp_path / "keys"
    file.write_text("sk-fedcba9876543210\n")
    for keys, key in ((read_keys(None), KEY), (read_keys(str(file)), "sk-fedcba9876543210")):
        config = llm_config(ServiceSettings(registry=str(tmp_path)), keys)
        assert "sk-" not in config.model_dump_json(exclude={"server_cls", "callback_config"})
        assert config.runtime_env is not None
        passed_on = read_keys(None, config.runtime_env["env_vars"])
        assert passed_on.admits(f"Bearer {key}") and not passed_on.admits(f"Bearer {key}x")


def test_the_model_of_a_full_fine_tune_in_remote_storage_is_brought_to_the_replicas_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unlearn_ray.serving.app import llm_config

    monkeypatch.setattr("unlearn_ray.serving.app.place_of", lambda uri: Path("/there") / uri[5:])
    settings = ServiceSettings(registry="s3://bucket", release="dune@1")
    config = llm_config(settings, read_keys(None))
    assert config.model_loading_config.model_source == "/there/bucket/versions/dune@1/weights"
    assert config.callback_config.callback_kwargs == {"uri": "s3://bucket/versions/dune@1/weights"}
    assert "enable_lora" not in config.engine_kwargs


@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
def test_a_service_tells_vllm_what_to_run_on(tmp_path: Path, accelerator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from unlearn_ray.serving.app import llm_config
    from unlearn_ray.serving.settings import parse_settings

    monkeypatch.delenv("VLLM_USE_FLASHINFER_SAMPLER", raising=False)
    settings = parse_settings({"registry": str(tmp_path), "engine": {"accelerator": accelerator}})
    variables = llm_config(settings, read_keys(None)).runtime_env["env_vars"]
    told = variables.get("CUDA_VISIBLE_DEVICES"), variables.get("VLLM_USE_FLASHINFER_SAMPLER")
    assert told == (("", None) if accelerator == "cpu" else (None, "0"))
