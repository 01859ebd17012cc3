"""What tests share: one Ray and one vLLM engine on the pocket model a test run, for both take seconds to start."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from unlearn_ray import pocket
from unlearn_ray.config import ClusterConfig, EngineResources, Lora

if TYPE_CHECKING:
    from unlearn_ray.engines.generation import RayDataGenerator

# float32, to compare with transformers; small batches, so that a few dozen rows are many chunks.
CLUSTER = ClusterConfig(accelerator="cpu", num_cpus=8, engines=EngineResources(dtype="float32", batch_size=16))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"ray_session", "generator"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[ClusterConfig]:
    """A Ray of the tests' own."""
    from unlearn_ray.engines.session import connect

    with connect(CLUSTER):
        yield CLUSTER


@pytest.fixture(scope="session")
def generator(ray_session: ClusterConfig) -> "Iterator[RayDataGenerator]":
    """vLLM on the pocket model, with room for adapters; its engine starts when it is first asked."""
    from unlearn_ray.engines.generation import RayDataGenerator

    generator = RayDataGenerator(
        str(pocket.MODEL_DIR), ray_session, lora=Lora(rank=8, target_modules=("q_proj", "v_proj"))
    )
    yield generator
    generator.close()
