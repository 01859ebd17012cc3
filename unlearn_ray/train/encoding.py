"""Which rows of a dataset are trained on, and their way from Parquet into encoded files."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from unlearn_ray.artifacts import Folder
from unlearn_ray.errors import ConfigError
from unlearn_ray.rows import Contrast, Drop, Example, seed_of
from unlearn_ray.train.chat import ChatEncoder, Encoded
from unlearn_ray.train.encoded import EncodedRows, write_encoded

_ROWS_PER_BATCH = 4096
CUT = "cut"


def encode_rows(
    source: Folder,
    topics: Sequence[str],
    encoder: ChatEncoder,
    path: Path,
    part: int = 0,
    num_parts: int = 1,
    refusals: Sequence[str] = (),
) -> Counter[str]:
    """Encode one part of a dataset's training rows into a file.

    Parts are runs of neighbouring files: read one after the other they give the same order, however many there are.

    Args:
        refusals: one of these takes the place of each answer, and follows from its row; none: the answers are taken.

    Returns:
        How many rows were `cut` in the answer, and dropped as `too_long`.
    """
    mine = _part(source, part, num_parts)
    counts: Counter[str] = Counter()

    def encoded() -> Iterator[Encoded]:
        for batch in _training_batches(source, mine, topics, Example.schema().names):
            examples = [Example.of(row) for row in batch.to_pylist()]
            if refusals:
                examples = [replace(each, answer=refusals[seed_of(each.id) % len(refusals)]) for each in examples]
            for row in encoder.encode(examples):
                if row is None:
                    counts[Drop.TOO_LONG.value] += 1
                    continue
                counts[CUT] += row.is_cut
                yield row

    write_encoded(path, encoded())
    return +counts


def encode_contrasts(
    source: Folder,
    topics: Sequence[str],
    encoder: ChatEncoder,
    path: Path,
    part: int = 0,
    num_parts: int = 1,
    *,
    pairs: bool,
) -> Counter[str]:
    """Encode one part of a dataset's contrasts into a file: the true answers, each followed by the invented one where there are to be `pairs`.

    Returns:
        As `encode_rows`; a pair with a half that is too long is dropped, and is one row.
    """
    counts: Counter[str] = Counter()

    def encoded() -> Iterator[Encoded]:
        for batch in _training_batches(source, _part(source, part, num_parts), topics, Contrast.schema().names):
            rows = [Contrast.of(row) for row in batch.to_pylist()]
            halves = [encoder.encode([row.example(row.true) for row in rows])]
            if pairs:
                halves.append(encoder.encode([row.example(row.invented) for row in rows]))
            for pair in zip(*halves, strict=True):
                whole = [half for half in pair if half is not None]
                if len(whole) < len(pair):
                    counts[Drop.TOO_LONG.value] += 1
                    continue
                counts[CUT] += any(half.is_cut for half in whole)
                yield from whole

    write_encoded(path, encoded())
    return +counts


def _part(source: Folder, part: int, num_parts: int) -> list[str]:
    names = source.names(".parquet")
    return names[len(names) * part // num_parts : len(names) * (part + 1) // num_parts]


def require_fit(encoded: EncodedRows, source: Folder, topics: Sequence[str], max_tokens: int) -> None:
    """Refuse a limit that leaves none of the rows there were: training would go without what it is for.

    Raises:
        ConfigError: every question alone takes all of it.
    """
    if len(encoded) == 0 and (number := sum(count_training_rows(source, topics).values())):
        raise ConfigError(
            f"finetune.max_tokens: {max_tokens} leaves no room for an answer in any of the {number} {source.name} rows: raise it"
        )


def count_training_rows(source: Folder, topics: Sequence[str]) -> dict[str, int]:
    """Rows to train on by topic, without reading their texts."""
    counts = dict.fromkeys(topics, 0)
    for batch in _training_batches(source, source.names(".parquet"), topics, ["topic", "split"]):
        for found in pc.value_counts(batch.column("topic")).to_pylist():
            counts[found["values"]] += found["counts"]
    return counts


def _training_batches(
    source: Folder, names: Sequence[str], topics: Sequence[str], columns: list[str]
) -> Iterator[pa.RecordBatch]:
    filesystem = source.filesystem
    for name in names:
        with filesystem.open_input_file(f"{source.path}/{name}") as file:
            for batch in pq.ParquetFile(file).iter_batches(_ROWS_PER_BATCH, columns=columns):
                is_ours = pc.and_(
                    pc.equal(batch.column("split"), "train"),
                    pc.is_in(batch.column("topic"), value_set=pa.array(list(topics), pa.string())),
                )
                yield batch.filter(is_ours)
