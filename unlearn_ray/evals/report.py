"""`report.json`: its schema, how it is read, and the table of it in the terminal.

    version           of this schema
    run, model        name of the run and of the base model
    topics            topics to forget
    recall            the metric that the headline is of: fact_recall, or rouge_l_recall where answers are sentences
    metrics           metric -> its title, meaning, direction, and whether it is a share
    probes            what was asked: source, split, number by group, left out by reason; and of facts asked of any model, how many
                      of each group the base model knows: those alone are in the figures
    unanswered        model -> reason -> probes that the engine could not answer; in no metric
    models            base | guarded (base + prefix) | unlearned -> forget | near | far -> metric -> Metric
    by_wording        wording -> as `models`, without value_by_index
    by_topic          topic to forget -> as `models`, without value_by_index; near and far: the probes that its prefix
                      and adapter answered
    by_training       trained | untrained -> as `models`, without value_by_index: probes whose fact a training row asks for in other words, and
                      the others; empty where that is not known
    against_prefix    forget | near | far -> recall, choice or leak -> how much better than the prefix the unlearned model is, over the same
                      probes: positive is better
    forgetting        what the unlearned model lost of the base model's recall and choice on forget, over the same probes:
                      forgotten, no_forgetting or not_measured, and why
    forgetting_by_topic  topic to forget -> as `forgetting`
    retention         guarded | unlearned -> near | far -> recall, choice or probability -> share of the base model's, over the same probes
    utility           model -> harmonic mean of probability, ROUGE-L recall and truth ratio on near and far: six terms, after TOFU, whose model
                      utility has nine
    losses            training -> points of its loss curve
    gate              evaluations of the training's gate, on held-out rows that no probe asks; empty without a gate
    exported_step     number of steps of the exported state, if the gate chose it
    stages            stage -> what its manifest says
    notes             what a reader must know before believing the figures

A Metric is open-unlearning's `{"agg_value", "value_by_index"}` with `num` (values behind it: probes, or facts in
`*_worst`), `interval` (95 %: bootstrap, facts resampled whole; exact where that can't tell, see statistics.py), `doubts` (why it is
not to be relied on), its `floor` (what a model without knowledge gets on the same probes: a wrong answer of the same form in the place of the
true one, measured with base) and for choice the same as `chance`. Where base is hardly above the floor, the metric is `blind`: it can't tell
whether anything was known. A metric that no probe has is not there. The figure of the truth ratio is the mean of min(R, 1/R) on forget and of
max(0, 1 - R) on near and far; R itself is in `value_by_index`.
`fact_recall_worst` is over a fact's paraphrases: on forget the highest (one wording that still tells it is enough),
on near and far the lowest.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from unlearn_ray.artifacts import Folder
from unlearn_ray.errors import ArtifactError
from unlearn_ray.evals.scoring import MODELS, ModelName
from unlearn_ray.evals.table import MEASURES, Direction, is_share, short_of
from unlearn_ray.rows import GROUPS, Group
from unlearn_ray.words import visible

REPORT = "report.json"
VERSION: Literal[3] = 3
FEW_PROBES = 20
WIDE_INTERVAL = 0.3  # of a share
_MAX_LOSS_POINTS = 400
_METRICS, _GATE = "metrics.jsonl", "gate.jsonl"  # other files beside the losses; the first has times and speed
LEAST_ROOM = 0.2  # of a figure of base's, that must lie above what a model without knowledge gets
TRAINED, UNTRAINED = "trained", "untrained"  # facts that a training row asks for, and the others
LABELS: dict[ModelName, str] = {"base": "base", "guarded": "base + prefix", "unlearned": "unlearned"}
DOUBTFUL = "*"  # stands after every figure that has doubts
DOUBT_LEGEND = f"{DOUBTFUL} not to be relied on: fewer than {FEW_PROBES} probes, an interval wider than {100 * WIDE_INTERVAL:.0f} points, or hardly above the floor in base"
Doubt = Literal["few_probes", "wide_interval", "blind"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(_Strict):
    """A figure with all that a reader needs to judge it."""

    agg_value: float
    num: int
    interval: tuple[float, float]
    chance: float | None = None  # of choice alone
    floor: float | None = None  # what a model without knowledge gets on these probes
    doubts: list[Doubt] = []
    value_by_index: dict[str, float] | None = None  # probe id (or fact) -> value


Metrics = dict[str, Metric]
Scores = dict[Group, Metrics]
ByModel = dict[ModelName, Scores]


class KnownCount(_Strict):
    """How much of what was asked the base model knows."""

    num_probes: int
    of_probes: int
    num_facts: int
    of_facts: int


class MetricWords(_Strict):
    """What a metric is called and means, and which way is good: of the table, for readers that do not import it."""

    title: str
    meaning: str
    direction: Direction
    is_share: bool


def metric_words() -> dict[str, MetricWords]:
    """The table's words."""
    return {
        name: MetricWords(title=row.title, meaning=row.meaning, direction=row.direction, is_share=row.is_share)
        for name, row in MEASURES.items()
    }


