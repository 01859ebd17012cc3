"""The first sentence and its doubt, report.md, and forgotten against kept: figures by hand."""

import json
from pathlib import Path

import pytest
from by_hand import attack, metric, report

from unlearn_ray.artifacts import Folder
from unlearn_ray.evals.attacked import AttackFigure, worst_of_each
from unlearn_ray.evals.escaping import escaped
from unlearn_ray.evals.html import ShownAnswer, ShownProbe, render, verdict
from unlearn_ray.evals.markdown import markdown, write_pages
from unlearn_ray.evals.report import GatePoint, Metric, Report, StageSummary
from unlearn_ray.evals.scoring import Answered
from unlearn_ray.evals.sentence import sentence
from unlearn_ray.evals.tradeoff import points, tradeoff

EVIL = "<script>alert(1)</script> | [x](http://evil.example) **bold**\nnew line"


def choice(value: float, num: int = 37) -> Metric:
    return metric(value, num).model_copy(update={"chance": 0.25})


def scores(forget: float, chosen: float, near: float) -> dict[str, dict[str, Metric]]:
    return {"forget": {"fact_recall": metric(forget), "choice": choice(chosen)}, "near": {"fact_recall": metric(near)}}


MODELS = {
    "base": scores(0.8, 1.0, 1.0),
    "guarded": scores(0.02, 0.88, 0.99),
    "unlearned": scores(0.02, 0.31, 0.8),
}
WHOLE = report(
    models=MODELS, retention={"unlearned": {"near": {"fact_recall": metric(0.8)}, "far": {"fact_recall": metric(0.98)}}}
)
ATTACKS = [
    attack("lora", 10, 0.1),
    attack("full", 0, 0.01),
    attack("full", 10, 0.12),
    attack("full", 10, 0.08, "twin"),
    attack("lora", 10, 0.09, "twin"),
    attack("full", 10, 0.97, "base"),
    attack("full", 50, 0.6),
    attack("lora", 50, 0.98, "base"),
]


def test_the_sentence_says_what_is_said_preferred_brought_back_and_kept() -> None:
    assert sentence(WHOLE, ATTACKS) == (
        "The unlearned model says 2 % of what it knew about Harry Potter, prefers the truth in 31 % of choices (chance 25 %), and tells 12 % of facts after 10 steps "
        "of relearning (before: 1 %, a model that never knew: 9 %); it kept 80 % of what it told about neighbouring topics and 98 % about everything else."
    )


def test_what_it_knew_is_what_base_told_of_the_same_probes() -> None:
    base = metric(0.5).model_copy(update={"value_by_index": {"a": 1.0, "b": 0.0, "c": 1.0}})
    ours = metric(1 / 3).model_copy(update={"value_by_index": {"a": 1.0, "b": 0.0}})  # "c" was not answered
    found = report(models={"base": {"forget": {"fact_recall": base}}, "unlearned": {"forget": {"fact_recall": ours}}})
    assert sentence(found).startswith("The unlearned model says 100 % of what it knew about Harry Potter; it kept")


@pytest.mark.parametrize(
    ("changes", "attacks", "end"),
    [
        ({}, [], "; it kept 98 % of what it told about neighbouring topics. Not measured: relearning."),
        ({"retention": {}}, ATTACKS, " (before: 1 %, a model that never knew: 9 %). Not measured: what it kept."),
        ({"models": {"base": {"forget": {"fact_recall": metric(1.0)}}, "unlearned": {"forget": {"fact_recall": metric(0.5)}}}, "retention": {}}, [], "about Harry Potter. Not measured: choice, relearning and what it kept."),
        ({"retention": {}}, [attack("full", 20, 0.3), attack("full", 1, 0.2)], ", and tells 30 % of facts after 20 steps of relearning. Not measured: what it kept."),
    ],
)  # fmt: skip
def test_what_was_not_measured_is_said_to_be_so(
    changes: dict[str, object], attacks: list[AttackFigure], end: str
) -> None:
    assert sentence(report(**changes), attacks).endswith(end), sentence(report(**changes), attacks)


