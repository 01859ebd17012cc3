"""Questions in flight: one thread per answer. All threads feed one queue, and each retries by itself while the service can't answer.

Streamlit runs its script again at every click. These objects stay in the session, and the next run of the script continues to read them.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

from client import Cut, Message, Sampling, Service, ServiceError

from unlearn_ray.words import without_thoughts

SLOW_SECONDS = 4.0
_UNWATCHED_SECONDS = 60.0  # after which the reader counts as gone, and further requests would only load the service
_MAX_CUTS = 3
State = Literal["queued", "waiting", "streaming", "retrying", "done", "stopped", "cut", "failed"]
_RUNNING = ("queued", "waiting", "streaming", "retrying")


@dataclass(frozen=True, slots=True)
class Question:
    """A question to one model."""

    model: str
    messages: list[Message]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Event:
    """A step of an answer: a piece of its text, or a new state with a note."""

    state: State
    text: str = ""  # a piece while streaming, else a note


@dataclass(slots=True)
class Reply:
    """An answer so far."""

    model: str
    written: str = ""  # the model's text so far, with its thoughts
    state: State = "queued"
    note: str = ""
    heard: float = field(default_factory=time.monotonic)  # time of the last event

    @property
    def text(self) -> str:
        """The answer without its thoughts, as in the report."""
        return without_thoughts(self.written)

    @property
    def is_running(self) -> bool:
        return self.state in _RUNNING

    @property
    def silent_seconds(self) -> float:
        """Seconds without a token while one is expected. 0 if that is not long."""
        silent = time.monotonic() - self.heard if self.state in ("waiting", "streaming") else 0.0
        return silent if silent >= SLOW_SECONDS else 0.0

    def take(self, event: Event) -> None:
        self.heard = time.monotonic()
        if event.state == "streaming":
            self.written, self.note = self.written + event.text, ""
        elif event.state == "waiting":
            self.written = ""
        else:
            self.note = event.text
        self.state = event.state


class Answers:
    """Answers to questions, up to `num_at_once` at the same time."""

    def __init__(self, service: Service, questions: Sequence[Question], num_at_once: int | None = None) -> None:
        self.replies = [Reply(question.model) for question in questions]
        self._events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._watched = time.monotonic()
        self._todo: queue.SimpleQueue[tuple[int, Question]] = queue.SimpleQueue()
        for item in enumerate(questions):
            self._todo.put(item)
        for _ in range(min(num_at_once or len(questions), len(questions))):
            threading.Thread(target=self._work, args=(service,), daemon=True).start()

    @property
    def is_running(self) -> bool:
        return any(reply.is_running for reply in self.replies)

    def stop(self) -> None:
        """Stop all running answers. Their text so far is kept."""
        self._stop.set()
        self._drain(0)
        for reply in self.replies:
            if reply.is_running:
                reply.state, reply.note = "stopped", "Stopped."

    def watch(self, seconds: float) -> None:
        """Process new events. Waits up to `seconds` for them."""
        self._watched = time.monotonic()
        self._drain(seconds)

    def _drain(self, seconds: float) -> None:
        try:
            index, event = self._events.get(timeout=seconds) if seconds else self._events.get_nowait()
            while True:
                self.replies[index].take(event)
                index, event = self._events.get_nowait()
        except queue.Empty:
            return

    def _work(self, service: Service) -> None:
        while True:
            try:
                index, question = self._todo.get_nowait()
            except queue.Empty:
                return
            for event in ask(service, question, self._is_wanted, self._stop.wait):
                self._events.put((index, event))

    def _is_wanted(self) -> bool:
        return not self._stop.is_set() and time.monotonic() - self._watched < _UNWATCHED_SECONDS


def ask(
    service: Service, question: Question, is_wanted: Callable[[], bool], wait: Callable[[float], object]
) -> Iterator[Event]:
    """An answer's events. A service that is down or full is retried until it answers, and a cut answer up to `_MAX_CUTS` times."""
    num_cuts = 0
    while is_wanted():
        yield Event("waiting")
        try:
            with closing(service.stream(question.model, question.messages, question.sampling)) as pieces:
                for piece in pieces:
                    if not is_wanted():
                        break
                    yield Event("streaming", piece)
                else:
                    yield Event("done")
                    return
        except ServiceError as error:
            num_cuts += isinstance(error, Cut)
            if error.retry_seconds is None or num_cuts > _MAX_CUTS:
                yield Event("cut" if isinstance(error, Cut) else "failed", str(error))
                return
            yield Event("retrying", f"{error} Trying again in {error.retry_seconds:.0f} s.")
            wait(error.retry_seconds)
        except Exception as error:  # a bug must end the answer, or the page would wait for it forever
            yield Event("failed", f"The demo failed at this answer: {type(error).__name__}: {error}")
            return
    yield Event("stopped", "Stopped.")
