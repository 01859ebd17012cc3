"""How the data stages ask the model: a folder of requests, one `Generator.map`, a marker. A finished asking is not repeated.

requests/   the requests
batches/    during the asking: the generator's output so far, one file per batch
replies/    the output in files of similar size, in the order of the requests
"""

import json
import logging
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from unlearn_ray.artifacts import Folder
from unlearn_ray.chat import Drawn
from unlearn_ray.engines.protocols import Generator, Parse, Render, Reply, Request, RowDict
from unlearn_ray.errors import ArtifactError
from unlearn_ray.rows import Row, seed_of
from unlearn_ray.stages.spans import Together, files_together, part_name

log = logging.getLogger(__name__)
ASKED = "asked.json"  # in the folder of an asking with all its replies


def ask(
    generator: Generator,
    folder: Folder,
    rows: Callable[[], Iterable[Row | Mapping[str, Any]]],
    row_schema: pa.Schema,
    render: Render,
    parse: Parse,
    reply_schema: pa.Schema,
    *,
    label: str,
) -> Folder:
    """Send `folder/requests` through the model into `folder/replies`, and return the latter.

    A finished asking is not repeated. An interrupted one is resumed by the generator, row by row, because the same rows are written again.
    """

    def write(source: Folder) -> None:
        source.write_rows(rows(), row_schema)

    return ask_written(generator, folder, write, render, parse, reply_schema, label=label)


def ask_written(
    generator: Generator,
    folder: Folder,
    write: Callable[[Folder], None],
    render: Render,
    parse: Parse,
    reply_schema: pa.Schema,
    *,
    label: str,
) -> Folder:
    """`ask`, with requests that workers write.

    Args:
        write: writes the requests into a folder.
    """
    source, batches, replies = (folder / name for name in ("requests", "batches", "replies"))
    if not folder.exists(ASKED):
        write(source)
        tokens = {}
        if num_rows := source.count_rows():
            counts = generator.map(source, batches, render, parse, reply_schema, label=label)
            if not source.exists():  # a folder without rows would look as if nothing was kept
                raise vanished(folder)
            tokens = {
                "prompt_tokens": counts.num_prompt_tokens,
                "output_tokens": counts.num_output_tokens,
                "prefix_queries": counts.num_prefix_queries,
                "prefix_hits": counts.num_prefix_hits,
            }
            _put_together(generator, batches, replies, num_rows, label)
        else:
            replies.write_rows([], reply_schema)
        folder.write_text(ASKED, json.dumps(tokens))
    batches.delete()
    return replies


def _put_together(generator: Generator, batches: Folder, out: Folder, num_rows: int, label: str) -> None:
    """Join the files of batches, thousands in a large asking, into files of similar size.

    Args:
        num_rows: number of requests. All batches have equally many, so the number of batches per file follows without reading any.
    """
    names = batches.names(".parquet")
    if not names:
        raise vanished(batches)
    out.delete()
    if len(names) == 1:
        batches.copy(names[0], out, part_name(0))
        return
    generator.each(Together(batches, out), files_together(names, num_rows), label=f"{label}, put together")


def vanished(folder: Folder) -> ArtifactError:
    """The error for a folder that was deleted or unmounted while it was written to."""
    return ArtifactError(f"{folder} vanished while it was written to: the same command redoes the missing part")


def tokens_of(folder: Folder) -> dict[str, int]:
    """The cost of all askings in a folder and its subfolders: tokens of prompts and answers, and the prompts' tokens looked up and found in
    the engines' prefix caches. For an interrupted asking the last two cover only the part after the interruption."""
    total: Counter[str] = Counter()
    for name in folder.names_below(ASKED):
        total.update(json.loads(folder.read_text(name)))
    return dict(total)


@dataclass(frozen=True, slots=True)
class Budget:
    """The token budget of a topic's data. Once it is spent, no further rounds are asked, and the topic goes on with its present data."""

    max_output_tokens: int | None = None  # None: any number
    folders: tuple[Folder, ...] = ()  # of the topic's stages so far

    @property
    def is_spent(self) -> bool:
        return self.max_output_tokens is not None and self.num_spent >= self.max_output_tokens

    @property
    def num_spent(self) -> int:
        return sum(tokens_of(folder).get("output_tokens", 0) for folder in self.folders)

    def ends(self, what: str) -> bool:
        """Whether the budget is spent. If so, the log says that `what` ends."""
        if is_spent := self.is_spent:
            log.info(
                "%s: %d of max_output_tokens %d are spent: it ends here", what, self.num_spent, self.max_output_tokens
            )
        return is_spent

    @property
    def details(self) -> dict[str, Any]:
        """The entries for a manifest."""
        if self.max_output_tokens is None:
            return {}
        return {"budget": {"max_output_tokens": self.max_output_tokens, "spent": self.num_spent}}


def in_order(rows: Iterable[RowDict], key: Callable[[RowDict], Sequence[str | int]]) -> Iterator[RowDict]:
    """The rows sorted by key, on disk. Engines finish rows in any order, and results must not depend on it."""
    with tempfile.TemporaryDirectory(prefix="unlearn-ray-") as home:
        database = sqlite3.connect(Path(home) / "rows.db", isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode=OFF")
            database.execute("PRAGMA synchronous=OFF")
            width = 0
            database.execute("BEGIN")
            for row in rows:
                values = key(row)
                if not width:
                    width = len(values)
                    database.execute(f"CREATE TABLE rows ({', '.join(f'k{i}' for i in range(width))}, row TEXT)")
                    insert = f"INSERT INTO rows VALUES ({', '.join('?' * (width + 1))})"
                database.execute(insert, (*values, json.dumps(row)))
            database.execute("COMMIT")
            if width:
                order = ", ".join(f"k{i}" for i in range(width))
                for (text,) in database.execute(f"SELECT row FROM rows ORDER BY {order}"):
                    yield json.loads(text)
        finally:
            database.close()


@dataclass(frozen=True, slots=True)
class Prompted:
    """Renders a row that has its whole prompt."""

    seed: int
    sampling: Drawn  # as `chat.sampling_of` says
    max_tokens: int

    def __call__(self, row: RowDict) -> list[Request]:
        return [
            Request(
                messages=[{"role": "user", "content": row["prompt"]}],
                seed=seed_of(self.seed, row["id"]),
                max_tokens=self.max_tokens,
                **self.sampling,
            )
        ]


def texts_of(reply: Reply) -> list[tuple[str, bool]]:
    """The samples of a reply, each with a flag for a cut-off one. Empty if the engine could not answer."""
    if reply.error:
        return []
    truncated = reply.truncated or (False,) * len(reply.texts)
    return [(text.strip(), is_truncated) for text, is_truncated in zip(reply.texts, truncated, strict=True)]
