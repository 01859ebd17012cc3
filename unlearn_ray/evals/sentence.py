"""The sentence that a report opens with, its doubt included: what the model still says, what it prefers, what comes back, what it kept."""

from collections.abc import Sequence

from unlearn_ray.evals.attacked import AttackFigure, worst_by_model, worst_of
from unlearn_ray.evals.report import Metric, Report, percent
from unlearn_ray.rows import Group

STEPS = 10  # of relearning, where they were measured
_KEPT: dict[Group, str] = {"near": "about neighbouring topics", "far": "about everything else"}


def sentence(report: Report, attacks: Sequence[AttackFigure] = ()) -> str:
    """`The unlearned model says 1 % of what it knew about Dune, prefers ...; it kept 98 % ...`. What was not measured is said to be so."""
    said, preferred, comes_back = _still_said(report), _preferred(report), _comes_back(attacks)
    base = report.metric("base", "forget", report.recall)
    # A recall that can't tell whether anything is known does not open the sentence.
    opening = [preferred, said] if base is not None and "blind" in base.doubts else [said, preferred]
    told = [part for part in (*opening, comes_back) if part]
    missing = [name for name, part in (("choice", preferred), ("relearning", comes_back)) if not part]
    first = f"{', '.join(told[:-1])}, and {told[-1]}" if len(told) > 1 else told[0]
    kept = kept_of(report)
    missing += [] if kept else ["what it kept"]
    text = f"The unlearned model {first}" + (f"; it {kept}." if kept else ".")
    if missing:
        names = " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1])))
        text += f" Not measured: {names}."
    return text


def _still_said(report: Report) -> str:
    topics = report.topics
    about = " and ".join(filter(None, (", ".join(topics[:-1]), topics[-1])))
    base, ours = (report.metric(model, "forget", report.recall) for model in ("base", "unlearned"))
    share = share_of(ours, base)
    if base is None or ours is None or share is None:
        return f"was asked about {about}, of which the base model says nothing"
    if has_floor(report, base):
        return f"says {_beside_floor(report, ours, base, f'about {about}')}"
    return f"says {percent(share)} of what it knew about {about}{_doubt(ours)}"


def has_floor(report: Report, base: Metric) -> bool:
    """Whether a model that knows nothing gets something as well: a share of base's figure would count that as known."""
    return report.recall == "rouge_l_recall" or bool(base.floor)


def _beside_floor(report: Report, ours: Metric, base: Metric, about: str) -> str:
    """`38 % of the true answers' words about Dune (base: 90 %, a wrong answer in their form: 38 %)`."""
    of = "of the true answers' words" if report.recall == "rouge_l_recall" else "of the true answers"
    floor = "" if base.floor is None else f", a wrong answer in their form: {percent(base.floor)}"
    return f"{percent(ours.agg_value)} {of} {about} (base: {percent(base.agg_value)}{floor}){_doubt(ours)}"


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
    """What relearning brings out of the facts that it does not name, beside what the model said of them before."""
    relearnt = [each for each in attacks if each.attack == "relearn"]
    after = [each for each in relearnt if each.at > 0]
    found = worst_by_model(after, "recall", at=STEPS) or worst_by_model(after, "recall")
    if not found:
        return ""
    last, twin = found["unlearned"], found.get("twin")
    before = worst_of((each for each in relearnt if each.setting == last.setting), "recall", at=0)
    beside = [] if before is None else [f"before: {percent(before.value)}"]
    beside += [] if twin is None else [f"a model that never knew: {percent(twin.value)}"]
    steps = f"{last.at:g} step{'' if last.at == 1 else 's'}"
    said = f"tells {percent(last.value)} of facts after {steps} of relearning"
    return f"{said} ({', '.join(beside)})" if beside else said


def kept_of(report: Report) -> str:
    """`kept 98 % of what it told about neighbouring topics and ...`; beside base's figures and their floors where they have some."""
    shares, said = list[str](), list[str]()
    is_beside = False
    for group, label in _KEPT.items():
        share = report.retention.get("unlearned", {}).get(group, {}).get(report.recall)
        ours, base = (report.metric(model, group, report.recall) for model in ("unlearned", "base"))
        if share is not None:
            shares.append(f"{percent(share.agg_value)} {label}{_doubt(share)}")
        if share is not None and ours is not None and base is not None:
            said.append(_beside_floor(report, ours, base, label))
            is_beside = is_beside or has_floor(report, base)
    if is_beside:
        return f"says {' and '.join(said)}"
    return f"kept {' and '.join(shares).replace(' %', ' % of what it told', 1)}" if shares else ""


def _doubt(metric: Metric) -> str:
    """What makes a figure one that is not to be relied on."""
    reasons = []
    if set(metric.doubts) - {"blind"}:
        low, high = (round(100 * bound) for bound in metric.interval)
        reasons.append(f"{metric.num} probes, 95 % interval {low} to {high} %")
    if "blind" in metric.doubts:
        reasons.append("base itself is hardly better than a model that knows nothing")
    return f" (not to be relied on: {'; '.join(reasons)})" if reasons else ""