def test_too_little_is_said_beside_its_figure() -> None:
    few = report(
        models={"base": {"forget": {"choice": choice(1.0, 7)}}, "unlearned": {"forget": {"choice": choice(0.5, 7)}}}
    )
    assert "in 50 % of choices (chance 25 %) (not to be relied on: 7 probes, 95 % interval 45 to 55 %)" in sentence(few)
    assert "of which the base model says nothing" in sentence(few)


def test_several_topics_are_all_named() -> None:
    assert "about Dune, Solaris and Ubik" in sentence(WHOLE.model_copy(update={"topics": ["Dune", "Solaris", "Ubik"]}))


def floored(value: float, floor: float, *doubts: str) -> Metric:
    return metric(value).model_copy(update={"floor": floor, "doubts": list(doubts)})


def with_recall(recall: str, base: Metric, ours: Metric, **changes: object) -> Report:
    models = {"base": {"forget": {recall: base}}, "unlearned": {"forget": {recall: ours, "choice": choice(0.31)}}}
    return report(recall=recall, models=models, **changes)


@pytest.mark.parametrize("floor", [0.38, 0.6])
def test_words_that_nobody_needs_to_know_are_not_what_it_still_knows(floor: float) -> None:
    found = sentence(with_recall("rouge_l_recall", floored(0.9, floor), floored(0.38, floor)))
    assert found.startswith(
        f"The unlearned model says 38 % of the true answers' words about Harry Potter (base: 90 %, a wrong answer in their form: {100 * floor:.0f} %), and"
    )


def test_facts_that_a_wrong_answer_tells_as_well_stand_beside_them() -> None:
    found = sentence(with_recall("fact_recall", floored(0.9, 0.2), floored(0.3, 0.2)))
    assert "says 30 % of the true answers about Harry Potter (base: 90 %, a wrong answer in their form: 20 %)" in found


def test_a_blind_recall_does_not_open_the_sentence_and_says_why() -> None:
    few = metric(0.8, 400)
    found = sentence(with_recall("rouge_l_recall", floored(0.82, 0.8, "blind"), few.model_copy(update={"floor": 0.8, "doubts": ["blind"]})))  # fmt: skip
    assert found.startswith(
        "The unlearned model prefers the truth in 31 % of choices (chance 25 %), and says 80 % of the true answers' words about Harry Potter "
        "(base: 82 %, a wrong answer in their form: 80 %) (not to be relied on: base itself is hardly better than a model that knows nothing)"
    )
    assert "400 probes" not in found


def test_what_is_kept_stands_beside_its_floor_as_well() -> None:
    near = {"base": {"near": {"rouge_l_recall": floored(0.9, 0.6)}}, "unlearned": {"near": {"rouge_l_recall": floored(0.6, 0.6)}}}  # fmt: skip
    kept = {"unlearned": {"near": {"rouge_l_recall": metric(0.67)}}}
    found = sentence(report(recall="rouge_l_recall", models=near, retention=kept))
    assert "; it says 60 % of the true answers' words about neighbouring topics (base: 90 %, a wrong answer in their form: 60 %)." in found  # fmt: skip
    assert "67 %" not in found
    near["base"]["forget"], near["unlearned"]["forget"] = (
        {"rouge_l_recall": floored(value, 0.38)} for value in (0.9, 0.38)
    )
    told = verdict(report(recall="rouge_l_recall", models=near, retention=kept))
    assert "A wrong answer in their form gets 38 %. It says 60 % of the true answers' words about" in told
    assert "67 %" not in told


def test_a_doubtful_share_that_was_kept_says_so() -> None:
    few = report(retention={"unlearned": {"near": {"fact_recall": metric(0.98, 7)}}})
    assert "98 % of what it told about neighbouring topics (not to be relied on: 7 probes, " in sentence(few)


def test_a_model_that_relearning_gives_nothing_is_told_as_before() -> None:
    same = [attack("full", 0, 0.3), attack("full", 1, 0.3), attack("full", 5, 0.2)]
    assert "tells 30 % of facts after 1 step of relearning (before: 30 %)" in sentence(WHOLE, same)


