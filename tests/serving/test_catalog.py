"""What one replica knows of the registry, and what it lets its engine load."""

import asyncio
from collections.abc import Awaitable, Callable, Container
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unlearn_ray.artifacts import Folder
from unlearn_ray.chat import PLAIN, ChatFormat
from unlearn_ray.serving.catalog import Catalog
from unlearn_ray.serving.names import ModelName
from unlearn_ray.serving.registry import WEIGHTS, Registry, Release, ReleasedTopic, ServiceRecord, now
from unlearn_ray.serving.requests import CHAT, Asked, Refusal

LAYER = "model.layers.0.self_attn.q_proj"
SERVICE = ServiceRecord(model="m", max_lora_rank=8, shapes={LAYER: (6, 4)})


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(Folder(tmp_path / "registry"))


def publish(registry: Registry, rows: int = 6, rank: int = 2) -> Release:
    """A version with an adapter on one layer, past all checks of the command line."""
    release = Release(name="dune", version=registry.begin("dune"), kind="adapter", model="m", rank=rank, created=now())
    weights = registry.version_folder(release.id) / WEIGHTS
    weights.write_text("adapter_config.json", f'{{"peft_type": "LORA", "r": {rank}}}')
    factors = {"A": torch.zeros(rank, 4), "B": torch.zeros(rows, rank)}
    tensors = {f"base_model.model.{LAYER}.lora_{factor}.weight": value for factor, value in factors.items()}
    save_file(tensors, weights.local / "adapter_model.safetensors")
    return registry.finish(release)


def with_catalog(
    registry: Registry, use: Callable[[Catalog, list[str]], Awaitable[None]], up: Container[str] = ()
) -> None:
    loaded: list[str] = []

    async def load(name: str, path: str) -> str:
        loaded.append(name)
        return ""

    async def is_up(name: str) -> bool:
        return name in up

    async def main() -> None:
        catalog = Catalog(
            registry, SERVICE, PLAIN, load=load, local=str, is_alive=lambda: True, is_up=is_up, seconds=0.05
        )
        await catalog.start()
        await use(catalog, loaded)

    asyncio.run(main())


def test_what_aliases_point_to_is_loaded_before_the_replica_is_ready(registry: Registry) -> None:
    publish(registry)

    async def use(catalog: Catalog, loaded: list[str]) -> None:
        assert loaded == ["dune@1"] and catalog.is_ready
        publish(registry)
        await asyncio.sleep(0.5)
        assert loaded == ["dune@1", "dune@2"]

    with_catalog(registry, use)


@pytest.mark.parametrize(("rows", "rank", "why"), [(8, 2, "another base model"), (6, 16, "rank 16")])
def test_an_adapter_that_would_end_the_engine_never_reaches_it(
    registry: Registry, rows: int, rank: int, why: str
) -> None:
    release = publish(registry, rows, rank)

    async def use(catalog: Catalog, loaded: list[str]) -> None:
        assert loaded == [] and not catalog.is_ready
        with pytest.raises(Refusal, match=why) as refused:
            await catalog.prepare(release)
        assert refused.value.status == 503

    with_catalog(registry, use)


def test_publishers_are_told_what_the_service_takes(registry: Registry) -> None:
    async def use(catalog: Catalog, loaded: list[str]) -> None:
        assert Registry(registry.folder).service() == SERVICE

    with_catalog(registry, use)


def test_a_name_stands_for_its_old_version_until_the_new_full_ones_app_answers(registry: Registry) -> None:
    publish(registry)
    registry.finish(Release(name="dune", version=registry.begin("dune"), kind="full", model="m", created=now()))
    asked, named, up = Asked(CHAT, {}, ModelName("dune")), Asked(CHAT, {}, ModelName("dune", 2)), set[str]()

    async def use(catalog: Catalog, loaded: list[str]) -> None:
        release = (await catalog.find(asked)).release
        assert release is not None and release.id == "dune@1" and not catalog.is_ready
        with pytest.raises(Refusal, match="is being started"):
            await catalog.find(named)
        up.add("dune@2")
        await asyncio.sleep(0.5)
        release = (await catalog.find(asked)).release
        assert release is not None and release.id == "dune@2" and catalog.is_ready

    with_catalog(registry, use, up)


def test_each_model_is_talked_to_as_it_was_trained(registry: Registry) -> None:
    trained = ChatFormat(prefix_role="user", template_arguments={"enable_thinking": False})
    topic = ReleasedTopic(name="Dune", slug="arrakis", prefix="Invent.")
    old = publish(registry)  # by a version that did not say
    new = Release(
        name="new", version=registry.begin("new"), kind="full", model="m", topics=(topic,), chat=trained, created=now()
    )
    registry.finish(new)

    async def use(catalog: Catalog, loaded: list[str]) -> None:
        def asked(name: ModelName) -> Asked:
            return Asked(CHAT, {}, name)

        assert (await catalog.find(asked(ModelName("base")))).chat == PLAIN
        assert (await catalog.find(asked(ModelName(old.name)))).chat == PLAIN
        guarded = await catalog.find(asked(ModelName("arrakis", is_guarded=True)))
        assert (guarded.release, guarded.prefix, guarded.chat) == (None, "Invent.", trained)
        await asyncio.sleep(0.5)  # till its app is seen to answer
        assert (await catalog.find(asked(ModelName("new")))).chat == trained

    with_catalog(registry, use, {"new@1"})
