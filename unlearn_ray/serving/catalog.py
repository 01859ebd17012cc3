"""A replica's up-to-date view of the registry, and the adapters that its engine holds."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from unlearn_ray.artifacts import Folder
from unlearn_ray.chat import ChatFormat
from unlearn_ray.errors import ModelError, UnlearnError, gist
from unlearn_ray.serving.names import BASE, GUARDED, parse_name, versioned
from unlearn_ray.serving.registry import Registry, Release, ServiceRecord, State
from unlearn_ray.serving.release import check_fits, check_layers
from unlearn_ray.serving.requests import Asked, Refusal, unknown_model
from unlearn_ray.serving.weights import read_adapter

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """The model that answers a request."""

    release: Release | None  # None: the base model
    prefix: str  # the guardrail; "" = none
    chat: ChatFormat


# Between looks for unknown names: a client that sends nonsense must not cause one look per request.
_SECONDS_BETWEEN_WISHES = 0.25


class Catalog:
    """The models of a service, as one replica sees them.

    Args:
        chat: the chat format of the model that the engine holds.
        load: makes the engine load an adapter by name from a folder. Returns an error's text, or "".
        local: copies a folder to this machine's disk. Returns its path.
        is_alive: whether the engine can answer.
        is_up: whether the app of a full fine-tune answers.
        only: the single version that a full fine-tune's replica serves. None: the replica serves the base model.
    """

    def __init__(
        self,
        registry: Registry,
        service: ServiceRecord,
        chat: ChatFormat,
        *,
        load: Callable[[str, str], Awaitable[str]],
        local: Callable[[str], str],
        is_alive: Callable[[], bool],
        is_up: Callable[[str], Awaitable[bool]],
        seconds: float,
        only: str | None = None,
    ) -> None:
        self.registry, self._service, self._chat, self._only = registry, service, chat, only
        self._load, self._local, self._is_alive, self._is_up = load, local, is_alive, is_up
        self._up: frozenset[str] = frozenset()  # full fine-tunes whose app answers
        self._seconds = seconds
        self._looked = 0.0
        self.state = State()
        self._loaded: dict[str, asyncio.Task[None]] = {}
        self._lock = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        self.started = int(time.time())

    @property
    def is_alive(self) -> bool:
        return self._is_alive()

    async def start(self) -> None:
        """Record this service's limits, read the registry, load the adapters behind its aliases, and keep watching it."""
        if self._only is None:
            await asyncio.to_thread(self._record)
        await self.look()
        for release in self._adapters():
            with contextlib.suppress(Refusal):  # logged there, and repeated to every client that asks for the model
                await self.prepare(release)
        self._watcher = asyncio.create_task(self._watch())

    def _record(self) -> None:
        """Record this service's limits, so that publishers learn what doesn't fit, also after `serve deploy`."""
        try:
            if self.registry.service() != self._service:
                self.registry.record_service(self._service)
        except (UnlearnError, OSError) as error:
            log.warning("publishers will not learn this service's limits: %s", error)

    async def look(self) -> None:
        async with self._lock:
            self._looked = time.monotonic()
            try:
                self.state = await asyncio.to_thread(self.registry.read)
            except (UnlearnError, OSError) as error:
                log.error("the registry can't be read, so its last known state is kept: %s", error)

    async def find(self, asked: Asked) -> Found:
        """The version that a request asks for, with its guardrail and its chat format.

        Raises:
            Refusal: 404: no model has that name. 503: its app does not answer yet.
        """
        for is_last in (False, True):
            if (found := self._find(asked)) is not None:
                release = found.release
                if self._only is None and release is not None and self._is_starting(release):
                    raise Refusal(503, f"{release.id} is being started", "model_starting", "model")
                return found
            if is_last or time.monotonic() - self._looked < _SECONDS_BETWEEN_WISHES:
                break
            await self.look()  # it may have been published this second
        raise unknown_model(str(asked.name))

    def _find(self, asked: Asked) -> Found | None:
        name = asked.name
        if self._only is not None:
            release = self.state.releases.get(self._only)
            is_it = release is not None and str(name) in (self._only, release.name)
            return Found(release, "", self._chat) if is_it else None
        if name.is_guarded:
            guarding = self.state.guardrail(name.name) if name.version is None else None
            return Found(None, guarding[1].prefix, guarding[0].chat or self._chat) if guarding else None
        if name.name == BASE:
            return Found(None, "", self._chat) if name.version is None else None
        release = self.state.find(name)
        if release is not None and name.version is None:
            release = self._answering(release)
        return Found(release, "", release.chat or self._chat) if release else None

    def _answering(self, release: Release) -> Release:
        """The version that answers for a name. It is the previous one until a new full fine-tune's app answers."""
        if not self._is_starting(release):
            return release
        for event in reversed(self.state.events):
            before = self.state.releases.get(versioned(release.name, event.version))
            if event.name == release.name and before is not None and not self._is_starting(before):
                return before
        return release

    def _is_starting(self, release: Release) -> bool:
        return release.kind == "full" and release.id not in self._up

    async def prepare(self, release: Release) -> str:
        """Load a version's adapter unless the engine has it. Requests for the same version share one load.

        Raises:
            Refusal: 503: it can't be loaded.
        """
        if self._only is not None:
            return BASE
        task = self._loaded.get(release.id)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._loaded[release.id] = asyncio.create_task(self._load_checked(release))
        try:
            await asyncio.shield(task)
        except UnlearnError as error:
            raise Refusal(503, f"{release.id} can't be loaded: {error}", "model_not_loadable", "model") from error
        return release.id

    async def _load_checked(self, release: Release) -> None:
        try:
            check_fits(release, self._service)
            path = await asyncio.to_thread(self._local, self.registry.weights(release))
            # A corrupt adapter, or one for a model of another shape, would crash the engine.
            adapter = await asyncio.to_thread(read_adapter, Folder(path))
            check_layers(adapter.shapes, self._service, release.id)
            if failure := await self._load(release.id, path):
                raise ModelError(gist(failure))
        except UnlearnError as error:
            log.error("%s can't be loaded: %s", release.id, error)
            raise

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            await self.look()
            await self._knock()
            for release in self._adapters():
                if release.id not in self._loaded and self.is_alive:
                    with contextlib.suppress(Refusal):
                        await self.prepare(release)  # before a client waits for it

    async def _knock(self) -> None:
        """Check whether the apps of full fine-tunes answer."""
        if self._only is None:
            asked = sorted(self._up | {release.id for release in self.state.current if release.kind == "full"})
            answers = await asyncio.gather(*(self._is_up(name) for name in asked))
            self._up = frozenset(name for name, is_up in zip(asked, answers, strict=True) if is_up)

    def _adapters(self) -> list[Release]:
        return [release for release in self.state.current if release.kind == "adapter" and self._only is None]

    @property
    def is_ready(self) -> bool:
        """Whether every model that an alias points to can answer."""
        done = {name for name, task in self._loaded.items() if task.done() and task.exception() is None}
        is_starting = self._only is None and any(map(self._is_starting, self.state.current))
        return self.is_alive and not is_starting and all(release.id in done for release in self._adapters())

    def models(self) -> list[dict[str, Any]]:
        """The list for GET /v1/models: the base model, aliases, guarded topics, and every version."""
        state, found = self.state, [self._card(BASE, BASE, "base", ())]
        for release in state.current:
            found.append(self._card(release.name, self._answering(release).id, "unlearned", _topics(release)))
        slugs = dict.fromkeys(topic.slug for release in state.current for topic in release.topics if topic.prefix)
        for slug in slugs:
            guarding = state.guardrail(slug)
            assert guarding is not None, "a slug of a current release"
            found.append(self._card(f"{slug}:{GUARDED}", BASE, GUARDED, (guarding[1].name,)))
        for release in sorted(state.releases.values(), key=lambda release: (release.name, -release.version)):
            if release.kind == "adapter" or release.id in self._up:
                found.append(self._card(release.id, release.id, "unlearned", _topics(release)))
        return found

    def _card(self, name: str, root: str, kind: str, topics: tuple[str, ...]) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": "unlearn-ray",
            "root": root,
            "kind": kind,
            "topics": list(topics),
        }

    def release_of(self, text: str) -> Release:
        """The version behind a model's name.

        Raises:
            Refusal: 404: the name has no version, such as the base model.
        """
        name = parse_name(text)
        release = self.state.find(name) if name is not None and not name.is_guarded else None
        if release is None:
            raise unknown_model(text)
        return release


def _topics(release: Release) -> tuple[str, ...]:
    return tuple(topic.name for topic in release.topics) or (release.name,)
