"""The service's own endpoints: the models, their runs, readiness, and the metrics."""

import asyncio
import json
from collections.abc import Callable
from itertools import islice
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from unlearn_ray.artifacts import Folder
from unlearn_ray.serving.catalog import Catalog
from unlearn_ray.serving.metrics import OWN, TEXT, Metrics, merged
from unlearn_ray.serving.peers import Gather
from unlearn_ray.serving.registry import DATA, Release
from unlearn_ray.serving.release import TABLES
from unlearn_ray.serving.requests import Refusal, error_body
from unlearn_ray.words import fold

_MAX_PAGE = 500


def make_desk(catalog: Catalog, metrics: Metrics, gather: Gather) -> Starlette:
    """The app for every path except those of completions."""

    async def ready(request: Request) -> Response:
        is_ready = catalog.is_ready
        metrics.ready.set(is_ready)
        body = {"ready": is_ready, "models": [model["id"] for model in catalog.models()] if is_ready else []}
        return JSONResponse(body, 200 if is_ready else 503)

    async def health(request: Request) -> Response:
        return JSONResponse({"alive": catalog.is_alive}, 200 if catalog.is_alive else 503)

    async def numbers(request: Request) -> Response:
        metrics.ready.set(catalog.is_ready)
        is_own = request.url.query == OWN
        others = [] if is_own else await gather(request.headers.get("authorization", ""))
        return Response(merged(others or [metrics.render()]), media_type=f"{TEXT}; version=0.0.4")

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": catalog.models()})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        found = next((card for card in catalog.models() if card["id"] == name), None)
        if found is None:
            await catalog.look()
            found = next((card for card in catalog.models() if card["id"] == name), None)
        if found is None:
            catalog.release_of(name)
        return JSONResponse(found)

    async def run(request: Request) -> Response:
        release = catalog.release_of(request.path_params["name"])
        probes = await _read(catalog, release, "probes.json", "[]")
        body = release.model_dump(exclude={"fingerprint"}) | {"probes": json.loads(probes)}
        return JSONResponse(body)

    async def report(request: Request) -> Response:
        release = catalog.release_of(request.path_params["name"])
        text = await _read(catalog, release, "report.json", "")
        if not text:
            raise Refusal(404, f"{release.id} was published without a run: it has no report", "no_report")
        return Response(text, media_type="application/json")

    async def rows(request: Request) -> Response:
        release, query = catalog.release_of(request.path_params["name"]), request.query_params
        table = query.get("table", "forget")
        if table not in TABLES:
            raise Refusal(400, f"`table` must be one of {', '.join(TABLES)}", "invalid_value", "table")
        offset, limit = _count(query.get("offset", "0"), "offset"), _count(query.get("limit", "50"), "limit")
        folder = catalog.registry.version_folder(release.id) / DATA / table
        names = ("topic", "contains", "reason", "model", "group")
        keep = _filter(**{name: query.get(name, "") for name in names})
        return JSONResponse(await asyncio.to_thread(page, folder, keep, offset, min(limit, _MAX_PAGE)))

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return JSONResponse(error.body, error.status)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(error_body(error.status_code, message, "unknown_url"), error.status_code)

    return Starlette(
        routes=[
            Route("/ready", ready),
            Route("/health", health),
            Route("/metrics", numbers),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/v1/runs/{name}/report", report),
            Route("/v1/runs/{name}/rows", rows),
            Route("/v1/runs/{name}", run),
        ],
        exception_handlers={Refusal: refused, HTTPException: unknown},
    )


def page(folder: Folder, keep: Callable[[dict[str, Any]], bool], offset: int, limit: int) -> dict[str, Any]:
    """Rows `offset` to `offset + limit` of those that `keep` accepts, and their total number."""
    found = [row for row in folder.read_rows() if keep(row)] if folder.exists() else []
    columns = list(found[0]) if found else []
    return {"columns": columns, "rows": list(islice(found, offset, offset + limit)), "total": len(found)}


def _filter(topic: str, contains: str, reason: str, model: str, group: str) -> Callable[[dict[str, Any]], bool]:
    wanted = fold(contains)

    def keep(row: dict[str, Any]) -> bool:
        if topic and topic not in (row.get("topic"), row.get("served_topic")):
            return False
        if reason and reason != (row.get("drop") or "kept"):
            return False
        if (model and model != row.get("model")) or (group and group != row.get("group")):
            return False
        texts = (row.get(column) for column in ("question", "answer"))
        return not wanted or any(wanted in fold(text) for text in texts if text)

    return keep


def _count(text: str, name: str) -> int:
    if not text.isdigit() or len(text) > 9:
        raise Refusal(400, f"`{name}` must be a whole number of at least 0", "invalid_value", name)
    return int(text)


async def _read(catalog: Catalog, release: Release, file: str, default: str) -> str:
    data = catalog.registry.version_folder(release.id) / DATA
    return await asyncio.to_thread(lambda: data.read_text(file) if data.exists(file) else default)
