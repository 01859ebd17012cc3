"""A replica: ray.serve.llm's server and vLLM's own app, with our gate before it.

The replica serves the app itself, in the event loop that also talks to the engine ("direct streaming"). An event of a stream crosses
no more processes and threads than in vLLM's own server.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import aiohttp

from unlearn_ray.engines import forks

if forks.VARIABLE in os.environ:
    forks.start()  # before the imports below, which load vLLM: the engine's process needs the same modules

from ray import serve
from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.serve.llm import LLMConfig, LLMServer

from unlearn_ray.artifacts import Folder
from unlearn_ray.chat import ChatFormat
from unlearn_ray.engines.vllm_engine import load_adapter
from unlearn_ray.engines.weights import local_copy
from unlearn_ray.serving.catalog import Catalog
from unlearn_ray.serving.desk import make_desk
from unlearn_ray.serving.gate import App, Event, Gate, Receive, Scope, Send
from unlearn_ray.serving.keys import read_keys
from unlearn_ray.serving.metrics import Metrics
from unlearn_ray.serving.names import full_route
from unlearn_ray.serving.peers import peers
from unlearn_ray.serving.registry import Registry
from unlearn_ray.serving.release import service_record
from unlearn_ray.serving.requests import Refusal
from unlearn_ray.serving.settings import CHAT_VARIABLE, SETTINGS_VARIABLE, ServiceSettings

log = logging.getLogger(__name__)
_SECONDS_BETWEEN_LOOKS = 0.25
_SECONDS_TO_KNOCK = 3.0
_SECONDS_TO_SAY_IT = 1.0  # for the last events of the streams that are cut


class UnlearnServer(LLMServer):
    """An engine with the base model or one full fine-tune, and the gate in front of it."""

    async def __init__(self, llm_config: LLMConfig, **options: Any) -> None:  # type: ignore[misc]  # Ray awaits it
        await super().__init__(llm_config, **options)
        self._settings = ServiceSettings.model_validate_json(os.environ[SETTINGS_VARIABLE])

    async def _start_engine(self) -> None:
        """Start the engine only. Ray's method also starts a process for usage statistics, which imports vLLM for 8 s."""
        await self.engine.start()

    async def __serve_build_asgi_app__(self) -> Any:
        """vLLM's app behind the gate. Called once the engine runs."""
        engine = await super().__serve_build_asgi_app__()
        settings = self._settings
        models = engine.state.openai_serving_models

        catalog = Catalog(
            Registry(Folder(settings.registry)),
            await asyncio.to_thread(service_record, settings),
            ChatFormat.model_validate_json(os.environ[CHAT_VARIABLE]),
            load=partial(load_adapter, models),
            local=lambda uri: str(local_copy(uri)),
            is_alive=lambda: not models.engine_client.errored,
            is_up=full_is_up(settings.port),
            seconds=settings.registry_seconds,
            only=settings.release,
        )
        await catalog.start()
        self._watcher = asyncio.create_task(_end_with_engine(lambda: catalog.is_alive))
        metrics = Metrics(serve.get_replica_context().replica_id.unique_id)
        self._gate = Gate(
            settings,
            read_keys(None),
            catalog,
            metrics,
            engine,
            make_desk(catalog, metrics, peers()),
            forward_to(settings.port),
        )
        return self._gate


async def _end_with_engine(is_alive: Callable[[], bool]) -> None:
    """Exit this process once its engine is dead. Serve's own health checks would need a minute to start another replica."""
    while is_alive():
        await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)
    log.error("the engine died: this replica exits, and Serve starts another")
    await asyncio.sleep(_SECONDS_TO_SAY_IT)
    os._exit(1)


class Weights(CallbackBase):
    """Copies the model to the replica's machine. ray.serve.llm's own way starts a process with its imports, or asks a hub."""

    async def on_before_node_init(self) -> None:
        self.ctx.run_init_node = False
        if uri := self.kwargs.get("uri"):
            await asyncio.to_thread(local_copy, uri)


def forward_to(port: int) -> App:
    """An app that passes completions on to the app of a full fine-tune, through this node's proxy."""
    session: aiohttp.ClientSession | None = None

    async def forward(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal session
        if session is None:
            session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=5))
        body = (await receive())["body"]
        url = f"http://127.0.0.1:{port}{full_route(scope['unlearn.release'])}{scope['path']}"
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        sent = {key: headers[key] for key in ("authorization", "x-request-id") if key in headers}
        leaving = asyncio.create_task(_left(receive))
        try:
            async with session.post(url, data=body, headers={**sent, "content-type": "application/json"}) as answer:
                fields = [
                    (key.lower().encode(), value.encode())
                    for key, value in answer.headers.items()
                    if key.lower() in ("content-type", "retry-after")
                ]
                await send({"type": "http.response.start", "status": answer.status, "headers": fields})
                async for part in answer.content.iter_any():
                    if leaving.done():
                        return
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except aiohttp.ClientConnectionError as error:
            raise Refusal(503, f"{scope['unlearn.release']} can't be reached", "model_starting", "model") from error
        finally:
            leaving.cancel()

    return forward


def full_is_up(port: int) -> Callable[[str], Awaitable[bool]]:
    """Whether the app of a full fine-tune answers, as this node's proxy sees it."""
    session: aiohttp.ClientSession | None = None

    async def is_up(release_id: str) -> bool:
        nonlocal session
        if session is None:
            session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS_TO_KNOCK))
        try:
            async with session.get(f"http://127.0.0.1:{port}{full_route(release_id)}/ready") as answer:
                # Without that app the base model's app answers, with a 404 for this path.
                return answer.status == 200
        except (TimeoutError, aiohttp.ClientError):
            return False

    return is_up


async def _left(receive: Receive) -> Event:
    """Wait until the client disconnects."""
    while (event := await receive())["type"] != "http.disconnect":
        pass
    return event
