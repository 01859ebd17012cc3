"""The report: figures by hand, three rows always, and a page that trusts nothing it shows."""

import io
import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import EvaluateConfig
from unlearn_ray.errors import ArtifactError
from unlearn_ray.evals.html import render, side_by_side, verdict, write_html
from unlearn_ray.evals.probes import PlacedProbe, Selection
from unlearn_ray.evals.report import (
    DOUBT_LEGEND,
    REPORT,
    GatePoint,
    LossPoint,
    Metric,
    Report,
    against_prefix,
    doubts_of,
    percent,
    read_gate,
    read_losses,
    shown,
    summary_table,
    warnings,
)
from unlearn_ray.evals.scoring import MODELS, Answered, ModelName, Score
from unlearn_ray.evals.tally import is_blind, make_report
from unlearn_ray.rows import GROUPS, Group, Probe


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
        num_wrong=3,
        values={
            "fact_recall": recall,
            "rouge_l_recall": recall,
            "keyword_leak": recall / 2 if group == "forget" else None,
            "probability": 0.1 + 0.8 * recall,
            "truth_ratio": 2.0 - 1.9 * recall,
            "choice": recall,
            "fluency": 2.5,
            "degenerate": 0.0,
            "refusal": 0.0,
        },
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


def many(num_facts: int, forgets: bool = True, **changes: object) -> list[Answered]:
    """Facts of each group in two wordings, all known to base, none of the topic's to the others if it is forgotten."""
    return [
        Answered.of(row.to_dict() | changes)
        for model in MODELS
        for group in GROUPS
        for i in range(num_facts)
        for wording in ("template", "unseen")
        for told in (0.0 if forgets and model != "base" and group == "forget" else 1.0,)
        for row in (answered(model, f"{group}{i}{wording}", group, f"{group}{i}", told, wording),)
    ]


