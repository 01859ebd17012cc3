"""How the data stages ask the model: a folder of requests, one `Generator.map`, a marker. What was asked is not asked again.

requests/   what is asked
batches/    while it is asked: what the generator has written so far, a file per batch
replies/    the same in files of like size, in the order of the requests
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
ASKED = "asked.json"  # in the folder of an asking whose replies are all there


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
    """`folder/requests` through the model into `folder/replies`, which is returned.

    An asking that was finished is not repeated; one that was interrupted is taken up by the generator, row by row, as the
    same rows are written again.
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
    """The same of requests that workers write.

    Args:
        write: fills a folder with the requests.
    """
    source, batches, replies = (folder / name for name in ("requests", "batches", "replies"))
    if not folder.exists(ASKED):
        write(source)
        tokens = {}
        if num_rows := source.count_rows():
            counts = generator.map(source, batches, render, parse, reply_schema, label=label)
            if not source.exists():  # else a folder without rows would tell that nothing was kept
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
    """Files of like size from a file per batch, of which a large asking has thousands.

    Args:
        num_rows: of the requests; that each batch had as many of them tells how many make a file, without a look into any.
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
    """What to say of a folder that was deleted, or unmounted, while it was written to."""
    return ArtifactError(f"{folder} vanished while it was written to: the same command does again what is not there")


def tokens_of(folder: Folder) -> dict[str, int]:
    """What all askings in a folder, and below it, cost: tokens of prompts and answers, and of prompts those that were looked for and found in
    engines' prefix caches. Of an asking that was interrupted, the last two are of what was asked since."""
    total: Counter[str] = Counter()
    for name in folder.names_below(ASKED):
        total.update(json.loads(folder.read_text(name)))
    return dict(total)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a topic's data may cost. Rounds that ask for more end once it is spent, and the topic goes on with what is there."""

    max_output_tokens: int | None = None  # None: any number
    folders: tuple[Folder, ...] = ()  # of the topic's stages so far

    @property
    def is_spent(self) -> bool:
        return self.max_output_tokens is not None and self.num_spent >= self.max_output_tokens

    @property
    def num_spent(self) -> int:
        return sum(tokens_of(folder).get("output_tokens", 0) for folder in self.folders)

    def ends(self, what: str) -> bool:
        """Whether it is spent, which is said in the log."""
        if is_spent := self.is_spent:
            log.info(
                "%s: %d of max_output_tokens %d are spent: it ends here", what, self.num_spent, self.max_output_tokens
            )
        return is_spent

    @property
    def details(self) -> dict[str, Any]:
        """What a manifest says of it."""
        if self.max_output_tokens is None:
            return {}
        return {"budget": {"max_output_tokens": self.max_output_tokens, "spent": self.num_spent}}


def in_order(rows: Iterable[RowDict], key: Callable[[RowDict], Sequence[str | int]]) -> Iterator[RowDict]:
    """The rows sorted by key, on disk: engines finish rows in any order, results must not depend on it."""
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
    """Renders a row that carries its whole prompt."""

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
    """The samples of a reply, each with whether it was cut off; none where the engine could not answer."""
    if reply.error:
        return []
    truncated = reply.truncated or (False,) * len(reply.texts)
    return [(text.strip(), is_truncated) for text, is_truncated in zip(reply.texts, truncated, strict=True)]
