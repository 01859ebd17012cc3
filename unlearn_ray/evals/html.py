"""`report.html`: one file that a person reads, without a network. Model output is untrusted: the template escapes everything."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from unlearn_ray.artifacts import Folder
from unlearn_ray.evals import plots
from unlearn_ray.evals.attacked import AttackFigure, page_of_attacks, read_attacks, worst_of_each
from unlearn_ray.evals.report import (
    DOUBT_LEGEND,
    LABELS,
    ByModel,
    Column,
    Metric,
    Report,
    against_prefix,
    headline_columns,
    known_line,
    percent,
    shown,
    warnings,
)
from unlearn_ray.evals.scoring import MODELS, TELLS, ModelName
from unlearn_ray.evals.sentence import has_floor, kept_of, sentence
from unlearn_ray.evals.table import MEASURES
from unlearn_ray.evals.tradeoff import CAPTION, tradeoff
from unlearn_ray.rows import GROUPS, Group, digest
from unlearn_ray.words import marked

MAX_IN_A_ROW = 3
HTML = "report.html"
MAX_SHOWN = 50  # probes of each kind, side by side
NUM_WORST = 10
MAX_CHARACTERS = 500  # of an answer

# Kind of a shown probe -> its title; worst first.
KINDS = {"told": "Still told", "lost": "Lost", "forgotten": "Forgotten", "kept": "Kept", "unknown": "Never known"}


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """One model's answer as the page shows it."""

    label: str
    css: str
    pieces: list[tuple[str, bool]]  # text, and whether it is the truth
    tells: bool
    samples: str  # "2 of 4 samples leak: Hedwig"


@dataclass(frozen=True, slots=True)
class ShownProbe:
    """One probe with the three answers side by side."""

    kind: str
    group: Group
    topic: str
    wording: str
    question: str
    truth: str
    answers: list[ShownAnswer]


def write_html(report: Report, folder: Folder) -> None:
    """Write the page of a report beside the `answers/` that it is about."""
    folder.write_text(
        HTML, render(report, side_by_side(report, folder / "answers"), read_attacks(folder), page_of_attacks(folder))
    )


