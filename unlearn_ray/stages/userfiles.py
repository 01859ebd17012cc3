"""Files of rows that the user brings: CSV, JSON lines or Parquet, read row by row; an error names file, line and column."""

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unlearn_ray.errors import InputError

KINDS = (".csv", ".jsonl", ".parquet")


def read_user_rows(
    path: Path, columns: Sequence[str], kinds: Sequence[str] = KINDS
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and row; every row has text in each of `columns`. In Parquet, the line is the row, counted from 1.

    Raises:
        InputError: the file can't be read, or a row lacks a column.
    """
    if path.suffix not in kinds:
        raise InputError(f"{path} can't be used: give a {', '.join(kinds)} file")
    reader = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[path.suffix]
    try:
        for line, row in reader(path, columns):
            for column in columns:
                value = row.get(column)
                if column not in row:
                    raise InputError(
                        f"{path}, line {line}: column {column!r} is missing; it needs {', '.join(columns)}"
                    )
                if not isinstance(value, str) or not value.strip():
                    raise InputError(f"{path}, line {line}: column {column!r} must hold text (it is {value!r})")
            yield line, row
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowInvalid) as error:
        raise InputError(f"{path} can't be read: {' '.join(str(error).split())}") from error


def fingerprint_of_file(path: Path) -> str:
    """Of the content.

    Raises:
        InputError: the file can't be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error


def _csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for column in columns:
            if column not in (reader.fieldnames or ()):
                raise InputError(f"{path}, line 1: column {column!r} is missing; it needs {', '.join(columns)}")
        for row in reader:
            yield reader.line_num, row


def _jsonl(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}, line {line}: not valid JSON ({error.msg})") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {line}: a row must be an object with {', '.join(columns)}")
            yield line, row


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    line = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(1024):
            for row in batch.to_pylist():
                line += 1
                yield line, row