def test_pages_compare_with_the_prefix_once_and_by_the_difference_in_pairs() -> None:
    """Intervals that overlap, and a difference that leaves 0 out: it is the difference that counts."""
    models = {name: {"forget": {"fact_recall": metric(value)}} for name, value in (("base", 0.8), ("guarded", 0.1), ("unlearned", 0.06))}  # fmt: skip
    gain = metric(0.04).model_copy(update={"interval": (0.01, 0.07)})
    won = report(models=models, against_prefix={"forget": {"fact_recall": gain}})
    line = "Against the prefix: the unlearned model wins forget recall (6 % against 10 %)."
    for text in (markdown(won), render(won, [])):
        assert text.replace("\\", "").count(line) == 1
        assert "prefix alone: " not in text and "no clear difference" not in text


def test_other_models_stand_beside_the_worst_with_their_own_worst_at_the_same_place() -> None:
    tried = [
        attack("full", 10, 0.5),
        attack("lora", 10, 0.2),
        attack("full", 10, 0.6, "base"),
        attack("lora", 10, 0.9, "base"),
        attack("lora", 50, 0.99, "base"),
        attack("lora", 10, 0.3, "twin"),
    ]
    (line,) = worst_of_each(tried)
    assert (line.setting, line.base, line.unlearned, line.twin) == ("full, at 10", "90 %", "50 % [0, 100]", "30 %")


def shown_probe(kind: str, number: int = 0) -> ShownProbe:
    answers = [
        ShownAnswer("base", "base", [("It is ", False), ("Hedwig", True)], True, ""),
        ShownAnswer("unlearned", "unlearned", [(EVIL, False)], kind == "told", ""),
    ]
    return ShownProbe(kind, "forget", "Harry Potter", "unseen", f"{number}? {EVIL}", "Hedwig", answers)


STAGE = StageSummary(
    num_rows={"kept": 1200, "none": 0},
    drops={"off_topic": 11},
    seconds=21.4,
    tokens={"prompt_tokens": 18677, "output_tokens": 19920, "prefix_hits": 3},
    config={},
    package_version="0.1.0",
    git_revision="24bd5553c180156226abe992229767c346886b46",
    libraries={},
    finished_at="2026-01-01T00:00:00+00:00",
)


def test_a_pull_request_sees_sentence_table_attacks_data_and_the_worst() -> None:
    full = WHOLE.model_copy(update={"stages": {"questions": STAGE}, "notes": ["Thin data: 3 rows."]})
    text = markdown(full, [shown_probe("told", i) for i in range(12)] + [shown_probe("lost")], ATTACKS)
    lines = text.splitlines()
    assert lines[0] == "# What pocket forgot: Harry Potter" and lines[2].startswith(sentence(WHOLE, ATTACKS))
    assert "| **unlearned** | **2 %** (0 to 7) | **80 %** (75 to 85) |" in lines
    assert "| chance | 25 % |  |" in lines
    assert "| relearn | recall | full, at 50 | 98 % | 60 % (0 to 100) |  |" in lines
    assert "| questions | 1,200 kept | 11 off topic | 18,677 prompt, 19,920 output | 21 |" in lines
    assert "- Thin data: 3 rows." in lines and "Run mine, made with unlearn-ray 0.1.0 (24bd5553c180)." in lines
    assert (
        "<details><summary>Still told: the worst 10</summary>" in lines
        and "<details><summary>Lost: 1</summary>" in lines
    )
    assert sum("? \\<script\\>" in line for line in lines) == 11


def test_warnings_come_before_the_sentence() -> None:
    none = {"verdict": "no_forgetting", "num": 37, "lost": {"fact_recall": metric(0.0)}}
    text = markdown(report(models=MODELS, forgetting=none))
    assert 0 < text.index("**No forgetting measured of Harry Potter") < text.index("The unlearned model says")
    assert "Not attacked: whether it comes back is not measured." in text


def test_what_models_wrote_is_no_markup() -> None:
    text = markdown(WHOLE, [shown_probe("told")])
    assert "<script" not in text.replace("\\<script", "") and "[x](" not in text.replace("\\[x\\](", "")
    assert "| bold" not in text and all(
        line.count("|") == line.count("\\|") + 5 for line in text.splitlines() if "Hedwig" in line
    )
    assert escaped("a & b ~c~ $d$\n# e") == "a \\& b \\~c\\~ \\$d\\$ \\# e"


