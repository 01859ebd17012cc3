"""Reads a run's folder, wherever it is: its owner, the progress of its topics and models, their failures, and their figures."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearn_ray.artifacts import Folder, Manifest, read_manifest
from unlearn_ray.config import RunConfig
from unlearn_ray.errors import ArtifactError
from unlearn_ray.evals.overview import INDEX, Line, page
from unlearn_ray.stages.finetune import FINETUNE
from unlearn_ray.stages.stage import JOINT, Scope
from unlearn_ray.stages.table import STAGES
from unlearn_ray.train.metrics import StepMetrics, read_last

MARKER = "run.json"  # marks a folder as a run
FAILED = "failed.json"  # in a topic's or a model's folder: its failure
LAYOUT = 2  # of a run's folder: one chain per topic


def check_layout(home: Folder) -> None:
    """Refuse the folder of a run that an earlier version made.

    Raises:
        ArtifactError: says how to replace it.
    """
    if (marker := read_marker(home)) and marker.get("layout") != LAYOUT:
        raise ArtifactError(
            f"{home} was made by an earlier version, which kept all topics together: delete it (or choose another output or name) and run its config again"
        )


def read_marker(home: Folder) -> dict[str, Any]:
    """The content of the marker. Empty if there is none.

    Raises:
        ArtifactError: it is corrupt.
    """
    if not home.exists(MARKER):
        return {}
    try:
        marker: dict[str, Any] = json.loads(home.read_text(MARKER))
        marker["name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{home}/{MARKER} can't be read: delete the folder, or choose another name") from error
    return marker


@dataclass(frozen=True, slots=True)
class UnitState:
    """The progress of the pool, a topic or a model."""

    scope: Scope
    label: str
    stage: str  # the last finished stage, or the failed one
    state: str  # finished | unfinished | failed | not begun
    last: Manifest | None  # of the last finished stage
    drops: Mapping[str, int]  # of all its stages
    seconds: float
    reason: str = ""  # why it failed
    log: Sequence[str] = ()  # last log lines of a failed training
    training: StepMetrics | None = None  # last step of a running training


def states(folder: Folder) -> list[UnitState]:
    """The progress of a run: of the pool, of each topic in its last config, and of each model.

    Raises:
        ArtifactError: the run is of an earlier version, or its marker can't be read.
    """
    found = []
    for scope, units in units_in(folder).items():
        stages = [stage.name for stage in STAGES if stage.scope == scope]
        found += [_state_of_unit(scope, label, home, stages) for label, home in units]
    return found


def units_in(folder: Folder) -> dict[Scope, list[tuple[str, Folder]]]:
    """Labels and folders of the pool, topics and models in a run's last config, also if the run's folder was moved.

    Raises:
        ArtifactError: as in `config_of`.
    """
    config = config_of(folder)
    models = [JOINT] if config.finetune.adapters == "joint" else [topic.slug for topic in config.topics]
    return {
        "pool": [("pool", folder / "pool" if config.pool is None else config.pool_folder)],
        "topic": [(topic.name, folder / "topics" / topic.slug) for topic in config.topics],
        "model": [(name, folder / "models" / name) for name in models],
    }


def is_made_from(manifest: Manifest, home: Folder, folder: Folder) -> bool:
    """Whether the inputs in a model's manifest are the present ones. A pool that runs share may be missing: it never changes.

    Args:
        home: the model's folder.
        folder: the run's folder.
    """
    for key, fingerprint in manifest.inputs.items():
        slug, _, stage = key.rpartition("/")
        places = [folder / "topics" / slug / stage] if slug else [home / stage, folder / "pool" / stage]
        found = next((found for place in places if (found := read_manifest(place)) is not None), None)
        if (found is None and slug) or (found is not None and found.fingerprint != fingerprint):
            return False
    return True


def evaluated(folder: Folder) -> list[Folder]:
    """The finished, up-to-date evaluations of a run's models, without models that failed later.

    Raises:
        ArtifactError: as in `config_of`.
    """
    return [
        home / "evaluate"
        for _, home in units_in(folder)["model"]
        if (manifest := read_manifest(home / "evaluate")) is not None
        and failure_in(home) is None
        and is_made_from(manifest, home, folder)
    ]


def unevaluated(folder: Folder) -> dict[str, str]:
    """Topics of a run's last config that no finished, up-to-date evaluation is about, with the reason.

    Raises:
        ArtifactError: as in `config_of`.
    """
    manifests = [read_manifest(home) for home in evaluated(folder)]
    covered = {topic["name"] for manifest in manifests if manifest for topic in manifest.config["topics"]}
    config, models = config_of(folder), dict(units_in(folder)["model"])
    found = {}
    for topic in config.topics:
        if topic.name not in covered:
            homes = [folder / "topics" / topic.slug, models.get(topic.slug) or models[JOINT]]
            failures = [failure["reason"] for home in homes if (failure := failure_in(home))]
            found[topic.name] = failures[0] if failures else "unfinished, or made anew since"
    return found


def lines_of(folder: Folder, base: str = "") -> list[Line]:
    """A run's topics and models, for a page or a table.

    Args:
        base: prefix of the page's links to reports.

    Raises:
        ArtifactError: as in `config_of`.
    """
    found, current = [], {home.path for home in evaluated(folder)}
    for each in states(folder):
        home = folder / "models" / each.label / "evaluate"
        is_evaluated = each.scope == "model" and each.last is not None and home.path in current
        found.append(
            Line(
                run=folder.name,
                kind=each.scope,
                name=each.label,
                state=each.state,
                stage=each.stage,
                reason=each.reason,
                log=each.log,
                num_rows=each.last.num_rows if each.last else {},
                num_dropped=sum(each.drops.values()),
                seconds=each.seconds,
                figures=each.last.details.get("headline", {}) if each.last and is_evaluated else {},
                link=f"{base}models/{each.label}/evaluate/report.html" if is_evaluated else "",
            )
        )
    return found


def write_index(folder: Folder) -> None:
    """Write the run's overview page of all topics and models into its folder."""
    folder.write_text(INDEX, page(folder.name, lines_of(folder)))


