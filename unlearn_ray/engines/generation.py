"""The generator: Ray Data streams chunks of rows past a fleet of vLLM actors, from Parquet files to Parquet files.

The unit of work is a chunk: some hundred rows, found by position in the source's files. Its output is one file, written whole under a
name made of the chunk's number and its rows' ids. So a chunk whose file is there is done, whoever was killed in between: an
interrupted call resumes by looking, a retried task writes the same file again, and no row is there twice. (Ray Data's own
checkpoints record rows, one id each, after a later write; a row with several output rows does not fit them.)
"""

import json
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray import cloudpickle
from ray.exceptions import RayError

from unlearn_ray.artifacts import Folder
from unlearn_ray.chat import ChatFormat
from unlearn_ray.config import ClusterConfig, Lora
from unlearn_ray.engines.failures import plain, told
from unlearn_ray.engines.fleet import TASK_CPUS, Fleet, FleetClient
from unlearn_ray.engines.protocols import MapCounts, Parse, Render, RowDict
from unlearn_ray.engines.session import device_of, num_engines, require_engines
from unlearn_ray.engines.vllm_engine import EngineSpec
from unlearn_ray.errors import EngineError, UnlearnError
from unlearn_ray.rows import digest
from unlearn_ray.train.inspection import inspect_model, lora_targets

log = logging.getLogger(__name__)

OnProgress = Callable[[str, int, int], None]  # label, rows done, rows in all

_CHUNKING = "chunking.json"  # beside the output: what an interrupted call cut its source into
_COUNTS = ("rows_in", "resumed", "rows_out", "prompt_tokens", "output_tokens")
_MAX_BLOCKS = 2_000  # of a map; beyond, a block holds several chunks, for each costs the driver some memory
_CPUS_BESIDE_WORKERS = 2  # logical: Ray Train's controller, and Ray Data's tasks


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of one source file."""

    file: str
    start: int
    num_rows: int


def chunks_of(source: Folder, size: int) -> Iterator[list[Piece]]:
    """Pieces of the source's files in order, `size` rows together; reads the files' footers alone."""
    chunk: list[Piece] = []
    room = size
    for name in source.names(".parquet"):
        with source.filesystem.open_input_file(f"{source.path}/{name}") as file:
            num_rows = pq.ParquetFile(file).metadata.num_rows
        start = 0
        while start < num_rows:
            taken = min(room, num_rows - start)
            chunk.append(Piece(name, start, taken))
            start, room = start + taken, room - taken
            if room == 0:
                yield chunk
                chunk, room = [], size
    if chunk:
        yield chunk


def read_piece(source: Folder, piece: Piece) -> list[RowDict]:
    """The rows of a piece; only the row groups that hold them are read."""
    with source.filesystem.open_input_file(f"{source.path}/{piece.file}") as stream:
        file = pq.ParquetFile(stream)
        tables, first, last, position = [], piece.start, piece.start + piece.num_rows, 0
        for group in range(file.num_row_groups):
            end = position + file.metadata.row_group(group).num_rows
            if end > first and position < last:
                table = file.read_row_group(group)
                tables.append(table.slice(max(0, first - position), min(end, last) - max(position, first)))
            position = end
    rows: list[RowDict] = pa.concat_tables(tables).to_pylist()
    return rows


@dataclass(frozen=True, slots=True)
class ChunkTask:
    """What a Ray Data task does with one chunk. Returns its counts, not its rows."""

    client: FleetClient
    source: Folder
    out: Folder
    render: Render
    parse: Parse
    schema: pa.Schema

    def __call__(self, item: dict[str, Any]) -> dict[str, int]:
        rows = [row for piece in item["pieces"] for row in read_piece(self.source, Piece(**piece))]
        name = f"{item['number']:06d}-{digest(*(row['id'] for row in rows))}.parquet"
        if self.out.exists(name):
            with self.out.filesystem.open_input_file(f"{self.out.path}/{name}") as file:
                rows_out = pq.ParquetFile(file).metadata.num_rows
            return dict(zip(_COUNTS, (len(rows), len(rows), rows_out, 0, 0), strict=True))
        asked = [list(self.render(row)) for row in rows]
        replies = self.client.generate([request for requests in asked for request in requests])
        position = 0
        parsed: list[RowDict] = []
        for row, requests in zip(rows, asked, strict=True):
            parsed.extend(self.parse(row, replies[position : position + len(requests)]))
            position += len(requests)
        self.out.write_table(name, pa.Table.from_pylist(parsed, self.schema))
        num_tokens = [(reply.num_prompt_tokens, reply.num_output_tokens) for reply in replies]
        counts = len(rows), 0, len(parsed), sum(prompt for prompt, _ in num_tokens), sum(out for _, out in num_tokens)
        return dict(zip(_COUNTS, counts, strict=True))


def _attempt(task: ChunkTask, item: dict[str, Any]) -> dict[str, Any]:
    """The chunk's counts; or its error, to be raised as it is: Ray Data would wrap it in several of its own."""
    try:
        return task(item) | {"error": b""}
    except Exception as error:
        # Others' errors may not survive the way: one with arguments of its own is another one, or none, where it is unpacked.
        kept = error if isinstance(error, UnlearnError | EngineError) else EngineError(f"a batch failed: {told(error)}")
        kept.add_note(f"in a worker:\n{traceback.format_exc()}")
        return dict.fromkeys(_COUNTS, 0) | {"error": cloudpickle.dumps(kept)}


