"""What the terminal shows: of a long step how far it is, how fast, and how long it still takes; of users' and models' texts what they are."""

import io
import logging
from typing import Any

import pytest
from rich.cells import cell_len, chop_cells
from rich.console import Console

from unlearn_ray.artifacts import Manifest
from unlearn_ray.cli import _OneLine
from unlearn_ray.console import (
    Progression,
    _short,
    failure_line,
    log_lines,
    make_console,
    plain,
    plan_table,
    stage_line,
    status_table,
    training_line,
)
from unlearn_ray.plan import PlannedStage
from unlearn_ray.runs import UnitState
from unlearn_ray.train.metrics import StepMetrics


def shown(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    """40 of 100 rows after 20 seconds, and all of them after 50."""
    now = [100.0]
    monkeypatch.setattr("unlearn_ray.console.time.monotonic", lambda: now[0])
    text = io.StringIO()
    console = Console(
        file=text,
        force_terminal=is_terminal,
        width=120,
        color_system=None,
        legacy_windows=False,
        get_time=lambda: now[0],
    )
    progress = Progression(console)
    with progress:
        for at, done in ((100.0, 0), (105.0, 10), (120.0, 40), (150.0, 100)):
            now[0] = at
            progress.update("answers", done, 100)
            if is_terminal:
                progress._bars.refresh()
    return text.getvalue()


def test_a_log_has_plain_lines_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(False, monkeypatch).rstrip().splitlines()
    assert lines == ["  answers: 40/100, 2.0/s, 30 s left", "  answers: 100/100, 2.0/s"]


def test_a_training_has_its_loss_and_speed_beside_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_terminal in (False, True):
        text = io.StringIO()
        console = Console(file=text, force_terminal=is_terminal, width=160, color_system=None, legacy_windows=False)
        progress = Progression(console)
        with progress:
            progress.update("finetune joint", 1, 4)
            progress.describe("finetune joint", "loss 0.43, 1,200 tokens/s")
            progress.update("finetune joint", 4, 4)
            if is_terminal:
                progress._bars.refresh()
        assert "4/4" in text.getvalue() and "loss 0.43, 1,200 tokens/s" in text.getvalue()


def test_how_far_a_training_is_and_what_it_said_last_take_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlearn_ray.console.time.time", lambda: 1_000_240.0)
    last = StepMetrics(36, 80, 0.43, 0.4, None, 1e-3, 0.1, False, 2400, 1200.0, 2.0, 1.4, 1_000_000.0)
    assert printed(training_line("[red]joint", last)).startswith(
        "[red]joint, finetune: step 37/80, loss 0.43, 1,200 tokens/s, "
    )
    assert printed(training_line("joint", last)).endswith("1.4 GiB (4 min ago)\n")
    lines = [printed(line) for line in log_lines("joint", ["[red]x[/]\x1b[31m", "y"])]
    assert lines == ["  the log of joint ends with:\n", "    [red]x[/]\\x1b[31m\n", "    y\n"]
    assert log_lines("joint", []) == []


def test_a_terminal_has_a_bar_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(True, monkeypatch)
    assert "answers" in text and " 40/100 " in text
    assert "2.0/s" in text and "ETA 0:00:30" in text


HOSTILE = "A$AP [red]x[/] :smile: \x1b[31m\nnext \ud83d end\\"


def printed(*objects: object) -> str:
    console = make_console()
    console.file, console.width = io.StringIO(), 200
    console.print(*objects)
    return console.file.getvalue()


def test_text_of_users_and_models_is_printed_as_it_is_on_one_line() -> None:
    shown = printed(f"[bold]{plain(HOSTILE)}[/]")
    assert shown == "A$AP [red]x[/] :smile: \\x1b[31m next \\ud83d end\\\n"


def test_a_plan_and_a_summary_take_no_markup_from_users() -> None:
    stage = PlannedStage("evaluate", {"joint": "fresh"}, True, "probes: [red]mine[/].jsonl :smile:", "1 x vLLM")
    assert "probes: [red]mine[/].jsonl :smile:" in printed(plan_table([stage]))


def test_a_progress_label_takes_no_markup() -> None:
    console = make_console()
    console.file, console.width = io.StringIO(), 200
    with Progression(console) as progress:
        progress.update("finetune [red]x[/] :smile:", 1, 1)
    assert "finetune [red]x[/] :smile:" in console.file.getvalue()


def test_a_log_line_stays_one_line() -> None:
    record = logging.LogRecord("unlearn_ray", logging.INFO, "", 0, "about %s", (HOSTILE,), None)
    line = _OneLine("%(message)s").format(record)
    assert "\n" not in line and "\x1b" not in line
    line.encode()


def test_what_is_waited_for_is_a_line_as_it_stands() -> None:
    text = io.StringIO()
    Progression(Console(file=text, width=40)).say("waiting for room for 1 engine of [2] CPUs: none is free")
    assert text.getvalue() == "  waiting for room for 1 engine of [2] CPUs: none is free\n"


def test_a_stages_line_tells_what_the_prefix_cache_saved() -> None:
    values = {"stage": "answers", "fingerprint": "f", "version": 1, "config": {}, "inputs": {}, "drops": {}}
    plain_one = Manifest(**values, num_rows={"rows": 8}, seconds=3)
    tokens = {"prompt_tokens": 100, "prefix_queries": 400, "prefix_hits": 332}
    cached = plain_one.model_copy(update={"details": {"tokens": tokens}})
    assert "3 s, 83% of prompts cached)" in stage_line("answers", cached, is_skipped=False)
    assert "cached" not in stage_line("answers", plain_one, is_skipped=False)
    unused = plain_one.model_copy(update={"details": {"tokens": tokens | {"prefix_hits": 0}}})
    assert "cached" not in stage_line("answers", unused, is_skipped=False)


def test_the_status_has_a_line_per_topic_with_what_stopped_it() -> None:
    manifest = Manifest(
        stage="dataset",
        fingerprint="f",
        version=1,
        config={},
        inputs={},
        num_rows={"forget_train": 7, "near": 3},
        drops={},
    )
    states = [
        UnitState("topic", "Dune", "dataset", "finished", manifest, {"leak": 2, "duplicate": 1}, 12.4),
        UnitState("topic", "It [red]", "questions", "failed", None, {}, 0.0, "the model wrote no usable question"),
    ]
    lines = [" ".join(line.split()) for line in printed(status_table(states)).splitlines()]
    assert lines[1] == "Dune dataset finished 7 forget_train 3 (most: 2 leak) 12"
    assert lines[2] == "It [red] questions failed"
    assert len(lines) == 3
    assert printed(failure_line("It [red], questions", states[1].reason)).split() == [
        *"✗ It [red], questions the model wrote no usable question".split()
    ]


@pytest.mark.parametrize("name", ["A topic with a name that goes on and on " * 3, "哈利波特与魔法石" * 7, "x" * 120])
def test_a_long_name_is_wrapped_and_hides_nothing(name: str) -> None:
    values: dict[str, Any] = {"stage": "dataset", "fingerprint": "f", "version": 1, "config": {}, "inputs": {}}
    manifest = Manifest(**values, num_rows={"forget_train": 7000}, drops={})
    drops = {"leak": 2, "duplicate": 1000}
    console, text = make_console(), io.StringIO()
    console.file, console.width = text, 80
    console.print(status_table([UnitState("topic", name, "dataset", "finished", manifest, drops, 12.4)]))
    lines = text.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= 80 and lines[0].split() == ["stage", "state", "rows", "dropped", "seconds"]
    assert "finished" in lines[1] and lines[1].rstrip().endswith("12")
    shown = "".join(text.getvalue().split())
    assert all(each in shown for each in ("7,000", "1,002", "duplicate"))
    width = lines[0].index("stage")
    column = "".join(chop_cells(line, width)[0] for line in lines[1:])
    assert "".join(column.split()) == "".join(name.split())


@pytest.mark.parametrize("name", ["A topic with a name that goes on and on " * 3, "哈利波特与魔法石" * 7])
def test_a_long_label_leaves_room_for_its_bar_and_keeps_its_step(name: str) -> None:
    for width in (80, 120):
        label = _short(f"{name}: questions, round 3", width)
        assert label.startswith(name[:6]) and label.endswith("ns, round 3") and cell_len(label) <= 50
    assert _short("Dune: questions, round 3", 80) == "Dune: questions, round 3"


def test_the_plan_of_several_topics_counts_them_and_names_the_few() -> None:
    states = {"Dune": "finished", "It": "fresh", "Ubik": "finished"}
    line = printed(plan_table([PlannedStage("answers", states, True, "9 answers", "vLLM")])).splitlines()[1]  # type: ignore[arg-type]
    assert "skip 2, run 1" in line and "new (It)" in line
    many = {f"topic {number}": "fresh" for number in range(200)}
    (line,) = printed(plan_table([PlannedStage("answers", many, True, "9 answers", "vLLM")])).splitlines()[1:]  # type: ignore[arg-type]
    assert "run 200" in line and "topic 7" not in line
