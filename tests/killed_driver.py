"""Drivers of twelve topics over a scripted engine, each of which keeps a book of what it asks and ends where it is told to.

    python killed_driver.py HOME FATES

Each fate (JSON: a list of a number and seconds) is that of a fork of this process, one after the other, which is killed so many seconds after it
asked that many requests. Writes "killed" or how else it ended, a line for each.
"""

import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from scripted_run import TWELVE, Engines, answer, config_of

from unlearn_ray import pipeline, plan
from unlearn_ray.config import RunConfig
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.scripted import ScriptedGenerator
from unlearn_ray.rows import digest
from unlearn_ray.stages.table import COMMANDS

STEPS = COMMANDS[: COMMANDS.index("dataset") + 1]  # all that ask for data
_RETAIN = {"questions_per_neighbour": 4, "num_general": 2, "questions_per_general": 4}


def config_in(home: Path) -> RunConfig:
    """Twelve topics of a few rows each."""
    return config_of(home, *TWELVE, questions={"num_questions": 8}, dataset={"retain": _RETAIN})


class Booked(ScriptedGenerator):
    """Writes down each batch, by the thread that asks it, before it answers."""

    def __init__(self, book: Path, on_asked: Callable[[int], None] = lambda number: None) -> None:
        """
        Args:
            on_asked: told how many requests were asked so far, before the last of them are answered; may end the driver.
        """
        super().__init__(answer, batch_size=4)
        self._book, self._on_asked = os.open(book, os.O_WRONLY | os.O_APPEND | os.O_CREAT), on_asked
        self._lock, self._number = threading.Lock(), 0

    def reply(self, requests: list[Request]) -> Iterable[Reply]:
        line = json.dumps([threading.get_ident(), [digest(repr(request)) for request in requests]])
        with self._lock:
            os.write(self._book, f"{line}\n".encode())
            self._number += len(requests)
            number = self._number
        self._on_asked(number)
        return super().reply(requests)


def asked_in(book: Path) -> tuple[Counter[str], Counter[str]]:
    """The requests that a driver asked, and those of its threads' last batches, which were under way when it ended."""
    lines = [json.loads(line) for line in book.read_text().splitlines()]
    last: dict[int, list[str]] = dict(lines)
    return Counter(each for _, asked in lines for each in asked), Counter(
        each for asked in last.values() for each in asked
    )


def drive(home: Path, generator: Booked) -> None:
    """One driver's life."""
    config, engines = config_in(home), Engines()
    engines.generator = engines.evaluator = generator
    with plan.claimed(config):
        pipeline.run(config, engines, STEPS)


def _killed_after(number: int, seconds: float) -> Callable[[int], None]:
    def on_asked(asked: int) -> None:
        if asked >= number:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()

    return on_asked


def _main(home: Path, fates: list[tuple[int, float]]) -> None:
    plan.identities_of(config_in(home))  # imports what drivers need, before the first fork
    for index, (number, seconds) in enumerate(fates):
        child = os.fork()
        if not child:
            drive(home, Booked(home / f"asked-{index}.jsonl", _killed_after(number, seconds)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        is_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print("killed" if is_killed else f"ended with {status}", flush=True)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), json.loads(sys.argv[2]))
