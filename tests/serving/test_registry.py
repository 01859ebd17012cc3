"""Publishing, rolling back, and many publishers at once."""

import threading
from multiprocessing import get_context
from pathlib import Path

import pytest

from unlearn_ray.artifacts import Folder
from unlearn_ray.errors import ArtifactError, InputError
from unlearn_ray.serving.names import ModelName
from unlearn_ray.serving.registry import Registry, Release, ReleasedTopic, now


def publish(
    registry: Registry, name: str = "harry-potter", text: str = "weights", prefix: str = "Forget it."
) -> Release:
    version = registry.begin(name)
    topics = (ReleasedTopic(name="Harry Potter", slug="harry-potter", prefix=prefix),)
    release = Release(name=name, version=version, kind="adapter", model="m", topics=topics, created=now())
    (registry.version_folder(release.id) / "weights").write_text("file", text)
    return registry.finish(release)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(Folder(tmp_path / "registry"))


def test_an_empty_registry_has_no_models(registry: Registry) -> None:
    assert registry.read().current == ()


def test_an_alias_points_to_what_was_published_last(registry: Registry) -> None:
    assert [publish(registry).id for _ in range(3)] == ["harry-potter@1", "harry-potter@2", "harry-potter@3"]
    state = Registry(registry.folder).read()
    assert state.aliases == {"harry-potter": 3}
    found = state.find(ModelName("harry-potter"))
    assert found is not None and found.id == "harry-potter@3"
    old = state.find(ModelName("harry-potter", 1))
    assert old is not None and old.version == 1
    assert state.find(ModelName("harry-potter", 9)) is None


def test_rolling_back_points_to_the_version_before_or_the_one_given(registry: Registry) -> None:
    for _ in range(3):
        publish(registry)
    assert registry.rollback("harry-potter").version == 2
    assert registry.rollback("harry-potter").version == 1
    assert registry.rollback("harry-potter", 3).version == 3
    assert registry.read().aliases == {"harry-potter": 3}
    assert publish(registry).version == 4  # never a number twice


def test_impossible_rollbacks_say_what_there_is(registry: Registry) -> None:
    with pytest.raises(InputError, match="nothing is published yet"):
        registry.rollback("harry-potter")
    publish(registry)
    with pytest.raises(InputError, match="oldest version"):
        registry.rollback("harry-potter")
    with pytest.raises(InputError, match=r"no version 7 \(it has 1\)"):
        registry.rollback("harry-potter", 7)


def test_a_version_that_was_begun_and_left_is_not_seen(registry: Registry) -> None:
    publish(registry)
    version = registry.begin("harry-potter")
    (registry.version_folder(f"harry-potter@{version}") / "weights").write_text("file", "half")
    assert registry.read().aliases == {"harry-potter": 1}
    assert publish(registry).version == version + 1


def test_the_base_models_name_is_taken(registry: Registry) -> None:
    with pytest.raises(InputError, match="is a reserved name"):
        registry.begin("base")


def test_a_damaged_event_is_named(registry: Registry) -> None:
    publish(registry)
    (registry.folder / "events").write_text("00000009.json", "{half")
    with pytest.raises(ArtifactError, match=r"00000009\.json can't be read"):
        Registry(registry.folder).read()


def test_the_guardrail_is_that_of_the_newest_release(registry: Registry) -> None:
    publish(registry, "old", prefix="Old.")
    publish(registry, "new", prefix="New.")
    guarding = registry.read().guardrail("harry-potter")
    assert guarding is not None and guarding[1].prefix == "New." and guarding[0].topics == (guarding[1],)
    assert registry.read().guardrail("dune") is None


def _publish_many(folder: str, name: str, count: int) -> list[int]:
    registry = Registry(Folder(folder))
    return [publish(registry, name, f"{name} {number}").version for number in range(count)]


def test_publishers_at_once_never_share_a_version_and_lose_none(tmp_path: Path) -> None:
    folder = str(tmp_path / "registry")
    with get_context("spawn").Pool(4) as pool:
        versions = pool.starmap(_publish_many, [(folder, "same", 6)] * 4)
    numbers = [number for found in versions for number in found]
    assert len(set(numbers)) == len(numbers) == 24
    state = Registry(Folder(folder)).read()
    assert {release.version for release in state.releases.values()} == set(numbers)
    assert len(state.events) == 24
    assert state.aliases["same"] == state.events[-1].version


def test_a_reader_beside_writers_always_finds_a_whole_state(registry: Registry) -> None:
    stop, failures = threading.Event(), []

    def read() -> None:
        reader = Registry(registry.folder)
        while not stop.is_set():
            try:
                state = reader.read()
            except ArtifactError as error:
                failures.append(str(error))
                continue
            for release in state.current:
                if reader.version_folder(release.id).exists("weights/file") is False:
                    failures.append(release.id)

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(15):
        publish(registry)
    stop.set()
    thread.join()
    assert failures == []
