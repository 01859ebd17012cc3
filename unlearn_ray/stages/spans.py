"""Splits a topic's tables into spans of neighbouring questions. One task on a worker processes one span.

Questions are sorted once, before they are asked, and all later tables keep that order. So a span's rows are in few files of each table. These
are found by the first question of each file, and merged while they are read. Every task writes one file, named by the number of its span. The
result does not depend on the order of the tasks, or on the number of spans.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unlearn_ray.artifacts import Folder
from unlearn_ray.engines.protocols import Generator, R, RowDict, T
from unlearn_ray.rows import Row

SPAN_ROWS = 4_096  # questions per span; with four answers each they fill a file of the usual length
_BATCH = 512  # rows that a task holds as Python objects at the same time


@dataclass(frozen=True, slots=True)
class Table:
    """A folder of rows in the order of one column, with the first value of each file. Read from the files' footers."""

    folder: Folder
    column: str
    files: tuple[tuple[str, str], ...]  # name, first value

    @classmethod
    def of(cls, folder: Folder, column: str = "question") -> "Table":
        found = ((name, _first(folder, name, column)) for name in folder.names(".parquet"))
        return cls(folder, column, tuple((name, first) for name, first in found if first is not None))

    def within(self, span: "Span") -> "Table":
        """The files that may have rows of a span."""
        ends = (first for _, first in self.files[1:])
        kept = tuple(
            (name, first)
            for (name, first), end in zip_longest(self.files, ends)
            if (span.end is None or first < span.end) and (end is None or end >= span.first)
        )
        return Table(self.folder, self.column, kept)

    def rows(self, span: "Span", columns: Sequence[str] | None = None) -> Iterator[RowDict]:
        """The rows of a span, in order. Only the row groups with such rows are read."""
        wanted = None if columns is None else list(dict.fromkeys([*columns, self.column]))
        for name, _ in self.within(span).files:
            with self.folder.opened(name) as stream:
                file = pq.ParquetFile(stream)
                for group in range(file.num_row_groups):
                    low, high = _bounds(file, group, self.column)
                    if (span.end is None or low is None or low < span.end) and (high is None or high >= span.first):
                        for batch in file.iter_batches(_BATCH, row_groups=[group], columns=wanted):
                            yield from _within(batch, span, self.column).to_pylist()


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring questions."""

    number: int
    first: str = ""  # first question; the first span also has all questions before it
    end: str | None = None  # the question after the last one; None: no end


def spans_of(table: Table) -> list[Span]:
    """One span per file of a table that is written in parts. Empty for an empty table."""
    firsts = list(dict.fromkeys(first for _, first in table.files))
    bounds = ["", *firsts[1:], None] if firsts else []
    return [Span(number, str(first), end) for number, (first, end) in enumerate(pairwise(bounds))]


def joined(spans: Sequence[Span], sizes: Mapping[int, int]) -> list[Span]:
    """Join neighbouring spans up to SPAN_ROWS rows. A larger span stays alone. Spans without rows are left out.

    Args:
        sizes: number of rows by the span's number.
    """
    groups: list[tuple[Span, int]] = []
    for span in spans:
        size = sizes.get(span.number, 0)
        if groups and groups[-1][1] + size <= SPAN_ROWS:
            before, total = groups[-1]
            groups[-1] = Span(before.number, before.first, span.end), total + size
        else:
            groups.append((Span(len(groups), span.first, span.end), size))
    return [span for span, size in groups if size]


def in_groups(spans: Sequence[Span], most: int) -> list[Sequence[Span]]:
    """The spans in at most `most` groups of neighbours."""
    size = max(1, math.ceil(len(spans) / most))
    return [spans[start : start + size] for start in range(0, len(spans), size)]


def merged(
    tables: Iterable[Table], span: Span, columns: Sequence[str] | None = None, then: Sequence[str] = ()
) -> Iterator[RowDict]:
    """The rows of a span in several tables, by question.

    Args:
        then: columns that order the rows of one question.
    """

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return (row[column], *(row[name] for name in then))

    found = list(tables)
    column = found[0].column if found else ""
    return heapq.merge(*(table.rows(span, columns) for table in found), key=key)


def write_part(folder: Folder, number: int, rows: Iterable[Row | Mapping[str, Any]], schema: pa.Schema) -> int:
    """Write a span's rows as one file, or no file if there are no rows. Returns their number."""
    parts: list[pa.Table] = []
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row.to_dict() if isinstance(row, Row) else dict(row))
        if len(batch) == _BATCH:
            parts.append(pa.Table.from_pylist(batch, schema))
            batch = []
    if batch:
        parts.append(pa.Table.from_pylist(batch, schema))
    if parts:
        folder.write_table(part_name(number), pa.concat_tables(parts))
    return sum(part.num_rows for part in parts)


