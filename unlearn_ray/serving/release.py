"""Publishes a finished run as versions in the registry: checks, weights, and the data that the demo shows.

A version holds `weights/` (a PEFT adapter or a model folder), `data/` (the report, the probes and a limited number of rows) and
`release.json`. It needs no file of the run, which may be deleted.
"""

import json
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from unlearn_ray.artifacts import Folder, Manifest, read_manifest
from unlearn_ray.chat import ChatFormat
from unlearn_ray.config import RunConfig, Topic
from unlearn_ray.errors import ArtifactError, InputError, ModelError, gist
from unlearn_ray.plan import model_of
from unlearn_ray.rows import digest, slug_of
from unlearn_ray.runs import MARKER, config_of, failure_in, is_made_from, units_in
from unlearn_ray.serving.names import RESERVED, parse_name
from unlearn_ray.serving.registry import DATA, WEIGHTS, Registry, Release, ReleasedTopic, ServiceRecord, now
from unlearn_ray.serving.settings import ServiceSettings
from unlearn_ray.serving.weights import ADAPTER, check_model, check_shapes, read_adapter
from unlearn_ray.stages.card import CARD, EXPORT, card
from unlearn_ray.stages.table import STAGES
from unlearn_ray.train.identity import model_identity
from unlearn_ray.train.inspection import inspect_model
from unlearn_ray.train.modelfiles import Shapes, linear_shapes

MAX_ROWS = 20_000  # per table of a version
TABLES = ("forget", "retain", "answers", "evaluation")
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
    chat: ChatFormat | None = None  # the chat format that it was trained with
    shapes: Shapes = field(default_factory=dict)  # of the layers that an adapter changes
    run: str = ""
    fingerprint: str = ""
    chain: "Chain | None" = None  # of the run's model


@dataclass(frozen=True, slots=True)
class Chain:
    """A finished model of a run."""

    run: Folder
    name: str
    topics: tuple[Topic, ...]
    manifests: Mapping[str, Manifest]  # of its stages

    @property
    def home(self) -> Folder:
        return self.run / "models" / self.name

    @property
    def tables(self) -> dict[str, tuple[Folder, ...]]:
        """The folders of the rows that a version keeps, by the name in TABLES."""
        answers = tuple(self.run / "topics" / topic.slug / "answers/rows" for topic in self.topics)
        forget, retain, evaluation = (
            (self.home / place,) for place in ("mixture/forget", "mixture/retain", "evaluate/answers")
        )
        return dict(zip(TABLES, (forget, retain, answers, evaluation), strict=True))


def read_run(folder: Folder) -> tuple[RunConfig, list[Chain]]:
    """A run's config and its finished models. Failed topics and models are left out; all others must be finished.

    Raises:
        ArtifactError: the folder is not a run, the run is unfinished, or its config can't be read.
    """
    config, chains = config_of(folder), []
    topics = {topic.slug: topic for topic in config.topics}
    lost = {slug for slug in topics if failure_in(folder / "topics" / slug)}
    for name, home in units_in(folder)["model"]:
        if failure_in(home) or name in lost:
            continue
        manifests = _finished(folder, home)
        made_of = dict(manifests["mixture"].details.get("topics", {}))
        if not set(topics) - lost <= set(made_of) <= set(topics) and config.finetune.adapters == "joint":
            raise ArtifactError(f"{folder} is unfinished ({name}): finish it with unlearn-ray run CONFIG")
        chains.append(Chain(folder, name, tuple(topics[slug] for slug in sorted(made_of)), manifests))
    if not chains:
        raise ArtifactError(f"{folder} has no model to publish: all failed (unlearn-ray status {folder} says why)")
    return config, chains


def _finished(folder: Folder, home: Folder) -> dict[str, Manifest]:
    """The manifests of a model's stages.

    Raises:
        ArtifactError: a stage is unfinished, or out of date because a stage before it ran again. That happens when a run with a changed
            config stops early.
    """
    manifests: dict[str, Manifest] = {}
    for stage in (stage for stage in STAGES if stage.scope == "model"):
        manifest = read_manifest(home / stage.name)
        if manifest is None or not is_made_from(manifest, home, folder):
            raise ArtifactError(f"{folder} is unfinished ({stage.name}): finish it with unlearn-ray run CONFIG")
        manifests[stage.name] = manifest
    return manifests


