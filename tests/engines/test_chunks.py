"""How a source is cut into chunks, and what a chunk's task does; without Ray and without an engine."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unlearn_ray.artifacts import Folder
from unlearn_ray.engines.chunks import ChunkTask, chunks_of, read_piece
from unlearn_ray.engines.protocols import Reply, Request, RowDict

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string())])


class Echo:
    """A fleet's client that repeats what it is asked."""

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        return [
            Reply(texts=(str(r.messages[0]["content"]),), num_prompt_tokens=3, num_output_tokens=2) for r in requests
        ]


def render(row: RowDict) -> list[Request]:
    """One request for each word: rows may ask for several things, or for nothing."""
    return [Request([{"role": "user", "content": word}]) for word in row["text"].split()]


def parse(row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
    return [{"id": f"{row['id']}.{i}", "text": reply.texts[0]} for i, reply in enumerate(replies)]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 40), max_size=5), size=st.integers(1, 50), group=st.integers(1, 20))
def test_chunks_cover_every_row_once_and_in_order_whatever_the_files_sizes(
    tmp_path: Path, sizes: list[int], size: int, group: int
) -> None:
    shutil.rmtree(tmp_path / "in", ignore_errors=True)
    (tmp_path / "in").mkdir()
    rows = iter(range(sum(sizes)))
    for number, num_rows in enumerate(sizes):
        table = pa.table({"n": pa.array([next(rows) for _ in range(num_rows)], pa.int64())})
        pq.write_table(table, tmp_path / "in" / f"{number}.parquet", row_group_size=group)
    source = Folder(tmp_path / "in")
    chunks = [[row["n"] for piece in chunk for row in read_piece(source, piece)] for chunk in chunks_of(source, size)]
    assert [n for chunk in chunks for n in chunk] == list(range(sum(sizes)))
    assert all(len(chunk) == size for chunk in chunks[:-1])
    assert all(0 < len(chunk) <= size for chunk in chunks)


def test_a_chunk_writes_its_rows_once_and_gives_the_driver_counts_alone(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "one two"}, {"id": "b", "text": ""}, {"id": "c", "text": "three"}]
    source, out = Folder(tmp_path / "in"), Folder(tmp_path / "out")
    source.write_rows(rows, SCHEMA)
    task = ChunkTask(Echo(), source, out, render, parse, SCHEMA)
    item = {"number": 7, "pieces": [{"file": "00000.parquet", "start": 0, "num_rows": 3}]}
    assert task(item) == {"rows_in": 3, "resumed": 0, "rows_out": 3, "prompt_tokens": 9, "output_tokens": 6}
    assert [(row["id"], row["text"]) for row in out.read_rows()] == [("a.0", "one"), ("a.1", "two"), ("c.0", "three")]
    # A retry of a task that had written its file.
    assert task(item) == {"rows_in": 3, "resumed": 3, "rows_out": 3, "prompt_tokens": 9, "output_tokens": 6}
    assert out.count_rows() == 3


def test_a_half_written_file_is_not_taken_for_a_chunk(tmp_path: Path) -> None:
    source, out = Folder(tmp_path / "in"), Folder(tmp_path / "out")
    source.write_rows([{"id": "a", "text": "one"}], SCHEMA)
    task = ChunkTask(Echo(), source, out, render, parse, SCHEMA)
    item = {"number": 0, "pieces": [{"file": "00000.parquet", "start": 0, "num_rows": 1}]}
    task(item)
    (file,) = (tmp_path / "out").glob("*.parquet")
    file.rename(f"{file}.123.partial")
    file.with_name(f"{file.name}.123.partial").write_bytes(b"PAR1")
    assert task(item)["resumed"] == 0
    assert [row["id"] for row in out.read_rows()] == ["a.0"]
