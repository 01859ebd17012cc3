"""The sentence that a report opens with, its doubt included: what the model still says, what it prefers, what comes back, what it kept."""

from collections.abc import Sequence
from typing import cast

from unlearn_ray.evals.attacked import AttackFigure, worst
from unlearn_ray.evals.report import Metric, Report, percent
from unlearn_ray.rows import Group

STEPS = 10  # of relearning, where they were measured
_KEPT: dict[Group, str] = {"near": "about neighbouring topics", "far": "about everything else"}


def sentence(report: Report, attacks: Sequence[AttackFigure] = ()) -> str:
    """`The unlearned model says 1 % of what it knew about Dune, prefers ...; it kept 98 % ...`. What was not measured is said to be so."""
    parts = [_still_said(report), _preferred(report), _comes_back(attacks)]
    told = [part for part in parts if part]
    missing = [] if told[-1:] == parts[-1:] else ["relearning"]
    if not parts[1]:
        missing.insert(0, "choice")
    first = f"{', '.join(told[:-1])}, and {told[-1]}" if len(told) > 1 else told[0]
    kept = _kept(report)
    missing += [] if kept else ["what it kept"]
    text = f"The unlearned model {first}" + (f"; it kept {kept}." if kept else ".")
    if missing:
        names = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
        text += f" Not measured: {names}."
    return text


def _still_said(report: Report) -> str:
    topics = report.topics
    about = " and ".join(filter(None, (", ".join(topics[:-1]), topics[-1])))
    base, ours = (report.metric(model, "forget", report.recall) for model in ("base", "unlearned"))
    share = share_of(ours, base)
    if ours is None or share is None:
        return f"was asked about {about}, of which the base model says nothing"
    return f"says {percent(share)} of what it knew about {about}{_doubt(ours)}"


def share_of(ours: Metric | None, base: Metric | None) -> float | None:
    """What is left of base's figure, over the probes that both answered; None where base has nothing."""
    if ours is None or base is None:
        return None
    mine, theirs = ours.value_by_index or {}, base.value_by_index or {}
    both = mine.keys() & theirs.keys()
    of_base = sum(theirs[probe] for probe in both) if both else base.agg_value
    left = sum(mine[probe] for probe in both) if both else ours.agg_value
    return left / of_base if of_base > 0 else None


def _preferred(report: Report) -> str:
    choice = report.metric("unlearned", "forget", "choice")
    if choice is None:
        return ""
    chance = f" (chance {percent(choice.chance)})" if choice.chance is not None else ""
    return f"prefers the truth in {percent(choice.agg_value)} of choices{chance}{_doubt(choice)}"


def _comes_back(attacks: Sequence[AttackFigure]) -> str:
    last = worst(attacks, "relearn", "recall", at=STEPS) or worst(attacks, "relearn", "recall")
    if last is None:
        return ""
    twin = next(
        (each for each in attacks if each.model == "twin" and (each.attack, each.setting, each.at, each.metric) == (last.attack, last.setting, last.at, last.metric)),
        None,
    )  # fmt: skip
    beside = "" if twin is None else f" (a model that never knew: {percent(twin.value)})"
    steps = f"{last.at:g} step{'' if last.at == 1 else 's'}"
    return f"{percent(last.value)} comes back after {steps} of relearning{beside}"


def _kept(report: Report) -> str:
    shares = report.retention.get("unlearned", {})
    found = [
        f"{percent(share.agg_value)} {label}"
        for group, label in _KEPT.items()
        if (share := shares.get(group, {}).get(report.recall))
    ]
    return " and ".join(found).replace(" %", " % of what it told", 1)


def beside_prefix(report: Report) -> str:
    """Where the unlearned model is better, and where it is worse, than base behind the guardrail prefix; "" without a prefix.

    A difference counts where each figure lies outside the other's 95 % interval.
    """
    better, worse, level = list[str](), list[str](), list[str]()
    for title, group, name in (
        ("recall on forget", "forget", report.recall),
        ("choice on forget", "forget", "choice"),
        ("samples that leak", "forget", "keyword_leak"),
        ("recall on near", "near", report.recall),
        ("recall on far", "far", report.recall),
    ):
        ours, theirs = (report.metric(model, cast(Group, group), name) for model in ("unlearned", "guarded"))
        if ours is None or theirs is None:
            continue
        said = f"{title} ({percent(ours.agg_value)} against {percent(theirs.agg_value)})"
        if _holds(theirs, ours.agg_value) or _holds(ours, theirs.agg_value):
            level.append(said)
        else:
            (better if (ours.agg_value < theirs.agg_value) == (group == "forget") else worse).append(said)
    told = [
        f"{verb} {', '.join(found)}"
        for verb, found in (("better in", better), ("worse in", worse), ("no clear difference in", level))
        if found
    ]
    return f"Beside the base model behind the prefix alone: {'; '.join(told)}." if told else ""


def _holds(metric: Metric, value: float) -> bool:
    return metric.interval[0] <= value <= metric.interval[1]


def _doubt(metric: Metric) -> str:
    """What makes a figure one that is not to be relied on."""
    if not metric.doubts:
        return ""
    low, high = (round(100 * bound) for bound in metric.interval)
    return f" (not to be relied on: {metric.num} probes, 95 % interval {low} to {high} %)"
