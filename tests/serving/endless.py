"""Run by test_watchdog.py: the gate before an engine whose streams end when they are asked to be short, on a port."""

import asyncio
import sys

import uvicorn
from prometheus_client import CollectorRegistry
from test_gate import Models, desk

from unlearn_ray.serving.gate import Gate, Receive, Scope, Send
from unlearn_ray.serving.keys import Keys
from unlearn_ray.serving.metrics import Metrics
from unlearn_ray.serving.settings import ServiceSettings


async def engine(scope: Scope, receive: Receive, send: Send) -> None:
    body = (await receive())["body"]
    gone = asyncio.ensure_future(receive())
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    while not gone.done():
        await send({"type": "http.response.body", "body": b'data: {"choices":[{}]}\n\n', "more_body": True})
        if b"short" in body:
            break
        await asyncio.sleep(0.05)
    gone.cancel()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


if __name__ == "__main__":
    gate = Gate(ServiceSettings(), Keys(()), Models(), Metrics("r1", CollectorRegistry()), engine, desk, desk)
    uvicorn.run(gate, port=int(sys.argv[1]), log_level="error", forwarded_allow_ips="none")
