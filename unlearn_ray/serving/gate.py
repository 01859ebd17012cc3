"""The ASGI app in front of vLLM's own app in every replica: keys, limits, model names, guarded mode, back-pressure, metrics.

It is raw ASGI because it sees every event of every stream. The work per event is one search in a few bytes.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from unlearn_ray.serving.catalog import Found
from unlearn_ray.serving.keys import Keys
from unlearn_ray.serving.metrics import Metrics
from unlearn_ray.serving.names import BASE
from unlearn_ray.serving.registry import Release
from unlearn_ray.serving.requests import (
    CHAT,
    COMPLETIONS,
    Asked,
    Refusal,
    error_body,
    put_to_engine,
    read_request,
)
from unlearn_ray.serving.settings import ServiceSettings
from unlearn_ray.serving.watchdog import Watchdog

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger(__name__)
_OPEN = frozenset({"/ready", "/health"})  # load balancers ask for these without a key
_ONLY_USAGE = b'"choices":[]'  # vLLM's last event, which counts the tokens
_ERROR = b'data: {"error"'  # the start of vLLM's error event in a stream; vLLM sends it as a separate body
# vLLM's answer to a request that arrived as the engine died: a retry is right.
_LOST = b"EngineCore encountered an issue"
_RESTARTING = error_body(503, "the engine is being started again: try in some seconds", "engine_restarting")
_CUT = error_body(503, "the engine was lost before the answer was complete: ask again", "stream_cut")


def _event(body: Any) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()


KILLED = _event(error_body(503, "the replica was lost before the answer was complete: ask again", "stream_cut"))


class Models(Protocol):
    """The gate's view of the models."""

    @property
    def is_alive(self) -> bool: ...

    async def find(self, asked: Asked) -> Found:
        """The model that answers a request. Raises Refusal if no model has that name."""

    async def prepare(self, release: Release) -> str:
        """Load a version into the engine. Returns its name there."""