def candidates(folder: Folder, name: str | None = None) -> list[Candidate]:
    """The models to publish from a run's folder, or from a bare folder with a PEFT adapter.

    Raises:
        ArtifactError: the run is unfinished, or an adapter's files are missing or corrupt.
        InputError: `name` is given for several models, or is not a valid name.
    """
    if name is not None and ((parsed := parse_name(name)) is None or str(parsed) != parsed.name or name in RESERVED):
        words = ", ".join(RESERVED)
        raise InputError(
            f"{name!r} can't name a model: use small letters, digits, dots and dashes, and none of {words}"
        )
    if folder.exists(ADAPTER) and not folder.exists(MARKER):
        return [_bare_adapter(folder, name)]
    config, chains = read_run(folder)
    found = []
    for chain in chains:
        finetune, evaluated = chain.manifests["finetune"], chain.manifests["evaluate"]
        members = _topics(chain)
        candidate = Candidate(
            name=members[0].slug if len(members) == 1 else slug_of(config.name),
            weights=chain.home / "finetune" / EXPORT,
            kind="full",
            rank=0,
            model=model_of(str(finetune.config["model"])),
            topics=members,
            chat=_chat(finetune),
            run=config.name,
            fingerprint=digest(finetune.fingerprint, evaluated.fingerprint),
            chain=chain,
        )
        if finetune.config["weights"]["kind"] == "lora" and finetune.config.get("export") != "merged":
            adapter = read_adapter(candidate.weights)
            candidate = replace(candidate, kind="adapter", rank=adapter.rank, shapes=adapter.shapes)
        else:
            check_model(candidate.weights)
        found.append(candidate)
        _check_data(chain)
    if name is not None:
        if len(found) != 1:
            raise InputError(f"{folder} has {len(found)} models ({', '.join(c.name for c in found)}): leave --name out")
        found = [replace(found[0], name=name)]
    for candidate in found:
        if candidate.name in RESERVED or parse_name(candidate.name) is None:
            raise InputError(f"{candidate.name!r} can't name a model: publish under another --name")
    return found


def _chat(finetune: Manifest) -> ChatFormat | None:
    """The chat format that a run's models were trained with. None: an earlier version of unlearn-ray did not record it."""
    found = finetune.details.get("chat")
    return ChatFormat.model_validate(found) if found else None


def _bare_adapter(folder: Folder, name: str | None) -> Candidate:
    adapter = read_adapter(folder)
    base = adapter.base
    is_known = base and (Path(base).is_dir() or (base.count("/") == 1 and not base.startswith(("/", ".", "~"))))
    return Candidate(
        name=name or slug_of(folder.name),
        weights=folder,
        kind="adapter",
        rank=adapter.rank,
        model=model_identity(base) if is_known else "",
        topics=(),
        shapes=adapter.shapes,
    )


def _topics(chain: Chain) -> tuple[ReleasedTopic, ...]:
    terms = _terms(chain)
    prefixes: Mapping[str, str] = chain.manifests["evaluate"].config.get("guardrail", {})
    return tuple(
        ReleasedTopic(
            name=topic.name,
            slug=topic.slug,
            prefix=prefixes.get(topic.name, ""),
            terms=tuple(sorted({*topic.terms, *terms.get(topic.name, ())})),
            aliases=topic.aliases,
        )
        for topic in chain.topics
    )


def publish(registry: Registry, candidate: Candidate) -> tuple[Release, bool]:
    """Publish one model that fits. Returns its version, and whether it is new: a result that is already published is not copied again
    unless its files are damaged.

    Raises:
        ArtifactError: files can't be read or written.
    """
    last = registry.read().last_of(candidate.name)
    if last is not None and _holds(registry, last, candidate):
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
        chat=candidate.chat,
        created=now(),
    )
    target = registry.version_folder(release.id)
    try:
        _copy(candidate.weights, target / WEIGHTS)
        if (chain := candidate.chain) is not None:
            text = card(chain.home, config_of(chain.run), is_adapter=release.kind == "adapter")
            (target / WEIGHTS).write_text(CARD, text)
            _write_data(chain, target / DATA)
        return registry.finish(release), True
    except BaseException:
        registry.abandon(candidate.name, version)
        raise


def service_record(settings: ServiceSettings) -> ServiceRecord:
    """The limits of a service with these settings.

    Raises:
        ModelError: the base model's files are corrupt.
    """
    model = settings.model_path
    return ServiceRecord(
        model=model_identity(model),
        max_lora_rank=settings.engine.max_lora_rank,
        lora_targets=inspect_model(model, settings.chat).layer_kinds,
        shapes=linear_shapes(model),
    )


def check_fits(candidate: Candidate | Release, service: ServiceRecord | None) -> None:
    """Refuse a model that the service of this registry can't serve.

    Raises:
        ModelError: it is for another base model, its rank is too high, or its layers differ.
    """
    if service is None:
        return
    if candidate.model and not _is_same(candidate.model, service.model, is_sure=bool(candidate.run)):
        raise ModelError(
            f"{candidate.name} is made from {candidate.model}, the service's base model is {service.model}: "
            "give another base model its own registry (--registry)"
        )
    if candidate.rank > service.max_lora_rank:
        raise ModelError(
            f"{candidate.name} has rank {candidate.rank}, the service was started for at most {service.max_lora_rank}: "
            "raise engine.max_lora_rank"
        )
    if isinstance(candidate, Candidate):
        check_layers(candidate.shapes, service, candidate.name)


def check_layers(adapter: Shapes, service: ServiceRecord, name: str) -> None:
    """Refuse an adapter on layers that the service's base model does not have, or has in another shape.

    Raises:
        ModelError: the layers differ from those of the base model.
    """
    check_shapes(adapter, service.shapes, name)
    kinds = {layer.rpartition(".")[2] for layer in adapter}
    if service.lora_targets and (beyond := sorted(kinds - set(service.lora_targets))):
        raise ModelError(
            f"{name} changes {', '.join(beyond)}: the service's model has {', '.join(service.lora_targets)}"
        )


