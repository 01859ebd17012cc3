"""Rows through an engine, from Parquet files to Parquet files: Ray Data streams chunks of them past whatever answers requests.

The unit of work is a chunk: some hundred rows, found by position in the source's files. Its output is one file, written whole under a
name made of the chunk's number and its rows' ids. So a chunk whose file is there is done, whoever was killed in between: an
interrupted call resumes by looking, a retried task writes the same file again, and no row is there twice. (Ray Data's own
checkpoints record rows, one id each, after a later write; a row with several output rows does not fit them.)
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

OnProgress = Callable[[str, int, int], None]  # label, rows done, rows in all

TASK_CPUS = 0.1  # of a task that asks an engine: it mostly waits
_CHUNKING = "chunking.json"  # beside the output: what an interrupted call cut its source into
_COUNTS = ("rows_in", "resumed", "rows_out", "prompt_tokens", "output_tokens")
# What a batch has cost, kept in its file: a resumed run counts the same tokens as an unbroken one.
_TOKENS = (b"prompt_tokens", b"output_tokens")
LEAST_ROWS = 16  # of a batch, unless the user sets fewer: below, a task and a file cost more than they bring
_MAX_BLOCKS = 2_000  # of a map; beyond, a block holds several chunks, for each costs the driver some memory


class Client(Protocol):
    """What a task needs to ask an engine; small and picklable."""

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in order."""
        ...


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
    """The rows of a piece; only the row groups that hold them are read."""
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
    """What a Ray Data task does with one chunk. Returns its counts, not its rows."""

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
    """The chunk's counts; or its error, to be raised as it is: Ray Data would wrap it in several of its own."""
    try:
        return task(item) | {"error": b""}
    except Exception as error:
        kept = portable(error, "a batch failed")
        kept.add_note(f"in a worker:\n{traceback.format_exc()}")
        return dict.fromkeys(_COUNTS, 0) | {"error": cloudpickle.dumps(kept)}


class RowMap:
    """One call of `Generator.map`: what is to be done, and what of it was."""

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
            batch_size: rows handed to an engine at a time, at most.
            least_batches: in how many parts they go, where there are rows enough: several engines should all have work, and rows of one kind, which
                stand together, should not all go to one of them.
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
        """Ask for every chunk whose file is not there, `num_slots` at a time."""
        self._totals = dict.fromkeys(_COUNTS, 0)
        self._on_progress(self._label, 0, self._num_rows)
        task = ChunkTask(client, self._source, self._out, self._render, self._parse, self._schema)
        for counts in _stream(self._chunks, task, num_slots):
            for name, number in counts.items():
                self._totals[name] += number
            self._on_progress(self._label, self._totals["rows_in"], self._num_rows)

    def finish(self, num_prefix_queries: int = 0, num_prefix_hits: int = 0) -> MapCounts:
        """What was done.

        Args:
            num_prefix_queries, num_prefix_hits: as in `MapCounts`, which the engines know.
        """
        if not self._out.names(".parquet"):  # readers ask for the schema
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
    """Rows handed to an engine at a time: at most `batch_size`, and so few that there are `least_batches`, of LEAST_ROWS at least."""
    return min(batch_size, max(LEAST_ROWS, math.ceil(num_rows / least_batches))) if least_batches > 1 else batch_size


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