def printed(report: Report, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(summary_table(report))
    return console.export_text()


def report_of(
    answers: list[Answered], probes: str | None = None, trained: set[tuple[str, str]] | None = None
) -> Report:
    return make_report(
        [Score.of(row.to_dict()) for row in answers],
        EvaluateConfig(num_bootstrap=100, probes=probes),
        run="demo",
        model="pocket",
        topics=["Harry Potter"],
        selection=Selection([], []),
        unanswered={"base": {}, "unlearned": {"too_long": 1}},
        losses={"joint": [LossPoint(step=i, loss=1.0 / i, forget_loss=2.0 / i, retain_loss=0.5) for i in range(1, 9)]},
        stages={},
        seed=0,
        trained=trained,
    )


@pytest.fixture(scope="module")
def report() -> Report:
    return report_of(rows())


def test_a_report_shows_what_the_gate_saw_and_which_state_it_chose(report: Report, tmp_path: Path) -> None:
    assert "On the way" not in render(report, [])
    lines = [
        GatePoint(step=step, forget_loss=0.1 + step, forget_choice=1 - step / 100, retain_choice=1.0, score=step / 75)
        for step in (0, 10, 20)
    ]
    Folder(tmp_path).write_lines("gate.jsonl", (line.model_dump_json() for line in lines))
    Folder(tmp_path).write_lines("metrics.jsonl", ['{"step": 0, "loss": 1.0}'])
    Folder(tmp_path).write_lines("losses.jsonl", ['{"step": 0, "loss": 1.0}'])
    assert read_gate(Folder(tmp_path)) == lines and list(read_losses(Folder(tmp_path))) == ["losses"]
    page = render(report.model_copy(update={"gate": lines, "exported_step": 10}), [])
    assert "On the way" in page and "Choice on held-out rows" in page and "Loss of their true answers" in page
    assert "The model is the state after 10 of 20 steps, whose score is 0.13" in page
    for names in (("retain_choice", "forget_loss"), ("forget_loss",)):  # no retain rows, or losses that were not finite
        less = [line.model_copy(update=dict.fromkeys(names)) for line in lines]
        assert "Choice on held-out rows" in render(report.model_copy(update={"gate": less}), [])


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
    for version in (2, 99):  # the same fields, with figures that mean something else
        (tmp_path / REPORT).write_text(report.model_copy(update={"version": version}).model_dump_json())
        with pytest.raises(ArtifactError, match=r"can't be read .*: rerun with --from evaluate"):
            Report.load(tmp_path)
    with pytest.raises(ArtifactError, match="run the evaluate stage"):
        Report.load(tmp_path / "nothing")


def test_the_table_fits_a_terminal_and_shows_counts(report: Report) -> None:
    text = printed(report)
    assert "n=3" in text or "n=2" in text
    assert all(f"\n{label}" in text for label in ("base ", "base + prefix ", "unlearned "))
    assert "…" not in text


def test_a_topic_with_markup_in_its_name_is_shown_as_it_is() -> None:
    report = report_of(rows()).model_copy(update={"topics": ["C[/] [red]arrays"]})
    assert "C[/] [red]arrays" in printed(report)


def test_choice_stands_in_the_table_beside_recall_with_its_chance() -> None:
    report = report_of(many(20))
    text = printed(report)
    lines = [line.split() for line in text.splitlines()]
    assert ["choice", "n=20", "n=20", "n=40", "n=40"] in lines  # template, unseen, near, far
    assert ["chance", *["25", "%"] * 4] in lines
    models = [line[0] for line in lines if line and line[0] in ("base", "unlearned")]
    assert models == ["base", "base", "unlearned"] * 2  # base, base + prefix, unlearned: by recall, then by choice
    assert "…" not in text
    page = render(report, [])
    assert "<td>25 %</td>" in page and "by choice 100 % → 0 %, chance 25 %" in page
    assert page.count('class="section"') == 3  # recall, choice, chance
    assert page.count("in the same sentence; chance 25 %") == 3  # all metrics of forget, near and far
    for group in GROUPS:
        assert report.models["base"][group]["choice"].chance == 0.25


def test_chance_is_of_the_wrong_answers_that_were_scored() -> None:
    answers = many(20)
    fewer = [Answered.of(row.to_dict() | {"num_wrong": 1}) if row.fact.endswith(("0", "5")) else row for row in answers]
    assert report_of(fewer).models["base"]["far"]["choice"].chance == pytest.approx(0.8 / 4 + 0.2 / 2)


def test_a_run_without_wrong_answers_has_no_choice() -> None:
    report = report_of(many(20, choice=None, num_wrong=0))
    assert "choice" not in report.models["base"]["forget"]
    assert "choice" not in printed(report) and "chance" not in printed(report)
    assert "by choice" not in render(report, [])


def test_choice_is_in_the_table_where_answers_are_too_long_for_recall() -> None:
    answers = [Answered.of(row.to_dict() | ({"fact_recall": None} if row.group == "near" else {})) for row in many(20)]
    lines = [line.split() for line in printed(report_of(answers)).splitlines()]
    assert ["chance", *["25", "%"] * 4] in lines
    assert "by choice" in render(report_of(answers), [])


def test_choice_is_retained_as_recall_is() -> None:
    answers = [
        Answered.of(row.to_dict() | {"choice": 0.0}) if row.model == "unlearned" and row.fact == "near3" else row
        for row in many(20)
    ]
    retention = report_of(answers).retention["unlearned"]
    assert retention["near"]["choice"].agg_value == 0.95 and retention["far"]["choice"].agg_value == 1.0
    assert retention["far"]["choice"].interval[0] < 0.9, (
        "20 right answers of 20 do not prove that every answer would be right"
    )
    page = render(report_of(answers), [])
    assert "Choice, share of base" in page


def test_no_figure_claims_all_or_nothing_from_a_few_facts() -> None:
    """`100-100` for 100 % of 74: every resample is the same."""
    report = report_of(many(37))
    base = report.models["base"]["forget"]
    assert base["fact_recall"].interval == pytest.approx((0.9051, 1.0), abs=1e-4)  # 37 facts, not 74 probes
    assert report.models["unlearned"]["forget"]["choice"].interval == pytest.approx((0.0, 0.0949), abs=1e-4)
    text = printed(report)
    assert "100–100" not in text and "0–0" not in re.split(r"[^0-9–]", text)
    assert "91–100" in text and "0–9" in text
    assert "100 to 100" not in render(report, []) and "[100, 100]" not in render(report, [])


@pytest.mark.parametrize(
    ("num", "interval", "doubts"),
    [
        (19, (0.4, 0.6), ["few_probes"]),
        (20, (0.4, 0.6), []),
        (20, (0.3, 0.61), ["wide_interval"]),
        (2, (0.0, 1.0), ["few_probes", "wide_interval"]),
    ],
)
def test_a_doubtful_figure_has_its_reasons(num: int, interval: tuple[float, float], doubts: list[str]) -> None:
    assert doubts_of("choice", num, interval) == doubts
    metric = Metric(agg_value=0.5, num=num, interval=interval, doubts=doubts)
    assert ("50 %*" in shown("choice", metric)) is bool(doubts)


def test_what_is_no_share_is_doubted_for_its_number_alone() -> None:
    assert doubts_of("fluency", 40, (1.0, 4.0)) == [] and doubts_of("truth_ratio", 4, (1.0, 1.1)) == ["few_probes"]


def test_doubtful_figures_are_marked_in_table_json_and_page(report: Report, tmp_path: Path) -> None:
    text, page = printed(report), render(report, [])
    assert "33 %*" not in text and re.search(r"100 %\*", text) and DOUBT_LEGEND.split(":")[0] in text
    assert "100 %*" in page and DOUBT_LEGEND in page
    report.save(Folder(tmp_path))
    saved = json.loads((tmp_path / REPORT).read_text())
    assert saved["models"]["base"]["forget"]["fact_recall"]["doubts"] == ["few_probes", "wide_interval"]
    sure = report_of(many(60, keyword_leak=None))
    assert not sure.has_doubts and "*" not in printed(sure)
    assert DOUBT_LEGEND not in render(sure, []) and "%*" not in render(sure, [])


def test_a_run_that_forgot_nothing_says_so_before_its_figures(tmp_path: Path) -> None:
    report = report_of(many(30, forgets=False))
    assert report.forgetting.verdict == "no_forgetting"
    (line,) = warnings(report)
    assert line.startswith("No forgetting measured of Harry Potter: ")
    text, page = printed(report), render(report, [])
    assert text.index("No forgetting measured") < text.index("\nbase ")
    assert page.index('<p class="warning">No forgetting measured') < page.index('class="verdict"')
    report.save(Folder(tmp_path))
    assert json.loads((tmp_path / REPORT).read_text())["forgetting"]["verdict"] == "no_forgetting"
    done = report_of(many(30))
    assert done.forgetting.verdict == "forgotten" and warnings(done) == []
    assert "No forgetting" not in printed(done) and 'class="warning"' not in render(done, [])


def test_a_run_in_which_base_knew_nothing_says_so() -> None:
    report = report_of(many(30, fact_recall=0.0, choice=0.0, rouge_l_recall=0.0))
    assert report.forgetting.verdict == "not_measured"
    line = "Forgetting could not be measured: the base model knows none of the 60 probes about Harry Potter."
    assert warnings(report) == [line]
    assert line[:40] in printed(report) and line in render(report, [])


def test_of_several_topics_the_one_that_was_not_forgotten_is_named() -> None:
    kept = [
        Answered.of(row.to_dict() | {"topic": "chewing gum", "served_topic": "chewing gum", "probe_id": f"g{row.probe_id}"})
        for row in many(30, forgets=False)
        if row.group == "forget"
    ]  # fmt: skip
    scores = [Score.of(row.to_dict()) for row in many(30) + kept]
    asked = [PlacedProbe(Probe(topic, "Q?", "x"), "forget", topic) for topic in ("Harry Potter", "chewing gum", "Dune")]
    report = make_report(
        scores,
        EvaluateConfig(num_bootstrap=100),
        run="demo",
        model="pocket",
        topics=["Harry Potter", "chewing gum", "Dune", "Oz"],
        selection=Selection(asked, []),
        unanswered={},
        losses={},
        stages={},
        seed=0,
    )
    verdicts = {topic: found.verdict for topic, found in report.forgetting_by_topic.items()}
    assert verdicts == {"Harry Potter": "forgotten", "chewing gum": "no_forgetting", "Dune": "not_measured"}
    first, second = warnings(report)
    assert "No forgetting measured of chewing gum" in first and "knows nothing that was asked about Dune" in second
    # All together may hide what one of them lost.
    hidden = report.model_copy(update={"forgetting": report.forgetting_by_topic["chewing gum"]})
    assert warnings(hidden) == [first, second]
    assert report.notes == ["No probe asks about Oz: its forgetting is not measured."]


def test_of_facts_only_what_base_knows_counts_and_how_many_is_said(tmp_path: Path) -> None:
    """Half of the forget facts are unknown to base: recall and choice 0."""
    unknown = {f"forget{i}" for i in range(15)}
    nothing = {"fact_recall": 0.0, "choice": 0.0}
    answers = [Answered.of(row.to_dict() | (nothing if row.fact in unknown else {})) for row in many(30, forgets=False)]
    everything, facts = report_of(answers, "pocket"), report_of(answers, "facts")
    assert everything.models["base"]["forget"]["fact_recall"].agg_value == 0.5 and everything.probes.known is None
    for model in MODELS:
        counted = facts.models[model]["forget"]["fact_recall"]
        assert (counted.agg_value, counted.num) == (1.0, 30)
    assert facts.probes.known is not None
    assert facts.probes.known["forget"].model_dump() == {
        "num_probes": 30, "of_probes": 60, "num_facts": 15, "of_facts": 30,
    }  # fmt: skip
    line = "forget 30 of 60 probes (15 of 30 facts), near 60 of 60 probes (30 of 30 facts)"
    assert line in " ".join(printed(facts, 200).split()) and line in render(facts, [])
    facts.save(Folder(tmp_path))
    assert json.loads((tmp_path / REPORT).read_text())["probes"]["known"]["forget"]["num_facts"] == 15


def test_facts_of_which_base_knows_none_leave_a_report_that_says_so() -> None:
    nothing = {"fact_recall": 0.0, "choice": 0.0}
    answers = [Answered.of(row.to_dict() | (nothing if row.group == "forget" else {})) for row in many(30)]
    report = report_of(answers, "facts")
    assert report.recall == "fact_recall" and "forget" not in report.models["base"]
    assert report.forgetting.verdict == "not_measured"
    assert "Forgetting could not be measured" in " ".join(printed(report).split())
    assert "Forgetting could not be measured" in render(report, [])


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
        "Asked about Harry Potter, the unlearned model gives 33 %* of the facts it was asked for; the base model gives 100 %*, and 0 %* behind"
        " the guardrail prefix. Given the choice, it prefers the true answer to wrong ones in 33 %* of all cases (base: 100 %*, chance: 25 %). It keeps 75 %* of what it told about neighbouring topics and 100 %* of what it told about everything else."
    )