class RayDataGenerator:
    """Implements `protocols.Generator` on the Ray that `session.connect` joined. Its fleet starts with the first `map`."""

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
            chat: how the model is talked to; None: as its files say.
            lora: the shape of the adapters that requests may name; None where none will.
            on_wait: told what is waited for while no engine finds room on the cluster.
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
        began = time.monotonic()
        total = source.count_rows()
        totals = dict.fromkeys(_COUNTS, 0)
        if total:
            fleet = self._fleet_of(model or self._model)
            size = level_batches(total, self._cluster.engines.batch_size, fleet.num_engines)
            chunks = list(chunks_of(source, _chunk_size(out, size)))
            task = ChunkTask(fleet.client, source, out, render, parse, schema)
            self._on_progress(label, 0, total)
            fleet.wait_for_tasks()
            for counts in _stream(chunks, task, fleet.num_slots):
                for name, number in counts.items():
                    totals[name] += number
                self._on_progress(label, totals["rows_in"], total)
        if not out.names(".parquet"):  # readers ask for the schema
            out.write_table("000000-empty.parquet", schema.empty_table())
        return MapCounts(
            num_rows_in=totals["rows_in"],
            num_rows_out=totals["rows_out"],
            num_resumed=totals["resumed"],
            num_prompt_tokens=totals["prompt_tokens"],
            num_output_tokens=totals["output_tokens"],
            seconds=time.monotonic() - began,
        )

    def make_room(self) -> None:
        """End the engines if they hold what a trainer needs: GPUs, or CPUs of which the cluster has no more."""
        if self._fleet is None:
            return
        workers = self._cluster.workers
        num_free = ray.available_resources().get("CPU", 0) - _CPUS_BESIDE_WORKERS
        if self._fleet.spec.device == "cuda" or num_free < workers.num_workers * workers.num_cpus:
            self.close()

    def close(self) -> None:
        """Give the engines' CPUs and GPUs back; the next `map` starts engines again."""
        if self._fleet is not None:
            self._fleet.close()
            self._fleet = None

    @property
    def fleet(self) -> Fleet | None:
        return self._fleet

    def _fleet_of(self, model: str) -> Fleet:
        """The running fleet, or a new one in its place: two models at once would need twice the GPUs."""
        if self._fleet is not None and self._fleet.spec.model != model:
            self.close()
        if self._fleet is None:
            spec = EngineSpec(
                model,
                self._cluster.engines,
                device_of(self._cluster),
                self.chat,  # a full fine-tune has the base's template and tokenizer
                self._lora if model == self._model else None,
            )
            require_engines(self._cluster)
            count = num_engines(self._cluster)
            self._on_progress(f"starting {count} vLLM engine{'s' if count > 1 else ''}", 0, 1)
            timeout = self._cluster.start_timeout_seconds
            self._fleet = Fleet(spec, count, start_timeout_seconds=timeout, on_wait=self._on_wait)
            try:
                self._fleet.wait()
            except BaseException:
                self.close()
                raise
            self._on_progress(f"starting {count} vLLM engine{'s' if count > 1 else ''}", 1, 1)
        return self._fleet


def level_batches(num_rows: int, batch_size: int, num_engines: int) -> int:
    """Rows handed to an engine at a time: at most `batch_size`, and so many that all engines get the same number of batches.

    A hundred rows for two engines are two batches of 50, where one of 256 would leave an engine idle.
    """
    if num_rows == 0 or num_engines == 1:
        return batch_size
    num_turns = math.ceil(num_rows / (batch_size * num_engines))
    return math.ceil(num_rows / (num_turns * num_engines))


def _chunk_size(out: Folder, batch_size: int) -> int:
    """As the interrupted call had it: another batch size, which only says where a run works, must not ask rows twice."""
    if not out.exists(_CHUNKING):
        out.write_text(_CHUNKING, json.dumps({"num_rows": batch_size}))
    return int(json.loads(out.read_text(_CHUNKING))["num_rows"])


def _stream(chunks: Sequence[list[Piece]], task: ChunkTask, num_slots: int) -> Iterator[dict[str, int]]:
    """Counts of each chunk as it is done."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    items = [{"number": number, "pieces": [asdict(piece) for piece in chunk]} for number, chunk in enumerate(chunks)]
    num_blocks = min(len(items), max(_MAX_BLOCKS, 16 * num_slots))
    dataset = ray.data.from_items(items, override_num_blocks=num_blocks).map(
        partial(_attempt, task),
        num_cpus=TASK_CPUS,
        compute=ray.data.TaskPoolStrategy(size=min(num_slots, num_blocks)),
    )
    try:
        for row in dataset.iter_rows():
            if packed := row.pop("error"):
                raise cloudpickle.loads(packed)
            yield {name: int(number) for name, number in row.items()}
    except RayError as error:
        raise plain(error) from error
