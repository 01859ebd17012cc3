"""The report's plots, as SVG text that takes its colours from the page, so that both colour schemes fit."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import vl_convert

from unlearn_ray.evals.report import LABELS, ByModel, Metric, Report
from unlearn_ray.evals.scoring import MODELS
from unlearn_ray.rows import GROUPS, Group, digest

_COLOURS = ["var(--base)", "var(--guarded)", "var(--unlearned)"]
_SHAPES = ["circle", "square", "diamond"]
_DASHES = [[1, 0], [6, 3], [1, 0], [2, 2]]  # of base, base + prefix, unlearned, and a model that never knew
_PALE = 0.4
_MAX_TICKS = 150  # a model: more only blackens the plot
_WIDTH = 320
_GROUPS: dict[Group, str] = {"forget": "to forget", "near": "neighbours", "far": "all else"}
Row = dict[str, Any]


def recall_by_topic(report: Report) -> str | None:
    """Forget recall of each topic, where there are several."""
    if len(report.topics) == 1:
        return None
    return _intervals(
        [row for topic, scores in report.by_topic.items() for row in _rows(topic, scores, "forget", report.recall)]
    )


def recall_by_wording(report: Report) -> str | None:
    """Forget recall of each kind of wording, and of the worst wording of a fact."""
    rows = [row for name in report.wordings for row in _rows(name, report.by_wording[name], "forget", report.recall)]
    for part, scores in report.by_training.items():
        rows += _rows(f"{part} facts", scores, "forget", report.recall)
    return _intervals(rows + _rows("worst wording", report.models, "forget", "fact_recall_worst"))


def recall_kept(report: Report) -> str | None:
    """Recall on neighbouring topics and on everything else; by topic where there are several."""
    rows: list[Row] = []
    for group, label in (("near", "neighbours"), ("far", "all else")):
        if len(report.topics) == 1:
            rows += _rows(label, report.models, group, report.recall)  # type: ignore[arg-type]
            continue
        for topic, scores in report.by_topic.items():
            rows += _rows(f"{label}, beside {topic}", scores, group, report.recall)  # type: ignore[arg-type]
    return _intervals(rows)


def choice(report: Report) -> str | None:
    """Choice in each group, with chance as a line."""
    rows = [row for group in GROUPS for row in _rows(_GROUPS[group], report.models, group, "choice")]
    chances = [
        metric.chance for group in GROUPS if (metric := report.metric("base", group, "choice")) and metric.chance
    ]
    return _intervals(rows, sum(chances) / len(chances) if chances else None)


def truth_probability(report: Report) -> str | None:
    """How probable each model finds the true answer: a tick a forget probe, the median on top."""
    rows: list[Row] = []
    for model in MODELS:
        metric = report.metric(model, "forget", "probability")
        values = metric.value_by_index or {} if metric else {}
        # The same probes for every model.
        picked = sorted(values, key=lambda probe: digest("tick", probe))[:_MAX_TICKS]
        rows += [{"model": LABELS[model], "value": round(values[probe], 4)} for probe in picked]
    if not rows:
        return None
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("value:Q").title(None).scale(domain=[0, 1]).axis(format="%", tickCount=5),
        y=alt.Y("model:N").title(None).sort([LABELS[model] for model in MODELS]),
        color=_colour("model:N"),
    )
    ticks = base.mark_tick(thickness=1.5, height=22, opacity=0.35)
    median = base.mark_point(filled=True, size=110, opacity=1, shape="diamond").encode(x="median(value):Q")
    return as_svg((ticks + median).properties(width=_WIDTH, height=alt.Step(36)))


def loss_curves(report: Report) -> str | None:
    """Forget and retain loss over the steps, a line a training. The forget loss is the objective's: per token or per answer."""
    rows: list[Row] = [
        {"training": name, "step": point.step, "part": part, "value": value}
        for name, points in report.losses.items()
        for point in points
        for part, value in _parts(point.forget_loss, point.retain_loss, point.loss)
        if value is not None
    ]
    if not rows:
        return None
    parts = list(dict.fromkeys(row["part"] for row in rows))
    colours = {"forget": "var(--unlearned)", "retain": "var(--guarded)", "loss": "var(--base)"}
    dashes: dict[str, list[int]] = {"forget": [1, 0], "retain": [6, 3], "loss": [1, 0]}
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X("step:Q").title("step").axis(tickMinStep=1),
            y=alt.Y("value:Q").title("loss").scale(zero=True),
            color=alt.Color("part:N")
            .scale(domain=parts, range=[colours[p] for p in parts])
            .title(None)
            .legend(orient="top"),
            strokeDash=alt.StrokeDash("part:N").scale(domain=parts, range=[dashes[p] for p in parts]).title(None),
            detail="training:N",
        )
    )
    return as_svg(chart.properties(width=2 * _WIDTH, height=220))