def _state_of_unit(scope: Scope, label: str, home: Folder, stages: Sequence[str]) -> UnitState:
    manifests = {name: manifest for name in stages if (manifest := read_manifest(home / name)) is not None}
    drops = sum((Counter(each.drops) for each in manifests.values()), Counter[str]())
    seconds = sum(each.seconds for each in manifests.values())
    last = next((manifests[name] for name in reversed(stages) if name in manifests), None)
    failure = failure_in(home)
    if failure is not None:
        reason, said = failure["reason"], log_in(home)
        return UnitState(scope, label, failure["stage"], "failed", last, drops, seconds, reason, said)
    if len(manifests) == len(stages):
        return UnitState(scope, label, stages[-1], "finished", last, drops, seconds)
    state = "unfinished" if home.names() else "not begun"
    training = None
    if FINETUNE.name in stages and FINETUNE.name not in manifests:
        training = read_last(home / FINETUNE.name)
    return UnitState(scope, label, last.stage if last else "", state, last, drops, seconds, training=training)


def failure_in(home: Folder) -> dict[str, str] | None:
    """The failure of a topic or a model. None if it did not fail."""
    if not home.exists(FAILED):
        return None
    try:
        said = json.loads(home.read_text(FAILED))
        return {name: str(said[name]) for name in ("stage", "reason")}
    except (ValueError, KeyError, TypeError):
        return {"stage": "", "reason": f"{home}/{FAILED} can't be read"}


def log_in(home: Folder) -> list[str]:
    """The last log lines of the training that failed; empty if another stage failed."""
    try:
        return [str(line) for line in json.loads(home.read_text(FAILED)).get("log", [])]
    except (ValueError, AttributeError, TypeError):
        return []


def config_of(folder: Folder) -> RunConfig:
    """The last config of a run.

    Raises:
        ArtifactError: its marker can't be read.
    """
    check_layout(folder)
    try:
        return RunConfig.model_validate(read_marker(folder)["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder} was not made by this version: its {MARKER} can't be read") from error