def check_files(registry: Registry, release: Release, service: ServiceRecord) -> None:
    """Refuse a version whose files no replica could load. A service with it would never be ready.

    Raises:
        ModelError: the files are missing, corrupt, or for another base model.
    """
    try:
        check_layers(_released_shapes(registry, release), service, release.id)
    except ModelError as error:
        raise ModelError(
            f"{release.id} can't be served ({error}): unlearn-ray rollback {release.name}, or publish it again"
        ) from error


def _released_shapes(registry: Registry, release: Release) -> Shapes:
    """Shapes of the layers that a version's adapter changes, after checking its files. Empty for a full fine-tune.

    Raises:
        ModelError: a file is missing or corrupt.
    """
    weights = Folder(registry.weights(release))
    if release.kind == "adapter":
        return read_adapter(weights).shapes
    check_model(weights)
    return {}


def _holds(registry: Registry, release: Release, candidate: Candidate) -> bool:
    """Whether a version is the same result, with undamaged files."""
    if not candidate.fingerprint or release.fingerprint != candidate.fingerprint:
        return False
    try:
        _released_shapes(registry, release)
    except ModelError:
        return False
    return True


def _is_same(made_from: str, served: str, is_sure: bool) -> bool:
    """Whether two identities mean the same model. For a folder its content counts, not its name."""
    contents = [identity.rpartition(":")[2] if ":" in identity else None for identity in (made_from, served)]
    if None not in contents:
        return contents[0] == contents[1]
    # An adapter may name the hub's model while the service names a folder that holds it. Then only the layers' shapes can tell.
    return made_from == served or (contents != [None, None] and not is_sure)


def _copy(source: Folder, target: Folder) -> None:
    target.make()
    try:
        fs.copy_files(
            source.path, target.path, source_filesystem=source.filesystem, destination_filesystem=target.filesystem
        )
    except OSError as error:
        raise ArtifactError(f"{source} can't be copied to {target}: {error}") from error


def _check_data(chain: Chain) -> None:
    """Refuse a run whose data for the demo is incomplete, before anything is written.

    Raises:
        ArtifactError: a report or a table is missing or corrupt.
    """
    try:
        json.loads((chain.home / "evaluate").read_text("report.json"))
        for place in (place for places in chain.tables.values() for place in places):
            _schema(place)
    except (OSError, ValueError, IndexError) as error:  # Arrow's errors are ValueErrors
        raise ArtifactError(
            f"{chain.run} is damaged ({gist(error)}): rerun it with --from the stage that wrote it"
        ) from error


def _write_data(chain: Chain, data: Folder) -> None:
    data.write_text("report.json", (chain.home / "evaluate").read_text("report.json"))
    for table, places in chain.tables.items():
        rows = islice((row for place in places for row in place.read_rows()), MAX_ROWS)
        first = next(rows, None)
        if first is not None:
            (data / table).write_rows(_chained(first, rows), _schema(places[0]))
    data.write_text("probes.json", json.dumps(_probes(chain.home)))


def _chained(first: dict[str, Any], rest: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield first
    yield from rest


def _schema(folder: Folder) -> pa.Schema:
    import pyarrow.parquet as pq

    with folder.filesystem.open_input_file(posixpath.join(folder.path, folder.names(".parquet")[0])) as file:
        return pq.ParquetFile(file).schema_arrow


def _probes(home: Folder) -> list[dict[str, Any]]:
    """The probes of the evaluation. All of them were held out of the training."""
    found = {}
    for row in (home / "evaluate/answers").read_rows(["probe_id", *_PROBE_COLUMNS]):
        probe = {name: row[name] for name in _PROBE_COLUMNS if name != "truth"}
        found[row["probe_id"]] = {"id": row["probe_id"], **probe, "answer": row["truth"]}
    return [found[key] for key in sorted(found)]


def _terms(chain: Chain) -> dict[str, set[str]]:
    terms: dict[str, set[str]] = {}
    for topic in chain.topics:
        for row in (chain.run / "topics" / topic.slug / "answers/terms").read_rows(["topic", "term"]):
            terms.setdefault(row["topic"], set()).add(row["term"])
    return terms


def run_folder(text: str) -> Folder:
    """The folder of a run or of an adapter, by its path, its URI, or its name below runs/.

    Raises:
        ArtifactError: it does not exist, can't be read, or is neither a run nor an adapter.
    """
    folder = Folder(text)
    try:
        if not folder.exists() and "://" not in text and "/" not in text:
            folder = Folder(Path("runs") / text)
        is_known = folder.exists(MARKER) or folder.exists(ADAPTER)
    except OSError as error:
        raise ArtifactError(f"{text} can't be read: {error}") from error
    if not is_known:
        raise ArtifactError(f"{text} is neither a run nor an adapter: give a run's folder or its name below runs/")
    return folder
