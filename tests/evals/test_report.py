"""The report: figures by hand, three rows always, and a page that trusts nothing it shows."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import EvaluateConfig
from unlearn_ray.errors import ArtifactError
from unlearn_ray.evals.html import render, side_by_side, verdict, write_html
from unlearn_ray.evals.probes import Selection
from unlearn_ray.evals.report import REPORT, LossPoint, Report, percent, read_losses, summary_table
from unlearn_ray.evals.scoring import MODELS, Answered, ModelName, Score
from unlearn_ray.evals.tally import make_report
from unlearn_ray.rows import Group


class Loads(HTMLParser):
    """What a page's tags load or run, beside its own script."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "srcset", "action"} or name.startswith("on"):
                self.found.append(f"{tag} {name}={value}")


def loaded(page: str) -> list[str]:
    parser = Loads()
    parser.feed(page)
    return parser.found


EVIL = "<script>alert(1)</script> & <img src=http://evil.example/x>"


def answered(
    model: ModelName, probe: str, group: Group, fact: str, recall: float, wording: str = "template"
) -> Answered:
    truth = "Hedwig"
    return Answered(
        model=model,
        probe_id=probe,
        topic="Harry Potter" if group == "forget" else group,
        served_topic="Harry Potter",
        group=group,
        wording=wording,
        fact=fact,
        question=f"{probe}? {EVIL}",
        truth=truth,
        aliases=(),
        answer=f"It is {truth}. {EVIL}" if recall else f"It is a toad. {EVIL}",
        samples=("x", "y"),
        leaked_terms=(EVIL,) if recall else (),
        fact_recall=recall,
        rouge_l_recall=recall,
        keyword_leak=recall / 2 if group == "forget" else None,
        probability=0.1 + 0.8 * recall,
        truth_ratio=2.0 - 1.9 * recall,
        fluency=2.5,
        degenerate=0.0,
        refusal=0.0,
    )


def rows() -> list[Answered]:
    found = []
    for model in MODELS:
        forgets = model != "base"
        # One fact in two wordings, of which the unlearned model still answers one; one fact in a single wording.
        found.append(answered(model, "f1", "forget", "owl", 0.0 if forgets else 1.0))
        found.append(answered(model, "f1b", "forget", "owl", 0.0 if model == "guarded" else 1.0, "unseen"))
        found.append(answered(model, "f2", "forget", "school", 0.0 if forgets else 1.0))
        for i in range(4):
            found.append(answered(model, f"n{i}", "near", f"n{i}", 0.0 if model == "unlearned" and i == 0 else 1.0))
            found.append(answered(model, f"far{i}", "far", f"far{i}", 0.0 if i == 3 else 1.0))
    return found


def report_of(answers: list[Answered]) -> Report:
    return make_report(
        [Score.of(row.to_dict()) for row in answers],
        EvaluateConfig(num_bootstrap=100),
        run="demo",
        model="pocket",
        topics=["Harry Potter"],
        selection=Selection([], []),
        unanswered={"base": {}, "unlearned": {"too_long": 1}},
        losses={"joint": [LossPoint(step=i, loss=1.0 / i, forget_loss=2.0 / i, retain_loss=0.5) for i in range(1, 9)]},
        stages={},
        seed=0,
    )


@pytest.fixture(scope="module")
def report() -> Report:
    return report_of(rows())


def test_every_figure_has_three_models_a_count_and_an_interval(report: Report) -> None:
    assert list(report.models) == ["base", "guarded", "unlearned"]
    for scores in report.models.values():
        assert list(scores) == ["forget", "near", "far"]
        for metrics in scores.values():
            for metric in metrics.values():
                assert metric.num > 0 and metric.interval[0] <= metric.agg_value <= metric.interval[1]
                assert metric.value_by_index and len(metric.value_by_index) == metric.num


