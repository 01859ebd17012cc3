"""A generator without a model, on Ray. Rows pass through the same tasks and files as with real engines, so their cost can be measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from unlearn_ray.artifacts import Folder
from unlearn_ray.chat import PLAIN, ChatFormat
from unlearn_ray.engines.chunks import RowMap
from unlearn_ray.engines.protocols import MapCounts, Parse, R, Render, Reply, Request, T
from unlearn_ray.engines.row_work import RowWorkers
from unlearn_ray.engines.scripted import Answer, reply_of


@dataclass(frozen=True, slots=True)
class ScriptedClient:
    """Implements `chunks.Client`: a function answers, in the task itself."""

    answer: Answer

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        return [reply_of(self.answer, request) for request in requests]


class ScriptedWorkersGenerator:
    """Implements `protocols.Generator`.

    Args:
        answer: as in `scripted.ScriptedGenerator`; workers must be able to unpickle it.
        num_slots: batches that are answered at the same time.
    """

    def __init__(self, answer: Answer, *, num_slots: int = 2, batch_size: int = 256, chat: ChatFormat = PLAIN) -> None:
        self._client, self._num_slots, self._batch_size, self.chat = ScriptedClient(answer), num_slots, batch_size, chat
        self._workers = RowWorkers()

    def map(
        self,
        source: Folder,
        out: Folder,
        render: Render,
        parse: Parse,
        schema: pa.Schema,
        *,
        label: str,
        model: str | None = None,
    ) -> MapCounts:
        rows = RowMap(
            source,
            out,
            render,
            parse,
            schema,
            label=label,
            batch_size=self._batch_size,
            on_progress=lambda label, done, total: None,
        )
        if rows.num_chunks:
            rows.run(self._client, self._num_slots)
        return rows.finish()

    def each(
        self,
        task: Callable[[T], R],
        items: Sequence[T],
        take: Callable[[R], object] = lambda result: None,
        *,
        label: str,
    ) -> None:
        self._workers.each(task, items, take, lambda done, total: None)

    def close(self) -> None:
        """There is nothing to release."""
