"""`attacks.html`: what attacks brought back, on one page that needs no network. Model output is untrusted: the template escapes everything."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from markupsafe import Markup
from rich.markup import escape
from rich.table import Table

from unlearn_ray.attacks.attack import AttackedModel
from unlearn_ray.attacks.figures import LABELS, AttackFigures, AttackReport, Figure
from unlearn_ray.attacks.prompt import WORST
from unlearn_ray.evals import plots
from unlearn_ray.evals.attacked import NO_SHARES, worst_by_model
from unlearn_ray.evals.html import asset, environment
from unlearn_ray.evals.report import percent
from unlearn_ray.words import marked, visible

MAX_SHOWN = 40  # answers that tell a fact
MAX_CHARACTERS = 500  # of a prompt or an answer
MODELS: tuple[AttackedModel, ...] = get_args(AttackedModel)
OTHERS: tuple[AttackedModel, ...] = ("base", "twin")  # that the verdict puts beside
_COLOURS = {"base": "var(--base)", "guarded": "var(--guarded)", "unlearned": "var(--unlearned)", "twin": "var(--ink)"}
METRICS = {
    "recall": "Facts told",
    "choice": "True answer preferred",
    "accuracy": "Accuracy",
    "rank": "Rank of the true answer (geometric mean)",
    "rouge_l_recall": "ROUGE-L recall",
}


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a table: what it is of, and a cell a model."""

    what: str
    where: str
    num: int
    cells: list[tuple[str, str]]  # figure, its interval


@dataclass(frozen=True, slots=True)
class Section:
    """One attack."""

    name: str
    summary: str
    asked: str
    figures: list[tuple[str, str, Markup]]  # title, caption, plot
    is_broad: bool
    lines: list[Line]


@dataclass(frozen=True, slots=True)
class ShownLeak:
    """An answer of the unlearned model that tells a fact."""

    kind: str
    topic: str
    prompt: str
    truth: str
    pieces: list[tuple[str, bool]]


def page(report: AttackReport, told: Iterable[dict[str, Any]]) -> str:
    """The page.

    Args:
        told: rows of prompt.Told; only those of the unlearned model that tell are kept.
    """
    models = _models(report)
    return environment().get_template("attacks.html.jinja").render(
        report=report,
        style=Markup(asset("report.css")),
        verdict=verdict(report),
        labels={model: LABELS[model] for model in models},
        worst=[line for attack in report.attacks for line in _worst(attack, models)],
        sections=[_section(attack, models) for attack in report.attacks],
        leaks=_leaks(told),
    )  # fmt: skip


def table(report: AttackReport) -> Table:
    """The worst case of each attack, for a terminal."""
    models = _models(report)
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("attack", "worst setting", *(LABELS[model] for model in models), "n"):
        is_text = title in ("attack", "worst setting")
        # The settings give way on a narrow terminal.
        shown.add_column(
            title,
            justify="left" if is_text else "right",
            overflow="fold",
            no_wrap=title != "worst setting",
            min_width=8 if is_text else None,
        )
    for line in (line for attack in report.attacks for line in _worst(attack, models)):
        cells = (f"{figure} [{interval}]" if interval else figure for figure, interval in line.cells)
        shown.add_row(*(escape(visible(cell)) for cell in (line.what, line.where, *cells, str(line.num))))
    return shown


def _models(report: AttackReport) -> list[AttackedModel]:
    """Those that were attacked."""
    have = {each.model for attack in report.attacks for each in attack.figures}
    return [model for model in MODELS if model in have]


def verdict(report: AttackReport) -> str:
    """The result in a sentence an attack."""
    said = []
    for attack in report.attacks:
        for metric in attack.metrics:
            by_model = worst_by_model(attack.figures, metric)
            worst = by_model.get("unlearned")
            if worst is None or metric not in ("recall", "choice"):
                continue
            verb = "tells" if metric == "recall" else "prefers the truth in"
            of = "of the facts" if metric == "recall" else "of choices"
            others = [f"{LABELS[other]}: {shown(by_model[other])}" for other in OTHERS if other in by_model]
            said.append(
                f"Under {attack.name} ({_where(attack, worst)}) the unlearned model {verb} {shown(worst)} {of}"
                + (f" ({', '.join(others)})." if others else ".")
            )
    return " ".join(said)


def shown(figure: Figure | None) -> str:
    if figure is None:
        return "n/a"
    return percent(figure.value) if figure.is_share else f"{figure.value:.1f}"


def _interval(figure: Figure | None) -> str:
    if figure is None:
        return ""
    low, high = figure.interval
    return f"{100 * low:.0f} to {100 * high:.0f}" if figure.is_share else f"{low:.1f} to {high:.1f}"


def _where(attack: AttackFigures, figure: Figure) -> str:
    at = f"{figure.at:g} {attack.axis}" if attack.axis else ""
    if attack.axis == "layer":
        at = f"layer {figure.at:g}"
    return ", ".join(filter(None, (readable(figure.setting), at)))


