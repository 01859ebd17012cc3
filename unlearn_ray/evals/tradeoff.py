"""Forgotten against kept, in one plot: the run's models, the states that the gate scored, and published results beside them."""

from typing import Any

import altair as alt

from unlearn_ray.evals.plots import as_svg
from unlearn_ray.evals.report import LABELS, Report
from unlearn_ray.evals.scoring import MODELS
from unlearn_ray.evals.sentence import share_of

# RWKU's table for Llama-3-8B-Instruct (arXiv 2406.10890): ROUGE-L recall x 100 of question answering on the target, and on its neighbours.
RWKU_BEFORE = (76.4, 90.7)
RWKU = {
    "ICU (prefix alone)": (1.9, 55.7),
    "GA": (31.6, 79.0),
    "NPO": (21.0, 72.6),
    "NPO, LoRA": (64.3, 86.7),
    "RT": (13.4, 67.4),
    "RT, LoRA": (49.6, 81.9),
}
CAPTION = (
    "Each as a share of the base model's, in per cent: left is forgotten, up is kept on near. Circle, square and diamond are recall of the three models; the hollow diamond is the "
    "unlearned model's choice. Small crosses: choice after the steps that stand beside them, on the gate's held-out rows. Grey triangles: what RWKU (arXiv 2406.10890) published of other methods on "
    "Llama-3-8B-Instruct, on its own questions."
)
_SHAPES = ["circle", "square", "diamond", "diamond", "cross", "triangle-up"]
_CHOICE, _STATE, _PUBLISHED = "unlearned, choice", "on the way, choice", "RWKU, published"
_KINDS = [*(LABELS[model] for model in MODELS), _CHOICE, _STATE, _PUBLISHED]
_COLOURS = ["var(--base)", "var(--guarded)", "var(--unlearned)", "var(--unlearned)", "var(--unlearned)", "var(--soft)"]


def points(report: Report) -> list[dict[str, Any]]:
    """What is drawn: kind, name, left (still told of what is to forget) and kept (of near), as shares of base's."""
    found = []
    for kind, name in ((None, report.recall), (_CHOICE, "choice")):
        for model in MODELS if kind is None else MODELS[2:]:
            left, kept = (
                share_of(report.metric(model, group, name), report.metric("base", group, name)) for group in ("forget", "near")
            )  # fmt: skip
            if left is not None and kept is not None:
                found.append({"kind": kind or LABELS[model], "name": "", "left": left, "kept": kept})
    if not found:
        return []
    before = next((point for point in report.gate if point.step == 0), None)
    if before and before.forget_choice and before.retain_choice:
        for point in report.gate:
            if point.step and point.retain_choice is not None:
                left, kept = point.forget_choice / before.forget_choice, point.retain_choice / before.retain_choice
                mark = " (exported)" if point.step == report.exported_step else ""
                found.append({"kind": _STATE, "name": f"{point.step}{mark}", "left": left, "kept": kept})
    forget, near = RWKU_BEFORE
    for method, (left, kept) in RWKU.items():
        found.append({"kind": _PUBLISHED, "name": method, "left": left / forget, "kept": kept / near})
    return found


def tradeoff(report: Report) -> str | None:
    """The plot; None where forgetting or keeping was not measured."""
    rows = points(report)
    if not rows:
        return None
    kinds = [kind for kind in _KINDS if any(row["kind"] == kind for row in rows)]
    chosen = [_KINDS.index(kind) for kind in kinds]
    top = max(1.0, *(row["kept"] for row in rows))
    # Below what anything kept there is nothing to see.
    floor = min(0.6, *(row["kept"] for row in rows))
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("left:Q").title("still told of what was to be forgotten").scale(domain=[0, max(1.0, *(row["left"] for row in rows))]).axis(format="%", tickCount=5),
        y=alt.Y("kept:Q").title("kept of what is near").scale(domain=[max(0.0, floor - 0.05), top]).axis(format="%", tickCount=5),
    )  # fmt: skip
    marks = base.mark_point(size=70, strokeWidth=2).encode(
        color=alt.Color("kind:N").scale(domain=kinds, range=[_COLOURS[i] for i in chosen]).title(None).legend(orient="top", columns=2),
        shape=alt.Shape("kind:N").scale(domain=kinds, range=[_SHAPES[i] for i in chosen]).title(None),
        fill=alt.Fill("kind:N").scale(domain=kinds, range=["transparent" if _KINDS[i] in _KINDS[3:] else _COLOURS[i] for i in chosen]).title(None),
    )  # fmt: skip
    names = base.mark_text(dx=7, dy=-6, align="left", fontSize=10, color="var(--soft)").encode(text="name:N")
    return as_svg((marks + names).properties(width=520, height=260))