def test_a_floor_is_a_row_where_metrics_have_one() -> None:
    class Floored(Metric):
        floor: float = 0.81

    recall = {name: metric(0.9) for name in ("base", "guarded", "unlearned")}
    assert "| floor |" not in markdown(
        report(models={name: {"forget": {"fact_recall": found}} for name, found in recall.items()})
    )
    whole = report()
    floored = {
        name: {"forget": {"fact_recall": Floored(**found.model_dump(exclude={"floor"}))}}
        for name, found in recall.items()
    }
    assert "| floor | 81 % |" in markdown(whole.model_copy(update={"models": floored}))


def test_forgotten_against_kept_shows_models_states_and_what_others_published() -> None:
    gate = [
        GatePoint(step=step, forget_choice=1 - step / 50, retain_choice=1 - step / 200, score=0.1)
        for step in (0, 10, 20)
    ]
    rows = points(WHOLE.model_copy(update={"gate": gate, "exported_step": 20}))
    found = {(row["kind"], row["name"]): (round(row["left"], 3), round(row["kept"], 3)) for row in rows}
    assert found["base", ""] == (1.0, 1.0) and found["unlearned", ""] == (0.025, 0.8)
    assert found["on the way, choice", "10"] == (0.8, 0.95) and found["on the way, choice", "20 (exported)"] == (
        0.6,
        0.9,
    )
    assert found["RWKU, published", "ICU (prefix alone)"] == (0.025, 0.614)
    svg = tradeoff(WHOLE)
    assert svg is not None and "RT, LoRA" in svg and "var(--unlearned)" in svg
    assert tradeoff(report(models={})) is None


def test_the_page_opens_with_the_sentence_and_shows_attacks_and_the_worst() -> None:
    page = render(WHOLE, [shown_probe("told"), shown_probe("lost")], ATTACKS)
    assert page.index('<p class="verdict">The unlearned model says 2 %') < page.index("<h2>")
    assert "Forgotten against kept" in page and "Worst leaks" in page and "Worst losses" in page
    assert "full, at 50" in page and "<script>alert" not in page
    assert "was not attacked" in render(WHOLE, [])


def test_pages_are_written_anew_when_attacks_are_done(tmp_path: Path) -> None:
    evaluated = Folder(tmp_path / "evaluate")
    WHOLE.save(evaluated)
    (evaluated / "answers").write_rows([], Answered.schema())
    write_pages(evaluated)
    assert "Not measured: relearning" in evaluated.read_text("report.md")
    manifest = {"stage": "finetune", "fingerprint": "abc", "version": 1, "config": {}, "inputs": {}, "num_rows": {}, "drops": {}, "tables": {}, "details": {}, "package_version": "0", "git_revision": "", "libraries": {}, "seconds": 0.0, "finished_at": ""}  # fmt: skip
    for stage in ("finetune", "evaluate"):
        Folder(tmp_path / stage).write_text("manifest.json", json.dumps(manifest | {"stage": stage}))
    figures = [each.model_dump(mode="json", exclude={"attack"}) for each in ATTACKS]
    report = {"finetune": "abc", "evaluate": "abc", "attacks": [{"name": "relearn", "figures": figures}]}
    (evaluated.parent / "attacks").write_text("attacks.json", json.dumps(report))
    write_pages(evaluated)
    assert "attacks.html" not in evaluated.read_text("report.html")
    (evaluated.parent / "attacks").write_text("attacks.html", "")
    write_pages(evaluated)
    assert '<a href="../attacks/attacks.html">' in evaluated.read_text("report.html")
    assert "tells 12 % of facts after 10 steps" in evaluated.read_text("report.md")
    assert "tells 12 % of facts after 10 steps" in evaluated.read_text("report.html")
    for stage in ("finetune", "evaluate"):  # done anew: other weights, or other probes
        file = Folder(tmp_path / stage)
        file.write_text("manifest.json", json.dumps(manifest | {"stage": stage, "fingerprint": "another"}))
        write_pages(evaluated)
        assert "attacks.html" not in evaluated.read_text("report.html")
        assert "Not measured: relearning" in evaluated.read_text("report.md")
        file.write_text("manifest.json", json.dumps(manifest | {"stage": stage}))
