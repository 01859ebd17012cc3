"""A driver of twelve topics that is ended again and again, anywhere, makes the rows of an unbroken one. Engines are scripted."""

import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import killed_driver
import pytest
from killed_driver import Booked, asked_in, config_in, drive

from unlearn_ray.artifacts import Folder
from unlearn_ray.plan import units_of
from unlearn_ray.runs import FAILED
from unlearn_ray.stages.stage import finished_manifest
from unlearn_ray.stages.table import STAGES

pytestmark = pytest.mark.long
NUM_ENDS = 10  # of each kind
MOST_SECONDS = 0.03  # from a request to the kill, in which others are asked


@dataclass(frozen=True, slots=True)
class Made:
    """What a run left, but for what it took."""

    stages: dict[str, Any]
    tables: dict[str, list[str]]


def made_in(home: Path) -> Made:
    """Every stage's manifest, and the rows of all its tables."""
    stages: dict[str, Any] = {}
    tables: dict[str, list[str]] = {}
    for scope, units in units_of(config_in(home)).items():
        for unit in units:
            assert not unit.home.exists(FAILED)
            for stage in (each for each in STAGES if each.scope == scope and each.command in killed_driver.STEPS):
                folder, name = unit.home / stage.name, f"{scope}/{unit.name}/{stage.name}"
                manifest = finished_manifest(folder)
                details = {key: value for key, value in manifest.details.items() if key != "tokens"}
                stages[name] = (manifest.fingerprint, manifest.num_rows, manifest.drops, manifest.tables, details)
                tables |= {f"{name}/{table}": rows_of(folder / table) for table in manifest.tables}
    return Made(stages, tables)


def rows_of(folder: Folder) -> list[str]:
    return sorted(json.dumps(row, sort_keys=True) for row in folder.read_rows())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Made, Counter[str]]]:
    home = tmp_path_factory.mktemp("unbroken")
    drive(home, Booked(home / "asked.jsonl"))
    yield made_in(home), asked_in(home / "asked.jsonl")[0]


def ends(num_requests: int, seed: int) -> list[int]:
    """After how many requests of its own each driver ends: all of them together leave some to be asked."""
    points = sorted(random.Random(seed).sample(range(1, round(0.75 * num_requests)), NUM_ENDS))
    return [point - before for before, point in zip([0, *points], points, strict=False)]


def check(home: Path, unbroken: tuple[Made, Counter[str]], books: list[Path]) -> None:
    """One more driver finishes the run: its rows are the unbroken one's, and only batches that were under way were asked twice."""
    expected, asked_once = unbroken
    drive(home, Booked(home / "asked-last.jsonl"))
    found = made_in(home)
    assert found.stages == expected.stages
    for name, rows in expected.tables.items():
        assert found.tables[name] == rows, name
    assert sum(map(len, expected.tables.values())) > 1000
    asked, under_way = asked_in(home / "asked-last.jsonl")[0], Counter[str]()
    for book in books:
        before, last = asked_in(book)
        asked, under_way = asked + before, under_way + last
    assert not asked_once - asked
    assert not (asked - asked_once) - under_way, "what was answered was asked again"


def test_a_driver_that_is_killed_ten_times_makes_the_rows_of_an_unbroken_one(
    tmp_path: Path, unbroken: tuple[Made, Counter[str]]
) -> None:
    chance = random.Random(1)
    fates = [(number, chance.uniform(0, MOST_SECONDS)) for number in ends(unbroken[1].total(), seed=1)]
    paths = [str(Path(killed_driver.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, killed_driver.__file__, tmp_path, json.dumps(fates)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(tmp_path), "TOKENIZERS_PARALLELISM": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ended = done.stdout.splitlines()
    assert ended == ["killed"] * NUM_ENDS, done.stderr[-3000:]
    check(tmp_path, unbroken, [tmp_path / f"asked-{index}.jsonl" for index in range(NUM_ENDS)])


def test_a_driver_whose_engine_stops_it_ten_times_makes_the_rows_of_an_unbroken_one(
    tmp_path: Path, unbroken: tuple[Made, Counter[str]]
) -> None:
    books = [tmp_path / f"asked-{index}.jsonl" for index in range(NUM_ENDS)]
    for book, number in zip(books, ends(unbroken[1].total(), seed=2), strict=True):
        before = set(threading.enumerate())

        def stop(asked: int, number: int = number) -> None:
            if asked >= number:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            drive(tmp_path, Booked(book, stop))
        for thread in set(threading.enumerate()) - before:
            thread.join()
    check(tmp_path, unbroken, books)
