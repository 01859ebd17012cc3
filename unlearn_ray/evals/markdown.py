"""`report.md`: the report as a pull request shows it. What users and models wrote is escaped: it is no Markdown, HTML or formula."""

from collections.abc import Iterator, Mapping, Sequence

from unlearn_ray.artifacts import Folder
from unlearn_ray.evals.attacked import AttackFigure, read_attacks, worst_of_each
from unlearn_ray.evals.escaping import escaped
from unlearn_ray.evals.html import NUM_WORST, ShownProbe, side_by_side, write_html
from unlearn_ray.evals.report import (
    DOUBT_LEGEND,
    LABELS,
    Column,
    Report,
    StageSummary,
    against_prefix,
    headline_columns,
    known_line,
    percent,
    shown,
    warnings,
)
from unlearn_ray.evals.scoring import MODELS
from unlearn_ray.evals.sentence import sentence

MARKDOWN = "report.md"
_MAX_CHARACTERS = 160  # of an answer


def write_pages(folder: Folder) -> None:
    """Write the pages of the report in an evaluation's folder, with the attacks on its model as far as they are done.

    Raises:
        ArtifactError: the report, or the attacks' figures, can't be read.
    """
    report = Report.load(folder)
    write_html(report, folder)
    folder.write_text(MARKDOWN, markdown(report, side_by_side(report, folder / "answers"), read_attacks(folder)))


def markdown(report: Report, probes: Sequence[ShownProbe] = (), attacks: Sequence[AttackFigure] = ()) -> str:
    """The text.

    Args:
        probes: side by side, the worst first.
    """
    return "\n".join(_lines(report, probes, attacks)) + "\n"


def _lines(report: Report, probes: Sequence[ShownProbe], attacks: Sequence[AttackFigure]) -> Iterator[str]:
    topics = ", ".join(report.topics)
    yield f"# What {escaped(report.model)} forgot: {escaped(topics)}\n"
    for warning in warnings(report):
        yield f"**{escaped(warning)}**\n"
    beside = [f"{line[0].upper()}{line[1:]}." for line in against_prefix(report)]
    yield " ".join(map(escaped, [sentence(report, attacks), *beside])) + "\n"
    yield from _headline(report)
    yield from _attacked(attacks)
    if report.notes:
        yield ""
        yield from (f"- {escaped(note)}" for note in report.notes)
    yield from _worst("Still told", [probe for probe in probes if probe.kind == "told"])
    yield from _worst("Lost", [probe for probe in probes if probe.kind == "lost"])
    yield from _data(report)


def _headline(report: Report) -> Iterator[str]:
    columns = headline_columns(report)
    if not columns:
        yield "Nothing was measured."
        return
    yield _row("", *(" ".join(filter(None, column.titles)) for column in columns))
    yield _row("---", *("---:" for _ in columns))
    yield _row("recall", *(f"n = {column.num}" for column in columns))
    for model in MODELS:
        yield _row(LABELS[model], *(_cell(column, model) for column in columns), is_bold=model == "unlearned")
    floors = [_floor(column) for column in columns]
    if any(floors):
        yield _row("floor", *floors)
    if any(column.choice for column in columns):
        yield _row("choice", *(f"n = {column.choice.num}" if column.choice else "" for column in columns))
        for model in MODELS:
            cells = (_figure(shown("choice", column.choices[model])) if column.choice else "" for column in columns)
            yield _row(LABELS[model], *cells, is_bold=model == "unlearned")
        yield _row("chance", *(percent(column.choice.chance or 0.0) if column.choice else "" for column in columns))
    yield "\n95 % intervals in parentheses. Forget: low is good; near, far: as high as base. Choice: the true answer is likelier than each wrong one."
    if any(floors):
        yield "Floor: what a wrong answer of the same form gets."
    if report.probes.known is not None:
        line = known_line(report.probes.known)
        yield f"{line[0].upper()}{line[1:]}."
    if report.has_doubts:
        yield f"{escaped(DOUBT_LEGEND)}."


