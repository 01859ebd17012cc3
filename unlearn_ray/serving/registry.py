"""Published versions of unlearned models, in a folder that running services watch: local, s3:// or gs://.

A version (`harry-potter@3`) is written once and never changed. The newest event of an alias (`harry-potter`) names its version. Each
event is a small numbered file of its own, so publishers never write the same file. No lock is needed: see `_claim`.
"""

import json
import random
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from unlearn_ray.artifacts import Folder
from unlearn_ray.chat import ChatFormat
from unlearn_ray.errors import ArtifactError, InputError, gist
from unlearn_ray.serving.names import RESERVED, ModelName, versioned

RELEASE = "release.json"  # written last: a version without it counts as missing
WEIGHTS = "weights"
DATA = "data"
_SERVICE = "service.json"
T = TypeVar("T", bound=BaseModel)
_MAX_CLAIMS = 100
_SECONDS_BETWEEN_CLAIMS = 0.2


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class ReleasedTopic(_Record):
    name: str
    slug: str
    prefix: str = ""  # the guardrail of guarded mode, which the base model gets as its system message
    terms: tuple[str, ...] = ()  # words that give the topic away in an answer
    aliases: tuple[str, ...] = ()  # other names for it, which give nothing away


class Release(_Record):
    """One version of an unlearned model."""

    name: str
    version: int
    kind: Literal["adapter", "full"]
    model: str  # identity of the base model
    rank: int = 0  # of an adapter; 0 for a full fine-tune
    run: str = ""  # name of the run that made it
    fingerprint: str = ""  # of that run's weights and evaluation: the same result is not published twice
    topics: tuple[ReleasedTopic, ...] = ()
    chat: ChatFormat | None = None  # the chat format that it was trained with; None: the base model's
    created: str = ""

    @property
    def id(self) -> str:
        return versioned(self.name, self.version)


class Event(_Record):
    """From this event on, the alias `name` points to `version`."""

    number: int
    action: Literal["publish", "rollback"]
    name: str
    version: int
    at: str


class ServiceRecord(_Record):
    """The limits of the service that uses this registry, so that a publisher learns at once what doesn't fit."""

    model: str  # identity
    max_lora_rank: int
    lora_targets: tuple[str, ...] = ()  # names of the layers that adapters may change; empty: unknown
    shapes: Mapping[str, tuple[int, int]] = {}  # of the base model's layers that adapters change; empty: unknown


@dataclass(frozen=True, slots=True)
class State:
    """All versions, and the current version of each alias."""

    releases: Mapping[str, Release] = field(default_factory=dict)  # by id
    aliases: Mapping[str, int] = field(default_factory=dict)
    events: tuple[Event, ...] = ()

    def find(self, name: ModelName) -> Release | None:
        version = name.version if name.version is not None else self.aliases.get(name.name)
        return self.releases.get(versioned(name.name, version)) if version is not None else None

    @property
    def current(self) -> tuple[Release, ...]:
        """The releases that the aliases point to, sorted by name."""
        return tuple(self.releases[versioned(name, version)] for name, version in sorted(self.aliases.items()))

    def guardrail(self, slug: str) -> tuple[Release, ReleasedTopic] | None:
        """The topic behind the name `slug:guarded`, and its release: the newest current one with that topic."""
        for release in sorted(self.current, key=lambda release: release.created, reverse=True):
            for topic in release.topics:
                if topic.slug == slug and topic.prefix:
                    return release, topic
        return None

    def last_of(self, name: str) -> Release | None:
        versions = [release for release in self.releases.values() if release.name == name]
        return max(versions, key=lambda release: release.version, default=None)


