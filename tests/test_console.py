"""What the terminal shows of a long step: how far it is, how fast, and how long it still takes."""

import io

import pytest
from rich.console import Console

from unlearn_ray.console import Progression


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


def test_a_terminal_has_a_bar_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(True, monkeypatch)
    assert "answers" in text and " 40/100 " in text
    assert "2.0/s" in text and "ETA 0:00:30" in text
