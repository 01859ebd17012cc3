"""An addition to Serve's own proxy, HAProxy's fallback for the seconds until HAProxy knows that a replica is up.

There the client's connection belongs to the proxy. The replica's watchdog can't write to it. But the proxy survives the replica, and
learns that it is gone.
"""

import os

from starlette.middleware import Middleware

from unlearn_ray.serving.gate import KILLED, App, Event, Receive, Scope, Send, begins_stream
from unlearn_ray.serving.settings import SETTINGS_VARIABLE


def middlewares() -> list[Middleware]:
    """The hook that RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names. A replica's server calls it too; there it has no effect."""
    return [] if SETTINGS_VARIABLE in os.environ else [Middleware(EndsStreams)]


class EndsStreams:
    """Ends every stream that the wrapped app left unfinished with an error event."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_stream = is_finished = False

        async def noted(event: Event) -> None:
            nonlocal is_stream, is_finished
            if event["type"] == "http.response.start":
                is_stream = begins_stream(event)
            elif event["type"] == "http.response.body":
                is_finished = not event.get("more_body", False)
            await send(event)

        await self._app(scope, receive, noted)
        if is_stream and not is_finished:
            await send({"type": "http.response.body", "body": KILLED, "more_body": False})
