"""Chooses the next batch for an engine: the caller with the fewest requests in flight goes first. So a small topic does not wait for a
large one."""

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import count


@dataclass(slots=True)
class Turn:
    """A batch that waits for an engine, or runs on one."""

    caller: str
    num_requests: int
    engine: "asyncio.Future[int | None]" = field(default_factory=asyncio.Future)  # None: no engine will come


class Turns:
    """The waiting batches per caller, and the requests in flight per caller. Not thread-safe."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Turn]] = {}
        self._under_way: Counter[str] = Counter()
        self._last: dict[str, int] = {}  # caller with waiting batches or requests in flight -> number of its last turn
        self._numbers = count(1)

    def __len__(self) -> int:
        """Number of waiting batches."""
        return sum(map(len, self._waiting.values()))

    def queue(self, caller: str, num_requests: int) -> Turn:
        """Add a batch behind the caller's other batches."""
        turn = Turn(caller, num_requests)
        self._waiting.setdefault(caller, deque()).append(turn)
        return turn

    def next(self) -> Turn | None:
        """Take out the batch whose turn it is. None if no batch waits.

        Of callers with equally many requests in flight, the one with the oldest last turn goes first.
        """
        if not self._waiting:
            return None
        caller = min(self._waiting, key=lambda each: (self._under_way[each], self._last.get(each, 0)))
        turn = self._waiting[caller][0]
        self._last[caller] = next(self._numbers)
        self.leave(turn)
        return turn

    def leave(self, turn: Turn) -> None:
        """Remove a waiting batch."""
        waiting = self._waiting.get(turn.caller, deque())
        if turn in waiting:
            waiting.remove(turn)
            if not waiting:
                del self._waiting[turn.caller]

    def begin(self, caller: str, num_requests: int) -> None:
        """Count requests of a caller as in flight."""
        self._under_way[caller] += num_requests

    def end(self, caller: str, num_requests: int) -> None:
        """Count requests of a caller as done."""
        self._under_way[caller] -= num_requests
        if not self._under_way[caller]:
            del self._under_way[caller]
            if caller not in self._waiting:
                self._last.pop(caller, None)
