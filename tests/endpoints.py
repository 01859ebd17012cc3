"""Endpoints that speak as OpenAI's do: vLLM's own server on the pocket model, and one that says what a test wants it to."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx

from unlearn_ray import pocket
from unlearn_ray.config import EngineResources
from unlearn_ray.engines.vllm_engine import EngineSpec, environment
from unlearn_ray.serving.service import free_port

KEY = "a key of the tests"
SERVED = "a-pocket"
_SECONDS_TO_START = 600  # beside other tests


@contextmanager
def vllm_server(log: Path) -> Iterator[str]:
    """The address of vLLM's OpenAI server, in float32, to compare with transformers."""
    port, model = free_port(), str(pocket.MODEL_DIR)
    arguments = [
        "--model",
        model,
        "--served-model-name",
        SERVED,
        "--api-key",
        KEY,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    # As our engines are: a seeded request kills vLLM's CPU engine when prompts are prefilled in chunks.
    arguments += ["--dtype", "float32", "--enforce-eager", "--no-enable-chunked-prefill", "--max-num-seqs", "32"]
    variables = environment(EngineSpec(model, EngineResources(), "cpu"))
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments]
    with (
        log.open("w") as out,
        subprocess.Popen(command, env={**os.environ, **variables}, stdout=out, stderr=out) as server,
    ):
        try:
            deadline = time.monotonic() + _SECONDS_TO_START
            while not _is_up(port):
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()


def _is_up(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).is_success
    except httpx.TransportError:
        return False


class Answer(NamedTuple):
    """What a scripted endpoint says to one request."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = MappingProxyType({})
    seconds: float = 0.0  # that it takes


class Scripted(NamedTuple):
    url: str
    asked: list[dict[str, Any]]  # bodies of the requests


@contextmanager
def scripted(
    say: Callable[[dict[str, Any], int], Answer], models: Answer | list[Answer] | None = None
) -> Iterator[Scripted]:
    """A server that answers with `say(body, how many were asked before)`.

    Args:
        models: what it says of its models, or says one time after the other; none: that it has one, `m`.
    """
    asked: list[dict[str, Any]] = []
    listed = models if isinstance(models, list) else [models or Answer(body={"data": [{"id": "m"}]})]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(listed.pop(0) if len(listed) > 1 else listed[0])

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            self._send(say(body, len(asked) - 1))

        def _send(self, answer: Answer) -> None:
            time.sleep(answer.seconds)
            text = answer.body if isinstance(answer.body, str | bytes) else json.dumps(answer.body)
            data = text if isinstance(text, bytes) else text.encode()
            try:
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(data)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                return  # who asked did not wait

        def log_message(self, *_: Any) -> None:
            """Nothing: tests print what fails."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield Scripted(f"http://127.0.0.1:{server.server_address[1]}/v1", asked)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def chosen(*texts: str) -> Answer:
    """Samples of either API."""
    choices = [
        {"index": i, "text": text, "message": {"content": text}, "finish_reason": "stop"}
        for i, text in enumerate(texts)
    ]
    return Answer(body={"choices": choices, "usage": {"prompt_tokens": 5, "completion_tokens": 2}})