class Registry:
    """Reads and writes one registry. Each method leaves it consistent, also when others write at the same time."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._events: dict[str, Event] = {}  # by file name; a written event never changes
        self._releases: dict[str, Release] = {}

    def read(self) -> State:
        """The current state. Files that were read before are not read again.

        Raises:
            ArtifactError: the folder, an event, or a version that an event names can't be read.
        """
        log = self.folder / "events"
        try:
            files = log.names(".json")
        except OSError as error:
            raise ArtifactError(f"the registry {self.folder} can't be read: {error}") from error
        for file in files:
            if file not in self._events:
                self._events[file] = _parsed(Event, log, file)
        events = sorted(self._events.values(), key=lambda event: event.number)
        aliases = {}
        for event in events:
            name = versioned(event.name, event.version)
            if name not in self._releases:
                self._releases[name] = _parsed(Release, self.version_folder(name), RELEASE)
            aliases[event.name] = event.version
        return State(dict(self._releases), aliases, tuple(events))

    def version_folder(self, release_id: str) -> Folder:
        return self.folder / "versions" / release_id

    def weights(self, release: Release) -> str:
        return (self.version_folder(release.id) / WEIGHTS).uri

    def begin(self, name: str) -> int:
        """Reserve the next version number of a name. Readers see the version's folder only after `finish`.

        Raises:
            InputError: the name is reserved.
        """
        if name in RESERVED:
            raise InputError(f"{name!r} is a reserved name: publish under another --name")
        return _claim(self.folder / "claims" / name)

    def finish(self, release: Release) -> Release:
        """Make a version visible once its files are written, and point its alias to it."""
        self.version_folder(release.id).write_text(RELEASE, release.model_dump_json(indent=1))
        self._append("publish", release.name, release.version)
        return release

    def abandon(self, name: str, version: int) -> None:
        """Delete the files of an unfinished version."""
        self.version_folder(versioned(name, version)).delete()

    def rollback(self, name: str, version: int | None = None) -> Release:
        """Point an alias to `version`, or to the one before its current version.

        Raises:
            InputError: the model or the version does not exist.
        """
        state = self.read()
        if name not in state.aliases:
            known = ", ".join(sorted(state.aliases)) or "nothing is published yet"
            raise InputError(f"{self.folder} has no model {name!r} ({known})")
        versions = sorted(release.version for release in state.releases.values() if release.name == name)
        if version is None:
            older = [each for each in versions if each < state.aliases[name]]
            if not older:
                raise InputError(f"{name} points to its oldest version, {state.aliases[name]}: it has no earlier one")
            version = older[-1]
        if version not in versions:
            raise InputError(f"{name} has no version {version} (it has {', '.join(map(str, versions))})")
        self._append("rollback", name, version)
        return state.releases[versioned(name, version)]

    def record_service(self, record: ServiceRecord) -> None:
        self.folder.write_text(_SERVICE, record.model_dump_json())

    def service(self) -> ServiceRecord | None:
        return _parsed(ServiceRecord, self.folder, _SERVICE) if self.folder.exists(_SERVICE) else None

    def _append(self, action: Literal["publish", "rollback"], name: str, version: int) -> None:
        number = _claim(self.folder / "claims" / "events")
        event = Event(number=number, action=action, name=name, version=version, at=now())
        (self.folder / "events").write_text(f"{number:08d}.json", event.model_dump_json())


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _parsed(kind: type[T], folder: Folder, name: str) -> T:
    try:
        return kind.model_validate_json(folder.read_text(name))
    except (OSError, ValidationError, json.JSONDecodeError) as error:
        raise ArtifactError(
            f"{folder}/{name} can't be read ({gist(error)}): the registry is damaged, restore it"
        ) from error


def _claim(folder: Folder) -> int:
    """Reserve the next number, so that no other writer gets it.

    A writer marks the number with a file of its own name, then lists the marks. If it sees a rival's mark, it deletes its own and tries
    again. When two writers mark a number at the same time, at least one of them sees the other's mark, so at most one keeps the number.
    This holds on disks, and on object stores whose listings show every finished write.

    Raises:
        ArtifactError: another writer won every attempt.
        StorageError: the folder can't be written.
    """
    folder.make()
    for _ in range(_MAX_CLAIMS):
        number = max((int(name.split("-")[0]) for name in folder.names()), default=0) + 1
        mark = f"{number:08d}-{uuid.uuid4().hex}"
        folder.write_text(mark, "")
        rivals = {name.removesuffix(".partial") for name in folder.names() if name.startswith(f"{number:08d}-")}
        if rivals == {mark}:
            return number
        folder.filesystem.delete_file(f"{folder.path}/{mark}")
        time.sleep(random.random() * _SECONDS_BETWEEN_CLAIMS)
    raise ArtifactError(
        f"{folder}: another publisher won each of {_MAX_CLAIMS} attempts to reserve a number: try again"
    )
