"""Streams that Serve's own proxy leaves unfinished end with an error; all else passes as it is."""

import asyncio
import json

import pytest

from unlearn_ray.serving.fallback import EndsStreams, middlewares
from unlearn_ray.serving.gate import Event, Receive, Scope, Send
from unlearn_ray.serving.settings import SETTINGS_VARIABLE

EVENT: Event = {"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True}
END: Event = {"type": "http.response.body", "body": b"", "more_body": False}


def start(kind: bytes) -> Event:
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}


STREAM = start(b"text/event-stream; charset=utf-8")


def passed(*events: Event) -> list[Event]:
    """What a client gets where the proxy sends these, and no more."""
    sent: list[Event] = []

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        for event in events:
            await send(event)

    async def receive() -> Event:
        return {"type": "http.disconnect"}

    async def send(event: Event) -> None:
        sent.append(event)

    asyncio.run(EndsStreams(proxy)({"type": "http"}, receive, send))
    return sent


def test_a_stream_that_breaks_off_ends_with_an_error() -> None:
    *whole, last = passed(STREAM, EVENT, EVENT)
    assert whole == [STREAM, EVENT, EVENT] and not last["more_body"]
    assert json.loads(last["body"].removeprefix(b"data: "))["error"]["code"] == "stream_cut"


@pytest.mark.parametrize(
    "events", [(STREAM, EVENT, END), (start(b"application/json"), EVENT), ()], ids=["whole", "no stream", "nothing"]
)
def test_what_is_whole_or_no_stream_is_left_alone(events: tuple[Event, ...]) -> None:
    assert passed(*events) == list(events)


def test_a_replicas_own_server_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [each.cls for each in middlewares()] == [EndsStreams]
    monkeypatch.setenv(SETTINGS_VARIABLE, "{}")
    assert middlewares() == []
