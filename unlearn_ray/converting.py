"""`unlearn-ray probes`: a benchmark's rows, from a file or the hub, as a file of probes, questions or retained rows."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unlearn_ray.artifacts import Folder
from unlearn_ray.errors import ConfigError, InputError, gist
from unlearn_ray.evals.benchmarks import KINDS, Asked, probes_of
from unlearn_ray.reading import read_rows

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def convert(source: str, output: str, asked: Asked, kind: str, part: str | None, split: str | None) -> int:
    """Write the rows; returns how many.

    Args:
        source: a .json, .jsonl, .parquet or .csv file, or a data set's name on the hub.
        output: path or URI of a .jsonl file that is not there yet.
        kind: probes, questions or retain.
        part, split: of a data set on the hub.

    Raises:
        ConfigError: the output can't be, or is there already.
        InputError: a row can't be used; nothing is written then.
    """
    if kind not in KINDS:
        raise ConfigError(f"--as {kind}: choose from {', '.join(KINDS)}")
    target = Folder(output)
    if Path(target.name).suffix != ".jsonl":
        raise ConfigError(f"--output {output}: give a .jsonl file")
    if target.exists():
        raise ConfigError(f"--output {output} is there already: give another name, or delete it")
    rows = (KINDS[kind](probe) for probe in probes_of(_rows_of(source, part, split), asked, source))
    # All are made before the first is written: an object store keeps what a failed write left.
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    return target.parent.write_lines(target.name, lines)


def _rows_of(source: str, part: str | None, split: str | None) -> Iterator[tuple[int, Mapping[str, Any]]]:
    is_file = Path(source).exists() or "://" in source or not _HUB_NAME.fullmatch(source)
    if is_file and (part or split):
        raise ConfigError(f"{source} is a file: --config and --split are of data sets on the hub")
    if not is_file:
        return _from_hub(source, part, split)
    return _from_json(Path(source)) if source.endswith(".json") else read_rows(source)


def _from_json(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """A list of rows, or as benchmarks have it under this name too, a row a line."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        # Not splitlines(): a text in JSON may hold other line separators, such as U+2028.
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.split("\n") if line.strip()]  # fmt: skip
    except OSError as error:
        raise InputError(f"{file} can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not valid JSON ({gist(error)})") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f'{file} must hold rows, such as [{{"question": ..., "answer": ...}}]')
    yield from enumerate(rows, 1)


def _from_hub(name: str, part: str | None, split: str | None) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import datasets

    try:
        found = datasets.load_dataset(name, part, split=split)
    except Exception as error:  # of the hub, of HTTP or of the disk, each with classes of its own
        raise InputError(f"data set {name} can't be loaded: {gist(error)}") from error
    if isinstance(found, dict):
        if len(found) > 1:
            raise InputError(f"data set {name} has the splits {', '.join(map(str, found))}: name one with --split")
        (found,) = found.values()
    yield from enumerate(found, 1)
