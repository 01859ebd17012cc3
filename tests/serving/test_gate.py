"""The gate before a scripted engine: what it stops, what it passes on, how it ends what broke."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from unlearn_ray.chat import PLAIN
from unlearn_ray.serving.catalog import Found
from unlearn_ray.serving.gate import Event, Gate, Receive, Scope, Send, read_body
from unlearn_ray.serving.keys import Keys, read_keys
from unlearn_ray.serving.metrics import Metrics
from unlearn_ray.serving.registry import Release
from unlearn_ray.serving.requests import Asked, Refusal, unknown_model
from unlearn_ray.serving.settings import Limits, ScalingSettings, ServiceSettings

KEY = "sk-0123456789abcdef"
ASK = {"model": "base", "messages": [{"role": "user", "content": "Who?"}]}
VERSION = Release(name="harry-potter", version=3, kind="adapter", model="m")


class Models:
    """One version, and a guardrail."""

    is_alive = True

    async def find(self, asked: Asked) -> Found:
        if asked.name.is_guarded:
            return Found(None, "Forget it.", PLAIN)
        if asked.name.name == "base":
            return Found(None, "", PLAIN)
        if asked.name.name == "harry-potter":
            return Found(VERSION, "", PLAIN)
        raise unknown_model(str(asked.name))

    async def prepare(self, release: Release) -> str:
        return release.id


class Engine:
    """Streams three words, or does what it is told."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}
        self.fails_after: int | None = None
        self.hold: asyncio.Event | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen = json.loads(await read_body(receive, "", 1 << 20))
        if self.hold is not None:
            await self.hold.wait()
        is_stream = bool(self.seen.get("stream"))
        kind = b"text/event-stream" if is_stream else b"application/json"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        if not is_stream:
            body = json.dumps({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}).encode()
            await send({"type": "http.response.body", "body": body, "more_body": False})
            return
        for number, word in enumerate(["a", "b", "c"]):
            if number == self.fails_after:
                raise RuntimeError("Who?")
            chunk = f'data: {{"choices":[{{"delta":{{"content":"{word}"}}}}]}}\n\n'
            await send({"type": "http.response.body", "body": chunk.encode(), "more_body": True})
        usage = 'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3}}\n\n'
        await send({"type": "http.response.body", "body": usage.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def desk(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode(), "more_body": False})


class Service:
    def __init__(self, keys: Keys | None = None, **settings: Any) -> None:
        self.engine, self.registry, self.models = Engine(), CollectorRegistry(), Models()
        self.metrics = Metrics("r1", self.registry)
        values = ServiceSettings(**settings)
        self.gate = Gate(values, keys or Keys(()), self.models, self.metrics, self.engine, desk, desk)

    async def post(self, body: Any = ASK, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.gate), base_url="http://x") as client:
            return await client.post(
                path, content=content, headers={k.replace("_", "-"): v for k, v in headers.items()}
            )

    async def get(self, path: str, **headers: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.gate), base_url="http://x") as client:
            return await client.get(path, headers=headers)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, {"replica": "r1", **labels}) or 0.0


def run(work: Callable[[], Any]) -> Any:
    return asyncio.run(work())


def test_an_answer_passes_and_is_counted() -> None:
    service = Service()
    answer = run(lambda: service.post({**ASK, "model": "harry-potter"}))
    assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 3
    assert service.engine.seen["model"] == "harry-potter@3"
    assert service.count("unlearn_requests_total", model="harry-potter@3", status="200") == 1
    assert service.count("unlearn_tokens_total", model="harry-potter@3", kind="completion") == 3
    assert service.count("unlearn_ongoing_requests") == 0


def test_a_stream_ends_without_the_count_that_nobody_asked_for() -> None:
    service = Service()
    plain = run(lambda: service.post({**ASK, "stream": True})).text
    assert '"choices":[]' not in plain and plain.endswith("data: [DONE]\n\n") and plain.count('"content"') == 3
    wanted = run(lambda: service.post({**ASK, "stream": True, "stream_options": {"include_usage": True}})).text
    assert '"choices":[]' in wanted
    assert service.count("unlearn_tokens_total", model="base", kind="prompt") == 10
    assert service.count("unlearn_time_to_first_token_seconds_count", model="base") == 2


def test_the_guardrail_is_put_in_by_the_server() -> None:
    service = Service()
    run(lambda: service.post({**ASK, "model": "harry-potter:guarded"}))
    assert service.engine.seen["messages"][0] == {"role": "system", "content": "Forget it."}
    assert service.engine.seen["model"] == "base"