def test_no_share_is_rounded_to_all_or_nothing() -> None:
    assert [percent(share) for share in (0.0, 0.002, 0.03, 0.998, 1.0)] == ["0 %", "0.2 %", "3 %", "99.8 %", "100 %"]


def test_long_loss_curves_are_thinned(tmp_path: Path) -> None:
    assert read_losses(Folder(tmp_path / "none")) == {}
    lines = "\n".join(f'{{"step": {i}, "loss": 1.0, "lr": 0.1, "tokens": 5}}' for i in range(5000))
    (tmp_path / "joint.jsonl").write_text(lines)
    curves = read_losses(Folder(tmp_path))
    assert 300 < len(curves["joint"]) <= 400


def with_floors(answers: list[Answered], **floors: float) -> list[Answered]:
    """The base model's rows with what a wrong answer gets."""
    return [replace(row, floors=floors) if row.model == "base" else row for row in answers]


def test_a_figure_has_its_floor_and_one_next_to_it_is_blind() -> None:
    report = report_of(with_floors(many(30, rouge_l_recall=0.82), fact_recall=0.0, rouge_l_recall=0.8))
    for model in MODELS:
        found = report.models[model]["forget"]
        assert found["fact_recall"].floor == 0.0 and "blind" not in found["fact_recall"].doubts
        assert found["rouge_l_recall"].floor == pytest.approx(0.8) and "blind" in found["rouge_l_recall"].doubts
        assert found["choice"].floor == found["choice"].chance == 0.25
        assert found["fluency"].floor is None
    assert warnings(report) == [], "the headline is of facts here"
    page = render(report, [])
    assert '<th scope="col">floor</th>' in page and "<td>80 %</td>" in page


