"""What Serve's own proxy lacks, to which HAProxy falls back for the seconds in which it does not know yet that a replica is up.

Connections there are the proxy's, not the replica's, and the replica's watchdog can't speak on them; but the proxy lives, and hears that
the replica is gone.
"""

import os

from starlette.middleware import Middleware

from unlearn_ray.serving.gate import KILLED, App, Event, Receive, Scope, Send, begins_stream
from unlearn_ray.serving.settings import SETTINGS_VARIABLE


def middlewares() -> list[Middleware]:
    """What RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH wants. A replica's server calls it as well, whose streams need nothing."""
    return [] if SETTINGS_VARIABLE in os.environ else [Middleware(EndsStreams)]


class EndsStreams:
    """Ends with an error every stream that the app before it left unfinished."""

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