def part_name(number: int) -> str:
    return f"{number:05d}.parquet"


def write_parts(
    generator: Generator,
    folder: Folder,
    task: Callable[[T], R],
    items: Sequence[T],
    schema: pa.Schema,
    take: Callable[[R], object] = lambda result: None,
    *,
    label: str,
) -> None:
    """Let tasks write the parts of a table. An existing table is replaced."""
    folder.delete()
    generator.each(task, items, take, label=label)
    if not folder.names(".parquet"):  # readers need a file for its schema
        folder.write_table(part_name(0), schema.empty_table())


def write_in_order(
    generator: Generator, source: Folder, out: Folder, schema: pa.Schema, column: str, *, label: str
) -> None:
    """Write the kept rows in the order of a column, one file per span. A single task does it: two million questions take half a gigabyte."""
    write_parts(generator, out, _Sort(source, out, schema, column, SPAN_ROWS), [None], schema, label=label)


def files_together(names: Sequence[str], num_rows: int) -> list[tuple[int, Sequence[str]]]:
    """Groups the files of batches into new files of a span's length. Each new file has a number.

    Args:
        names: names of the batches' files, in order.
        num_rows: number of requests in all of them. All but the last have equally many, so that no file must be read.
    """
    number = max(1, SPAN_ROWS * len(names) // num_rows)
    return [(index, names[start : start + number]) for index, start in enumerate(range(0, len(names), number))]


@dataclass(frozen=True, slots=True)
class Together:
    """Joins several files into one."""

    source: Folder
    out: Folder

    def __call__(self, part: tuple[int, Sequence[str]]) -> None:
        number, names = part
        self.out.write_table(part_name(number), pa.concat_tables(read_table(self.source, name) for name in names))


@dataclass(frozen=True, slots=True)
class _Sort:
    source: Folder
    out: Folder
    schema: pa.Schema
    column: str
    span_rows: int

    def __call__(self, _: None) -> None:
        tables = [read_table(self.source, name).select(self.schema.names) for name in self.source.names(".parquet")]
        kept = pa.concat_tables(table.filter(pc.is_null(table["drop"])) for table in tables)
        ordered = kept.sort_by(self.column)
        for number, start in enumerate(range(0, ordered.num_rows, self.span_rows)):
            self.out.write_table(part_name(number), ordered.slice(start, self.span_rows))


def read_table(folder: Folder, name: str) -> pa.Table:
    """A whole file of a folder."""
    with folder.opened(name) as file:
        return pq.read_table(file)


def rows_of(folder: Folder, name: str, columns: Sequence[str]) -> Iterator[RowDict]:
    """The rows of one file."""
    with folder.opened(name) as stream:
        for batch in pq.ParquetFile(stream).iter_batches(_BATCH, columns=list(columns)):
            yield from batch.to_pylist()


def results(generator: Generator, task: Callable[[T], R], items: Sequence[T], *, label: str) -> list[R]:
    """The results of tasks, in the order of the items."""
    found: list[R] = []
    generator.each(task, items, found.append, label=label)
    return found


def _first(folder: Folder, name: str, column: str) -> str | None:
    """The first value in a file. None if it has no rows."""
    with folder.opened(name) as stream:
        file = pq.ParquetFile(stream)
        if not file.metadata.num_rows:
            return None
        low, _ = _bounds(file, 0, column)
        if low is None:
            low = next(file.iter_batches(1, columns=[column])).column(0)[0].as_py()
        return str(low)


def _bounds(file: pq.ParquetFile, group: int, column: str) -> tuple[str | None, str | None]:
    """The least and the greatest value of a row group. None if the file does not record it, as for very long texts."""
    columns = file.metadata.row_group(group)
    found = next(
        each for index in range(columns.num_columns) if (each := columns.column(index)).path_in_schema == column
    )
    told = found.statistics
    return (told.min, told.max) if told is not None and told.has_min_max else (None, None)


def _within(batch: pa.RecordBatch, span: Span, column: str) -> pa.RecordBatch:
    values = batch.column(batch.schema.get_field_index(column))
    keep = pc.greater_equal(values, span.first)
    return batch.filter(keep if span.end is None else pc.and_(keep, pc.less(values, span.end)))
