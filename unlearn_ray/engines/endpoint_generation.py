"""The generator over an endpoint: rows stream to a model that is served already. The run's own engines do what the endpoint can't."""

import threading
from collections.abc import Callable, Sequence

import pyarrow as pa

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import EndpointSettings
from unlearn_ray.engines.chunks import Client, OnProgress, RowMap
from unlearn_ray.engines.endpoint import EndpointClient, NeedsScores, Served, find_served, key_of
from unlearn_ray.engines.generation import RayDataGenerator
from unlearn_ray.engines.protocols import MapCounts, Parse, R, Render, T

_SLOTS = 4  # tasks at the same time: while one waits for its last answer, the others keep the endpoint busy


class EndpointGenerator:
    """Implements `protocols.Generator`. Threads take turns, so that the endpoint never has more requests in flight than configured.

    Args:
        model: the run's model, as its config names it. The endpoint may know it by the same name.
        path: the model's folder or hub name, for the tokenizer.
        local: the run's own engines, for other models than the endpoint's, and for scores with `scoring: local`.
    """

    def __init__(
        self, model: str, path: str, settings: EndpointSettings, local: RayDataGenerator, on_progress: OnProgress
    ) -> None:
        self._model, self._path, self._settings, self._local = model, path, settings, local
        self._served: Served | None = None
        self._on_progress, self.chat = on_progress, local.chat
        self._turn = threading.Lock()

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
        """See `protocols.Generator.map`."""
        if model is not None and model != self._path:
            return self._local.map(source, out, render, parse, schema, label=label, model=model)
        rows = RowMap(
            source,
            out,
            render,
            parse,
            schema,
            label=label,
            batch_size=self._settings.batch_size,
            on_progress=self._on_progress,
        )
        if rows.num_chunks:
            num_slots = min(_SLOTS, rows.num_chunks, self._settings.concurrency)
            with self._turn:
                try:
                    rows.run(self._client(num_slots), num_slots)
                except NeedsScores:
                    # The engines start with the first answers to score. Finished chunks are not asked again.
                    with self._local.asking() as fleet:
                        rows.run(self._client(num_slots, fleet.client), num_slots)
        return rows.finish()

    def each(
        self,
        task: Callable[[T], R],
        items: Sequence[T],
        take: Callable[[R], object] = lambda result: None,
        *,
        label: str,
    ) -> None:
        """See `protocols.Generator.each`."""
        self._local.each(task, items, take, label=label)

    def check(self) -> None:
        """Find the model at the endpoint, once.

        Raises:
            ClusterError: nothing answers there.
            ConfigError: the key is refused, or the endpoint does not serve the model.
        """
        self._found()

    def _found(self) -> Served:
        if self._served is None:
            self._served = find_served(self._settings, self._model)
        return self._served

    def _client(self, num_slots: int, scorer: Client | None = None) -> EndpointClient:
        concurrency = self._settings.concurrency // num_slots
        return EndpointClient(
            self._settings, self._found(), self._path, self.chat, concurrency, key_of(self._settings), scorer
        )

    def close(self) -> None:
        """End the run's own engines. The endpoint belongs to others and goes on."""
        self._local.close()
