"""Which batch an engine gets next: that of the caller with the fewest requests under way. So a small topic does not wait for a large one."""

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import count


@dataclass(slots=True)
class Turn:
    """A batch that waits for an engine, or is on one."""

    caller: str
    num_requests: int
    engine: "asyncio.Future[int | None]" = field(default_factory=asyncio.Future)  # None: there will be none


class Turns:
    """The batches that wait, by caller, and what is under way for each caller. Not thread-safe."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Turn]] = {}
        self._under_way: Counter[str] = Counter()
        self._last: dict[
            str, int
        ] = {}  # of each caller that waits or has something under way: the number of its last turn
        self._numbers = count(1)

    def __len__(self) -> int:
        """Batches that wait."""
        return sum(map(len, self._waiting.values()))

    def queue(self, caller: str, num_requests: int) -> Turn:
        """Let a batch wait, behind the caller's own."""
        turn = Turn(caller, num_requests)
        self._waiting.setdefault(caller, deque()).append(turn)
        return turn

    def next(self) -> Turn | None:
        """Take out the batch whose turn it is; of callers with as much under way, that whose last turn was longest ago. None: nobody waits."""
        if not self._waiting:
            return None
        caller = min(self._waiting, key=lambda each: (self._under_way[each], self._last.get(each, 0)))
        turn = self._waiting[caller][0]
        self._last[caller] = next(self._numbers)
        self.leave(turn)
        return turn

    def leave(self, turn: Turn) -> None:
        """A batch waits no more."""
        waiting = self._waiting.get(turn.caller, deque())
        if turn in waiting:
            waiting.remove(turn)
            if not waiting:
                del self._waiting[turn.caller]

    def begin(self, caller: str, num_requests: int) -> None:
        """So many requests of a caller are under way."""
        self._under_way[caller] += num_requests

    def end(self, caller: str, num_requests: int) -> None:
        """They are not any more."""
        self._under_way[caller] -= num_requests
        if not self._under_way[caller]:
            del self._under_way[caller]
            if caller not in self._waiting:
                self._last.pop(caller, None)