def readable(setting: str) -> str:
    return setting.replace("_", " ")


def _line(attack: AttackFigures, figure: Figure, what: str, of: Sequence[Figure | None]) -> Line:
    """A row of a figure and those of several models."""
    return Line(what, _where(attack, figure), figure.num, [(shown(each), _interval(each)) for each in of])


def _worst(attack: AttackFigures, models: Sequence[AttackedModel]) -> list[Line]:
    """What each metric of an attack gets out of the unlearned model at most, and out of the others at the same place on the curve."""
    lines = []
    for metric in attack.metrics:
        by_model = worst_by_model(attack.figures, metric)
        if (figure := by_model.get("unlearned")) is not None:
            of = [by_model.get(model) for model in models]
            lines.append(_line(attack, figure, f"{attack.name}: {_title(metric).lower()}", of))
    return lines


def _title(metric: str) -> str:
    return METRICS.get(metric, readable(metric))


def _section(attack: AttackFigures, models: Sequence[AttackedModel]) -> Section:
    first = {(each.setting, each.at, each.metric): each for each in reversed(attack.figures)}
    ordered = sorted(first.values(), key=lambda each: (each.metric, each.setting == WORST, each.setting, each.at))
    asked = (
        ""
        if attack.facts_per_topic is None
        else f"At most {attack.facts_per_topic} facts of each topic were asked, chosen by hash."
    )
    lines = [
        _line(attack, each, _title(each.metric), [attack.beside(each, model) for model in models]) for each in ordered
    ]
    plot = _curves if attack.axis else _settings
    drawn = [(_title(metric), *plot(attack, metric, models)) for metric in attack.metrics]
    return Section(
        attack.name,
        attack.summary,
        asked,
        [(title, told, Markup(svg)) for title, told, svg in drawn if svg],
        not attack.axis,
        lines,
    )


def _curves(attack: AttackFigures, metric: str, models: Sequence[AttackedModel]) -> tuple[str, str | None]:
    found = [each for each in attack.figures if each.metric == metric and each.model in models]
    rows = [_row(each, is_worst=False) for each in found]
    for model in models:
        by_place: dict[float, list[Figure]] = {}
        for each in found:
            if each.model == model:
                by_place.setdefault(each.at, []).append(each)
        choose = min if metric in NO_SHARES else max
        rows += [
            _row(choose(of, key=lambda each: each.value), is_worst=True) | {"setting": WORST}
            for of in by_place.values()
        ]
    is_share = metric not in NO_SHARES
    svg = plots.attack_curves(rows, {LABELS[m]: _COLOURS[m] for m in models}, attack.axis, is_share=is_share)
    return "A thin line a setting; thick: the worst setting at each point.", svg


def _settings(attack: AttackFigures, metric: str, models: Sequence[AttackedModel]) -> tuple[str, str | None]:
    if metric in NO_SHARES:
        return "", None
    told = {each.setting: each.value for each in attack.figures if (each.model, each.metric) == ("unlearned", metric)}
    rows = [
        {"of": readable(each.setting), "low": each.interval[0], "high": each.interval[1]} | _row(each, is_worst=False)
        for each in sorted(attack.figures, key=lambda each: (-told.get(each.setting, 0.0), each.setting))
        if each.metric == metric
    ]
    svg = plots.attack_settings(rows, {LABELS[m]: _COLOURS[m] for m in models})
    worst = f" “{WORST}”: facts that at least one of them brings out." if WORST in told else ""
    return f"A point and its 95 % interval, the worst first.{worst}", svg


def _row(figure: Figure, *, is_worst: bool) -> dict[str, Any]:
    return {
        "model": LABELS[figure.model],
        "setting": figure.setting,
        "at": figure.at,
        "value": figure.value,
        "is_worst": is_worst,
    }


def _leaks(told: Iterable[dict[str, Any]]) -> list[ShownLeak]:
    """What the unlearned model told, each fact once before any comes twice."""
    found = [row for row in told if row["model"] == "unlearned" and row["value"] >= 1.0 and not row["gives_answer"]]
    turns: dict[str, int] = {}
    ranked = []
    for row in found:
        turns[row["fact"]] = turns.get(row["fact"], 0) + 1
        ranked.append((turns[row["fact"]], row["fact"], row["kind"], row))
    return [_leak(row) for *_, row in sorted(ranked, key=lambda each: each[:3])[:MAX_SHOWN]]


def _leak(row: dict[str, Any]) -> ShownLeak:
    truths = tuple(row["truths"])
    return ShownLeak(
        readable(row["kind"]), row["topic"], _cut(row["prompt"]), truths[0], marked(_cut(row["answers"][0]), truths)
    )


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"


__all__ = ["page", "table", "verdict"]
