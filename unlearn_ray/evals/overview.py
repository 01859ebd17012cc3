"""All topics and models of a run, or of several, on one page and in one table: how far each is, what stopped it, and its figures."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup
from rich.markup import escape
from rich.table import Table

from unlearn_ray.evals.html import asset, environment
from unlearn_ray.evals.report import figure_name, percent
from unlearn_ray.evals.scoring import ModelName
from unlearn_ray.rows import Group
from unlearn_ray.words import visible

INDEX = "index.html"
_SHOWN: tuple[tuple[ModelName, Group, str], ...] = (
    ("base", "forget", "recall"),
    ("guarded", "forget", "recall"),
    ("unlearned", "forget", "recall"),
    ("unlearned", "forget", "choice"),
    ("base", "near", "recall"),
    ("unlearned", "near", "recall"),
    ("base", "far", "recall"),
    ("unlearned", "far", "recall"),
)
_NAMES: dict[ModelName, str] = {"base": "base", "guarded": "prefix", "unlearned": "unlearned"}
# Figure of an evaluation's manifest (details.headline) -> its title. Recall, and choice on the same probes.
FIGURES = {
    figure_name(model, group, short): f"{group if short == 'recall' else short}, {_NAMES[model]}"
    for model, group, short in _SHOWN
}
_ORDER = {"failed": 0, "unfinished": 1, "not begun": 2, "finished": 3}


@dataclass(frozen=True, slots=True)
class Line:
    """A topic, a model or the pool of a run."""

    run: str
    kind: str  # pool, topic, model
    name: str
    state: str  # failed, unfinished, not begun, finished
    stage: str
    reason: str = ""
    num_rows: Mapping[str, int] = field(default_factory=dict)  # of its last stage
    num_dropped: int = 0
    seconds: float = 0.0
    figures: Mapping[str, float | str] = field(default_factory=dict)
    link: str = ""  # to its report, from the page
    log: Sequence[str] = ()  # last log lines of a failed training

    @property
    def rows(self) -> str:
        return ", ".join(f"{number:,} {name}" for name, number in self.num_rows.items() if number)

    def figure(self, name: str) -> str:
        value = self.figures.get(name)
        return percent(value) if isinstance(value, float) else ""

    def value(self, name: str) -> float | str:
        """What the figure is sorted by; "" where there is none."""
        value = self.figures.get(name)
        return value if isinstance(value, float) else ""


def in_order(lines: Sequence[Line]) -> list[Line]:
    """What failed first, then what is unfinished; each in the order it came in."""
    return sorted(lines, key=lambda line: _ORDER.get(line.state, 1))


def page(title: str, lines: Sequence[Line]) -> str:
    """The page, which needs no network."""
    script = asset("index.js")
    models, others = (
        [line for line in in_order(lines) if (line.kind == "model") == is_model] for is_model in (True, False)
    )
    return environment().get_template("index.html.jinja").render(
        title=title,
        style=Markup(asset("report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        models=models,
        others=others,
        figures=FIGURES,
        has_runs=len({line.run for line in lines}) > 1,
        num_failed=sum(line.state == "failed" for line in lines),
    )  # fmt: skip


def table(lines: Sequence[Line]) -> Table:
    """The models of several runs beside each other."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("run", "model", *FIGURES.values(), "forgetting"):
        is_name = column in ("run", "model")
        least = 5 if column in FIGURES.values() else 8  # `100 %`
        shown.add_column(column, justify="left" if is_name else "right", overflow="fold", min_width=least, max_width=24)
    for line in lines:
        if line.kind == "model":
            said = str(line.figures.get("forgetting", line.state)).replace("_", " ")
            cells = [line.run, line.name, *(line.figure(name) for name in FIGURES), said]
            shown.add_row(*(escape(visible(cell)) for cell in cells))
    return shown
