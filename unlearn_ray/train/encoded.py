"""Encoded rows in an Arrow file that is memory-mapped: ten million rows take no more memory than a step's."""

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from unlearn_ray.train.chat import Encoded

_SCHEMA = pa.schema([("ids", pa.list_(pa.int32())), ("start", pa.int32())])
_ROWS_PER_BATCH = 4096


def write_encoded(path: Path, rows: Iterable[Encoded]) -> int:
    """Stream rows into a file, whole or not at all; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    count = 0
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        for batch in _batches(rows):
            writer.write_batch(batch)
            count += batch.num_rows
    partial.replace(path)
    return count


def _batches(rows: Iterable[Encoded]) -> Iterator[pa.RecordBatch]:
    chunk: list[Encoded] = []

    def flush() -> pa.RecordBatch:
        return pa.record_batch([[row.ids for row in chunk], [row.start for row in chunk]], schema=_SCHEMA)

    for row in rows:
        chunk.append(row)
        if len(chunk) == _ROWS_PER_BATCH:
            yield flush()
            chunk = []
    if chunk:
        yield flush()


class EncodedRows:
    """The rows of such files, one after the other, by their position.

    Args:
        first, every: only one row in `every`, from `first` on; 0 and 1: all.
    """

    def __init__(self, *paths: Path, first: int = 0, every: int = 1) -> None:
        self._first, self._every = first, every
        readers = [pa.ipc.open_file(pa.memory_map(str(path))) for path in paths]
        batches = [reader.get_batch(number) for reader in readers for number in range(reader.num_record_batches)]
        self._firsts = np.cumsum([0, *(batch.num_rows for batch in batches)]).tolist()
        self._values = [batch.column("ids").values.to_numpy() for batch in batches]
        self._offsets = [batch.column("ids").offsets.to_numpy() for batch in batches]
        self._starts = [batch.column("start").to_numpy() for batch in batches]

    def __len__(self) -> int:
        return len(range(self._first, int(self._firsts[-1]), self._every))

    def ids(self, row: int) -> np.ndarray:
        """Token ids, a view of the file."""
        batch, offset = self._place(row)
        first, last = self._offsets[batch][offset : offset + 2]
        return self._values[batch][first:last]

    def start(self, row: int) -> int:
        """Position of the answer's first token."""
        batch, offset = self._place(row)
        return int(self._starts[batch][offset])

    def num_tokens(self, row: int) -> int:
        batch, offset = self._place(row)
        first, last = self._offsets[batch][offset : offset + 2]
        return int(last - first)

    def num_answer_tokens(self, row: int) -> int:
        return self.num_tokens(row) - self.start(row)

    def _place(self, row: int) -> tuple[int, int]:
        place = self._first + row * self._every
        batch = bisect_right(self._firsts, place) - 1
        return batch, place - self._firsts[batch]
