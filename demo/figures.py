"""The report's figures as text: the table of scores with their intervals, and the result in a sentence."""

from typing import Any

from charts import GROUPS, LABELS

Row = dict[str, Any]
DOUBTFUL = "*"
DOUBT_LEGEND = f"{DOUBTFUL} not to be relied on: fewer than 20 probes, an interval wider than 30 points, or hardly above the floor in base"


def metrics_of(report: Row) -> dict[str, Row]:
    """Metric -> its title, and whether it is a share: in the report, or, in one of an earlier version, read off its name and figures."""
    if report.get("metrics"):
        return dict(report["metrics"])
    found: dict[str, Row] = {}
    for scores_of in report["models"].values():
        for metrics in scores_of.values():
            for name, metric in metrics.items():
                words = found.setdefault(name, {"title": name.replace("_", " ").capitalize(), "is_share": True})
                words["is_share"] = words["is_share"] and metric["agg_value"] <= 1
    return found


def scores(report: Row, group: str) -> list[list[str]]:
    """One row per metric: its name, its number of values, and each model's figure. Then rows with shares of the base model's figure."""
    rows = []
    metrics = metrics_of(report)
    for name, words in metrics.items():
        found = [report["models"].get(model, {}).get(group, {}).get(name) for model in LABELS]
        if any(found):
            num = next(metric["num"] for metric in found if metric)
            rows.append([_told(words["title"], found), str(num), *(shown(m, words["is_share"]) for m in found)])
    for name, words in metrics.items():
        found = [report["retention"].get(model, {}).get(group, {}).get(name) for model in LABELS]
        if any(found):
            num = next(metric["num"] for metric in found if metric)
            title = f"{words['title']}, share of base"
            rows.append([title, str(num), "100 %", *(shown(share) for share in found[1:])])
    return rows


def _told(title: str, found: list[Row | None]) -> str:
    """A metric's title with what a model without knowledge gets, where that is known."""
    for name in ("chance", "floor"):
        value = next((metric[name] for metric in found if metric and metric.get(name) is not None), None)
        if value is not None:
            return f"{title} ({name} {percent(value)})"
    return title


def shown(metric: Row | None, is_share: bool = True) -> str:
    """A share as `3 % [1, 6]`, other figures as `2.41 [2.30, 2.50]`. A doubtful figure has a star: `3 %* [0, 40]`."""
    if metric is None:
        return "n/a"
    value, (low, high) = metric["agg_value"], metric["interval"]
    if not is_share:
        return f"{value:.2f}{_sign(metric)} [{low:.2f}, {high:.2f}]"
    return f"{percent(value)}{_sign(metric)} [{100 * low:.0f}, {100 * high:.0f}]"


def _sign(metric: Row) -> str:
    """The mark of a doubtful figure. Reports of earlier versions have no doubts."""
    return DOUBTFUL if metric.get("doubts") else ""


def percent(share: float) -> str:
    """`0.034` -> `3 %`. With one decimal if a whole number would be 0 or 100."""
    is_rounded_away = 0 < share < 0.005 or 0.995 <= share < 1
    return f"{100 * share:.1f} %" if is_rounded_away else f"{100 * share:.0f} %"


def num_forget_answers(report: Row) -> int:
    """Number of the unlearned model's answers to forget probes."""
    metrics = report["models"].get("unlearned", {}).get("forget", {})
    return max((metric["num"] for metric in metrics.values()), default=0)


def leaks_found(num_leaking: int, num_read: int, num_answers: int) -> str:
    """The number of answers with a leak term, and the number of answers read if not all were.

    Args:
        num_answers: the report's number. A version may hold fewer, and the page reads only as many as it can show.
    """
    if num_read < num_answers:
        return (
            f"Leak terms: in {num_leaking:,} of the {num_read:,} answers read, of the unlearned model's {num_answers:,}"
        )
    if not num_read:
        return "The unlearned model has no answers to forget probes"
    if not num_leaking:
        return "No answer of the unlearned model holds a leak term"
    if num_leaking == 1:
        return "1 answer of the unlearned model holds leak terms"
    return f"{num_leaking:,} answers of the unlearned model hold leak terms"


def verdict(report: Row) -> str:
    """The result: recall and choice before and after, on what should be forgotten and on what should be kept."""
    return "\n\n".join(filter(None, (_changes(report, name) for name in (report["recall"], "choice"))))


def _changes(report: Row, name: str) -> str:
    """One metric before and after in each group, as Markdown. "" if the report does not have it."""
    parts = []
    for group, title in GROUPS.items():
        before, after = (report["models"].get(model, {}).get(group, {}).get(name) for model in ("base", "unlearned"))
        if before and after:
            first, last = (percent(m["agg_value"]) + _sign(m).replace("*", r"\*") for m in (before, after))
            parts.append(f"{title}: **{first} → {last}**")
    return f"{metrics_of(report)[name]['title']}, before → after. " + " · ".join(parts) if parts else ""


def alarm(report: Row) -> str:
    """A warning if nothing was forgotten, or forgetting could not be measured. It names such topics if the result as a whole is better."""
    titles = {"no_forgetting": "No forgetting measured", "not_measured": "Forgetting could not be measured"}
    whole = report.get("forgetting", {}).get("verdict")  # missing in reports of earlier versions
    by_topic = {topic: found["verdict"] for topic, found in report.get("forgetting_by_topic", {}).items()}
    if len(report["topics"]) == 1 or "forgotten" not in (whole, *by_topic.values()):
        by_topic = {", ".join(report["topics"]): whole}
    return " ".join(f"{titles[verdict]}: {topic}." for topic, verdict in by_topic.items() if verdict in titles)