@pytest.mark.parametrize(
    ("name", "base", "floor", "is_blind_there"),
    [
        ("rouge_l_recall", 0.4, 0.8, True),  # a base that answers otherwise than the reference, and knows nothing
        ("choice", 0.1, 0.25, True),
        ("mia_loss", 0.3, 0.5, True),
        ("mia_loss", 0.95, 0.5, False),
        ("rouge_l_recall", 0.9, 0.38, False),
        ("truth_ratio", 0.2, 1.0, False),  # on forget knowing lowers it
        ("truth_ratio", 0.9, 0.0, False),
        ("truth_ratio", 0.95, 1.0, True),
    ],
)
def test_a_figure_below_its_floor_tells_no_more_than_one_at_it(
    name: str, base: float, floor: float, is_blind_there: bool
) -> None:
    assert is_blind(name, base, floor) == is_blind_there


def test_a_base_below_the_floor_is_marked_and_warned_of() -> None:
    report = report_of(with_floors(many(30, rouge_l_recall=0.4, fact_recall=None, choice=0.0), rouge_l_recall=0.8))
    for name in ("rouge_l_recall", "choice"):
        assert "blind" in report.models["unlearned"]["forget"][name].doubts
    assert report.recall == "rouge_l_recall" and "can't tell here" in " ".join(warnings(report))


