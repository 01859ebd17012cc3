"""What the service tells of a run: its rows, filtered and paged."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
from prometheus_client import CollectorRegistry

from unlearn_ray.artifacts import Folder
from unlearn_ray.chat import PLAIN
from unlearn_ray.serving.catalog import Catalog
from unlearn_ray.serving.desk import make_desk
from unlearn_ray.serving.metrics import Metrics
from unlearn_ray.serving.registry import DATA, Registry, Release, ServiceRecord, now


async def loads(name: str, path: str) -> str:
    return ""


async def is_up(name: str) -> bool:
    return True


async def gathers(authorization: str) -> list[str]:
    return []


def rows_of(folder: Path, **query: str) -> dict[str, Any]:
    """A page of the evaluation of a version: three models, asked two groups of probes."""
    registry = Registry(Folder(folder))
    release = Release(name="dune", version=registry.begin("dune"), kind="adapter", model="m", created=now())
    rows = [
        {"model": model, "group": group, "question": f"{number}?", "answer": "Sand."}
        for model in ("base", "guarded", "unlearned")
        for group in ("forget", "near")
        for number in range(3)
    ]
    schema = pa.schema([(name, pa.string()) for name in rows[0]])
    (registry.version_folder(release.id) / DATA / "evaluation").write_rows(rows, schema)
    registry.finish(release)

    async def ask() -> dict[str, Any]:
        service = ServiceRecord(model="m", max_lora_rank=8)
        catalog = Catalog(
            registry, service, PLAIN, load=loads, local=str, is_alive=lambda: True, is_up=is_up, seconds=1
        )
        await catalog.look()
        transport = httpx.ASGITransport(make_desk(catalog, Metrics("r1", CollectorRegistry()), gathers))
        async with httpx.AsyncClient(transport=transport, base_url="http://desk") as client:
            answer = await client.get("/v1/runs/dune/rows", params={"table": "evaluation"} | query)
        return dict(answer.json())

    return asyncio.run(ask())


def test_rows_are_those_of_the_model_and_group_that_are_asked_for(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "all")["total"] == 18
    found = rows_of(tmp_path / "some", model="unlearned", group="forget", limit="2")
    assert found["total"] == 3 and len(found["rows"]) == 2
    assert {(row["model"], row["group"]) for row in found["rows"]} == {("unlearned", "forget")}