def gate_choices(report: Report) -> str | None:
    """Choice on the gate's rows over the steps; a dashed line marks the exported state."""
    return _gate(report, {"forget": "forget_choice", "retain": "retain_choice"}, "choice", is_share=True)


def gate_losses(report: Report) -> str | None:
    """Loss of the true answers on the gate's rows over the steps."""
    return _gate(report, {"forget": "forget_loss", "retain": "retain_loss"}, "loss", is_share=False)


def _gate(report: Report, names: Mapping[str, str], title: str, *, is_share: bool) -> str | None:
    rows: list[Row] = [
        {"step": point.step, "part": part, "value": value}
        for point in report.gate
        for part, name in names.items()
        if (value := getattr(point, name)) is not None
    ]
    if not rows:
        return None
    parts = [part for part in names if any(row["part"] == part for row in rows)]
    scale = {"domain": [0, 1]} if is_share else {"zero": True}
    value = alt.Y("value:Q").title(title).scale(**scale)
    colours = [{"forget": "var(--unlearned)", "retain": "var(--guarded)"}[part] for part in parts]
    lines = (
        alt.Chart(alt.Data(values=rows))
        .mark_line(strokeWidth=2, point=True)
        .encode(
            x=alt.X("step:Q").title("step").axis(tickMinStep=1),
            y=value.axis(format="%", tickCount=5) if is_share else value,
            color=alt.Color("part:N").scale(domain=parts, range=colours).title(None).legend(orient="top"),
        )
    )
    drawn: alt.Chart | alt.LayerChart = lines
    if report.exported_step is not None:
        mark = alt.Chart(alt.Data(values=[{"step": report.exported_step}]))
        drawn = mark.mark_rule(strokeDash=[4, 4], color="var(--soft)").encode(x="step:Q") + lines
    return as_svg(drawn.properties(width=_WIDTH, height=180))


def attack_curves(rows: Sequence[Row], models: Mapping[str, str], axis: str, *, is_share: bool) -> str | None:
    """A thin line a setting and model along an attack's axis, and a thick one for the worst of all settings.

    Args:
        rows: model, setting, at, value, is_worst.
        models: label -> colour.
    """
    if not rows:
        return None
    scale = {"domain": [0, 1]} if is_share else {"type": "log"}
    value = alt.Y("value:Q").title(None).scale(**scale)
    base = alt.Chart(alt.Data(values=list(rows))).encode(
        x=alt.X("at:Q").title(axis).axis(tickMinStep=1),
        y=value.axis(format="%", tickCount=5) if is_share else value,
        color=alt.Color("model:N").scale(domain=list(models), range=list(models.values())).legend(None),
        strokeDash=alt.StrokeDash("model:N").scale(domain=list(models), range=_DASHES[: len(models)]).legend(None),
        detail="setting:N",
    )
    thin = base.transform_filter("!datum.is_worst").mark_line(strokeWidth=1, opacity=_PALE)
    thick = base.transform_filter("datum.is_worst").mark_line(strokeWidth=2.5, point=True)
    return as_svg((thin + thick).properties(width=_WIDTH, height=180))


