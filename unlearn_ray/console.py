"""Output in the terminal: the plan, progress with rate and ETA, one line per finished stage, the summary."""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from unlearn_ray.artifacts import Manifest
from unlearn_ray.words import visible

if TYPE_CHECKING:  # the pipeline imports every stage; a progress bar must not
    from unlearn_ray.plan import PlannedStage
    from unlearn_ray.runs import UnitState
    from unlearn_ray.train.metrics import StepMetrics

_FEW = 3  # number of topics up to which they are named
_BAR_CELLS = 70  # width of a bar with its numbers and times
_MAX_NAME_CELLS = 36
_PLAIN_SECONDS = 10.0  # between progress lines if no bar can be drawn (a job's log)
_STATES = {
    "finished": ("skip", "green", "finished, unchanged"),
    "resumed": ("resume", "yellow", "interrupted: continues where it stopped"),
    "redone": ("redo", "yellow", "config or input changed, or half written: done again"),
    "asked": ("redo", "yellow", "requested with --from: done again"),
    "fresh": ("run", "cyan", "new"),
}


def make_console(stderr: bool = False) -> Console:
    """A console that replaces no colons with emojis, and colours no numbers."""
    return Console(stderr=stderr, highlight=False, emoji=False)


def plain(text: object) -> str:
    """A text of users or models, escaped for rich's markup: it can't set a style, break a line or send a terminal command."""
    return escape(visible(str(text)))


class _Rate(ProgressColumn):
    """Steps per second, from the last few updates."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="progress.data.speed")


class Progression:
    """Progress of a run's long steps: bars in a terminal, a line every ten seconds elsewhere. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[speed]}", markup=False, style="progress.data.speed"),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}
        self._spoke: dict[str, float] = {}
        self._ended: set[str] = set()
        self._speeds: dict[str, str] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> "Progression":
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def update(self, label: str, done: int, total: int) -> None:
        """Report `done` of `total` rows or steps for the step `label`. Total 0: not known yet. Thread-safe."""
        with self._lock:
            self._update(label, done, total)

    def describe(self, label: str, text: str) -> None:
        """Set a text, such as a training's loss, that is shown after the numbers of a step from its next update on. Thread-safe."""
        with self._lock:
            self._speeds[label] = text

    def _update(self, label: str, done: int, total: int) -> None:
        if 0 < total <= done:
            self._ended.add(label)
        if self.console.is_terminal:
            if label not in self._tasks:
                self._tasks[label] = self._bars.add_task(
                    _short(visible(label), self.console.width), total=total or None, speed=""
                )
            speed = self._speeds.get(label, "")
            self._bars.update(self._tasks[label], completed=done, total=total or None, speed=speed)
            return
        now = time.monotonic()
        began = self._began.setdefault(label, now)
        is_end = total > 0 and done >= total
        if not is_end and now - self._spoke.get(label, began) < _PLAIN_SECONDS:
            return
        self._spoke[label] = now
        rate = done / (now - began) if now > began else 0.0
        left = f", {(total - done) / rate:.0f} s left" if rate and not is_end and total else ""
        speed = f", {self._speeds[label]}" if label in self._speeds else ""
        self.console.print(f"  {plain(label)}: {done}/{total or '?'}, {rate:.1f}/s{speed}{left}", highlight=False)

    def say(self, text: str) -> None:
        """Print a line above the bars, such as the reason for a wait."""
        self.console.print(f"  {plain(text)}", highlight=False, soft_wrap=True)

    def clear(self) -> None:
        """Remove the bars of finished steps. Other topics, and their bars, go on."""
        with self._lock:
            for label in self._ended:
                if label in self._tasks:
                    self._bars.remove_task(self._tasks.pop(label))
                self._began.pop(label, None)
                self._speeds.pop(label, None)
                self._spoke.pop(label, None)
            self._ended.clear()


def _short(label: str, width: int) -> str:
    """A label that leaves room for its bar. A long one is cut in the middle, because the step is at its end. Wide characters count as two."""
    room = max(_MAX_NAME_CELLS, width - _BAR_CELLS)
    if cell_len(label) <= room:
        return label
    tail = label[-1:]
    while cell_len(label[-len(tail) - 1 :]) <= room // 2:
        tail = label[-len(tail) - 1 :]
    return f"{chop_cells(label, room - cell_len(tail) - 1)[0]}…{tail}"


