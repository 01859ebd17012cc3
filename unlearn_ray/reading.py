"""Reads the user's files: YAML as a whole, and CSV, JSON lines or Parquet row by row. An unusable file is reported in one line, with its place.

Bytes that are not UTF-8 (with or without a byte order mark) are refused, and so are texts with NUL characters or lone surrogates, in any
escaped form. Later code (Arrow, tokenizers, JSON) would fail on them, far from the file.
"""

import csv
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pyarrow import fs

from unlearn_ray.artifacts import Folder
from unlearn_ray.errors import ArtifactError, InputError, gist

KINDS = (".csv", ".jsonl", ".parquet")
MAX_LINE = 16 * 2**20  # characters
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Byte order marks, in the form in which the decoder below returns bytes that are not UTF-8. UTF-32's starts like UTF-16's, so it is first.
_MARKS = (
    ("\udcff\udcfe\0\0", "UTF-32"),
    ("\0\0\udcfe\udcff", "UTF-32"),
    ("\udcff\udcfe", "UTF-16"),
    ("\udcfe\udcff", "UTF-16"),
)
_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"  # letters and signs by Unicode's classes, but invisible: Hangul fillers, blank Braille
_AS_UTF8 = "save it as UTF-8"


def shown(value: Any, length: int = 60) -> str:
    """A value of the user's for a message: quoted, and cut if it is long."""
    # Only the head of a huge text is quoted, because quoting the whole would take its memory again.
    text = repr(value[: length + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= length else f"{text[:length]}..."


def fault_of(text: str) -> str:
    """Why a text can't be used. "" if it can."""
    if found := _SURROGATE.search(text):
        return f"has half of a character, \\u{ord(found.group()):04x} (a lone surrogate): write the whole one, or leave it out"
    if "\0" in text:
        return "has a NUL character: leave it out"
    return ""


def read_text(path: Path) -> str:
    """A whole file of UTF-8 text, without its byte order mark.

    Raises:
        OSError: it can't be opened.
        ValueError: it is not UTF-8 text; names the line.
    """
    with path.open("rb") as stream:
        try:
            return "".join(_lines(stream, None))
        except _Unreadable as error:
            raise ValueError(f"line {error.line}: {error}") from error


def load_yaml(text: str) -> Any:
    """The values of a YAML text. A key that is given twice, or is not a name, is an error.

    Raises:
        yaml.YAMLError: it can't be read; names the line.
    """
    try:
        return yaml.load(text, Loader=_Yaml)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deep") from error
    except ValueError as error:  # a date that does not exist, or a number with thousands of digits
        raise yaml.YAMLError(f"a value can't be read ({error}): put it in quotes") from error


def dump_yaml(values: Any) -> str:
    """Values as a YAML text from which `load_yaml` reads the same values. Texts that would read as another type are quoted."""
    return str(yaml.dump(values, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=float("inf")))


def as_json(values: Any) -> str:
    """Values of a YAML text as JSON, for pydantic's strict mode.

    Raises:
        ValueError: a value is not a text, number, true, false, list or mapping; names its key. Or an anchor contains itself.
    """
    try:
        return json.dumps(values)
    except TypeError as error:
        raise ValueError(_odd_value(values, ())) from error
    except (ValueError, RecursionError) as error:
        raise ValueError("an anchor (&) contains itself: write its value out") from error


def _odd_value(value: Any, where: tuple[str, ...], above: tuple[int, ...] = ()) -> str:
    """The message for the first value that JSON does not have. "" if there is none."""
    if isinstance(value, dict | list) and id(value) not in above:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        found = (_odd_value(each, (*where, str(key)), (*above, id(value))) for key, each in pairs)
        return next(filter(None, found), "")
    if value is None or isinstance(value, dict | list | str | int | float):
        return ""
    kind = {"date": "date", "datetime": "time", "bytes": "binary"}.get(type(value).__name__, type(value).__name__)
    hint = "put it in quotes" if kind in {"date", "time"} else "write a text, a number or a list"
    return f"{'.'.join(where)}: reads as a {kind} ({gist(value, 60)}): {hint}"


def is_blank(text: str) -> bool:
    """Whether a text is invisible: only spaces, control and zero-width characters, fillers, and marks without a letter."""
    return all(char in _FILLERS or unicodedata.category(char)[0] in "ZCM" for char in text)


def says_nothing(text: str) -> bool:
    """Whether a text has no letter, digit or sign (+, €, an emoji): it is blank, or only punctuation."""
    return all(is_blank(char) or unicodedata.category(char)[0] == "P" or char in "`^´¨" for char in text)


def read_rows(
    path: str | Path, kinds: Sequence[str] = KINDS, columns: Sequence[str] = (), wanted: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file, each with its line number. The file is on a disk or in s3:// or gs://. A CSV record with line breaks has the number
    of its first line. A Parquet row has its position, counted from 1.

    Args:
        columns: columns that every row must have.
        wanted: the Parquet columns to read, because the others may hold values that Python does not have. None: all.

    Raises:
        InputError: the file can't be read, has no rows or lacks a column, or a row is invalid or has a text that can't be used.
    """
    file = Folder(path)
    suffix = PurePosixPath(file.name).suffix
    if suffix not in kinds:
        raise InputError(f"{path} can't be used: give a {' or '.join(kinds)} file")
    readers: dict[str, Callable[[Any], Iterator[tuple[int, dict[str, Any]]]]]
    readers = {".csv": _csv, ".jsonl": _jsonl, ".parquet": partial(_parquet, wanted=wanted)}
    line = 0
    try:
        kind = file.filesystem.get_file_info(file.path).type
        if kind != fs.FileType.File:
            what = "is not there" if kind == fs.FileType.NotFound else "is not a file"
            raise InputError(f"{path} can't be read: it {what}")
        with file.filesystem.open_input_file(file.path) as stream:
            for line, row in readers[suffix](stream):
                if missing := next((name for name in columns if name not in row), None):
                    # The first line of CSV names the columns of all.
                    where = 1 if suffix == ".csv" else line
                    raise InputError(
                        f"{path}, line {where}: column {missing!r} is missing; it needs {', '.join(columns)}"
                    )
                for column, value in row.items():
                    if fault := _fault_within(column) or _fault_within(value):
                        raise InputError(f"{path}, line {line}: column {shown(column)} {fault}")
                yield line, row
    except _Unreadable as error:
        raise InputError(f"{path}, line {error.line}: {error}") from error
    except (OSError, ArtifactError, pa.ArrowException, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} can't be read: {gist(error)}") from error
    if not line:
        raise InputError(f"{path} has no rows: add some, or leave the file out")


def read_user_rows(
    path: Path, columns: Sequence[str], kinds: Sequence[str] = KINDS, optional: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file, each with its line number. Every row has text in each of `columns`, and text or nothing in each of `optional`.

    Raises:
        InputError: as in `read_rows`, or a row lacks a column.
    """
    for line, row in read_rows(path, kinds, columns, (*columns, *optional)):
        for column in (*columns, *(name for name in optional if row.get(name) is not None)):
            value = row[column]
            if not isinstance(value, str) or (column in columns and says_nothing(value)):
                raise InputError(f"{path}, line {line}: column {column!r} must hold text (it is {shown(value)})")
        yield line, row


@dataclass(frozen=True, slots=True)
class Listed:
    """A topic, as written in its file."""

    line: int  # its first line
    values: Any


def read_topics(path: str) -> list[Listed]:
    """The topics in a file, on a disk or in s3:// or gs://: a YAML list, or one row per topic in .jsonl or .csv. A CSV cell may list several
    values, separated by semicolons.

    Raises:
        InputError: the file can't be read, or is not a list; names file and line.
    """
    file = Folder(path)
    suffix = PurePosixPath(file.name).suffix
    if suffix in (".yaml", ".yml"):
        try:
            with file.filesystem.open_input_file(file.path) as stream:
                text = "".join(_lines(stream, None))
            listed, node = load_yaml(text), yaml.compose(text, Loader=_Yaml)
        except _Unreadable as error:
            raise InputError(f"{path}, line {error.line}: {error}") from error
        except (OSError, ArtifactError, pa.ArrowException) as error:
            raise InputError(f"{path} can't be read: {gist(error)}") from error
        except yaml.YAMLError as error:
            raise InputError(f"{path} is not valid YAML: {gist(error)}") from error
        if not isinstance(listed, list):
            raise InputError(f"{path} must hold a list of topics, such as - name: Dune")
        assert isinstance(node, yaml.SequenceNode)
        return [Listed(each.start_mark.line + 1, values) for each, values in zip(node.value, listed, strict=True)]
    rows = read_rows(path, (".yaml", ".yml", ".jsonl", ".csv"))
    if suffix != ".csv":
        return [Listed(line, row) for line, row in rows]
    return [
        Listed(line, {key: _topic_value(key, value.strip()) for key, value in row.items() if value and value.strip()})
        for line, row in rows
    ]


def _topic_value(key: str, cell: str) -> Any:
    """The value of a cell in a topic's row. CSV has neither lists nor numbers."""
    if key in ("aliases", "terms", "neighbours"):
        return [part.strip() for part in cell.split(";") if part.strip()]
    return int(cell) if key == "max_output_tokens" and cell.isdecimal() else cell


def fingerprint_of_file(path: Path) -> str:
    """A fingerprint of the file's content.

    Raises:
        InputError: the file can't be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error


class _Unreadable(Exception):
    """A line that can't be used."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class _Yaml(yaml.SafeLoader):
    """YAML with more errors: for a key that is given twice (PyYAML silently drops one), for a key that reads as a date or number, and for a text
    that can't be used.

    `1e-4` is a number, as in YAML 1.2 and JSON. YAML 1.1 requires a point and a sign: 1.0e-4.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._looked_at: dict[int, yaml.MappingNode] = {}  # by id, which is unique as long as the nodes are kept here

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge the mappings behind `<<` as PyYAML does, after checking the keys that are written here. Merged keys may be given again."""
        if id(node) not in self._looked_at:
            self._looked_at[id(node)] = node
            self._look_at_keys(node)
        super().flatten_mapping(node)

    def _look_at_keys(self, node: yaml.MappingNode) -> None:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {gist(key, 60)} is not a name: put it in quotes", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {shown(key)} is given twice", key_node.start_mark
                )
            seen.add(key)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and (fault := fault_of(value)):
            raise yaml.constructor.ConstructorError(None, None, f"a text {fault}", node.start_mark)
        return value


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
for _tag in ("merge", "value"):  # `<<` and `=` if they are values
    _Yaml.add_constructor(f"tag:yaml.org,2002:{_tag}", _Yaml.construct_scalar)


class _Writer(yaml.SafeDumper):
    yaml_implicit_resolvers = _Yaml.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True  # no anchors: every value is written out

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # In single quotes PyYAML breaks lines at these characters, and reads them back as spaces.
        style = '"' if _LINE_ENDS.search(data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Writer.add_representer(str, _Writer.represent_str)


def _lines(stream: Any, newline: str | None) -> Iterator[str]:
    """The lines of a binary stream as text, with their ends (LF, CR LF or CR).

    Raises:
        _Unreadable: a line is too long, or not UTF-8 text.
    """
    # Bytes that are not UTF-8 are decoded as lone surrogates, so that their line is known.
    lines = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=newline)
    number = 0
    while line := lines.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise _Unreadable(number, f"is longer than {MAX_LINE:,} characters: write one row per line")
        if not line.isascii() and _SURROGATE.search(line):
            kind = next((kind for mark, kind in _MARKS if number == 1 and line.startswith(mark)), None)
            raise _Unreadable(number, f"{f'is {kind} text' if kind else 'is not UTF-8 text'}: {_AS_UTF8}")
        if "\0" in line:
            raise _Unreadable(
                number, f"has a NUL character: leave it out, or, if it is UTF-16 or UTF-32 text, {_AS_UTF8}"
            )
        yield line


def _csv(stream: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows as mappings from column names to cells. Empty lines and columns, which spreadsheets add, are left out."""
    csv.field_size_limit(MAX_LINE)  # 131,072 by default
    lines, head = _lines(stream, ""), list[str]()
    for text in lines:
        head.append(text)
        if text.strip():
            break
    reader = csv.reader(chain(head, lines), strict=True, delimiter=_delimiter_in(head[-1] if head else ""))
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            line, start = start, reader.line_num + 1
            if all(not cell.strip() for cell in cells):
                continue
            if header is None:
                header = [name.strip() for name in cells]
                if twice := next((name for name in header if name and header.count(name) > 1), None):
                    raise _Unreadable(line, f"column {shown(twice)} is given twice: keep one")
                continue
            if any(cell.strip() for cell in cells[len(header) :]):
                raise _Unreadable(
                    line, f"has {len(cells)} cells for {len(header)} columns: put a text with commas in quotes"
                )
            row = list(zip_longest(header, cells[: len(header)]))
            if any(cell and cell.strip() for name, cell in row if not name):
                raise _Unreadable(line, "has a cell in a column without a name: name it, or leave it out")
            yield line, {name: cell for name, cell in row if name}
    except csv.Error as error:
        raise _Unreadable(start, f"is not valid CSV ({error})") from error


def _delimiter_in(line: str) -> str:
    """The delimiter in the line of column names: a comma, or as spreadsheets of other countries write it, a semicolon or a tab."""
    bare = re.sub(r'"[^"]*"', "", line)
    return next((mark for mark in ",;\t" if mark in bare), ",")


def _jsonl(stream: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(_lines(stream, None), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_once_each)
        except RecursionError as error:
            raise _Unreadable(line, "is not valid JSON (it is nested too deep)") from error
        except _GivenTwice as error:
            raise _Unreadable(line, f"key {error} is given twice: keep one") from error
        except (
            ValueError
        ) as error:  # a JSONDecodeError, a constant that JSON does not have, or a number with thousands of digits
            raise _Unreadable(line, f"is not valid JSON ({gist(getattr(error, 'msg', error))})") from error
        if not isinstance(row, dict):
            raise _Unreadable(line, 'a row must be an object, such as {"question": ...}')
        yield line, row


def _parquet(stream: Any, wanted: Sequence[str] | None) -> Iterator[tuple[int, dict[str, Any]]]:
    line = 0
    with pq.ParquetFile(stream) as file:
        names = file.schema_arrow.names
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise _Unreadable(1, f"column {shown(twice)} is given twice: keep one")
        for batch in file.iter_batches(1024, columns=None if wanted is None else [n for n in names if n in wanted]):
            columns = [_values(batch, name, line + 1) for name in batch.schema.names]
            for values in zip(*columns, strict=True) if columns else ((),) * batch.num_rows:
                line += 1
                yield line, dict(zip(batch.schema.names, values, strict=True))


def _values(batch: pa.RecordBatch, name: str, line: int) -> list[Any]:
    """A column's values. The error for a value that Python does not have, such as a date in the year 10,000, names the column."""
    try:
        return list(batch.column(name).to_pylist())
    except (ValueError, OverflowError, pa.ArrowException) as error:
        raise _Unreadable(line, f"or after it: column {shown(name)} can't be read ({gist(error)})") from error


class _GivenTwice(Exception):
    """A key that occurs twice in one JSON object."""


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _GivenTwice(shown(key))
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON: write null")


def _fault_within(value: Any) -> str:
    if isinstance(value, str):
        return fault_of(value)
    if isinstance(value, dict):
        return next(filter(None, (_fault_within(key) or _fault_within(each) for key, each in value.items())), "")
    if isinstance(value, list | tuple):
        return next(filter(None, map(_fault_within, value)), "")
    return ""