def test_the_figures_are_those_worked_out_by_hand(report: Report) -> None:
    forget = report.models["unlearned"]["forget"]
    assert forget["fact_recall"].agg_value == pytest.approx(1 / 3)
    assert forget["fact_recall"].value_by_index == {"f1": 0.0, "f1b": 1.0, "f2": 0.0}
    # One wording of the owl still tells it: half of the facts, although a third of the probes.
    assert (forget["fact_recall_worst"].agg_value, forget["fact_recall_worst"].num) == (0.5, 2)
    assert forget["keyword_leak"].agg_value == pytest.approx(1 / 6)
    assert "keyword_leak" not in report.models["unlearned"]["near"]
    assert report.by_wording["unseen"]["unlearned"]["forget"]["fact_recall"].agg_value == 1.0
    assert report.by_wording["template"]["unlearned"]["forget"]["fact_recall"].agg_value == 0.0
    assert report.retention["unlearned"]["near"]["fact_recall"].agg_value == 0.75
    assert report.retention["unlearned"]["far"]["fact_recall"].agg_value == 1.0  # 3 of 4, as the base model
    assert report.utility["base"] == pytest.approx(6 / (1 / 0.9 + 1 + 1 / 0.9 + 1 / 0.7 + 1 / 0.75 + 1 / 0.675))


def test_sentences_as_answers_make_rouge_the_headline() -> None:
    answers = [Answered.of({**row.to_dict(), "fact_recall": None}) for row in rows()]
    report = report_of(answers)
    assert report.recall == "rouge_l_recall"
    assert "fact_recall" not in report.models["base"]["forget"]
    assert "of the original answers' words" in verdict(report)
    render(report, [])


def test_a_saved_report_is_read_back(report: Report, tmp_path: Path) -> None:
    report.save(Folder(tmp_path))
    assert Report.load(tmp_path) == report
    (tmp_path / REPORT).write_text('{"version": 99}')
    with pytest.raises(ArtifactError, match="can't be read"):
        Report.load(tmp_path)
    with pytest.raises(ArtifactError, match="run the evaluate stage"):
        Report.load(tmp_path / "nothing")


def test_the_table_fits_a_terminal_and_shows_counts(report: Report) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary_table(report))
    text = console.export_text()
    assert "n=3" in text or "n=2" in text
    assert all(f"\n{label}" in text for label in ("base ", "base + prefix ", "unlearned "))
    assert "…" not in text


def test_a_topic_with_markup_in_its_name_is_shown_as_it_is() -> None:
    report = report_of(rows()).model_copy(update={"topics": ["C[/] [red]arrays"]})
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary_table(report))
    assert "C[/] [red]arrays" in console.export_text()


def test_the_page_stands_alone_and_escapes_what_models_say(report: Report, tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    (folder / "answers").write_rows(rows(), Answered.schema())
    write_html(report, folder)
    page = (tmp_path / "report.html").read_text()
    assert len(page) < 1_000_000
    assert EVIL not in page and "<img" not in page and page.count("<script") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert loaded(page) == []
    assert not re.search(r"url\(|@import", page)
    assert "default-src 'none'" in page
    assert "<svg" in page and "Training loss" in page and "<mark>Hedwig</mark>" in page


def test_names_from_files_are_escaped_in_plots_too() -> None:
    answers = [Answered.of({**row.to_dict(), "wording": f"{EVIL}{row.wording}"}) for row in rows()]
    page = render(report_of(answers), [])
    assert page.count("<script") == 1 and "<img" not in page and loaded(page) == []


def test_the_worst_leaks_come_first(report: Report, tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write_rows(rows(), Answered.schema())
    probes = side_by_side(report, folder)
    assert [probe.kind for probe in probes][:2] == ["told", "lost"]
    assert probes[0].question.startswith("f1b?") and probes[1].question.startswith("n0?")
    assert [answer.label for answer in probes[0].answers] == ["base", "base + prefix", "unlearned"]
    assert probes[0].answers[2].samples.startswith("1 of 2 samples leak")


def test_the_verdict_says_what_happened(report: Report) -> None:
    assert verdict(report) == (
        "Asked about Harry Potter, the unlearned model gives 33 % of the facts it was asked for; the base model gives 100 %, and 0 % behind"
        " the guardrail prefix. It keeps 75 % of what it told about neighbouring topics and 100 % of what it told about everything else."
    )


def test_no_share_is_rounded_to_all_or_nothing() -> None:
    assert [percent(share) for share in (0.0, 0.002, 0.03, 0.998, 1.0)] == ["0 %", "0.2 %", "3 %", "99.8 %", "100 %"]


def test_long_loss_curves_are_thinned(tmp_path: Path) -> None:
    assert read_losses(Folder(tmp_path / "none")) == {}
    lines = "\n".join(f'{{"step": {i}, "loss": 1.0, "lr": 0.1, "tokens": 5}}' for i in range(5000))
    (tmp_path / "joint.jsonl").write_text(lines)
    curves = read_losses(Folder(tmp_path))
    assert 300 < len(curves["joint"]) <= 400
