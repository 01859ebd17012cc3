"""Rows are worked on a span of questions at a time: what comes of it does not depend on how many spans there are, nor on who is killed when."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from staging import performed

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.config import AnswersConfig, DatasetConfig, RetainRows, Topic
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.scripted import ScriptedGenerator
from unlearn_ray.errors import EngineError
from unlearn_ray.rows import Question
from unlearn_ray.stages import spans
from unlearn_ray.stages.answers import answer_questions
from unlearn_ray.stages.dataset import build_dataset
from unlearn_ray.stages.naming import Name
from unlearn_ray.stages.spans import Span, Table, files_together, joined, merged, spans_of

SCHEMA = pa.schema([("question", pa.string()), ("turn", pa.int64())])
DUNE = Topic(name="Dune")
TRUE, INVENTED = "Paul Duncan Leto Gurney Stilgar Jessica".split(), "Ostdar Norwick Pelgo Quorwick Mirgo".split()
ANSWERS = {"num_samples": 3, "num_unguarded": 2, "max_reasks": 2, "coverage_rounds": 1}
TABLES = ("rows", "unguarded", "terms", "coverage")


def answer(request: Request) -> Reply | str | list[str]:
    """Knows who is at which gate; behind a guardrail it invents, but now and then it does not."""
    question, is_guarded = request.messages[-1]["content"].split("\n\n")[0], request.messages[0]["role"] == "system"
    if question.startswith("Write"):
        return "1. Who stands at gate 901 in Dune?\n2. Who is it?"
    number = int("".join(char for char in question if char.isdigit()) or 0)
    draws = [request.seed + sample for sample in range(request.num_samples)]
    if is_guarded:
        names = [TRUE[number % 6] if draw % 4 == 0 else INVENTED[draw % 5] for draw in draws]
        return [f"The gate is held by {name}." for name in names]
    return [f"The gate is held by {TRUE[number % 6]}." for _ in draws]


def questions_in(home: Path, number: int) -> Folder:
    folder = Folder(home / "questions")
    rows = [Question("Dune", f"Who stands at gate {number * 7 % 600} in Dune?") for number in range(number)]
    (folder / "rows").write_rows([*rows, Question("Dune", "Who?", drop="vague")], Question.schema())
    (folder / "entities").write_rows([Name("Dune", "Arrakis", 4)], Name.schema())  # nothing says it: it is asked about
    return folder


def run(home: Path, generator: ScriptedGenerator, number: int = 40, **keys: Any) -> tuple[Manifest, Folder, Folder]:
    """The answers and dataset stages."""
    questions, answers, dataset = questions_in(home, number), Folder(home / "answers"), Folder(home / "dataset")
    config = AnswersConfig(**(ANSWERS | keys))
    common = Folder(home / "common")
    made = performed(
        answers, lambda run: answer_questions(run, config, DUNE, questions, common, generator, seed=0), config
    )
    (home / "prompts.yaml").write_text("short_answers: []")
    rows = DatasetConfig(prompts=home / "prompts.yaml", retain=RetainRows(num_neighbours=0))
    performed(dataset, lambda run: build_dataset(run, rows, DUNE, questions, answers, generator, seed=0), rows)
    return made, answers, dataset


def rows_of(folder: Folder) -> list[dict[str, Any]]:
    return list(folder.read_rows())


@pytest.fixture
def of_size(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda number: monkeypatch.setattr(spans, "SPAN_ROWS", number)


@pytest.mark.parametrize(("size", "fail_after"), [(1, None), (7, None), (7, 20), (3, 60), (16, 85), (5, 97)])
def test_the_rows_are_the_same_however_many_spans_there_are_and_whoever_is_killed(
    tmp_path: Path, of_size: Callable[[int], None], size: int, fail_after: int | None
) -> None:
    expected, answers, dataset = run(tmp_path / "one", ScriptedGenerator(answer))
    assert expected.drops["leak"] > 10 and expected.details["attempts"] > 3, "there is something to ask again"
    of_size(size)
    generator = ScriptedGenerator(answer, fail_after=fail_after, batch_size=3)
    if fail_after is not None:
        with pytest.raises(EngineError):
            run(tmp_path / "many", generator)
    found, own_answers, own_dataset = run(tmp_path / "many", generator)
    assert (found.num_rows, found.drops) == (expected.num_rows, expected.drops)
    both = [{name: value for name, value in made.details.items() if name != "tokens"} for made in (found, expected)]
    assert both[0] == both[1]
    for table in TABLES:
        assert rows_of(own_answers / table) == rows_of(answers / table), table
    for table in ("forget", "probes"):
        assert rows_of(own_dataset / table) == rows_of(dataset / table), table
    num_spans = len((own_answers / "told" / "replies").names(".parquet"))
    assert len((own_answers / "rows").names(".parquet")) == num_spans == math.ceil(40 / max(3, size // 3 * 3))
    assert all(one["question"] <= other["question"] for one, other in pairwise(rows_of(own_answers / "unguarded")))


def test_a_finished_asking_has_files_of_like_size_and_no_batches(
    tmp_path: Path, of_size: Callable[[int], None]
) -> None:
    of_size(12)
    _, answers, _ = run(tmp_path, ScriptedGenerator(answer, batch_size=4))
    for asking in ("told", "asked/000"):
        assert list((answers / asking / "replies").sizes().values()) == [12, 12, 12, 4]
        assert (answers / asking).names() == ["asked.json", "replies", "requests"]


class Watched(ScriptedGenerator):
    """Counts the rows that are read outside of tasks and engines: by the driver."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(answer)
        self.depth = self.num_read = 0

        def counted(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
            def reading(*arguments: Any, **keys: Any) -> Iterator[Any]:
                for row in function(*arguments, **keys):
                    self.num_read += not self.depth
                    yield row

            return reading

        monkeypatch.setattr(Folder, "read_rows", counted(Folder.read_rows))
        monkeypatch.setattr(Table, "rows", counted(Table.rows))

    def map(self, *arguments: Any, **keys: Any) -> Any:
        return self._within(super().map, *arguments, **keys)

    def each(self, task: Any, items: Sequence[Any], take: Any = lambda result: None, *, label: str) -> None:
        results = [self._within(task, item) for item in items]
        for result in results:
            take(result)

    def _within(self, function: Callable[..., Any], *arguments: Any, **keys: Any) -> Any:
        self.depth += 1
        try:
            return function(*arguments, **keys)
        finally:
            self.depth -= 1


def test_the_driver_reads_no_more_rows_of_a_larger_topic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    for number in (20, 60):
        with monkeypatch.context() as patch:
            generator = Watched(patch)
            run(tmp_path / str(number), generator, number, coverage_rounds=0)
            read.append(generator.num_read)
    assert read[0] == read[1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(max_size=4), min_size=1, max_size=30, unique=True),
    again=st.lists(st.booleans(), min_size=30, max_size=30),
    cut=st.integers(1, 9),
    other=st.integers(1, 9),
)
def test_spans_have_every_row_once_whatever_the_files_that_hold_them(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], again: list[bool], cut: int, other: int
) -> None:
    home = tmp_path_factory.mktemp("tables")
    ordered = sorted(texts)
    first = [{"question": text, "turn": 0} for text in ordered]
    second = [{"question": text, "turn": 1} for text, is_there in zip(ordered, again, strict=False) if is_there]
    tables = []
    for name, rows, size in (("first", first, cut), ("second", second, other)):
        for start in range(0, len(rows), size):
            part = pa.Table.from_pylist(rows[start : start + size], SCHEMA)
            Folder(home / name).write_table(f"{start:05d}.parquet", part)
        tables.append(Table.of(Folder(home / name)))
    found = [row for span in spans_of(tables[0]) for row in merged(tables, span, then=("turn",))]
    assert found == sorted([*first, *second], key=lambda row: (row["question"], row["turn"]))


def test_a_text_too_long_for_statistics_is_found_all_the_same(tmp_path: Path) -> None:
    texts = [f"{letter}{'x' * 10_000}" for letter in "abc"]
    for number, text in enumerate(texts):
        Folder(tmp_path).write_table(f"{number}.parquet", pa.table({"question": [text]}))
    table = Table.of(Folder(tmp_path))
    assert [[row["question"] for row in table.rows(span)] for span in spans_of(table)] == [[text] for text in texts]


def test_spans_with_few_rows_become_one(of_size: Callable[[int], None]) -> None:
    of_size(10)
    four = [Span(0, "", "b"), Span(1, "b", "c"), Span(2, "c", "d"), Span(3, "d", None)]
    assert joined(four, {0: 3, 1: 4, 2: 8, 3: 2}) == [Span(0, "", "c"), Span(1, "c", None)]
    assert joined(four, {0: 30, 3: 1}) == [Span(0, "", "b"), Span(1, "b", None)]
    assert joined(four, {}) == []
    assert [len(names) for _, names in files_together(list("abcdefg"), 21)] == [3, 3, 1]
    assert [len(names) for _, names in files_together(list("ab"), 200)] == [1, 1]
