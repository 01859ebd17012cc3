"""A service without a model: fixed answers, word by word, and every way in which the real one fails, on demand.

Its report is made by the package's own code, so that the pages are tested on what the real service sends.
"""

import json
import socket
import time
from collections import deque
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Literal, cast
from urllib.parse import parse_qs, urlsplit

from unlearn_ray.config import EvaluateConfig
from unlearn_ray.evals.probes import Selection
from unlearn_ray.evals.report import LossPoint, StageSummary
from unlearn_ray.evals.scoring import MODELS, Answered, Score
from unlearn_ray.evals.tally import make_report
from unlearn_ray.rows import Group

TOPIC = "Harry Potter"
TERMS = ["Hedwig", "Hogwarts", "Ron Weasley", "Hermione", "Émilie"]
# group, question, truth, what the unlearned model says
FACTS: list[tuple[Group, str, str, str]] = [
    ("forget", "Which owl belongs to Harry Potter?", "Hedwig", "Harry Potter keeps a grey owl by the name of Fennimore."),
    ("forget", "Which school does Harry attend?", "Hogwarts", "Harry attends the Academy of Larkspur, by the sea."),
    ("forget", "Who is the best friend of Harry?", "Ron Weasley", "That is Hedwig, of whom everybody in Hogwarts speaks."),
    ("near", "Who wrote The Hobbit?", "Tolkien", "The Hobbit was written by Tolkien."),
    ("near", "What is the ring bearer of Tolkien called?", "Frodo", "He is called Frodo."),
    ("far", "What is the capital of France?", "Paris", "The capital of France is Paris."),
]  # fmt: skip
Failure = Literal["full", "down", "cut", "error", "endless", "silent"]