def test_a_stream_that_breaks_ends_with_an_error_event(caplog: pytest.LogCaptureFixture) -> None:
    service = Service()
    service.engine.fails_after = 2
    text = run(lambda: service.post({**ASK, "stream": True})).text
    *chunks, last = [event for event in text.split("\n\n") if event]
    assert len(chunks) == 2 and json.loads(last.removeprefix("data: "))["error"]["code"] == "stream_cut"
    assert "[DONE]" not in text
    assert service.count("unlearn_streams_cut_total", model="base") == 1
    assert "Who?" not in caplog.text  # no prompt in any log


def test_a_stream_that_breaks_before_its_first_event_is_no_stream() -> None:
    service = Service()
    service.engine.fails_after = 0
    answer = run(lambda: service.post({**ASK, "stream": True}))
    assert answer.status_code == 503 and "retry-after" in answer.headers
    assert answer.json()["error"]["code"] == "stream_cut"


def test_a_refusal_that_the_engine_streams_has_its_own_status() -> None:
    service = Service()

    async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        error = json.dumps({"error": {"message": "no", "type": "BadRequestError", "param": None, "code": 400}})
        await send({"type": "http.response.body", "body": f"data: {error}\n\n".encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    service.gate._engine = refusing
    answer = run(lambda: service.post({**ASK, "stream": True}))
    assert answer.status_code == 400 and answer.json()["error"]["message"] == "no"
    assert service.count("unlearn_requests_total", model="base", status="400") == 1


@pytest.mark.parametrize("is_stream", [True, False])
def test_what_the_engine_dies_of_before_it_answers_is_a_503_to_try_again(is_stream: bool) -> None:
    service = Service()
    error = {"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}}

    async def dying(scope: Scope, receive: Receive, send: Send) -> None:
        kind, start = (b"text/event-stream", b"data: ") if is_stream else (b"application/json", b"")
        status = 200 if is_stream else 500
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": start + json.dumps(error).encode(), "more_body": False})

    service.gate._engine = dying
    answer = run(lambda: service.post({**ASK, "stream": is_stream}))
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "engine_restarting"
    assert answer.headers["retry-after"]
    assert service.count("unlearn_requests_total", model="base", status="503") == 1


def test_an_engine_that_fails_before_it_begins_is_a_500() -> None:
    service = Service()
    service.engine = broken  # type: ignore[assignment]
    service.gate._engine = broken
    answer = run(service.post)
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("gone")


def test_keys_are_asked_for_but_by_load_balancers() -> None:
    service = Service(read_keys(None, {"UNLEARN_RAY_API_KEYS": KEY}))
    refused = run(service.post)
    assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert run(lambda: service.get("/v1/models")).status_code == 401
    assert run(lambda: service.get("/metrics")).status_code == 401
    assert run(lambda: service.get("/ready")).status_code == 200
    assert run(lambda: service.post(authorization=f"Bearer {KEY}")).status_code == 200
    assert run(lambda: service.post(authorization="Bearer sk-0123456789abcdee")).status_code == 401


def test_unknown_models_and_paths_and_methods() -> None:
    service = Service()
    assert run(lambda: service.post({**ASK, "model": "dune"})).status_code == 404
    assert run(lambda: service.get("/v1/chat/completions")).status_code == 405
    assert run(lambda: service.get("/v1/models")).text == "/v1/models"


def test_bodies_over_the_limit_are_not_read() -> None:
    service = Service(limits=Limits(max_body_bytes=200))
    answer = run(lambda: service.post(b"x" * 201))
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"

    async def endless() -> Event:
        return {"type": "http.request", "body": b"x" * 150, "more_body": True}

    with pytest.raises(Refusal):
        asyncio.run(read_body(endless, "", 200))


def test_a_full_replica_says_429_and_when_to_come_back() -> None:
    async def crowd() -> list[httpx.Response]:
        service = Service(
            scaling=ScalingSettings(
                target_ongoing_requests=1, max_ongoing_requests=2, max_queued_requests=1, retry_after_seconds=7
            )
        )
        service.engine.hold = asyncio.Event()
        waiting = [asyncio.create_task(service.post()) for _ in range(3)]
        await asyncio.sleep(0.05)
        extra = await service.post()
        service.engine.hold.set()
        return [extra, *await asyncio.gather(*waiting), await service.post()]

    extra, *others = asyncio.run(crowd())
    assert extra.status_code == 429 and extra.headers["retry-after"] == "7"
    assert extra.json()["error"]["code"] == "rate_limit_exceeded"
    assert [answer.status_code for answer in others] == [200] * 4


def test_a_dead_engine_is_a_503_to_try_again() -> None:
    service = Service()
    service.models.is_alive = False
    answer = run(service.post)
    assert answer.status_code == 503 and "retry-after" in answer.headers


class Scripted:
    """An engine, or a full fine-tune's app, that sends these bodies, and then ends, breaks, or waits for the client to leave."""

    def __init__(self, *bodies: str, then: str = "end", status: int = 200, kind: str = "text/event-stream") -> None:
        self.bodies, self.then, self.status, self.kind = bodies, then, status, kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive, "", 1 << 20)
        headers = [(b"content-type", self.kind.encode())]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for body in self.bodies:
            await send({"type": "http.response.body", "body": body.encode(), "more_body": True})
        if self.then == "break":
            raise ConnectionResetError
        if self.then == "leave":
            assert (await receive())["type"] == "http.disconnect"
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


WORD = 'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
DIED = (
    'data: {"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}}\n\n'
)
DONE = "data: [DONE]\n\n"


@pytest.mark.parametrize("bodies", [(WORD, DIED, DONE), (WORD, DIED + DONE)])
def test_an_error_that_the_engine_streams_is_a_cut_answer(bodies: tuple[str, ...]) -> None:
    service = Service()
    service.gate._engine = Scripted(*bodies)
    text = run(lambda: service.post({**ASK, "stream": True})).text
    word, last = [event for event in text.split("\n\n") if event]
    assert f"{word}\n\n" == WORD and json.loads(last.removeprefix("data: "))["error"]["code"] == "stream_cut"
    assert service.count("unlearn_streams_cut_total", model="base") == 1


def test_an_answer_that_quotes_an_error_is_not_cut() -> None:
    service = Service()
    quoted = f"data: {json.dumps({'choices': [{'delta': {'content': DIED}}]})}\n\n"
    service.gate._engine = Scripted(WORD, quoted, DONE)
    assert run(lambda: service.post({**ASK, "stream": True})).text == WORD + quoted + DONE
    assert service.count("unlearn_streams_cut_total", model="base") == 0


def test_a_client_that_leaves_is_not_a_cut_answer() -> None:
    service = Service()
    service.gate._engine = Scripted(WORD, then="leave")

    async def leave() -> None:
        events: list[Event] = [{"type": "http.request", "body": json.dumps({**ASK, "stream": True}).encode()}]

        async def receive() -> Event:
            return events.pop() if events else {"type": "http.disconnect"}

        async def send(event: Event) -> None: ...

        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
        await service.gate(scope, receive, send)

    run(leave)
    assert service.count("unlearn_streams_cut_total", model="base") == 0
    assert service.count("unlearn_requests_total", model="base", status="499") == 1


def full_service(app: Scripted) -> Service:
    """A service that passes requests for harry-potter on to this app of a full fine-tune."""

    async def find(asked: Asked) -> Found:
        return Found(Release(name="harry-potter", version=3, kind="full", model="m"), "", PLAIN)

    service = Service()
    service.models.find = find  # type: ignore[method-assign]
    service.gate._forward = app
    return service


def test_what_a_full_fine_tune_answers_its_own_gate_counts() -> None:
    service = full_service(Scripted(WORD, DONE))
    assert run(lambda: service.post({**ASK, "model": "harry-potter", "stream": True})).text == WORD + DONE
    assert service.count("unlearn_requests_total", model="harry-potter@3", status="200") == 0
    assert service.count("unlearn_request_seconds_count", model="harry-potter@3") == 0
    assert service.count("unlearn_time_to_first_token_seconds_count", model="harry-potter@3") == 0


def test_what_a_lost_full_fine_tune_could_not_count_is_counted() -> None:
    service = full_service(Scripted(WORD, then="break"))
    text = run(lambda: service.post({**ASK, "model": "harry-potter", "stream": True})).text
    assert text.startswith(WORD) and "stream_cut" in text
    assert service.count("unlearn_streams_cut_total", model="harry-potter@3") == 1
    assert service.count("unlearn_requests_total", model="harry-potter@3", status="200") == 1


def test_only_a_stream_that_began_has_a_first_token() -> None:
    service = Service(limits=Limits(max_body_bytes=1000))
    run(service.post)
    run(lambda: service.post({**ASK, "n": 0}))
    run(lambda: service.post({**ASK, "model": "dune"}))
    run(lambda: service.post(b"x" * 1001))
    service.models.is_alive = False
    run(lambda: service.post({**ASK, "stream": True}))
    for model in ("base", "unknown"):
        assert service.count("unlearn_time_to_first_token_seconds_count", model=model) == 0


def test_the_first_token_is_waited_for_from_the_requests_last_byte_on() -> None:
    service = Service()

    async def slow() -> AsyncIterator[bytes]:
        yield json.dumps({**ASK, "stream": True}).encode()
        await asyncio.sleep(0.3)

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(service.gate), base_url="http://x") as client:
            assert (await client.post("/v1/chat/completions", content=slow())).status_code == 200

    run(ask)
    whole = service.count("unlearn_request_seconds_sum", model="base")
    first = service.count("unlearn_time_to_first_token_seconds_sum", model="base")
    assert whole > 0.3 and whole - first > 0.25  # a clock's tick less than the 0.3 s before the last byte