def plan_table(stages: "Sequence[PlannedStage]") -> Table:
    """The resolved plan: the action of each stage, and its reason. Several topics or models are counted; a few are named."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("stage", "would", "why", "rows", "engines"):
        table.add_column(column)
    for stage in stages:
        would, why = _prospect(stage) if stage.is_selected else ("[dim]-[/]", "not asked for")
        table.add_row(stage.name, would, why, plain(stage.rows), plain(stage.engine))
    return table


def _prospect(stage: "PlannedStage") -> tuple[str, str]:
    by_state: dict[str, list[str]] = {}
    for label, state in stage.states.items():
        by_state.setdefault(state, []).append(label)
    if len(stage.states) == 1:
        verb, style, why = _STATES[next(iter(by_state))]
        return f"[{style}]{verb}[/]", why
    order = [name for name in _STATES if name in by_state]
    would = ", ".join(f"[{_STATES[name][1]}]{_STATES[name][0]} {len(by_state[name])}[/]" for name in order)
    whys = []
    for name in order:
        labels, why = by_state[name], _STATES[name][2]
        is_said = len(by_state) > 1 and len(labels) <= _FEW
        whys.append(f"{why} ({plain(', '.join(labels))})" if is_said else why)
    return would, "; ".join(whys)


def note_line(note: str) -> str:
    """One line for a note before a run."""
    return f"  [yellow]![/] {plain(note)}"


def start_line(name: str, state: str) -> str | None:
    """One line for a stage that continues or redoes the work of an earlier run. None if there is no earlier work, or nothing to do."""
    if state in {"fresh", "finished"}:
        return None
    _, style, why = _STATES[state]
    return f"  [bold]{plain(name):<9}[/] [{style}]{why}[/]"


def failure_line(name: str, reason: str) -> str:
    """One line for a topic or a model that failed."""
    return f"[red]✗[/] [bold]{plain(name)}[/] {plain(reason)}"


def log_lines(name: str, lines: Sequence[str]) -> list[str]:
    """The last log lines of a failed training, to be shown below its failure."""
    if not lines:
        return []
    return [f"  [dim]the log of {plain(name)} ends with:[/]", *(f"    [dim]{plain(line)}[/]" for line in lines)]


def training_line(name: str, last: "StepMetrics") -> str:
    """The last step of a training, and its age."""
    ago = max(0.0, time.time() - last.at)
    since = f"{ago:.0f} s" if ago < 120 else f"{ago / 60:.0f} min" if ago < 7200 else f"{ago / 3600:.0f} h"
    return f"[bold]{plain(name)}[/], finetune: {last.line} [dim]({since} ago)[/]"


def status_table(states: "Sequence[UnitState]") -> Table:
    """One line per topic and model, and one for the pool: its last stage, the largest count of rows that it made and dropped. In a narrow
    terminal long names and numbers are wrapped; wide characters count as two. Failures are shown below the table, by `failure_line`."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("", overflow="fold", min_width=12, max_width=_MAX_NAME_CELLS)
    for column in ("stage", "state"):
        table.add_column(column, no_wrap=True)
    for column in ("rows", "dropped"):
        table.add_column(column, overflow="fold", min_width=10)
    table.add_column("seconds", justify="right", no_wrap=True)
    for each in states:
        style = {"finished": "green", "failed": "red", "unfinished": "yellow"}.get(each.state, "dim")
        made = _largest(each.last.num_rows) if each.last is not None else ""
        made += " (budget spent)" if each.last is not None and _is_spent(each.last) else ""
        lost, num_lost = _largest(each.drops), sum(each.drops.values())
        dropped = f"{num_lost:,} (most: {lost})" if len(each.drops) > 1 else lost
        seconds = f"{each.seconds:.0f}" if each.seconds else ""
        table.add_row(plain(each.label), each.stage, f"[{style}]{each.state}[/]", made, dropped, seconds)
    return table


def _largest(numbers: Mapping[str, int]) -> str:
    name = max(numbers, key=lambda each: numbers[each], default="")
    return f"{numbers[name]:,} {plain(name)}" if name and numbers[name] else ""


def counts(numbers: Mapping[str, int]) -> str:
    """`{"forget": 640, "retain": 900}` -> `640 forget, 900 retain`."""
    return ", ".join(f"{number:,} {plain(name)}" for name, number in numbers.items() if number) or "-"


def stage_line(name: str, manifest: Manifest, is_skipped: bool) -> str:
    """One line for a finished stage."""
    if is_skipped:
        return f"[green]✓[/] [bold]{plain(name):<9}[/] [dim]skipped: finished before, nothing changed[/]"
    drops = f"[dim], dropped {counts(manifest.drops)}[/]" if any(manifest.drops.values()) else ""
    drops += "[dim], max_output_tokens is spent[/]" if _is_spent(manifest) else ""
    cached = f", {share:.0%} of prompts cached" if (share := _share_cached(manifest)) else ""
    return f"[green]✓[/] [bold]{plain(name):<9}[/] {counts(manifest.num_rows)}{drops} [dim]({manifest.seconds:.0f} s{cached})[/]"


def _is_spent(manifest: Manifest) -> bool:
    budget = manifest.details.get("budget", {})
    return bool(budget) and bool(budget["spent"] >= budget["max_output_tokens"])


def _share_cached(manifest: Manifest) -> float:
    """The share of the prompts' tokens that were in the engines' prefix caches."""
    tokens = manifest.details.get("tokens") or {}
    queries = tokens.get("prefix_queries", 0)
    return float(tokens.get("prefix_hits", 0) / queries) if queries else 0.0