class Gate:
    """The app of a replica.

    Args:
        engine: vLLM's app, for completions.
        desk: our own app, for all other paths.
        forward: passes a request on to the replicas of a full fine-tune.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        keys: Keys,
        models: Models,
        metrics: Metrics,
        engine: App,
        desk: App,
        forward: App,
    ) -> None:
        self._settings, self._keys, self._models, self._metrics = settings, keys, models, metrics
        self._engine, self._desk, self._forward = engine, desk, forward
        self._watchdog = Watchdog(KILLED)
        self._num_ongoing = 0
        scaling = settings.scaling
        self._capacity = scaling.max_ongoing_requests + scaling.max_queued_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._engine(scope, receive, send)
            return
        path = str(scope["path"]).removeprefix(scope.get("root_path", ""))
        if path not in _OPEN and self._keys and not self._keys.admits(_header(scope, b"authorization")):
            await _answer(
                send, 401, error_body(401, "give a valid API key: Authorization: Bearer KEY", "invalid_api_key")
            )
        elif path not in (CHAT, COMPLETIONS):
            await self._desk({**scope, "path": path, "root_path": ""}, receive, send)
        elif scope["method"] != "POST":
            await _answer(send, 405, error_body(405, f"POST to {path}", "method_not_allowed"))
        else:
            await self._complete(path, scope, receive, send)

    async def _complete(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        began, model = time.perf_counter(), "unknown"
        if self._num_ongoing >= self._capacity:
            await self._refuse_full(send)
            self._metrics.ended(model, 429, 0.0)
            return
        self._num_ongoing += 1
        self._metrics.ongoing.set(self._num_ongoing)
        watch = Watch(send, self._later, lambda: self._watchdog.watch(scope.get("client")))
        is_ours = True
        try:
            body = await read_body(receive, _header(scope, b"content-length"), self._settings.limits.max_body_bytes)
            watch.asked_at = time.perf_counter()
            asked = read_request(path, body, self._settings.limits)
            watch.keeps_usage_back = asked.is_stream and not asked.wants_usage
            found = await self._models.find(asked)
            release = found.release
            model = release.id if release else BASE
            if not self._models.is_alive:
                await _answer(watch, 503, _RESTARTING, self._later)
                return
            if release is not None and release.kind == "full" and self._settings.release != release.id:
                await self._forward({**scope, "unlearn.release": release.id}, _replay(body, receive, watch), watch)
                is_ours = not (watch.is_finished or watch.is_left)  # else the full fine-tune's gate counts the request
            else:
                name = await self._models.prepare(release) if release else BASE
                new = put_to_engine(asked, name, found.prefix, found.chat)
                await self._engine(_for_engine(scope, path, new), _replay(new, receive, watch), watch)
            if watch.is_left and not watch.is_finished:
                watch.status = 499
            elif watch.status and not watch.is_finished:
                await watch.cut()
        except Refusal as refusal:
            if not watch.status:
                await _answer(watch, refusal.status, refusal.body, self._later if refusal.status == 503 else {})
        except asyncio.CancelledError:
            watch.status = watch.status or 499
            raise
        except Exception:
            # vLLM answers its own errors, so this is a fault of ours. Its text may hold a prompt: only its type is logged.
            log.error("a request failed", exc_info=log.isEnabledFor(logging.DEBUG))
            if watch.status:
                await watch.cut()
            else:
                await _answer(watch, 500, error_body(500, "the service failed at this request", "internal_error"))
        finally:
            self._watchdog.unwatch(watch.number)
            self._num_ongoing -= 1
            self._metrics.ongoing.set(self._num_ongoing)
            if is_ours:
                self._count(model, watch, time.perf_counter() - began)

    def _count(self, model: str, watch: "Watch", seconds: float) -> None:
        self._metrics.ended(model, watch.status or 500, seconds)
        if watch.first_seconds is not None:
            self._metrics.first_token(model, watch.first_seconds)
        if watch.is_cut:
            self._metrics.cut(model)
        self._metrics.tokens(model, *watch.usage())

    @property
    def _later(self) -> dict[str, str]:
        return {"retry-after": str(self._settings.scaling.retry_after_seconds)}

    async def _refuse_full(self, send: Send) -> None:
        seconds = self._settings.scaling.retry_after_seconds
        body = error_body(429, f"the service is full: try again in {seconds} s", "rate_limit_exceeded")
        await _answer(send, 429, body, self._later)


class Watch:
    """Passes a response on to the client, and notes the figures for the metrics."""

    def __init__(self, send: Send, later: dict[str, str], began: Callable[[], int | None]) -> None:
        """`later`: the Retry-After header. `began`: called when a stream begins; its result is kept as `number`."""
        self._send, self._later, self._began = send, later, began
        self.number: int | None = None
        self.asked_at = 0.0  # when the request's last byte was read
        self.status = 0
        self.is_stream = False
        self.is_sent = False  # whether the client has seen the status
        self.is_finished = False
        self.is_cut = False
        self.is_left = False  # whether the client has disconnected
        self.keeps_usage_back = False
        self.first_seconds: float | None = None
        self._start: Event = {}
        self._tail = b""  # the bytes with the token counts

    async def __call__(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self.status, self._start = event["status"], event
            self.is_stream = begins_stream(event)
            return  # sent with the first body event: until then the response may turn into an error
        if event["type"] != "http.response.body" or self.is_finished:
            return
        body = event.get("body", b"")
        is_error = self.is_stream and body.startswith(_ERROR)
        if not self.is_sent:
            if _LOST in body and (is_error or self.status == 500):
                self.is_stream = False
                await _answer(self, 503, _RESTARTING, self._later)
                return
            if is_error:
                await self._refuse(body)
                return
            self.is_sent = True
            await self._send(self._start)
            if self.is_stream:
                self.number = self._began()
        elif is_error:
            await self.cut()
            return
        if self.is_stream and self.first_seconds is None and body:
            self.first_seconds = time.perf_counter() - self.asked_at
        self.is_finished = not event.get("more_body", False)
        if not self.is_stream:
            self._tail = body if len(body) < 1 << 20 else b""
        elif _ONLY_USAGE in body:
            self._tail = body
            if self.keeps_usage_back:
                event = {**event, "body": _without_usage(body)}
        await self._send(event)

    async def _refuse(self, body: bytes) -> None:
        """Answer with the error's own status, as for a request without streaming."""
        error = json.loads(body.split(b"\n\n")[0].removeprefix(b"data: "))
        code = error["error"].get("code")
        status = code if isinstance(code, int) and 400 <= code < 600 else 500
        self.is_stream = False
        await _answer(self, status, error)

    async def cut(self) -> None:
        """End a broken answer with an error, so that no client takes it for a complete one. A later [DONE] is dropped."""
        self.is_cut = True
        if not self.is_sent:
            await _answer(self, 503, _CUT, self._later)
            return
        self.is_finished = True
        last = _event(_CUT) if self.is_stream else b""
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    def usage(self) -> tuple[int, int]:
        """Numbers of prompt and completion tokens. Zeros if the engine did not report them."""
        for line in reversed(self._tail.splitlines()):
            if b'"usage"' in line:
                try:
                    usage = json.loads(line.removeprefix(b"data: ")).get("usage") or {}
                except ValueError:
                    continue
                return int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        return 0, 0


def begins_stream(start: Event) -> bool:
    """Whether this http.response.start begins a stream of server-sent events."""
    return any(
        key.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for key, value in start.get("headers", ())
    )


def _without_usage(body: bytes) -> bytes:
    events = body.split(b"\n\n")
    return b"\n\n".join(event for event in events if _ONLY_USAGE not in event)


async def read_body(receive: Receive, length: str, limit: int) -> bytes:
    """The whole body.

    Raises:
        Refusal: 413: it is larger than `limit` bytes.
    """
    if length.isdigit() and int(length) > limit:
        raise _too_large(limit)
    parts, size = [], 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise asyncio.CancelledError
        parts.append(event.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        if not event.get("more_body", False):
            return b"".join(parts)


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"the body is larger than {limit:,} bytes", "body_too_large")


def _replay(body: bytes, receive: Receive, watch: Watch) -> Receive:
    """A `receive` that returns `body` first, then the client's further events, such as its disconnection."""
    given = False

    async def replayed() -> Event:
        nonlocal given
        if given:
            event = await receive()
            watch.is_left = event["type"] == "http.disconnect"
            return event
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _for_engine(scope: Scope, path: str, body: bytes) -> Scope:
    drop = (b"content-length", b"authorization", b"content-type")
    headers = [(key, value) for key, value in scope["headers"] if key not in drop]
    headers += [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
    return {**scope, "path": path, "root_path": "", "headers": headers}


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


async def _answer(send: Send, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
    content = json.dumps(body).encode()
    fields = {"content-type": "application/json", "content-length": str(len(content)), **(headers or {})}
    if status == 401:
        fields["www-authenticate"] = "Bearer"
    pairs = [(key.encode(), value.encode()) for key, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": content, "more_body": False})
