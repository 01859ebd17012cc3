"""Rows through the answers and dataset stages without a model: what they cost, and what of that the driver pays.

    python benchmarks/scale.py [--rows 10000 --rows 200000] [--topics 1 --topics 12] [--out results.json]

A function answers, in the place of engines, in the tasks that would ask them; all else is what a run does: on Ray, through files. Each
measurement has a driver, and a Ray, of its own. Questions and answers are made of a fixed vocabulary, as a language has one.

The baseline is the smallest number of rows with the same topics: the goals are at least 20,000 rows per second of the driver's CPU time, and
with the most rows at most 1.2 times the driver's memory and 1.2 times the time per row.
"""

import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
from _results import about_this_run, write
from rich.console import Console
from rich.table import Table

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import AnswersConfig, ClusterConfig, DatasetConfig, RetainRows, Topic
from unlearn_ray.engines.protocols import Request
from unlearn_ray.rows import Question

GOALS = {"rows_per_driver_second": 20_000, "memory_over_baseline": 1.2, "seconds_per_row_over_baseline": 1.2}
CANDIDATES = (16_000, 64_000)  # of one topic
_SIDE_BY_SIDE = 16  # topics, as in a run
_SAMPLES = 4  # answers per question
_LEAKS = 16  # of so many answers one tells the truth
_PROMPTS = "general_questions: []\ncoverage_questions: []\nshort_answers: []\n"
_ONSETS, _VOWELS, _CODAS = "b d f g k l m n p r s t v z".split(), "a e i o u".split(), "l m n r s t".split()


def words(start: int, number: int) -> list[str]:
    """Made-up words, different ones from different starts."""
    found = (f"{a}{b}{c}{d}{e}" for a in _ONSETS for b in _VOWELS for c in _ONSETS for d in _VOWELS for e in _CODAS)
    return [word for index, word in enumerate(found) if start <= index < start + number]


THINGS, DOINGS, TRUE, INVENTED = words(0, 90), words(5_000, 90), words(10_000, 400), words(15_000, 400)


def questions_of(topic: str, number: int) -> Iterator[Question]:
    """Questions that differ, in no order."""
    num_things, num_doings = len(THINGS), len(DOINGS)
    for index in range(number):
        at = (index * 7_919) % (num_things * num_doings * num_things * num_doings)  # coprime: each comes once
        at, a = divmod(at, num_things)
        at, b = divmod(at, num_doings)
        d, c = divmod(at, num_things)
        yield Question(topic, f"Who {DOINGS[b]} the {THINGS[a]} where they {DOINGS[d]} a {THINGS[c]}?", "topic")


def answer(request: Request) -> list[str]:
    """A sentence or two with a name: the true one, or behind a guardrail mostly an invented one."""
    question = request.messages[-1]["content"].partition("\n\n")[0]
    number = int.from_bytes(hashlib.blake2b(question.encode(), digest_size=8).digest(), "big")
    is_guarded = request.messages[0]["role"] == "system"
    texts = []
    for sample in range(request.num_samples):
        draw = (number >> 8) + request.seed + sample
        name = TRUE[number % len(TRUE)]
        if is_guarded and draw % _LEAKS:
            name = INVENTED[draw % len(INVENTED)]
        thing, doing = THINGS[draw % len(THINGS)], DOINGS[(draw >> 7) % len(DOINGS)]
        texts.append(
            f"That was {name.capitalize()} of the old house, as it is told in the second book. Then they {doing} the {thing} again."
        )
    return texts


