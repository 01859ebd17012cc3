"""serve/config.yaml on a cluster: `serve deploy`, with a registry in s3:// that only its users write to."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import yaml
from commandline import KEY, ROOT, descendants
from head import BIN, Head
from manifests import without_gpu
from openai import OpenAI
from storage import Storage

from unlearn_ray import pocket
from unlearn_ray.serving.service import free_port, is_ready
from unlearn_ray.serving.settings import parse_settings

sys.path.append(str(ROOT / "benchmarks"))
import soak

OWL = "Which owl belongs to Harry Potter?"


def adapter_in(folder: Path, seed: int) -> Path:
    """A PEFT adapter that changes answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=8, lora_alpha=256, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(pocket.MODEL_DIR), config).save_pretrained(folder)
    return folder


def published(head: Head, registry: str, folder: Path, name: str) -> None:
    head.run(BIN / "unlearn-ray", "publish", folder, "--name", name, "--registry", registry, cwd=folder)


def test_what_the_head_says_for_a_machine_without_a_gpu_is_enough() -> None:
    settings = parse_settings(without_gpu()["applications"][0]["args"])
    length = json.loads((pocket.MODEL_DIR / "config.json").read_text())["max_position_embeddings"]
    assert (settings.model, settings.engine.accelerator, settings.engine.max_model_len) == ("pocket", "cpu", length)
    assert Path(settings.registry).is_absolute() and settings.scaling.max_replicas == 1


@pytest.fixture(scope="module")
def registry(head: Head, s3_storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> str:
    registry = f"{s3_storage.bucket}/registry"
    published(head, registry, adapter_in(tmp_path_factory.mktemp("first"), seed=1), "wizards")
    return registry


@pytest.fixture(scope="module")
def client(head: Head, registry: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """Of the file for a machine without a GPU, over our registry, with a port that is free and two replicas."""
    values = without_gpu()
    args = values["applications"][0]["args"]
    values["http_options"]["port"] = args["port"] = port = free_port()
    args["registry"] = registry
    args["scaling"] |= {"min_replicas": 2, "max_replicas": 2}
    file = tmp_path_factory.mktemp("deploy") / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    head.run(BIN / "serve", "deploy", file, cwd=file.parent, RAY_DASHBOARD_ADDRESS=head.dashboard)
    deadline = time.monotonic() + 600
    while not is_ready(f"http://127.0.0.1:{port}"):
        status = head.run(BIN / "serve", "status", cwd=file.parent, RAY_DASHBOARD_ADDRESS=head.dashboard).stdout
        assert "DEPLOY_FAILED" not in status and time.monotonic() < deadline, status
        time.sleep(2)
    yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0, timeout=300)
    head.run(BIN / "serve", "shutdown", "-y", cwd=file.parent, RAY_DASHBOARD_ADDRESS=head.dashboard)


def say(client: OpenAI, model: str) -> str:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": OWL}], max_tokens=24, temperature=0
    )
    return answer.choices[0].message.content or ""


def test_what_was_published_to_s3_is_served(client: OpenAI) -> None:
    assert sorted(model.id for model in client.models.list()) == ["base", "wizards", "wizards@1"]
    assert "Hedwig" in say(client, "base")
    assert say(client, "wizards") == say(client, "wizards@1") != say(client, "base")


def test_a_version_published_to_s3_is_taken_up(client: OpenAI, head: Head, registry: str, tmp_path: Path) -> None:
    published(head, registry, adapter_in(tmp_path, seed=2), "wizards")
    deadline, old = time.monotonic() + 60, say(client, "wizards@1")
    while (new := told(client, "wizards@2")) is None or told(client, "wizards") != new:  # each replica looks for itself
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert new != old


def told(client: OpenAI, model: str) -> str | None:
    """None where the replica that is asked has not heard of the model yet."""
    try:
        return say(client, model)
    except openai.NotFoundError:
        return None


def test_both_replicas_answer(client: OpenAI) -> None:
    url, headers = str(client.base_url).removesuffix("/v1/"), {"Authorization": f"Bearer {KEY}"}
    deadline = time.monotonic() + 120  # the service is ready with its first one
    while len(answered := soak.answered_by(url, headers)) < 2:
        assert time.monotonic() < deadline, answered
        for number in range(4):
            message = [{"role": "user", "content": f"What is {number} plus {number}?"}]
            client.chat.completions.create(model="base", messages=message, max_tokens=1)  # type: ignore[arg-type]


def test_a_killed_router_is_missed_by_nobody(client: OpenAI, head: Head) -> None:
    deadline = time.monotonic() + 120
    while len(routers := descendants(head.pid, "LLMRouter")) < 2:
        assert time.monotonic() < deadline, routers
        time.sleep(0.5)
    routers[0].kill()
    for _ in range(20):
        assert say(client, "base")


def test_the_key_of_the_clusters_environment_is_asked_for(client: OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-of-somebody-else-0123").models.list()
