"""Sends rows through an engine, from Parquet files to Parquet files. Ray Data streams chunks of rows through tasks that ask the engines.

The unit of work is a chunk: some hundred rows, identified by their position in the source's files. Its output is one file, written
atomically, whose name is made of the chunk's number and its rows' ids. A chunk is done if its file exists. An interrupted call resumes by
looking for these files. A retried task writes the same file again, so no row is written twice.

Ray Data's own checkpoints do not fit: they record one id per row, in a separate later write, and a row here may have several output rows.
"""

import json
import math
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray import cloudpickle
from ray.exceptions import RayError

from unlearn_ray.artifacts import Folder
from unlearn_ray.engines.failures import plain, portable
from unlearn_ray.engines.protocols import MapCounts, Parse, Render, Reply, Request, RowDict
from unlearn_ray.rows import digest

OnProgress = Callable[[str, int, int], None]  # label, rows done, total rows

TASK_CPUS = 0.1  # per task that asks an engine, because it mostly waits
_CHUNKING = "chunking.json"  # beside the output: the chunk size of an interrupted call
_COUNTS = ("rows_in", "resumed", "rows_out", "prompt_tokens", "output_tokens")
# The counts of a chunk, kept in its file: a resumed run reports the same tokens as an unbroken one.
_TOKENS = (b"prompt_tokens", b"output_tokens")
LEAST_ROWS = 16  # per batch, unless the user sets fewer: for fewer rows a task and a file cost more than they gain
_MAX_BLOCKS = 2_000  # per map; above it a block holds several chunks, because each block costs the driver some memory


class Client(Protocol):
    """A task's access to an engine. Small and picklable."""

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in order."""
        ...


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of rows in one source file."""

    file: str
    start: int
    num_rows: int


def chunks_of(source: Folder, size: int) -> Iterator[list[Piece]]:
    """Chunks of `size` rows, in the order of the source's files. A chunk is a list of pieces. Only the files' footers are read."""
    chunk: list[Piece] = []
    room = size
    for name in source.names(".parquet"):
        with source.opened(name) as file:
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
    """The rows of a piece. Only their row groups are read."""
    with source.opened(piece.file) as stream:
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
    """The work of a Ray Data task on one chunk. It returns counts, not rows."""

    client: Client
    source: Folder
    out: Folder
    render: Render
    parse: Parse
    schema: pa.Schema

    def __call__(self, item: dict[str, Any]) -> dict[str, int]:
        rows = [row for piece in item["pieces"] for row in read_piece(self.source, Piece(**piece))]
        name = f"{item['number']:06d}-{digest(*(row['id'] for row in rows))}.parquet"
        if self.out.exists(name):
            with self.out.opened(name) as file:
                found = pq.ParquetFile(file)
                rows_out, cost = found.metadata.num_rows, found.schema_arrow.metadata or {}
            tokens = [int(cost.get(kind, 0)) for kind in _TOKENS]
            return dict(zip(_COUNTS, (len(rows), len(rows), rows_out, *tokens), strict=True))
        asked = [list(self.render(row)) for row in rows]
        replies = self.client.generate([request for requests in asked for request in requests])
        position = 0
        parsed: list[RowDict] = []
        for row, requests in zip(rows, asked, strict=True):
            parsed.extend(self.parse(row, replies[position : position + len(requests)]))
            position += len(requests)
        num_prompt = sum(reply.num_prompt_tokens for reply in replies)
        num_output = sum(reply.num_output_tokens for reply in replies)
        cost = dict(zip(_TOKENS, (str(num_prompt), str(num_output)), strict=True))
        self.out.write_table(name, pa.Table.from_pylist(parsed, self.schema.with_metadata(cost)))
        return dict(zip(_COUNTS, (len(rows), 0, len(parsed), num_prompt, num_output), strict=True))


def _attempt(task: ChunkTask, item: dict[str, Any]) -> dict[str, Any]:
    """The chunk's counts, or its error as a value. Ray Data would wrap a raised error in several of its own."""
    try:
        return task(item) | {"error": b""}
    except Exception as error:
        kept = portable(error, "a batch failed")
        kept.add_note(f"in a worker:\n{traceback.format_exc()}")
        return dict.fromkeys(_COUNTS, 0) | {"error": cloudpickle.dumps(kept)}


class RowMap:
    """One call of `Generator.map`: its chunks, and the counts of those that are done."""

    def __init__(
        self,
        source: Folder,
        out: Folder,
        render: Render,
        parse: Parse,
        schema: pa.Schema,
        *,
        label: str,
        batch_size: int,
        least_batches: int = 1,
        on_progress: OnProgress,
    ) -> None:
        """
        Args:
            batch_size: maximum rows per batch.
            least_batches: minimum number of batches, if there are enough rows. All engines should get work, and rows of one kind, which are
                neighbours, should not all go to the same engine.
        """
        self._source, self._out, self._render, self._parse, self._schema = source, out, render, parse, schema
        self._label, self._on_progress, self._began = label, on_progress, time.monotonic()
        self._chunks = list(
            chunks_of(source, _chunk_size(out, level_batches(source.count_rows(), batch_size, least_batches)))
        )
        self._num_rows = sum(piece.num_rows for chunk in self._chunks for piece in chunk)
        self._totals = dict.fromkeys(_COUNTS, 0)

    @property
    def num_chunks(self) -> int:
        return len(self._chunks)

    def run(self, client: Client, num_slots: int) -> None:
        """Process every chunk without a file, `num_slots` at a time."""
        self._totals = dict.fromkeys(_COUNTS, 0)
        self._on_progress(self._label, 0, self._num_rows)
        task = ChunkTask(client, self._source, self._out, self._render, self._parse, self._schema)
        for counts in _stream(self._chunks, task, num_slots):
            for name, number in counts.items():
                self._totals[name] += number
            self._on_progress(self._label, self._totals["rows_in"], self._num_rows)

    def finish(self, num_prefix_queries: int = 0, num_prefix_hits: int = 0) -> MapCounts:
        """The counts of all chunks.

        Args:
            num_prefix_queries, num_prefix_hits: as in `MapCounts`; only the engines know them.
        """
        if not self._out.names(".parquet"):  # readers need a file for its schema
            self._out.write_table("000000-empty.parquet", self._schema.empty_table())
        return MapCounts(
            num_rows_in=self._totals["rows_in"],
            num_rows_out=self._totals["rows_out"],
            num_resumed=self._totals["resumed"],
            num_prompt_tokens=self._totals["prompt_tokens"],
            num_output_tokens=self._totals["output_tokens"],
            num_prefix_queries=num_prefix_queries,
            num_prefix_hits=num_prefix_hits,
            seconds=time.monotonic() - self._began,
        )


def level_batches(num_rows: int, batch_size: int, least_batches: int) -> int:
    """Rows per batch: at most `batch_size`, and few enough for `least_batches` batches, but at least LEAST_ROWS."""
    return min(batch_size, max(LEAST_ROWS, math.ceil(num_rows / least_batches))) if least_batches > 1 else batch_size


def _chunk_size(out: Folder, batch_size: int) -> int:
    """The chunk size of the interrupted call, if there was one. A new batch size must not cause rows to be asked twice."""
    if not out.exists(_CHUNKING):
        out.write_text(_CHUNKING, json.dumps({"num_rows": batch_size}))
    return int(json.loads(out.read_text(_CHUNKING))["num_rows"])


def _stream(chunks: Sequence[list[Piece]], task: ChunkTask, num_slots: int) -> Iterator[dict[str, int]]:
    """The counts of each chunk when it is done."""
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