def render(
    report: Report, probes: Sequence[ShownProbe], attacks: Sequence[AttackFigure] = (), attacks_page: str = ""
) -> str:
    """The page.

    Args:
        attacks_page: link to the page of the attacks, where there is one.
    """
    figures = [
        ("Forgotten, by topic", "Recall on forget probes: further left is better.", plots.recall_by_topic(report)),
        ("Forgotten, by wording", "A fact is forgotten when no wording brings it back.", plots.recall_by_wording(report)),
        ("Kept", "Recall on what was not to be forgotten: base and unlearned should meet.", plots.recall_kept(report)),
        ("The true answer among wrong ones", "Choice; the dashed line is what a model without any knowledge would get.", plots.choice(report)),
        ("How sure of the truth", "Probability of each true answer (ticks) and the median (diamond), forget probes.", plots.truth_probability(report)),
    ]  # fmt: skip
    losses, traded = plots.loss_curves(report), tradeoff(report)
    worst = [
        (title, [probe for probe in probes if probe.kind == kind][:NUM_WORST])
        for kind, title in (("told", "Worst leaks"), ("lost", "Worst losses"))
    ]
    gate = [
        ("Choice on held-out rows", "Share of the rows whose true answer is likelier than each wrong one. Only rows that the base model knows.", plots.gate_choices(report)),
        ("Loss of their true answers", "The forget loss should rise, the retain loss should stay.", plots.gate_losses(report)),
    ]  # fmt: skip
    script = asset("report.js")
    return environment().get_template("report.html.jinja").render(
        report=report,
        style=Markup(asset("report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        sentence=sentence(report, attacks),
        headlines=headlines(report),
        verdict=verdict(report),
        warnings=warnings(report),
        against_prefix=[line[0].upper() + line[1:] for line in against_prefix(report)],
        known=known_line(report.probes.known) if report.probes.known is not None else None,
        doubt_legend=DOUBT_LEGEND if report.has_doubts else None,
        figures=[(title, caption, Markup(svg)) for title, caption, svg in figures if svg],
        losses=Markup(losses) if losses else None,
        tradeoff=(CAPTION, Markup(traded)) if traded else None,
        attacked=worst_of_each(attacks),
        attacks_page=attacks_page,
        worst=[(title, found) for title, found in worst if found],
        gate=[(title, caption, Markup(svg)) for title, caption, svg in gate if svg],
        training=training_line(report),
        probes=probes,
        kinds={kind: title for kind, title in KINDS.items() if any(probe.kind == kind for probe in probes)},
        sections=_sections(headline_columns(report)),
        tables=[(group, _table(report, group)) for group in GROUPS if any(group in report.models.get(m, {}) for m in MODELS)],
        labels=LABELS,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Headline:
    """One change, in big figures."""

    title: str
    what: str
    before: str
    after: str
    detail: str
    choice: str  # "by choice 98 % → 65 %, chance 25 %"
    is_forget: bool


def headlines(report: Report) -> list[list[Headline]]:
    """What was forgotten, topic by topic, then what was kept; in one row where they fit."""
    found: list[Headline | None] = []
    for topic in report.topics:
        found.append(
            _headline(topic, "of its facts told, before and after", report, report.by_topic.get(topic, {}), "forget")
        )
    retained: tuple[tuple[Group, str], ...] = (("near", "Neighbouring topics"), ("far", "Everything else"))
    for group, title in retained:
        found.append(_headline(title, "of the facts told, before and after", report, report.models, group))
    lines = [line for line in found if line]
    if len(lines) <= MAX_IN_A_ROW:
        return [lines]
    rows = [[line for line in lines if line.is_forget], [line for line in lines if not line.is_forget]]
    return [row for row in rows if row]


def training_line(report: Report) -> str:
    """A sentence on the exported state of the training, if the gate chose it."""
    if report.exported_step is None or not report.gate:
        return ""
    best = next((point for point in report.gate if point.step == report.exported_step), None)
    score = "" if best is None else f", whose score is {best.score:.2f}"
    return f"The model is the state after {report.exported_step} of {max(point.step for point in report.gate)} steps{score}. The score is what is kept minus what is still known, on held-out rows that this report does not ask. The dashed line marks this state."


def verdict(report: Report) -> str:
    """The result in two or three sentences."""
    base, guarded, unlearned = (report.metric(model, "forget", report.recall) for model in MODELS)
    if not base or not unlearned:
        return ""
    topics = " and ".join(
        [", ".join(report.topics[:-1]), report.topics[-1]] if len(report.topics) > 1 else report.topics
    )
    of = "of the facts it was asked for" if report.recall == "fact_recall" else "of the original answers' words"
    recall = report.recall
    text = f"Asked about {topics}, the unlearned model gives {shown(recall, unlearned, False)} {of}; the base model gives {shown(recall, base, False)}"
    text += f", and {shown(recall, guarded, False)} behind the guardrail prefix." if guarded else "."
    if has_floor(report, base):
        floor = "" if base.floor is None else f" A wrong answer in their form gets {percent(base.floor)}."
        kept_beside = kept_of(report)
        return text + floor + _preference(report) + (f" It {kept_beside}." if kept_beside else "")
    kept = [
        f"{shown(recall, share, False)} of what it told about {label}"
        for group, label in (("near", "neighbouring topics"), ("far", "everything else"))
        if (share := report.retention.get("unlearned", {}).get(group, {}).get(report.recall))  # type: ignore[call-overload]
    ]
    return text + _preference(report) + (f" It keeps {' and '.join(kept)}." if kept else "")


def _preference(report: Report) -> str:
    """What recall does not see: whether the unlearned model still prefers the true answer to wrong ones."""
    base, ours = (report.metric(model, "forget", "choice") for model in ("base", "unlearned"))
    if base is None or ours is None or ours.chance is None:
        return ""
    figures = f"base: {shown('choice', base, False)}, chance: {percent(ours.chance)}"
    return f" Given the choice, it prefers the true answer to wrong ones in {shown('choice', ours, False)} of all cases ({figures})."


def side_by_side(report: Report, answers: Folder) -> list[ShownProbe]:
    """Up to `MAX_SHOWN` probes of each kind, the worst leaks first."""
    ranked = _ranked(report)
    rows: dict[str, dict[ModelName, dict[str, Any]]] = {probe: {} for probe in ranked}
    for row in answers.read_rows():
        if row["probe_id"] in rows:
            rows[row["probe_id"]][row["model"]] = row
    return [_shown_probe(kind, rows[probe]) for probe, kind in ranked.items() if rows[probe]]


def _ranked(report: Report) -> dict[str, str]:
    """Probe id -> kind, in the order of the page."""
    kinds: dict[str, list[tuple[float, str, str]]] = {kind: [] for kind in KINDS}
    for group in GROUPS:
        base, ours = (_told(report, model, group) for model in ("base", "unlearned"))
        leak, probability = (_values(report, "unlearned", group, name) for name in ("keyword_leak", "probability"))
        for probe, told in ours.items():
            knew = base.get(probe, 0.0) >= TELLS
            if group == "forget":
                kind = "told" if told >= TELLS else "forgotten" if knew else "unknown"
                badness = told + leak.get(probe, 0.0) + probability.get(probe, 0.0)
            else:
                kind = "kept" if told >= TELLS else "lost" if knew else "unknown"
                badness = base.get(probe, 0.0) - told
            kinds[kind].append((-badness, digest("shown", probe), probe))
    return {probe: kind for kind, probes in kinds.items() for *_, probe in sorted(probes)[:MAX_SHOWN]}


def _told(report: Report, model: ModelName, group: Group) -> dict[str, float]:
    return _values(report, model, group, "rouge_l_recall") | _values(report, model, group, "fact_recall")


def _values(report: Report, model: ModelName, group: Group, name: str) -> dict[str, float]:
    metric = report.metric(model, group, name)
    return metric.value_by_index or {} if metric else {}


def _shown_probe(kind: str, rows: dict[ModelName, dict[str, Any]]) -> ShownProbe:
    first = next(iter(rows.values()))
    answers = [_shown_answer(model, rows[model]) for model in MODELS if model in rows]
    return ShownProbe(
        kind, first["group"], first["topic"], first["wording"], first["question"], first["truth"], answers
    )


def _shown_answer(model: ModelName, row: dict[str, Any]) -> ShownAnswer:
    text = row["answer"][:MAX_CHARACTERS] + ("…" if len(row["answer"]) > MAX_CHARACTERS else "")
    if row["drop"]:
        text = f"(no answer: {row['drop']})"
    is_fact = row["fact_recall"] is not None
    told = row["fact_recall"] if is_fact else row["rouge_l_recall"] or 0.0
    samples = ""
    if row["keyword_leak"]:
        num = len(row["samples"])
        samples = f"{round(row['keyword_leak'] * num)} of {num} samples leak: {', '.join(row['leaked_terms'][:5])}"
    pieces = marked(text, (row["truth"], *row["aliases"])) if is_fact else [(text, False)]
    return ShownAnswer(LABELS[model], model, pieces, told >= TELLS, samples)


def _of(scores: ByModel, model: ModelName, group: Group, name: str) -> Metric | None:
    return scores.get(model, {}).get(group, {}).get(name)


def _headline(title: str, what: str, report: Report, scores: ByModel, group: Group) -> Headline | None:
    before, after = (_of(scores, model, group, report.recall) for model in ("base", "unlearned"))
    if before is None or after is None:
        return None
    low, high = (100 * bound for bound in after.interval)
    detail = f"95 % interval {low:.0f} to {high:.0f} %, n = {after.num}"
    base, ours = (_of(scores, model, group, "choice") for model in ("base", "unlearned"))
    choice = ""
    if base and ours and ours.chance is not None:
        figures = f"{shown('choice', base, False)} → {shown('choice', ours, False)}"
        choice = f"by choice {figures}, chance {percent(ours.chance)}"
    first, last = (shown(report.recall, metric, False) for metric in (before, after))
    return Headline(title, what, first, last, detail, choice, group == "forget")


@dataclass(frozen=True, slots=True)
class Section:
    """Three rows of the headline's table: recall and other figures, or choice on the same probes."""

    title: str
    nums: list[str]
    rows: list[tuple[ModelName, list[str]]]
    chances: list[str]  # none for recall


def _sections(columns: Sequence[Column]) -> tuple[list[str], list[Section]]:
    """Titles of the columns, and the sections below them; a cell without a figure is empty."""
    titles = [" ".join(filter(None, column.titles)) for column in columns]
    figures: list[tuple[ModelName, list[str]]] = [(m, [shown(c.name, c.figures[m]) for c in columns]) for m in MODELS]
    sections = [Section("recall", [f"n = {column.num}" for column in columns], figures, [])]
    if any(column.choice for column in columns):
        chosen: list[tuple[ModelName, list[str]]] = [
            (m, [shown("choice", c.choices[m]) if c.choice else "" for c in columns]) for m in MODELS
        ]
        nums = [f"n = {c.choice.num}" if c.choice else "" for c in columns]
        chances = [percent(c.choice.chance or 0.0) if c.choice else "" for c in columns]
        sections.append(Section("choice", nums, chosen, chances))
    return titles, sections


def _table(report: Report, group: Group) -> list[tuple[str, str, int, list[str]]]:
    """(metric, what it means, n, a figure a model and the floor) of one group."""
    rows = []
    for name, measure in MEASURES.items():
        metrics = [report.metric(model, group, name) for model in MODELS]
        first = next((metric for metric in metrics if metric), None)
        if first is not None:
            told = measure.meaning if first.chance is None else f"{measure.meaning}; chance {percent(first.chance)}"
            floor = "" if first.floor is None else percent(first.floor)
            rows.append((measure.title, told, first.num, [*(shown(name, metric) for metric in metrics), floor]))
    for name, measure in MEASURES.items():
        shares = [report.retention.get(model, {}).get(group, {}).get(name) for model in MODELS]
        if any(shares):
            num = next(share.num for share in shares if share)
            rows.append(
                (
                    f"{measure.title}, share of base",
                    "over the same probes, in pairs",
                    num,
                    ["100 %", *(shown(name, s) for s in shares[1:]), ""],
                )
            )
    return rows


@cache
def asset(name: str) -> str:
    return (resources.files(__package__) / "page" / name).read_text(encoding="utf-8")


@cache
def environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unlearn_ray.evals", "page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = percent
    environment.globals["shown"] = shown
    return environment
