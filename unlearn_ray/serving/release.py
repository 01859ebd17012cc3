"""From a finished run to versions in the registry: checks, weights, and what the demo shows of the run.

A version holds `weights/` (a PEFT adapter or a model folder), `data/` (the report, probes and a bounded share of the rows) and
`release.json`, so that it stays whole when the run is deleted.
"""

import json
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from unlearn_ray.artifacts import Folder, Manifest, read_manifest
from unlearn_ray.config import RunConfig
from unlearn_ray.errors import ArtifactError, InputError, ModelError
from unlearn_ray.plan import MARKER
from unlearn_ray.rows import slug_of
from unlearn_ray.serving.names import parse_name
from unlearn_ray.serving.registry import DATA, WEIGHTS, Registry, Release, ReleasedTopic, ServiceRecord, now
from unlearn_ray.stages.finetune import JOINT

MAX_ROWS = 20_000  # of a table, kept with a version
TABLES = {
    "forget": "dataset/forget",
    "retain": "dataset/retain",
    "answers": "answers/rows",
    "evaluation": "evaluate/answers",
}
_STAGES = ("questions", "answers", "dataset", "finetune", "evaluate")
_ADAPTER = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PROBE_COLUMNS = ("topic", "group", "wording", "question", "truth", "aliases")


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that can be published."""

    name: str
    weights: Folder
    kind: str
    rank: int
    model: str
    topics: tuple[ReleasedTopic, ...]
    run: str = ""
    fingerprint: str = ""
    home: Folder | None = None  # the run's folder


def read_run(folder: Folder) -> tuple[RunConfig, dict[str, Manifest]]:
    """A finished run's config and the manifests of its stages.

    Raises:
        ArtifactError: it is no run, is unfinished, or its config can't be read.
    """
    try:
        config = RunConfig.model_validate(json.loads(folder.read_text(MARKER))["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder} is no run of ours: its {MARKER} can't be read") from error
    manifests = {stage: read_manifest(folder / stage) for stage in _STAGES}
    for stage, manifest in manifests.items():
        if manifest is None:
            raise ArtifactError(f"{folder} is unfinished ({stage}): finish it with unlearn-ray run CONFIG")
    return config, {stage: manifest for stage, manifest in manifests.items() if manifest is not None}


def candidates(folder: Folder, name: str | None = None) -> list[Candidate]:
    """What a run's folder, or a bare folder with a PEFT adapter, has to publish.

    Raises:
        ArtifactError: the run is unfinished, or an adapter's files are missing or corrupt.
        InputError: `name` is given for several models, or is none.
    """
    if name is not None and ((parsed := parse_name(name)) is None or str(parsed) != parsed.name):
        raise InputError(f"{name!r} can't name a model: use small letters, digits, dots, dashes and underscores")
    if folder.exists(_ADAPTER) and not folder.exists(MARKER):
        return [Candidate(name or slug_of(folder.name), folder, "adapter", check_adapter(folder), "", ())]
    config, manifests = read_run(folder)
    terms = _terms(folder)
    prefixes: Mapping[str, str] = manifests["evaluate"].config.get("guardrail", {})
    topics = {
        topic.slug: ReleasedTopic(
            name=topic.name,
            slug=topic.slug,
            prefix=prefixes.get(topic.name, ""),
            terms=tuple(sorted({*topic.terms, *terms.get(topic.name, ())})),
        )
        for topic in config.topics
    }
    models = folder / "finetune/models"
    found = []
    for export in models.names():
        members = tuple(topics.values()) if export == JOINT else (topics[export],)
        weights = models / export
        is_adapter = weights.exists(_ADAPTER)
        found.append(
            Candidate(
                name=members[0].slug if len(members) == 1 else slug_of(config.name),
                weights=weights,
                kind="adapter" if is_adapter else "full",
                rank=check_adapter(weights) if is_adapter else 0,
                model=str(manifests["finetune"].config["model"]),
                topics=members,
                run=config.name,
                fingerprint=manifests["finetune"].fingerprint,
                home=folder,
            )
        )
    if name is not None:
        if len(found) != 1:
            raise InputError(f"{folder} has {len(found)} models ({', '.join(c.name for c in found)}): leave --name out")
        found = [Candidate(**{**{f: getattr(found[0], f) for f in Candidate.__slots__}, "name": name})]
    return found


def publish(registry: Registry, candidate: Candidate) -> tuple[Release, bool]:
    """Publish one model; returns its version and whether it is new: the same result is not published twice.

    Raises:
        ModelError: the service that uses the registry can't take it.
        ArtifactError: files can't be read or written.
    """
    check_fits(candidate, registry.service())
    last = registry.read().last_of(candidate.name)
    if last is not None and candidate.fingerprint and last.fingerprint == candidate.fingerprint:
        if registry.read().aliases.get(last.name) != last.version:
            registry.rollback(last.name, last.version)  # published again on purpose: point back to it
        return last, False
    version = registry.begin(candidate.name)
    release = Release(
        name=candidate.name,
        version=version,
        kind="adapter" if candidate.kind == "adapter" else "full",
        model=candidate.model,
        rank=candidate.rank,
        run=candidate.run,
        fingerprint=candidate.fingerprint,
        topics=candidate.topics,
        created=now(),
    )
    target = registry.version_folder(release.id)
    try:
        _copy(candidate.weights, target / WEIGHTS)
        if candidate.home is not None:
            _write_data(candidate.home, target / DATA)
        return registry.finish(release), True
    except BaseException:
        registry.abandon(candidate.name, version)
        raise


def check_adapter(folder: Folder) -> int:
    """The rank of a PEFT LoRA adapter whose files are whole.

    Raises:
        ModelError: a file is missing or corrupt, or it is no LoRA adapter.
    """
    try:
        body = json.loads(folder.read_text(_ADAPTER))
        kind, rank = body["peft_type"], int(body["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}/{_ADAPTER} is missing or corrupt: publish a PEFT adapter's folder") from error
    if kind != "LORA":
        raise ModelError(f"{folder} is a {kind} adapter: only LORA can be served")
    if not folder.exists(_ADAPTER_WEIGHTS):
        raise ModelError(f"{folder} has no {_ADAPTER_WEIGHTS}: publish a PEFT adapter's folder")
    info = folder.filesystem.get_file_info(posixpath.join(folder.path, _ADAPTER_WEIGHTS))
    with folder.filesystem.open_input_file(posixpath.join(folder.path, _ADAPTER_WEIGHTS)) as file:
        if not _is_whole(file, info.size):
            raise ModelError(f"{folder}/{_ADAPTER_WEIGHTS} is corrupt: copy or train it again")
    return rank


def check_fits(candidate: Candidate | Release, service: ServiceRecord | None) -> None:
    """Refuse what the service of this registry can't take.

    Raises:
        ModelError: it is for another base model, or its rank is too high.
    """
    if service is None:
        return
    if candidate.model and candidate.model != service.model:
        raise ModelError(
            f"{candidate.name} is made from {candidate.model}, the service's base model is {service.model}"
        )
    if candidate.rank > service.max_lora_rank:
        raise ModelError(
            f"{candidate.name} is of rank {candidate.rank}, the service was started for at most {service.max_lora_rank}: "
            "raise engine.max_lora_rank"
        )


def _is_whole(file: pa.NativeFile, size: int) -> bool:
    """Whether a safetensors file has its header and all bytes that the header promises."""
    head = file.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > size - 8:
        return False
    try:
        tensors = {key: value for key, value in json.loads(file.read(length)).items() if key != "__metadata__"}
        return bool(tensors) and max(value["data_offsets"][1] for value in tensors.values()) == size - 8 - length
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _copy(source: Folder, target: Folder) -> None:
    target.make()
    try:
        fs.copy_files(
            source.path, target.path, source_filesystem=source.filesystem, destination_filesystem=target.filesystem
        )
    except OSError as error:
        raise ArtifactError(f"{source} can't be copied to {target}: {error}") from error


def _write_data(home: Folder, data: Folder) -> None:
    data.write_text("report.json", (home / "evaluate").read_text("report.json"))
    for table, place in TABLES.items():
        rows = islice((home / place).read_rows(), MAX_ROWS)
        first = next(rows, None)
        if first is not None:
            (data / table).write_rows(_chained(first, rows), _schema(home / place))
    data.write_text("probes.json", json.dumps(_probes(home)))


def _chained(first: dict[str, Any], rest: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield from rest


def _schema(folder: Folder) -> pa.Schema:
    import pyarrow.parquet as pq

    with folder.filesystem.open_input_file(posixpath.join(folder.path, folder.names(".parquet")[0])) as file:
        return pq.ParquetFile(file).schema_arrow


def _probes(home: Folder) -> list[dict[str, Any]]:
    """The probes that the evaluation asked: all were held out of the training."""
    found = {}
    for row in (home / "evaluate/answers").read_rows(["probe_id", *_PROBE_COLUMNS]):
        probe = {name: row[name] for name in _PROBE_COLUMNS if name != "truth"}
        found[row["probe_id"]] = {"id": row["probe_id"], **probe, "answer": row["truth"]}
    return [found[key] for key in sorted(found)]


def _terms(home: Folder) -> dict[str, set[str]]:
    terms: dict[str, set[str]] = {}
    for row in (home / "answers/terms").read_rows(["topic", "term"]):
        terms.setdefault(row["topic"], set()).add(row["term"])
    return terms


def run_folder(text: str) -> Folder:
    """A run's folder, or an adapter's, by its path, URI or name below runs/.

    Raises:
        ArtifactError: there is none.
    """
    folder = Folder(text)
    if not folder.exists() and "://" not in text and "/" not in text:
        folder = Folder(Path("runs") / text)
    if not folder.exists(MARKER) and not folder.exists(_ADAPTER):
        raise ArtifactError(f"{text} is no run and no adapter: give a run's folder or its name below runs/")
    return folder
