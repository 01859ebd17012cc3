"""A generator without a model, for tests. Answers come from a function or a table; files, schemas and resume are real."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from unlearn_ray.artifacts import Folder
from unlearn_ray.chat import PLAIN, ChatFormat
from unlearn_ray.engines.protocols import MapCounts, Parse, R, Render, Reply, Request, RowDict, T
from unlearn_ray.errors import EngineError

Answer = Callable[[Request], Reply | str | Sequence[str]]
_DONE = "_done"  # folder in the output folder, with the ids of the input rows whose output rows are written
_ID = pa.schema([("id", pa.string()), ("prompt_tokens", pa.int64()), ("output_tokens", pa.int64())])


@dataclass(frozen=True, slots=True)
class Call:
    """The input of one `map`, and the part of it that was not done before."""

    label: str
    model: str | None
    num_rows_in: int
    num_resumed: int


def reply_of(answer: Answer, request: Request) -> Reply:
    """A function's answer as an engine's reply."""
    said = answer(request)
    if isinstance(said, Reply):
        return said
    texts = (said,) * request.num_samples if isinstance(said, str) else tuple(said)
    num_words = sum(len(text.split()) for text in texts)
    num_prompt = len(str(request.messages).split())
    return Reply(texts, (False,) * len(texts), num_prompt_tokens=num_prompt, num_output_tokens=num_words)


class ScriptedGenerator:
    """Implements `protocols.Generator`.

    Args:
        answer: the texts of a request (one text stands for every sample), or a whole Reply; or a table of them by the
            content of the last message.
        fail_after: after so many input rows over all calls, an EngineError ends the work once, like a kill.
        batch_size: input rows that are answered and written together.
    """

    def __init__(
        self,
        answer: Answer | Mapping[str, Reply | str | Sequence[str]],
        *,
        fail_after: int | None = None,
        batch_size: int = 16,
        chat: ChatFormat = PLAIN,
    ) -> None:
        self._answer: Answer = answer if callable(answer) else lambda request: answer[request.messages[-1]["content"]]
        self.fail_after = fail_after
        self.batch_size = batch_size
        self.chat = chat
        self.calls: list[Call] = []
        self.requests: list[Request] = []
        self.num_rows = 0

    def map(
        self,
        source: Folder,
        out: Folder,
        render: Render,
        parse: Parse,
        schema: pa.Schema,
        *,
        label: str,
        model: str | None = None,
    ) -> MapCounts:
        started = time.monotonic()
        parts = [part for part in (out / _DONE).names() if (out / _DONE / part).names(".parquet")]
        done = {row["id"]: row for part in parts for row in (out / _DONE / part).read_rows()}
        rows = list(source.read_rows())
        todo = [row for row in rows if row["id"] not in done]
        self.calls.append(Call(label, model, len(rows), len(rows) - len(todo)))
        num_tokens = [sum(row[kind] for row in done.values()) for kind in ("prompt_tokens", "output_tokens")]
        for index, batch in enumerate(_batches(todo, self.batch_size), start=len(parts)):
            if self.fail_after is not None and self.num_rows + len(batch) > self.fail_after:
                self.fail_after = None
                raise EngineError(f"{label}: the script ends here")
            asked = [list(render(row)) for row in batch]
            replies = iter(self.reply([request for requests in asked for request in requests]))
            results: list[Mapping[str, Any]] = []
            ended: list[Mapping[str, Any]] = []
            for row, requests in zip(batch, asked, strict=True):
                answers = [next(replies) for _ in requests]
                cost = sum(each.num_prompt_tokens for each in answers), sum(each.num_output_tokens for each in answers)
                num_tokens = [total + number for total, number in zip(num_tokens, cost, strict=True)]
                ended.append({"id": row["id"], "prompt_tokens": cost[0], "output_tokens": cost[1]})
                results.extend(parse(row, answers))
            # If a part's ids were not written yet, the part is written again under the same name.
            _write_part(out, index, results, schema)
            (out / _DONE / f"{index:05d}").write_rows(ended, _ID)
            self.num_rows += len(batch)
        if not out.names(".parquet"):
            _write_part(out, 0, [], schema)
        return MapCounts(
            len(rows), out.count_rows(), len(rows) - len(todo), num_tokens[0], num_tokens[1], time.monotonic() - started
        )

    def each(
        self,
        task: Callable[[T], R],
        items: Sequence[T],
        take: Callable[[R], object] = lambda result: None,
        *,
        label: str,
    ) -> None:
        for item in items:
            take(task(item))

    def reply(self, requests: list[Request]) -> Iterable[Reply]:
        """One reply per request."""
        self.requests.extend(requests)
        return (reply_of(self._answer, request) for request in requests)

    def close(self) -> None:
        """There is nothing to release."""


def _batches(rows: list[RowDict], size: int) -> Iterator[list[RowDict]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _write_part(out: Folder, index: int, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Write one more Parquet file into the folder."""
    out.write_table(f"{index:05d}.parquet", pa.Table.from_pylist([dict(row) for row in rows], schema))
