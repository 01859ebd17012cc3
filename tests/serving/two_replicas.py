"""Run by test_peers.py, on the Ray that is named: an app of two replicas with figures and a key, and what a scraper is shown of them."""

import sys
import time
import urllib.request

import ray
from ray import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from unlearn_ray.serving.metrics import OWN
from unlearn_ray.serving.peers import peers
from unlearn_ray.serving.service import free_port

gather = peers()


async def metrics(request: Request) -> Response:
    if request.headers.get("authorization") != "Bearer key":
        return Response(status_code=401)
    if request.url.query == OWN:
        return PlainTextResponse(serve.get_replica_context().replica_id.unique_id)
    return PlainTextResponse("\n".join(await gather("Bearer key")))


@serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 0.1})
@serve.ingress(Starlette(routes=[Route("/metrics", metrics)]))
class Two:
    pass


def shown(port: int) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Authorization": "Bearer key"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


if __name__ == "__main__":
    address, port = sys.argv[1], free_port()
    ray.init(address, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Two.bind(), blocking=False)  # type: ignore[attr-defined]  # mypy keeps a decorated class as it was
    deadline = time.monotonic() + 120
    while len((ids := shown(port)).split()) < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    print(ids)
    serve.shutdown()
    ray.shutdown()
