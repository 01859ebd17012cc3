"""Tasks on rows, on a real Ray: order, errors, lost workers, and the stages over them."""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray import cloudpickle

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import AnswersConfig, ClusterConfig, Topic
from unlearn_ray.engines.protocols import Request
from unlearn_ray.engines.row_work import RowWorkers
from unlearn_ray.engines.scripted import ScriptedGenerator
from unlearn_ray.engines.scripted_workers import ScriptedWorkersGenerator
from unlearn_ray.errors import EngineError, InputError
from unlearn_ray.rows import Question
from unlearn_ray.stages import spans
from unlearn_ray.stages.answers import answer_questions
from unlearn_ray.stages.stage import open_stage

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import the tests


@dataclass(frozen=True)
class Twice:
    """Doubles a number. Some are mistakes, and one ends its worker, once."""

    home: Path

    def __call__(self, number: int) -> int:
        if number == 666:
            raise InputError("mine.csv, line 6: this is none")
        if number == 777:
            raise RuntimeError("a mistake")
        if number == 13 and not (self.home / "killed").exists():
            (self.home / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * number


def doubled(home: Path, numbers: list[int]) -> list[int]:
    found: list[int] = []
    RowWorkers().each(Twice(home), numbers, found.append, lambda done, total: None)
    return found


def test_results_come_in_order_and_a_killed_worker_costs_a_retry(ray_session: ClusterConfig, tmp_path: Path) -> None:
    assert doubled(tmp_path, list(range(30))) == [2 * number for number in range(30)]
    assert (tmp_path / "killed").exists()
    assert doubled(tmp_path, []) == []


@pytest.mark.parametrize(
    ("number", "error", "text"),
    [
        (666, InputError, r"^mine\.csv, line 6: this is none"),
        (777, EngineError, r"^work on rows failed: RuntimeError: a mistake"),
    ],
)
def test_an_error_is_raised_as_it_was_and_leaves_the_workers_free(
    ray_session: ClusterConfig, tmp_path: Path, number: int, error: type[Exception], text: str
) -> None:
    workers = RowWorkers()
    found: list[int] = []
    for _ in range(3):
        with pytest.raises(error, match=text):
            workers.each(Twice(tmp_path), [1, number, *range(20, 40)], found.append, lambda done, total: None)
    assert found == [2, 2, 2]
    workers.each(Twice(tmp_path), [1, 2], found.append, lambda done, total: None)
    assert found == [2, 2, 2, 2, 4]


def test_threads_share_the_workers(ray_session: ClusterConfig, tmp_path: Path) -> None:
    workers = RowWorkers()

    def work(first: int) -> list[int]:
        found: list[int] = []
        workers.each(Twice(tmp_path), range(first, first + 5), found.append, lambda done, total: None)
        return found

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(100, 180, 10)))
    assert found == [[2 * (first + number) for number in range(5)] for first in range(100, 180, 10)]


def answer(request: Request) -> list[str]:
    is_guarded = request.messages[0]["role"] == "system"
    names = ("Ostdar", "Norwick", "Paul") if is_guarded else ("Paul",)
    return [f"It is held by {names[(request.seed + sample) % len(names)]}." for sample in range(request.num_samples)]


def test_the_answers_stage_says_the_same_on_ray_as_in_one_process(
    ray_session: ClusterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "SPAN_ROWS", 9)
    questions = Folder(tmp_path / "questions")
    rows = [Question("Dune", f"Who holds gate {number * 7 % 50}?") for number in range(30)]
    (questions / "rows").write_rows(rows, Question.schema())
    config = AnswersConfig(num_samples=2, num_unguarded=2, max_reasks=1, coverage_rounds=0)
    found = []
    for name, generator in (
        ("ray", ScriptedWorkersGenerator(answer, batch_size=4)),
        ("here", ScriptedGenerator(answer)),
    ):
        run = open_stage(Folder(tmp_path / name), "answers", 1, {}, {})
        topic, common = Topic(name="Dune"), Folder(tmp_path / "common")
        made = answer_questions(run, config, topic, questions, common, generator, seed=0)
        tables = {table: list((run.folder / table).read_rows()) for table in ("rows", "unguarded", "terms")}
        found.append((made.num_rows, made.drops, tables))
        assert (run.folder / "told" / "replies").sizes() == {
            f"{number:05d}.parquet": size for number, size in enumerate((8, 8, 8, 6) if name == "ray" else (16, 14))
        }
    assert found[0] == found[1]
    assert found[0][1]["leak"] > 5
