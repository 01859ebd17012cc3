"""`report.json`: its schema, how it is read, and the table of it in the terminal.

    version           of this schema
    run, model        name of the run and of the base model
    topics            topics to forget
    recall            the metric that the headline is of: fact_recall, or rouge_l_recall where answers are sentences
    probes            what was asked: source, split, number by group, left out by reason
    unanswered        model -> reason -> probes that the engine could not answer; in no metric
    models            base | guarded (base + prefix) | unlearned -> forget | near | far -> metric -> Metric
    by_wording        wording -> as `models`, without value_by_index
    by_topic          topic to forget -> as `models`, without value_by_index; near and far: the probes that its prefix
                      and adapter answered
    retention         guarded | unlearned -> near | far -> recall metric -> share of the base model's, over the same probes
    utility           model -> TOFU's model utility: harmonic mean of probability, ROUGE-L recall and truth ratio on near and far
    losses            training -> points of its loss curve
    stages            stage -> what its manifest says
    notes             what a reader must know before believing the figures

A Metric is open-unlearning's `{"agg_value", "value_by_index"}` with `num` (values behind it: probes, or facts in
`*_worst`) and `interval` (bootstrap 95 %, facts resampled whole). A metric that no probe has is not there.
`fact_recall_worst` is over a fact's paraphrases: on forget the highest (one wording that still tells it is enough),
on near and far the lowest.
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from unlearn_ray.artifacts import Folder
from unlearn_ray.errors import ArtifactError
from unlearn_ray.evals.scoring import GROUPS, MODELS, ModelName
from unlearn_ray.rows import Group
from unlearn_ray.words import visible

REPORT = "report.json"
VERSION = 1
_MAX_LOSS_POINTS = 400
NO_SHARES = ("fluency", "truth_ratio")  # all else is a share, shown in per cent
LABELS: dict[ModelName, str] = {"base": "base", "guarded": "base + prefix", "unlearned": "unlearned"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(_Strict):
    """A figure with all that a reader needs to judge it."""

    agg_value: float
    num: int
    interval: tuple[float, float]
    value_by_index: dict[str, float] | None = None  # probe id (or fact) -> value


Metrics = dict[str, Metric]
Scores = dict[Group, Metrics]
ByModel = dict[ModelName, Scores]


class ProbeCounts(_Strict):
    """What was asked."""

    source: str  # pocket, held-out questions, or a file
    split: str
    num: dict[str, int]  # group -> probes
    excluded: dict[str, int]  # reason -> probes


class LossPoint(_Strict):
    """A step of a training; None where its file does not say."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    step: int
    loss: float | None = None
    forget_loss: float | None = None
    retain_loss: float | None = None
    lr: float | None = None


class StageSummary(_Strict):
    """What a stage's manifest says of it."""

    num_rows: dict[str, int]
    drops: dict[str, int]
    seconds: float
    config: dict[str, Any]
    package_version: str
    git_revision: str
    libraries: dict[str, str]
    finished_at: str


class Report(_Strict):
    """The evaluation of one run; the fields are described above."""

    version: int = VERSION
    run: str
    model: str
    topics: list[str]
    recall: Literal["fact_recall", "rouge_l_recall"]
    probes: ProbeCounts
    unanswered: dict[ModelName, dict[str, int]]
    models: ByModel
    by_wording: dict[str, ByModel]
    by_topic: dict[str, ByModel]
    retention: dict[ModelName, Scores]
    utility: dict[ModelName, float]
    losses: dict[str, list[LossPoint]]
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
    def wordings(self) -> list[str]:
        """Wordings of the forget probes, `template` first."""
        asked = [name for name, scores in self.by_wording.items() if scores.get("base", {}).get("forget")]
        return sorted(asked, key=lambda name: (name != "template", name))


def read_losses(folder: Folder) -> dict[str, list[LossPoint]]:
    """Loss curves by training (`<name>.jsonl`), thinned to what a plot can show; none where there is no such folder."""
    curves = {}
    for name in folder.names(".jsonl"):
        lines = [line for line in folder.read_text(name).splitlines() if line.strip()]
        stride = max(1, -(-len(lines) // _MAX_LOSS_POINTS))
        curves[name.removesuffix(".jsonl")] = [LossPoint.model_validate_json(line) for line in lines[::stride]]
    return {name: points for name, points in curves.items() if points}


def shown(name: str, metric: Metric | None, with_interval: bool = True) -> str:
    """`3 % [1, 6]`, or `2.41 [2.3, 2.5]` for what is no share."""
    if metric is None:
        return "n/a"
    low, high = metric.interval
    if name in NO_SHARES:
        return f"{metric.agg_value:.2f}" + (f" [{low:.2f}, {high:.2f}]" if with_interval else "")
    return percent(metric.agg_value) + (f" [{100 * low:.0f}, {100 * high:.0f}]" if with_interval else "")


def percent(share: float) -> str:
    """`0.034` -> `3 %`; one decimal where a whole number would claim all or nothing."""
    is_rounded_away = 0 < share < 0.005 or 0.995 <= share < 1
    return f"{100 * share:.1f} %" if is_rounded_away else f"{100 * share:.0f} %"


def summary_table(report: Report) -> Table:
    """Three rows, and what a person asks first; under each title its number of probes."""
    table = Table(
        title=escape(visible(f"What {report.model} knows of {', '.join(report.topics)}")),
        title_justify="left",
        header_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("", no_wrap=True)
    recall = report.recall
    columns: list[tuple[str, dict[ModelName, Metric | None], str]] = []

    def add(title: str, metric: str, of: dict[ModelName, Metric | None]) -> None:
        if any(of.values()):
            columns.append((title, of, metric))

    wordings = report.wordings
    if 1 < len(wordings) <= 3:
        for wording in wordings:
            scores = report.by_wording[wording]
            add(
                f"forget\n{escape(visible(wording))}",
                recall,
                {m: scores.get(m, {}).get("forget", {}).get(recall) for m in MODELS},
            )
    else:
        add("forget\nrecall", recall, {m: report.metric(m, "forget", recall) for m in MODELS})
    for title, group, metric in (
        ("forget\nworst", "forget", "fact_recall_worst"),
        ("samples\nleaking", "forget", "keyword_leak"),
        ("\nnear", "near", recall),
        ("\nfar", "far", recall),
        ("\nfluency", "forget", "fluency"),
    ):
        add(title, metric, {m: report.metric(m, group, metric) for m in MODELS})  # type: ignore[arg-type]

    for title, of, _ in columns:
        num = next(metric.num for metric in of.values() if metric)
        table.add_column(f"{title}\n[dim]n={num}[/]", justify="right", no_wrap=True)
    for model in MODELS:
        style = "bold" if model == "unlearned" else None
        cells = [_cell(metric, of[model]) for _, of, metric in columns]
        table.add_row(LABELS[model], *cells, style=style)
    table.caption = "[dim]bootstrap 95 % intervals; worst: any wording of a fact that still tells it[/]"
    table.caption_justify = "left"
    return table


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
    "percent",
    "shown",
    "summary_table",
]