def _cell(column: Column, model: str) -> str:
    return _figure(shown(column.name, column.figures[model]))  # type: ignore[index]


def _figure(text: str) -> str:
    """`3 % [1, 6]` without brackets, which Markdown would have escaped."""
    figure, bracket, interval = text.partition(" [")
    return f"{figure} ({interval.rstrip(']').replace(', ', ' to ')})" if bracket else figure


def _floor(column: Column) -> str:
    """What a model without knowledge gets, where the metric has such a figure."""
    floors = (getattr(metric, "floor", None) for metric in column.figures.values() if metric is not None)
    value = next((floor for floor in floors if floor is not None), None)
    return "" if value is None else percent(value)


def _attacked(attacks: Sequence[AttackFigure]) -> Iterator[str]:
    """The worst setting of each attack, with what it got out of the other models."""
    if not (rows := worst_of_each(attacks)):
        yield "\nNot attacked: whether it comes back is not measured."
        return
    yield "\n| attack | what comes back | worst setting | base | **unlearned** | never knew |"
    yield "| --- | --- | --- | ---: | ---: | ---: |"
    for row in rows:
        yield _row(row.attack, row.metric, row.setting, row.base, _figure(row.unlearned), row.twin)


def _worst(title: str, probes: Sequence[ShownProbe]) -> Iterator[str]:
    if not probes:
        return
    few = probes[:NUM_WORST]
    count = f"{len(few)}" if len(few) == len(probes) else f"the worst {len(few)}"
    yield f"\n<details><summary>{title}: {count}</summary>\n"
    yield "| question | true answer | base | unlearned |\n| --- | --- | --- | --- |"
    for probe in few:
        answers = {answer.css: "".join(text for text, _ in answer.pieces) for answer in probe.answers}
        yield _row(probe.question, probe.truth, _cut(answers.get("base", "")), _cut(answers.get("unlearned", "")))
    yield "\n</details>"


def _data(report: Report) -> Iterator[str]:
    asked = ", ".join(f"{num} {group}" for group, num in report.probes.num.items())
    left_out = _counts(report.probes.excluded)
    yield (
        f"\nProbes: {escaped(report.probes.source)}: {asked}"
        + (f"; left out {escaped(left_out)}" if left_out else "")
        + ".\n"
    )
    yield "| stage | rows | dropped | tokens | seconds |\n| --- | --- | --- | --- | ---: |"
    for name, stage in report.stages.items():
        yield _row(name, _counts(stage.num_rows), _counts(stage.drops), _tokens(stage), f"{stage.seconds:.0f}")
    versions = sorted({(stage.package_version, stage.git_revision[:12]) for stage in report.stages.values()})
    made = ", ".join(
        f"unlearn-ray {version}" + (f" ({revision})" if revision else "") for version, revision in versions
    )
    yield f"\nRun {escaped(report.run)}" + (f", made with {escaped(made)}." if made else ".")


def _tokens(stage: StageSummary) -> str:
    return _counts(
        {name.removesuffix("_tokens"): num for name, num in stage.tokens.items() if name.endswith("_tokens")}
    )


def _counts(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{num:,} {name.replace('_', ' ')}" for name, num in numbers.items() if num)


def _row(*cells: str, is_bold: bool = False) -> str:
    return "| " + " | ".join(_bold(each, is_bold) for each in cells) + " |"


def _bold(cell: str, is_bold: bool) -> str:
    # Of a cell's figure, not of its interval.
    text = cell if set(cell) <= set("-:") else escaped(cell)
    if not is_bold or not text:
        return text
    figure, bracket, interval = text.partition(" (")
    return f"**{figure}**{bracket}{interval}"


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]} ..."


__all__ = ["MARKDOWN", "markdown", "write_pages"]
