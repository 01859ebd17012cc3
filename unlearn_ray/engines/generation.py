"""The generator: rows stream through a fleet of vLLM engines on the run's own cluster."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import pyarrow as pa
import ray

from unlearn_ray.artifacts import Folder
from unlearn_ray.chat import ChatFormat
from unlearn_ray.config import ClusterConfig, Lora
from unlearn_ray.engines.chunks import OnProgress, RowMap
from unlearn_ray.engines.dispatcher import BATCHES_IN_FLIGHT
from unlearn_ray.engines.fleet import Fleet
from unlearn_ray.engines.protocols import MapCounts, Parse, R, Render, T
from unlearn_ray.engines.row_work import RowWorkers
from unlearn_ray.engines.session import device_of, engine_span, require_engines
from unlearn_ray.engines.vllm_engine import EngineSpec
from unlearn_ray.train.inspection import inspect_model, lora_targets

_FEW_TASKS = 8  # tasks on rows that take only seconds in all: no progress line is shown
_CPUS_BESIDE_WORKERS = 2  # logical CPUs for Ray Train's controller and Ray Data's tasks


class RayDataGenerator:
    """Implements `protocols.Generator` on the Ray that `session.connect` joined. Its fleet starts with the first `map`.

    Thread-safe: the batches of all threads share the fleet. A thread that asks another model waits until no thread asks the first one.
    """

    def __init__(
        self,
        model: str,
        cluster: ClusterConfig,
        *,
        chat: ChatFormat | None = None,
        lora: Lora | None = None,
        on_progress: OnProgress | None = None,
        on_wait: Callable[[str], None] = lambda text: None,
    ) -> None:
        """
        Args:
            chat: the model's chat format. None: the one in its files.
            lora: the shape of the adapters that requests may name. None: no request names one.
            on_wait: called with the reason, as text, while no engine finds room on the cluster.
        """
        self._model, self._cluster, self._lora = model, cluster, lora
        if chat is None or (lora is not None and isinstance(lora.target_modules, str)):
            found = inspect_model(model)
            chat = chat or found.chat
            if lora is not None:
                targets = lora_targets(lora.target_modules, found, model)
                self._lora = lora.model_copy(update={"target_modules": targets})
        self.chat = chat
        self._on_progress = on_progress or (lambda label, done, total: None)
        self._on_wait = on_wait
        self._fleet: Fleet | None = None
        self._turn = threading.Condition()
        self._num_asking = 0
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
        """See `protocols.Generator.map`."""
        num_engines, _ = engine_span(self._cluster)
        rows = RowMap(
            source,
            out,
            render,
            parse,
            schema,
            label=label,
            batch_size=self._cluster.engines.batch_size,
            least_batches=num_engines * BATCHES_IN_FLIGHT if num_engines > 1 else 1,
            on_progress=self._on_progress,
        )
        if rows.num_chunks:
            with self.asking(model or self._model) as fleet:
                client = fleet.client
                rows.run(client, fleet.num_slots)
                return rows.finish(*fleet.prefix_counts(client))
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
        is_long = len(items) > _FEW_TASKS
        show = partial(self._on_progress, label) if is_long else lambda done, total: None
        self._workers.each(task, items, take, show)

    def make_room(self) -> None:
        """End the engines if they hold resources that a trainer needs: GPUs, or the cluster's last CPUs."""
        if self._fleet is None:
            return
        workers = self._cluster.workers
        num_free = ray.available_resources().get("CPU", 0) - _CPUS_BESIDE_WORKERS
        if self._fleet.spec.device == "cuda" or num_free < workers.span[1] * workers.num_cpus:
            self.close()

    def close(self) -> None:
        """Release the engines' CPUs and GPUs. The next `map` starts engines again."""
        if self._fleet is not None:
            self._fleet.close()
            self._fleet = None

    @property
    def fleet(self) -> Fleet | None:
        return self._fleet

    @contextmanager
    def asking(self, model: str | None = None) -> Iterator[Fleet]:
        """The fleet of a model, which stays up while any thread asks it. None: the generator's own model."""
        model = model or self._model
        with self._turn:
            while self._num_asking and self._fleet is not None and self._fleet.spec.model != model:
                self._turn.wait()
            fleet = self._fleet_of(model)
            self._num_asking += 1
        try:
            yield fleet
        finally:
            with self._turn:
                self._num_asking -= 1
                self._turn.notify_all()

    def _fleet_of(self, model: str) -> Fleet:
        """The running fleet, or a new one in its place, with room for the tasks that ask it. Two models at once would need twice the GPUs."""
        if self._fleet is not None and self._fleet.spec.model != model:
            self.close()
        if self._fleet is None:
            spec = EngineSpec(
                model,
                self._cluster.engines,
                device_of(self._cluster),
                self.chat,  # a full fine-tune has the template and tokenizer of its base model
                self._lora if model == self._model else None,
            )
            require_engines(self._cluster)
            count, most = engine_span(self._cluster)
            self._on_progress(f"starting {count} vLLM engine{'s' if count > 1 else ''}", 0, 1)
            timeout = self._cluster.start_timeout_seconds
            self._fleet = Fleet(spec, most, start_timeout_seconds=timeout, on_wait=self._on_wait, min_engines=count)
            try:
                self._fleet.wait()
            except BaseException:
                self.close()
                raise
            self._on_progress(f"starting {count} vLLM engine{'s' if count > 1 else ''}", 1, 1)
        self._fleet.wait_for_tasks()
        return self._fleet