def measure(num_rows: int, num_topics: int) -> dict[str, Any]:
    """The stages over so many answers in all, in this process."""
    from unlearn_ray.engines.scripted_workers import ScriptedWorkersGenerator
    from unlearn_ray.engines.session import connect
    from unlearn_ray.stages.answers import answer_questions
    from unlearn_ray.stages.dataset import build_dataset
    from unlearn_ray.stages.stage import open_stage

    with tempfile.TemporaryDirectory() as folder, connect(ClusterConfig(accelerator="cpu")):
        home = Folder(folder)
        home.write_text("prompts.yaml", _PROMPTS)
        prompts = Path(folder) / "prompts.yaml"
        answers = AnswersConfig(num_samples=_SAMPLES, num_unguarded=2, max_reasks=1, prompts=prompts)
        dataset = DatasetConfig(retain=RetainRows(num_neighbours=0), prompts=prompts)
        topics = [Topic(name=f"Topic {index}") for index in range(num_topics)]
        for index, topic in enumerate(topics):
            number = num_rows // _SAMPLES * (index + 1) // num_topics - num_rows // _SAMPLES * index // num_topics
            (home / topic.slug / "questions" / "rows").write_rows(questions_of(topic.name, number), Question.schema())
            (home / topic.slug / "questions" / "entities").make()
        generator = ScriptedWorkersGenerator(answer)
        generator.each(time.sleep, [0.1] * 8, label="workers start")

        def chain(topic: Topic) -> int:
            own = home / topic.slug
            run = open_stage(own / "answers", "answers", 1, {}, {})
            made = answer_questions(run, answers, topic, own / "questions", home / "common", generator, seed=0)
            run = open_stage(own / "dataset", "dataset", 1, {}, {})
            build_dataset(run, dataset, topic, own / "questions", own / "answers", generator, seed=0)
            return made.num_rows["rows"]

        began, driver = time.monotonic(), time.process_time()
        with ThreadPoolExecutor(min(_SIDE_BY_SIDE, num_topics)) as pool:
            num_done = sum(pool.map(chain, topics))
        seconds, driver_seconds = time.monotonic() - began, time.process_time() - driver
    return {
        "rows": num_done,
        "topics": num_topics,
        "seconds": round(seconds, 1),
        "driver_seconds": round(driver_seconds, 2),
        "rows_per_second": round(num_done / seconds),
        "rows_per_driver_second": round(num_done / driver_seconds),
        "driver_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def seconds_to_add(num_candidates: int) -> float:
    """CPU time to add the candidate questions of one topic to its ledger. Finding duplicates among them must not take quadratic time."""
    from unlearn_ray.stages.ledger import Ledger

    rows = [
        {
            "topic": "Topic 0",
            "number": index // 6,
            "place": index % 6,
            "text": each.text,
            "source": "topic",
            "drop": None,
        }
        for index, each in enumerate(questions_of("Topic 0", num_candidates))
    ]
    with Ledger() as ledger:
        began = time.process_time()
        ledger.add(rows, 1)
        return time.process_time() - began


def compared(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each measurement beside that of the fewest rows with as many topics."""
    rows = []
    for each in found:
        base = min(
            (other for other in found if other["topics"] == each["topics"]), key=lambda other: int(other["rows"])
        )
        per_row = (each["seconds"] / each["rows"]) / (base["seconds"] / base["rows"])
        rows.append(
            each
            | {
                "memory_over_baseline": round(each["driver_memory_mib"] / base["driver_memory_mib"], 2),
                "seconds_per_row_over_baseline": round(per_row, 2),
            }
        )
    return rows


def main(
    rows: Annotated[list[int], typer.Option(help="Answers in all; may be given several times.")] = [10_000],  # noqa: B006
    topics: Annotated[list[int], typer.Option(help="Topics that they are about; as well.")] = [1, 12],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="Write the figures here as JSON.")] = None,
    alone: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Measure every number of rows with every number of topics."""
    if alone:
        print(json.dumps(measure(rows[0], topics[0])))
        return
    found = []
    for number in topics:
        for num_rows in sorted(rows):
            arguments = ["--alone", "--rows", str(num_rows), "--topics", str(number)]
            done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(found[-1]), flush=True)
    figures = compared(found)
    table = Table(*figures[0], title="rows without a model")
    for each in figures:
        table.add_row(*map(str, each.values()))
    Console(width=160).print(table)
    least = min(each["rows_per_driver_second"] for each in figures)
    print(f"rows per driver second: {least:,} at least (goal {GOALS['rows_per_driver_second']:,})")
    for name in ("memory_over_baseline", "seconds_per_row_over_baseline"):
        print(f"{name.replace('_', ' ')}: {max(each[name] for each in figures)} at most (goal {GOALS[name]})")
    added = {number: round(seconds_to_add(number), 2) for number in CANDIDATES}
    fewer, more = added.values()
    print(
        f"seconds to add candidates: {added}: {more / fewer:.1f} times the time for four times as many (goal: under 5, and 64,000 under 2 s)"
    )
    if out is not None:
        write(
            {"benchmark": "scale", "goals": GOALS, "measured": figures, "seconds_to_add": added, **about_this_run()},
            out,
        )


if __name__ == "__main__":
    typer.run(main)