def test_membership_inference_that_is_chance_for_base_is_blind() -> None:
    """Each reference as likely as its wrong answers."""
    rows = [replace(row, texts={"mia_loss": (1.0, 1.0, 1.0)}) for row in many(30)]
    found = report_of(rows).models["base"]["forget"]["mia_loss"]
    assert (found.agg_value, found.floor) == (0.5, 0.5) and "blind" in found.doubts


def test_a_blind_recall_is_no_headline() -> None:
    """Sentences that differ in a name: ROUGE-L gives a wrong one 0.81, and base 0.81."""
    answers = [Answered.of(row.to_dict() | {"fact_recall": None, "rouge_l_recall": 0.8125}) for row in many(30)]
    report = report_of(with_floors(answers, rouge_l_recall=0.8129))
    (line,) = warnings(report)
    assert line == (
        "ROUGE-L recall can't tell here whether anything is known (base gets 81 %, a wrong answer of the same form 81 %): go by choice."
    )
    assert line in unescape(render(report, [])) and "go by choice" in " ".join(printed(report, 200).split())


def test_the_worst_wording_is_shown_only_where_facts_have_several() -> None:
    single = [row for row in many(20) if row.wording == "template"]
    assert "fact_recall_worst" not in report_of(single).models["base"]["forget"]
    assert "worst" not in printed(report_of(single)).split("95 %")[0]
    assert "fact_recall_worst" in report_of(many(20)).models["base"]["forget"]


def test_the_truth_ratio_is_aggregated_as_open_unlearning_does() -> None:
    answers = [row for row in rows() if row.model == "base"]
    report = report_of(answers)
    forget, far = (report.models["base"][group]["truth_ratio"] for group in ("forget", "far"))
    assert forget.agg_value == pytest.approx(0.1)  # min(0.1, 1/0.1) of each
    assert far.agg_value == pytest.approx((3 * 0.9 + 0) / 4)  # max(0, 1 - R) of 0.1, 0.1, 0.1 and 2
    assert far.value_by_index is not None and sorted(far.value_by_index.values()) == pytest.approx([0.1, 0.1, 0.1, 2.0])


def test_facts_that_were_trained_on_are_columns_beside_those_that_were_not() -> None:
    """Of thirty facts ten are trained on and forgotten; the unlearned model still tells the others."""
    answers = []
    for row in many(30):
        is_untrained = row.group == "forget" and int(row.fact.removeprefix("forget")) >= 10
        told = {"fact_recall": 1.0, "choice": 1.0} if is_untrained and row.model == "unlearned" else {}
        answers.append(Answered.of(row.to_dict() | told))
    trained = {("Harry Potter", f"forget{i}") for i in range(10)}
    report = report_of(answers, trained=trained)
    found = {part: report.by_training[part]["unlearned"]["forget"]["fact_recall"] for part in ("trained", "untrained")}
    assert (found["trained"].agg_value, found["trained"].num) == (0.0, 20)
    assert (found["untrained"].agg_value, found["untrained"].num) == (1.0, 40)
    text = printed(report)
    assert "untrained" in text and "n=40" in text and "template" not in text and "…" not in text
    assert "none does" in " ".join(text.split())
    assert "untrained" in render(report, [])
    everything = report_of(many(30), trained={("Harry Potter", f"forget{i}") for i in range(30)})
    assert "untrained" not in printed(everything) and report_of(many(30)).by_training == {}


def test_the_report_says_who_wins_what_against_the_prefix() -> None:
    answers = []
    for row in many(40):
        values: dict[str, float] = {}
        if row.group == "forget" and row.model == "guarded":
            values = {"choice": float(int(row.fact.removeprefix("forget")) % 10 > 0)}  # 90 %
        if row.group == "near" and row.model == "unlearned":
            values = {"fact_recall": float(int(row.fact.removeprefix("near")) % 4 > 0)}  # 75 %
        answers.append(Answered.of(row.to_dict() | values))
    report = report_of(answers)
    assert report.against_prefix["forget"]["choice"].agg_value == pytest.approx(0.9)
    assert report.against_prefix["near"]["fact_recall"].agg_value == pytest.approx(-0.25)
    (line,) = against_prefix(report)
    assert line.startswith("against the prefix: the unlearned model wins forget choice (0 % against 90 %); the prefix wins near recall (75 % against 100 %); neither wins forget recall (0 % against 0 %)")  # fmt: skip
    assert "the unlearned model wins forget choice" in " ".join(printed(report, 200).split())
    assert "Against the prefix: the unlearned model wins" in render(report, [])
    without = report_of([row for row in answers if row.model != "guarded"])
    assert against_prefix(without) == [] and without.against_prefix == {}