def attack_settings(rows: Sequence[Row], models: Mapping[str, str]) -> str | None:
    """A point and its interval a setting and model.

    Args:
        rows: of, model, value, low, high.
        models: label -> colour.
    """
    if not rows:
        return None
    base = alt.Chart(alt.Data(values=list(rows))).encode(
        y=alt.Y("of:N").title(None).sort(list(dict.fromkeys(row["of"] for row in rows))).axis(labelLimit=210),
        yOffset=alt.YOffset("model:N").sort(list(models)),
        color=alt.Color("model:N").scale(domain=list(models), range=list(models.values())).legend(None),
    )
    scale = alt.X("low:Q").title(None).scale(domain=[0, 1]).axis(format="%", tickCount=5)
    lines = base.mark_rule(strokeWidth=2.5, strokeCap="round").encode(x=scale, x2="high:Q")
    shape = alt.Shape("model:N").scale(domain=list(models), range=[*_SHAPES, "cross"][: len(models)]).legend(None)
    points = base.mark_point(filled=True, size=75).encode(x="value:Q", shape=shape)
    return as_svg((lines + points).properties(width=_WIDTH + 80, height=alt.Step(11)))


def _parts(forget: float | None, retain: float | None, loss: float | None) -> Sequence[tuple[str, float | None]]:
    return (("forget", forget), ("retain", retain)) if forget is not None else (("loss", loss),)


def _rows(label: str, scores: ByModel, group: Group, metric: str) -> list[Row]:
    found: Mapping[str, Metric | None] = {model: scores.get(model, {}).get(group, {}).get(metric) for model in MODELS}
    return [
        {
            "of": label,
            "model": LABELS[model],
            "value": m.agg_value,
            "low": m.interval[0],
            "high": m.interval[1],
            "doubtful": bool(m.doubts),
        }
        for model in MODELS
        if (m := found[model]) is not None
    ]


def _intervals(rows: Sequence[Row], mark: float | None = None) -> str | None:
    """A point and its interval a row and model, on a scale from 0 to 100 %; pale where it is not to be relied on.

    Args:
        mark: where a dashed line stands, such as chance.
    """
    if not rows:
        return None
    order = list(dict.fromkeys(row["of"] for row in rows))
    models = [LABELS[model] for model in MODELS]
    base = alt.Chart(alt.Data(values=list(rows))).encode(
        y=alt.Y("of:N").title(None).sort(order).axis(labelLimit=210),
        yOffset=alt.YOffset("model:N").sort(models),
        color=_colour("model:N"),
    )
    scale = alt.X("low:Q").title(None).scale(domain=[0, 1]).axis(format="%", tickCount=5)
    pale = alt.condition("datum.doubtful", alt.value(_PALE), alt.value(1))
    lines = base.mark_rule(strokeWidth=2.5, strokeCap="round").encode(x=scale, x2="high:Q", opacity=pale)
    points = base.mark_point(filled=True, size=75).encode(
        x="value:Q", shape=alt.Shape("model:N").scale(domain=models, range=_SHAPES).legend(None), opacity=pale
    )
    drawn = lines + points
    if mark is not None:
        line = alt.Chart(alt.Data(values=[{"mark": mark}])).mark_rule(strokeDash=[4, 4], color="var(--soft)")
        drawn = line.encode(x="mark:Q") + drawn
    return as_svg(drawn.properties(width=_WIDTH, height=alt.Step(17)))


def _colour(field: str) -> alt.Color:
    # The page has one legend for all plots.
    return alt.Color(field).scale(domain=[LABELS[model] for model in MODELS], range=_COLOURS).legend(None)


def as_svg(chart: alt.Chart | alt.LayerChart) -> str:
    """A chart as SVG text in the page's colours and fonts."""
    font = "system-ui, sans-serif"  # the reader's own, perhaps wider than the one measured here: hence the padding
    quiet = {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "labelFont": font,
        "titleFont": font,
        "labelFontSize": 12,
    }
    styled = (
        chart.configure(background="transparent", font=font, padding={"left": 26, "right": 12, "top": 5, "bottom": 5})
        .configure_view(stroke=None)
        .configure_axis(
            **quiet, titleFontWeight="normal", gridColor="var(--line)", domain=False, ticks=False, labelPadding=8
        )
        .configure_axisY(labelColor="var(--ink)", grid=False)
        .configure_legend(labelColor="var(--ink)", labelFont=font, labelFontSize=12)
    )
    return str(vl_convert.vegalite_to_svg(styled.to_dict()))