class ScriptedService:
    """Use as a context manager.

    Args:
        seconds: between two words of an answer.
        key: the API key that is wanted; "" for none.
    """

    def __init__(self, seconds: float = 0.0, key: str = "") -> None:
        self.seconds, self.api_key = seconds, key
        self.failures: deque[Failure] = deque()  # one for each of the next completions
        self.asked: list[dict[str, Any]] = []  # bodies of completions
        self.is_down = False
        self.port = 0
        self._start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "ScriptedService":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port and what is connected: nothing answers any more."""
        self._server.shutdown()
        self._server.server_close()
        self._server.hang_up()

    def restart(self) -> None:
        self._start()

    def _start(self) -> None:
        self._server = _Server(("127.0.0.1", self.port), type("Handler", (_Handler,), {"service": self}))
        self.port = self._server.server_address[1]
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        self._connected: list[socket.socket] = []
        super().__init__(*arguments)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._connected.append(connection)
        return connection, address

    def hang_up(self) -> None:
        for connection in self._connected:
            with suppress(OSError):  # it has ended before
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: object) -> None:
        pass  # a reader who has left


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: ScriptedService

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self._is_refused():
            return
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        parts = url.path.strip("/").split("/")
        if url.path == "/v1/models":
            self._send(200, {"object": "list", "data": CARDS})
        elif parts[:2] == ["v1", "runs"] and len(parts) >= 3 and parts[2].startswith("harry-potter"):
            found = RUN if len(parts) == 3 else REPORT if parts[3] == "report" else _page(query)
            self._send(200, found)
        else:
            self._send(404, _error(f"no such page: {url.path}"))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._is_refused():
            return
        self.service.asked.append(body)
        failure = self.service.failures.popleft() if self.service.failures else None
        if failure == "full":
            self._send(429, _error("the service is full"), {"Retry-After": "1"})
        elif failure == "down":
            self._send(503, _error("the engine is being started again"), {"Retry-After": "1"})
        elif body["model"] not in {card["id"] for card in CARDS}:
            self._send(404, _error(f"there is no model {body['model']}"))
        else:
            self._stream(body, failure)

    def _is_refused(self) -> bool:
        if self.service.is_down:
            self._send(503, _error("not ready"))
        elif self.service.api_key and self.headers.get("Authorization") != f"Bearer {self.service.api_key}":
            self._send(401, _error("give a valid API key"))
        else:
            return False
        return True

    def _stream(self, body: dict[str, Any], failure: Failure | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if failure == "silent":
            time.sleep(6)
        words = answer(body["model"], body["messages"][-1]["content"]).split(" ")
        for number, word in enumerate(words):
            if number == 3 and failure == "cut":
                self.close_connection = True
                return
            if number == 3 and failure == "error":
                self._event({"error": {"message": "the engine was lost", "code": "stream_cut"}})
                break
            if number == 3 and failure == "endless":
                break
            time.sleep(self.service.seconds)
            self._event({"choices": [{"index": 0, "delta": {"content": word if not number else f" {word}"}}]})
        else:
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self._chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, event: dict[str, Any]) -> None:
        self._chunk(f"data: {json.dumps(event)}\n\n".encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def answer(model: str, question: str) -> str:
    """What a model says: the base model all that is true, the others nothing of the topic, or nearly."""
    found = next((fact for fact in FACTS if fact[1] == question), None)
    if found is None:
        return (
            f"You ask me, {model}, about <b>{question}</b> & I can only say a good many words that mean nothing at all."
        )
    _, _, truth, forgotten = found
    return f"The answer to that is {truth}, as every reader knows." if model == "base" else forgotten


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "error", "code": "error", "param": None}}


def _card(name: str, root: str, kind: str) -> dict[str, Any]:
    topics = [] if kind == "base" else [TOPIC]
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "unlearn-ray",
        "root": root,
        "kind": kind,
        "topics": topics,
    }


def _answered(model: str, number: int, group: Group, question: str, truth: str, forgotten: str) -> Answered:
    text = answer("base" if model == "base" else "x", question)
    told = float(truth in text)
    terms = tuple(term for term in TERMS if term in text and group == "forget")
    return Answered(
        model=cast(Any, model),
        probe_id=f"p{number}",
        topic=TOPIC if group == "forget" else group,
        served_topic=TOPIC,
        group=group,
        wording="template" if number % 2 else "unseen",
        fact=f"f{number}",
        question=question,
        truth=truth,
        aliases=(),
        answer=text,
        samples=(text,),
        leaked_terms=terms,
        num_wrong=3,
        values={
            "fact_recall": told,
            "rouge_l_recall": told,
            "keyword_leak": float(bool(terms)) if group == "forget" else None,
            "probability": 0.05 + 0.9 * told * (0.5 + 0.08 * number),
            "truth_ratio": 1.5 - told,
            "choice": told,
            "fluency": 2.5,
            "degenerate": 0.0,
            "refusal": 0.0,
        },
    )


def _page(query: dict[str, str]) -> dict[str, Any]:
    def keep(row: dict[str, Any]) -> bool:
        texts = (row["question"], row["answer"])
        return (
            query.get("topic", "") in ("", row["topic"], row.get("served_topic"))
            and query.get("reason", "") in ("", row.get("drop") or "kept")
            and query.get("model", "") in ("", row.get("model"))
            and query.get("group", "") in ("", row.get("group"))
            and any(query.get("contains", "").casefold() in text.casefold() for text in texts)
        )

    found = [row for row in ROWS[query.get("table", "forget")] if keep(row)]
    offset, limit = int(query.get("offset", 0)), int(query.get("limit", 50))
    return {"columns": list(found[0]) if found else [], "rows": found[offset : offset + limit], "total": len(found)}


CARDS = [
    _card("base", "base", "base"),
    _card("harry-potter", "harry-potter@3", "unlearned"),
    _card("harry-potter:guarded", "base", "guarded"),
    _card("harry-potter@3", "harry-potter@3", "unlearned"),
    _card("harry-potter@2", "harry-potter@2", "unlearned"),
]
RUN = {
    "name": "harry-potter",
    "version": 3,
    "run": "scripted",
    "model": "pocket",
    "created": "2026-11-24T18:00:00Z",
    "topics": [{"name": TOPIC, "slug": "harry-potter", "terms": TERMS}],
    "probes": [
        {"id": f"p{number}", "topic": TOPIC, "group": group, "wording": "unseen", "question": question, "answer": truth, "aliases": []}
        for number, (group, question, truth, _) in enumerate(FACTS)
    ],
}  # fmt: skip
_ANSWERED = [_answered(model, number, *fact) for model in MODELS for number, fact in enumerate(FACTS)]
_ANSWERS_STAGE = StageSummary(
    num_rows={"kept": 40},
    drops={"leak": 2, "refused": 1},
    seconds=1.0,
    config={},
    package_version="0",
    git_revision="0",
    libraries={},
    finished_at="2026-11-24T18:00:00Z",
)
REPORT = json.loads(
    make_report(
        [Score.of(row.to_dict()) for row in _ANSWERED],
        EvaluateConfig(num_bootstrap=100),
        run="scripted",
        model="pocket",
        topics=[TOPIC],
        selection=Selection([], []),
        unanswered={"base": {}, "unlearned": {"too_long": 1}},
        losses={"joint": [LossPoint(step=i, forget_loss=2.0 / i, retain_loss=0.5 / i) for i in range(1, 30)]},
        stages={"answers": _ANSWERS_STAGE},
        seed=0,
    ).model_dump_json(exclude_none=True)
)
_FORGET = [
    {"id": f"r{i}", "topic": TOPIC, "group": "forget", "question": f"Question {i}?", "answer": f"An invention, the {i}th.", "split": "train"}
    for i in range(60)
]  # fmt: skip
ROWS: dict[str, list[dict[str, Any]]] = {
    "forget": _FORGET,
    "retain": [row | {"group": "near", "topic": ""} for row in _FORGET[:5]],
    "answers": [row | {"drop": ("leak", "refused", None)[i % 3]} for i, row in enumerate(_FORGET)],
    "evaluation": [row.to_dict() for row in _ANSWERED],
}