class ProbeCounts(_Strict):
    """What was asked."""

    source: str  # pocket, facts, held-out questions, or a file
    split: str
    num: dict[str, int]  # group -> probes
    excluded: dict[str, int]  # reason -> probes
    known: dict[Group, KnownCount] | None = None  # where only what the base model knows is counted


class Forgetting(_Strict):
    """Whether the unlearned model tells less than the base model does."""

    verdict: Literal["forgotten", "no_forgetting", "not_measured"]
    num: int  # forget probes that both answered, and that count
    lost: Metrics  # recall and choice -> base less unlearned, over the same probes


class LossPoint(_Strict):
    """A step of a training; None where its file does not say."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    step: int
    loss: float | None = None
    forget_loss: float | None = None
    retain_loss: float | None = None
    lr: float | None = None


class GatePoint(_Strict):
    """One evaluation of a training's gate, after `step` steps; 0: the base model."""

    step: int
    forget_loss: float | None = None
    forget_choice: float
    retain_loss: float | None = None
    retain_choice: float | None = None
    score: float


class StageSummary(_Strict):
    """What a stage's manifest says of it."""

    num_rows: dict[str, int]
    drops: dict[str, int]
    seconds: float
    tokens: dict[str, int] = {}  # asked of engines and answered by them
    config: dict[str, Any]
    package_version: str
    git_revision: str
    libraries: dict[str, str]
    finished_at: str


class Report(_Strict):
    """The evaluation of one run; the fields are described above."""

    version: Literal[3] = VERSION  # of a report: what its figures mean differs between versions
    run: str
    model: str
    topics: list[str]
    recall: Literal["fact_recall", "rouge_l_recall"]
    metrics: dict[str, MetricWords] = {}
    probes: ProbeCounts
    unanswered: dict[ModelName, dict[str, int]]
    models: ByModel
    by_wording: dict[str, ByModel]
    by_topic: dict[str, ByModel]
    by_training: dict[str, ByModel] = {}
    against_prefix: Scores = {}
    forgetting: Forgetting
    forgetting_by_topic: dict[str, Forgetting]
    retention: dict[ModelName, Scores]
    utility: dict[ModelName, float]
    losses: dict[str, list[LossPoint]]
    gate: list[GatePoint] = []
    exported_step: int | None = None
    stages: dict[str, StageSummary]
    notes: list[str]

    @classmethod
    def load(cls, folder: Folder | Path | str) -> Self:
        """The report in an evaluation's folder.

        Raises:
            ArtifactError: there is none, or it is of another version.
        """
        folder = folder if isinstance(folder, Folder) else Folder(folder)
        if not folder.exists(REPORT):
            raise ArtifactError(f"{folder} has no {REPORT}: run the evaluate stage")
        try:
            return cls.model_validate_json(folder.read_text(REPORT))
        except ValidationError as error:
            raise ArtifactError(
                f"{folder}/{REPORT} can't be read ({error.error_count()} errors): rerun with --from evaluate"
            ) from error

    def save(self, folder: Folder) -> None:
        folder.write_text(REPORT, self.model_dump_json(indent=1, exclude_none=True))

    def metric(self, model: ModelName, group: Group, name: str) -> Metric | None:
        return self.models.get(model, {}).get(group, {}).get(name)

    @property
    def has_doubts(self) -> bool:
        """Whether a figure of it is marked."""
        parts = [self.models, self.retention, *self.by_wording.values(), *self.by_topic.values()]
        return any(
            metric.doubts
            for by_model in parts
            for scores in by_model.values()
            for metrics in scores.values()
            for metric in metrics.values()
        )

    @property
    def wordings(self) -> list[str]:
        """Wordings of the forget probes, `template` first."""
        asked = [name for name, scores in self.by_wording.items() if scores.get("base", {}).get("forget")]
        return sorted(asked, key=lambda name: (name != "template", name))


