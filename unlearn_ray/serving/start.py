"""The commands `serve`, `publish`, `rollback`, `models` and `demo`, up to the point where Ray is needed: all checks come before."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

import unlearn_ray
from unlearn_ray.artifacts import Folder
from unlearn_ray.config import apply_override
from unlearn_ray.engines.vllm_engine import room_for
from unlearn_ray.errors import ArtifactError, InputError
from unlearn_ray.runs import MARKER
from unlearn_ray.serving.hub import push, repositories
from unlearn_ray.serving.names import parse_name
from unlearn_ray.serving.registry import Registry, Release, State
from unlearn_ray.serving.release import (
    candidates,
    check_files,
    check_fits,
    publish,
    read_run,
    run_folder,
    service_record,
)
from unlearn_ray.serving.service import check_host, check_port, check_ray
from unlearn_ray.serving.settings import ServiceSettings, parse_settings
from unlearn_ray.words import visible

REGISTRY = "runs/registry"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A service that is ready to be started."""

    settings: ServiceSettings
    releases: list[tuple[Release, bool]]  # the versions published for it, and whether each is new


def prepare(
    run: str, overrides: Sequence[str], *, host: str, port: int, keys: Path | None, registry: str | None
) -> Prepared:
    """Check everything that can be wrong, then publish the run.

    Raises:
        UnlearnError: the run, a setting, the keys or the port can't be used. Nothing was written.
    """
    check_ray()
    folder = run_folder(run)
    if not folder.exists(MARKER):
        raise ArtifactError(f"{folder} is an adapter: serve a run, then unlearn-ray publish {folder}")
    config, _ = read_run(folder)
    weights, engines = config.finetune.weights, config.cluster.engines
    rank = weights.rank if weights.kind == "lora" else 1  # with `export: merged` a topic may still have an adapter
    base = {
        "model": config.model,
        "chat": config.chat.model_dump(mode="json"),
        "registry": Folder(registry or REGISTRY).uri,
        "port": port,
        "keys_file": str(keys.absolute()) if keys else None,
        "engine": {
            "max_model_len": engines.max_model_len,
            "accelerator": config.cluster.accelerator,
            "max_lora_rank": room_for(max(rank, 16)),
        },
    }
    settings = check_host(host, read_settings(base, overrides))
    settings = settings.model_copy(update={"registry": Folder(settings.registry).uri})
    check_port(host, settings.port)
    target = open_registry(settings.registry)
    record = service_record(settings)
    found = candidates(folder)
    for candidate in found:
        check_fits(candidate, record)
    replaced = {candidate.name for candidate in found}
    for release in target.read().current:
        check_fits(release, record)
        if release.name not in replaced:
            check_files(target, release, record)
    published = [publish(target, candidate) for candidate in found]
    target.record_service(record)
    return Prepared(settings, published)


def read_settings(values: dict[str, Any], overrides: Sequence[str]) -> ServiceSettings:
    """Settings with `key.path=value` set over them.

    Raises:
        ConfigError: a key is unknown, or a value has the wrong type or is out of bounds.
    """
    for override in overrides:
        apply_override(values, override)
    return parse_settings(values)


def publish_all(
    source: str,
    name: str | None,
    registry: str | None,
    *,
    repo: str | None = None,
    is_private: bool = False,
    on_push: Callable[[str], None] = lambda address: None,
) -> list[tuple[Release, bool]]:
    """Publish all models of a run, or an adapter. If one of them can't be published, none is.

    Args:
        repo: a repository on the Hugging Face hub. The exports are pushed to it before they are published.
        on_push: called with the address of each pushed repository.

    Raises:
        UnlearnError: an input can't be used. Nothing is published then, but earlier pushes to the hub stay.
    """
    target = open_registry(registry)
    found = candidates(run_folder(source), name)
    for candidate in found:
        check_fits(candidate, target.service())
    for place, candidate, export in repositories(found, repo) if repo is not None else ():
        on_push(push(place, candidate, export, is_private=is_private))
    return [publish(target, candidate) for candidate in found]


def roll_back(text: str, registry: str | None) -> Release:
    """Point a name to the version before its current one, or to the version after the @.

    Raises:
        InputError: the model or the version does not exist.
    """
    name = parse_name(text)
    if name is None or name.is_guarded:
        raise InputError(f"{text!r} is not a model's name: write harry-potter or harry-potter@1")
    return open_registry(registry).rollback(name.name, name.version)


def open_registry(registry: str | None) -> Registry:
    """The registry in a folder, which need not exist yet.

    Raises:
        InputError: the path is a file, or lies below one.
    """
    folder = Folder(registry or REGISTRY)
    if folder.is_local and any(map(os.path.isfile, (folder.local, *folder.local.parents))):
        raise InputError(f"{folder} is not a folder of published models: give the registry that publish writes to")
    return Registry(folder)


def table(state: State) -> Table:
    """Every version, newest first, with a mark at the version that its name points to."""
    shown = Table("name", "version", "", "kind", "topics", "run", "published")
    releases = sorted(state.releases.values(), key=lambda release: (release.name, -release.version))
    for release in releases:
        is_current = state.aliases.get(release.name) == release.version
        topics = Text(visible(", ".join(topic.name for topic in release.topics)))
        mark = "[green]served[/]" if is_current else ""
        shown.add_row(
            release.name,
            str(release.version),
            mark,
            release.kind,
            topics,
            Text(visible(release.run)),
            release.created[:16],
        )
    if not releases:
        shown.caption = "nothing is published yet: unlearn-ray publish RUN"
    return shown


def show_demo(endpoint: str, port: int) -> None:
    """Run the Streamlit page until it is stopped.

    Raises:
        ArtifactError: this installation has no demo, or Streamlit failed.
        ConfigError: the port is taken.
    """
    check_port("127.0.0.1", port)
    package = Path(unlearn_ray.__file__).parent
    found = [page for page in (package / "_demo/app.py", package.parent / "demo/app.py") if page.is_file()]
    if not found:
        raise ArtifactError("this installation has no demo: install unlearn-ray with its wheel")
    quiet = ["--browser.gatherUsageStats=false", "--server.address=127.0.0.1", f"--server.port={port}"]
    command = [sys.executable, "-m", "streamlit", "run", str(found[0]), *quiet]
    done = subprocess.run(command, env=os.environ | {"UNLEARN_RAY_ENDPOINT": endpoint}, check=False)
    if done.returncode:
        raise ArtifactError(f"the page ended with code {done.returncode}: Streamlit's message above says why")
