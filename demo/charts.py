"""The plots, from a served report and from live probes. None if there is nothing to plot."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import altair as alt
from scipy.stats import binomtest

LABELS = {"base": "base", "guarded": "base + prefix", "unlearned": "unlearned"}
GROUPS = {"forget": "forget", "near": "neighbours", "far": "all else"}
COLOURS = {"base": "#7a8088", "guarded": "#0072b2", "unlearned": "#c8520a"}
_MAX_TICKS = 150  # per model; more would only blacken the plot
Row = dict[str, Any]
Chart: TypeAlias = alt.Chart | alt.LayerChart


def forgotten(report: Row) -> Chart | None:
    """Forget recall by wording, in the worst wording of a fact, and by topic if there are several."""
    recall = report["recall"]
    rows: list[Row] = []
    for wording, scores in sorted(report["by_wording"].items(), key=lambda item: (item[0] != "template", item[0])):
        rows += _points(f"{wording} wording", scores, "forget", recall)
    rows += _points("worst wording", report["models"], "forget", "fact_recall_worst")
    if len(report["topics"]) > 1:
        for topic, scores in report["by_topic"].items():
            rows += _points(topic, scores, "forget", recall)
    return _intervals(rows, list(LABELS.values()), list(COLOURS.values()))


def kept(report: Row) -> Chart | None:
    """Recall on neighbouring topics and on far ones."""
    rows = [
        row for group in ("near", "far") for row in _points(GROUPS[group], report["models"], group, report["recall"])
    ]
    return _intervals(rows, list(LABELS.values()), list(COLOURS.values()))


def truth_probability(report: Row) -> Chart | None:
    """Each model's probability of each true answer (ticks), and the median (diamond), on forget probes."""
    rows: list[Row] = []
    for model, label in LABELS.items():
        metric = report["models"].get(model, {}).get("forget", {}).get("probability", {})
        values = metric.get("value_by_index") or {}
        rows += [{"model": label, "value": round(values[probe], 4)} for probe in sorted(values)[:_MAX_TICKS]]
    if not rows:
        return None
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("value:Q").title(None).scale(domain=[0, 1]).axis(format="%", tickCount=5),
        y=alt.Y("model:N").title(None).sort(list(LABELS.values())),
        color=_colour(list(LABELS.values()), list(COLOURS.values())).legend(None),
    )
    ticks = base.mark_tick(thickness=1.5, height=22, opacity=0.4)
    median = base.mark_point(filled=True, size=120, opacity=1, shape="diamond").encode(x="median(value):Q")
    return (ticks + median).properties(height=alt.Step(38))


def losses(report: Row) -> Chart | None:
    """Forget and retain loss over the steps, one line per training."""
    parts = {"forget_loss": "forget", "retain_loss": "retain"}
    rows: list[Row] = []
    for training, points in report["losses"].items():
        for point in points:
            told = {label: point[name] for name, label in parts.items() if point.get(name) is not None}
            told = told or ({"loss": point["loss"]} if point.get("loss") is not None else {})
            rows += [
                {"training": training, "step": point["step"], "part": part, "value": value}
                for part, value in told.items()
            ]
    if not rows:
        return None
    colours = {"forget": COLOURS["unlearned"], "retain": COLOURS["guarded"], "loss": COLOURS["base"]}
    found = [part for part in colours if any(row["part"] == part for row in rows)]
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X("step:Q").title("step").axis(tickMinStep=1),
            y=alt.Y("value:Q").title("loss per token").scale(zero=True),
            color=alt.Color("part:N", legend=alt.Legend(orient="top", title=None)).scale(
                domain=found, range=[colours[part] for part in found]
            ),
            detail="training:N",
        )
        .properties(height=300)
    )


def told(results: Iterable[tuple[str, str, bool]], models: Sequence[str], colours: Sequence[str]) -> Chart | None:
    """Share of probes whose answer has the truth, by model and group.

    Args:
        results: one per answered probe: model, group, and whether the answer has the truth.
    """
    counts: dict[tuple[str, str], list[int]] = {}
    for model, group, is_told in results:
        count = counts.setdefault((group, model), [0, 0])
        count[0] += is_told
        count[1] += 1
    rows = []
    for (group, model), (num_told, num) in sorted(counts.items(), key=lambda item: list(GROUPS).index(item[0][0])):
        # Wilson's interval (1927): valid for few probes, and at 0 and 1.
        low, high = binomtest(num_told, num).proportion_ci(0.95, method="wilson")
        rows.append(
            {
                "of": GROUPS[group],
                "model": model,
                "value": num_told / num,
                "low": float(low),
                "high": float(high),
                "num": num,
            }
        )
    return _intervals(rows, models, colours)


def _points(label: str, scores: Row, group: str, metric: str) -> list[Row]:
    found = {model: scores.get(model, {}).get(group, {}).get(metric) for model in LABELS}
    return [
        {"of": label, "model": LABELS[model], "value": m["agg_value"], "low": m["interval"][0], "high": m["interval"][1], "num": m["num"]}
        for model, m in found.items()
        if m is not None
    ]  # fmt: skip


def _intervals(rows: Sequence[Row], models: Sequence[str], colours: Sequence[str]) -> Chart | None:
    """One point per row and model, with its 95 % interval, on a scale from 0 to 100 %."""
    if not rows:
        return None
    tooltip = [
        alt.Tooltip("of:N", title=""),
        alt.Tooltip("model:N"),
        alt.Tooltip("value:Q", format=".0%"),
        alt.Tooltip("low:Q", format=".0%"),
        alt.Tooltip("high:Q", format=".0%"),
        alt.Tooltip("num:Q", title="n"),
    ]
    base = alt.Chart(alt.Data(values=list(rows))).encode(
        y=alt.Y("of:N").title(None).sort(list(dict.fromkeys(row["of"] for row in rows))).axis(labelLimit=130),
        yOffset=alt.YOffset("model:N").sort(list(models)),
        color=_colour(models, colours),
        tooltip=tooltip,
    )
    scale = alt.X("low:Q").title(None).scale(domain=[0, 1]).axis(format="%", tickCount=5)
    lines = base.mark_rule(strokeWidth=2.5, strokeCap="round").encode(x=scale, x2="high:Q")
    points = base.mark_point(filled=True, size=80, opacity=1).encode(x="value:Q")
    return (lines + points).properties(height=alt.Step(20))


def _colour(models: Sequence[str], colours: Sequence[str]) -> alt.Color:
    columns = len(models) if sum(map(len, models)) < 36 else 1  # legend columns that fit on a phone
    legend = alt.Legend(orient="top", title=None, labelLimit=220, columns=columns)
    return alt.Color("model:N", legend=legend).scale(domain=list(models), range=list(colours))