def read_losses(folder: Folder) -> dict[str, list[LossPoint]]:
    """Loss curves by training (`<name>.jsonl`), thinned to what a plot can show; none where there is no such folder."""
    curves = {}
    for name in folder.names(".jsonl"):
        if name in (_METRICS, _GATE):
            continue
        lines = [line for line in folder.read_text(name).splitlines() if line.strip()]
        stride = max(1, -(-len(lines) // _MAX_LOSS_POINTS))
        curves[name.removesuffix(".jsonl")] = [LossPoint.model_validate_json(line) for line in lines[::stride]]
    return {name: points for name, points in curves.items() if points}


def read_gate(folder: Folder) -> list[GatePoint]:
    """The evaluations of a training's gate; empty if it had no gate."""
    if not folder.exists(_GATE):
        return []
    return [GatePoint.model_validate_json(line) for line in folder.read_text(_GATE).splitlines()]


def shown(name: str, metric: Metric | None, with_interval: bool = True) -> str:
    """`3 % [1, 6]`, or `2.41 [2.3, 2.5]` for what is no share; `3 %* [0, 40]` where it is not to be relied on."""
    if metric is None:
        return "n/a"
    low, high = metric.interval
    sign = DOUBTFUL if metric.doubts else ""
    if not is_share(name):
        return f"{metric.agg_value:.2f}{sign}" + (f" [{low:.2f}, {high:.2f}]" if with_interval else "")
    return percent(metric.agg_value) + sign + (f" [{100 * low:.0f}, {100 * high:.0f}]" if with_interval else "")


def figure_name(model: ModelName, group: Group, short: str) -> str:
    """What a manifest calls a figure of the headline: `unlearned_forget` is its recall, `unlearned_forget_choice` its choice."""
    return f"{model}_{group}" + ("" if short == "recall" else f"_{short}")


def doubts_of(name: str, num: int, interval: tuple[float, float]) -> list[Doubt]:
    """Why a figure is not to be relied on."""
    found: list[Doubt] = []
    if num < FEW_PROBES:
        found.append("few_probes")
    if is_share(name) and interval[1] - interval[0] > WIDE_INTERVAL:
        found.append("wide_interval")
    return found


def percent(share: float) -> str:
    """`0.034` -> `3 %`; one decimal where a whole number would claim all or nothing."""
    is_rounded_away = 0 < share < 0.005 or 0.995 <= share < 1
    return f"{100 * share:.1f} %" if is_rounded_away else f"{100 * share:.0f} %"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the headline: recall or another figure of each model, and choice on the same probes."""

    titles: tuple[str, str]
    name: str
    figures: Mapping[ModelName, Metric | None]
    choices: Mapping[ModelName, Metric | None]

    @property
    def num(self) -> int:
        return next((metric.num for metric in self.figures.values() if metric), 0)

    @property
    def choice(self) -> Metric | None:
        """Choice of the first model that has it: for its number of probes and its chance, which are those of all."""
        return next((metric for metric in self.choices.values() if metric), None)


def headline_columns(report: Report) -> list[Column]:
    """What a person asks first."""
    recall, nothing = report.recall, dict.fromkeys(MODELS)
    found: list[Column] = []

    def add(titles: tuple[str, str], group: Group, name: str, scores: ByModel, has_choice: bool) -> None:
        figures = {model: scores.get(model, {}).get(group, {}).get(name) for model in MODELS}
        choices = {model: scores.get(model, {}).get(group, {}).get("choice") for model in MODELS}
        column = Column(titles, name, figures, choices if has_choice else nothing)
        # Choice alone will do, such as where the answers of a group are too long for recall.
        if column.num or column.choice:
            found.append(column)

    wordings = report.wordings
    if all(report.by_training.get(part, {}).get("base", {}).get("forget") for part in (TRAINED, UNTRAINED)):
        for part in (TRAINED, UNTRAINED):
            add(("forget", part), "forget", recall, report.by_training[part], True)
    elif 1 < len(wordings) <= 3:
        for wording in wordings:
            add(("forget", wording), "forget", recall, report.by_wording[wording], True)
    else:
        add(("", "forget"), "forget", recall, report.models, True)
    others = [row for row in MEASURES.values() if row.column]
    for row in (row for row in others if row.direction == "knowledge"):
        add(row.column, "forget", row.name, report.models, False)  # type: ignore[arg-type]
    add(("", "near"), "near", recall, report.models, True)
    add(("", "far"), "far", recall, report.models, True)
    for row in (row for row in others if row.direction != "knowledge"):
        add(row.column, "forget", row.name, report.models, False)  # type: ignore[arg-type]
    return found


def summary_table(report: Report) -> Table:
    """Three rows, and what a person asks first, under each title its number of probes; then the same three rows by choice."""
    table = Table(
        title=_title(report),
        title_justify="left",
        header_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
        collapse_padding=True,
        pad_edge=False,
    )
    columns = headline_columns(report)
    table.add_column("\n\n[dim]recall[/]", no_wrap=True)
    for column in columns:
        above, title = (escape(visible(part)) for part in column.titles)
        table.add_column(f"{above}\n{title}\n[dim]n={column.num}[/]", justify="right", no_wrap=True)
    for model in MODELS:
        cells = [_cell(column.name, column.figures[model]) for column in columns]
        table.add_row(LABELS[model], *cells, style="bold" if model == "unlearned" else None)
    if any(column.choice for column in columns):
        nums = [f"\nn={column.choice.num}" if column.choice else "" for column in columns]
        table.add_row("\nchoice", *nums, style="dim")
        for model in MODELS:
            cells = [_cell("choice", column.choices[model]) if column.choice else Text() for column in columns]
            table.add_row(LABELS[model], *cells, style="bold" if model == "unlearned" else None)
        chances = [percent(column.choice.chance or 0.0) if column.choice else "" for column in columns]
        table.add_row("chance", *chances, style="dim")
    table.caption = Text("\n".join(_legend(report, columns)), style="dim")
    table.caption_justify = "left"
    return table


def _title(report: Report) -> Text:
    """What it is about; below it, where forgetting was not measured, that."""
    title = Text(visible(f"What {report.model} knows of {', '.join(report.topics)}"))
    for warning in warnings(report):
        title.append(f"\n! {visible(warning)}", "bold not italic yellow")
    return title


def warnings(report: Report) -> list[str]:
    """What a headline must say before any figure: that nothing was forgotten, or nothing could be measured; of each such topic, where
    another one was forgotten, or all of them together were."""
    return [*_blind(report), *_not_forgotten(report)]


def _blind(report: Report) -> list[str]:
    """That the headline's recall is no headline here."""
    base = report.metric("base", "forget", report.recall)
    if base is None or base.floor is None or "blind" not in base.doubts:
        return []
    title = MEASURES[report.recall].title
    figures = f"base gets {percent(base.agg_value)}, a wrong answer of the same form {percent(base.floor)}"
    return [f"{title} can't tell here whether anything is known ({figures}): go by choice."]


def _not_forgotten(report: Report) -> list[str]:
    by_topic = report.forgetting_by_topic
    verdicts = {report.forgetting.verdict, *(found.verdict for found in by_topic.values())}
    if len(report.topics) == 1 or "forgotten" not in verdicts:
        return _warning(report.forgetting, report.topics)
    return [line for topic in report.topics if topic in by_topic for line in _warning(by_topic[topic], [topic])]


def _warning(found: Forgetting, topics: Sequence[str]) -> list[str]:
    about = ", ".join(topics)
    if found.verdict == "not_measured":
        asked = f"none of the {found.num} probes" if found.num else "nothing that was asked"
        return [f"Forgetting could not be measured: the base model knows {asked} about {about}."]
    if found.verdict == "no_forgetting":
        lost = " and ".join(f"{short_of(name)} is {_points(metric)}" for name, metric in found.lost.items())
        return [f"No forgetting measured of {about}: {lost}. Chance alone explains as much."]
    return []


def _points(lost: Metric) -> str:
    value, low, high = (round(100 * share) for share in (lost.agg_value, *lost.interval))
    return f"{abs(value)} points {'above' if value < 0 else 'below'} base's (95 %: {-high} to {-low})"


def _legend(report: Report, columns: Sequence[Column]) -> Iterator[str]:
    yield "95 % intervals; worst: any wording of a fact that still tells it"
    if any(column.choice for column in columns):
        yield "choice: the true answer is likelier than each wrong one"
    if any(column.titles[1] == UNTRAINED for column in columns):
        yield "trained: a training row asks for the fact in other words; untrained: none does"
    yield from against_prefix(report)
    if report.probes.known is not None:
        yield known_line(report.probes.known)
    figures = [metric for column in columns for of in (column.figures, column.choices) for metric in of.values()]
    if any(metric.doubts for metric in figures if metric):
        yield DOUBT_LEGEND


def against_prefix(report: Report) -> list[str]:
    """Who wins what: the unlearned model or the guardrail prefix alone. One wins where the interval of the difference leaves 0 out."""
    parts: dict[str, list[str]] = {"unlearned": [], "prefix": [], "neither": []}
    for group, gains in report.against_prefix.items():
        for name, gain in gains.items():
            ours, theirs = (report.metric(model, group, name) for model in ("unlearned", "guarded"))
            if ours is not None and theirs is not None:
                low, high = gain.interval
                winner = "unlearned" if low > 0 else "prefix" if high < 0 else "neither"
                figures = f"{percent(ours.agg_value)} against {percent(theirs.agg_value)}"
                parts[winner].append(f"{group} {short_of(name)} ({figures})")
    if not any(parts.values()):
        return []
    told = {"unlearned": "the unlearned model wins", "prefix": "the prefix wins", "neither": "neither wins"}
    return ["against the prefix: " + "; ".join(f"{told[who]} {', '.join(won)}" for who, won in parts.items() if won)]


def known_line(known: Mapping[Group, KnownCount]) -> str:
    """How much of what was asked is in the figures."""
    counts = ", ".join(
        f"{group} {count.num_probes} of {count.of_probes} probes ({count.num_facts} of {count.of_facts} facts)"
        for group, count in known.items()
    )
    return f"counted is what the base model knows: {counts}"


def _cell(name: str, metric: Metric | None) -> Text:
    """The figure, its interval dimmed below."""
    figure, _, interval = shown(name, metric).partition(" [")
    return Text.assemble(figure, (f"\n{interval.rstrip(']').replace(', ', '–')}" if interval else "", "dim not bold"))


__all__ = [
    "GROUPS",
    "MODELS",
    "REPORT",
    "ByModel",
    "Metric",
    "Metrics",
    "Report",
    "Scores",
    "headline_columns",
    "percent",
    "shown",
    "summary_table",
    "warnings",
]
