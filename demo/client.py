"""The service over HTTP: its models, its runs, and answers as they stream. Knows nothing of Streamlit."""

import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import httpx

ENDPOINT = "http://127.0.0.1:8000"
RETRY_SECONDS = 2.0
_CONNECT_SECONDS = 5.0
_SILENT_SECONDS = 120.0  # time without a byte after which a stream counts as lost
Message = dict[str, str]


class ServiceError(Exception):
    """The service did not answer. The message is for the reader of the page."""

    retry_seconds: float | None = None  # None: a retry would not help


class Refused(ServiceError):
    """The service refused this request. A retry would not help."""


class Down(ServiceError):
    """The service does not answer, or not yet."""

    retry_seconds = RETRY_SECONDS


class Full(ServiceError):
    """Too many requests. The service says when to retry."""

    retry_seconds = RETRY_SECONDS


class Cut(ServiceError):
    """An incomplete answer."""

    retry_seconds = RETRY_SECONDS


@dataclass(frozen=True, slots=True)
class Model:
    """A served model, as /v1/models lists it."""

    id: str
    root: str
    kind: str  # base, unlearned or guarded
    topics: tuple[str, ...]

    @property
    def is_version(self) -> bool:
        """Whether it is a fixed version. An alias is not, because it moves to the next version."""
        return self.kind == "unlearned" and self.id == self.root


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters, with OpenAI's names."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256


class Service:
    """One endpoint. Thread-safe.

    Args:
        endpoint: its URL, with or without /v1.
        key: the API key; "" if the service needs none.
    """

    def __init__(self, endpoint: str = ENDPOINT, key: str = "") -> None:
        self.endpoint = endpoint.rstrip("/").removesuffix("/v1")
        self._http = httpx.Client(
            base_url=self.endpoint,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(_SILENT_SECONDS, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        )

    def models(self) -> list[Model]:
        cards = self._get("/v1/models")["data"]
        return [
            Model(c["id"], c.get("root", c["id"]), c.get("kind", "base"), tuple(c.get("topics", ()))) for c in cards
        ]

    def run(self, model: str) -> dict[str, Any]:
        """The run behind an unlearned model: its topics with their leak terms, and its held-out probes."""
        return self._get(f"/v1/runs/{model}")

    def report(self, model: str) -> dict[str, Any]:
        return self._get(f"/v1/runs/{model}/report")

    def rows(self, version: str, table: str, *, offset: int = 0, limit: int = 50, **filters: str) -> dict[str, Any]:
        """A page of a table. `filters` are topic, model, group, reason and contains; empty ones are ignored."""
        wanted = {name: value for name, value in filters.items() if value}
        return self._get(f"/v1/runs/{version}/rows", table=table, offset=offset, limit=limit, **wanted)

    def stream(self, model: str, messages: list[Message], sampling: Sampling) -> Generator[str, None, None]:
        """The answer, piece by piece.

        Raises:
            ServiceError: one of the four kinds above. Cut: the text so far is not a complete answer.
        """
        body = {"model": model, "messages": messages, "stream": True, **asdict(sampling)}
        is_whole = False
        with self._errors("the stream broke"), self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                response.read()
                raise _refusal(response)
            for line in response.iter_lines():
                if not line.startswith("data:") or (data := line.removeprefix("data:").strip()) == "[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise Cut(f"The answer was cut: {_message(event) or 'the service gave no reason'}.")
                for choice in event.get("choices", ()):
                    if piece := (choice.get("delta") or {}).get("content"):
                        yield piece
                    is_whole = is_whole or choice.get("finish_reason") is not None
        if not is_whole:
            raise Cut("The answer was cut: the stream ended early.")

    def _get(self, path: str, **query: Any) -> Any:
        with self._errors("the connection broke"):
            response = self._http.get(path, params=query, timeout=30.0)
            if response.status_code != 200:
                raise _refusal(response)
            return response.json()

    @contextmanager
    def _errors(self, broken: str) -> Iterator[None]:
        """Turn errors within the context into one of the four kinds."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Down(f"No service answers at {self.endpoint}.") from error
        except httpx.TimeoutException as error:
            raise Cut("The answer was cut: nothing came for too long.") from error
        except httpx.HTTPError as error:
            raise Cut(f"The answer was cut: {broken}.") from error
        except ValueError as error:
            raise Down(f"The server at {self.endpoint} does not answer like this service.") from error


def from_environment() -> tuple[str, str]:
    """Endpoint and key from the environment."""
    return os.environ.get("UNLEARN_RAY_ENDPOINT") or ENDPOINT, os.environ.get("UNLEARN_RAY_API_KEY", "")


def _refusal(response: httpx.Response) -> ServiceError:
    status = response.status_code
    try:
        message = _message(response.json())
    except ValueError:
        message = ""
    if status == 429:
        full = Full("The service is full.")
        full.retry_seconds = _seconds(response.headers.get("retry-after", ""))
        return full
    if status in (502, 503, 504):
        return Down(f"The service is not ready{f': {message}' if message else ''}.")
    if status == 401:
        return Refused("The service needs an API key: start the demo with UNLEARN_RAY_API_KEY set to a valid one.")
    return Refused(f"The service refused ({status}): {message or response.reason_phrase}.")


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message).rstrip(".") if message else ""


def _seconds(header: str) -> float:
    try:
        return min(max(float(header), 0.5), 60.0)
    except ValueError:
        return RETRY_SECONDS
