"""The gate of a report: which figure is meant, what holds, and what is not known."""

import pytest
from by_hand import attack, report

from unlearn_ray.attacks.page import METRICS
from unlearn_ray.errors import ConfigError
from unlearn_ray.evals.report import Metric
from unlearn_ray.evals.require import KNOWN, OF_ATTACKS, check, failures, parse

ATTACKS = [
    attack("lora", 5, 0.1),
    attack("lora", 10, 0.2),
    attack("full", 10, 0.3),
    attack("full", 10, 0.9, "twin"),
    attack("full", 50, 0.6),
]


@pytest.mark.parametrize(
    ("text", "holds", "said"),
    [
        ("forget.choice<=0.35", False, "forget.choice is 65 % [60, 70], n = 37: forget.choice<=0.35 does not hold"),
        ("forget.choice <= 65 %", True, "forget.choice is 65 %"),
        ("forget.recall<0.02", True, "forget.recall is 1 %"),
        ("forget.rouge_l_recall<0.02", False, "forget.rouge_l_recall is 40 %"),
        ("near.recall>=.95", True, "near.recall is 97 %* [92, 100], n = 12 (not to be relied on: few probes)"),
        ("near.recall.kept>0.98", False, "near.recall.kept is 98 %"),
        ("near.recall.kept>=9.8e-1", True, "near.recall.kept is 98 %"),
        ("utility>=0.5", True, "utility is 0.600"),
        ("relearn.recall<=0.5", False, "relearn.recall is 60 % [0, 100], n = 19, in full, at 50"),
        ("relearn.recall@10<=0.3", True, "relearn.recall is 30 % [0, 100], n = 19, in full, at 10"),
        ("relearn.recall>=0.1", True, "relearn.recall is 10 % [0, 100], n = 19, in lora, at 5"),
    ],
)
def test_a_requirement_is_held_against_the_figure_that_it_names(text: str, holds: bool, said: str) -> None:
    (found,) = check(parse([text]), report(), ATTACKS)
    assert found.holds == holds and found.line.startswith(said), found.line
    assert list(failures([found])) == ([] if holds else [found.line])


@pytest.mark.parametrize(
    "text",
    ["far.recall>=0", "near.choice>=0", "far.recall.kept>0", "prompt.recall<=1", "relearn.recall@7<=1", "forget.refusal<=1"],
)  # fmt: skip
def test_what_was_not_measured_holds_nothing(text: str) -> None:
    (found,) = check(parse([text]), report(), ATTACKS)
    assert not found.holds and "was not measured" in found.line


def test_a_figure_that_is_no_number_holds_nothing() -> None:
    scores = {"forget": {"choice": Metric(agg_value=float("nan"), num=3, interval=(0.0, 1.0))}}
    for text in ("forget.choice<=1", "forget.choice>=0"):
        assert not check(parse([text]), report(models={"unlearned": scores}), [])[0].holds


def test_recall_is_the_reports_own() -> None:
    (found,) = check(parse(["forget.recall<=0.1"]), report(recall="rouge_l_recall"), [])
    assert found.line.startswith("forget.recall is 40 %")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("forget.chioce<=0.35", "did you mean forget.choice?"),
        ("forgotten<=1", "Known are forget, near, far with .recall"),
        ("forget.recall.kept<=1", "is not a figure"),
        ("forget.recall@10<=1", "forget.recall@10 is not a figure"),
        ("relearning.recall<=1", "is not a figure"),
        ("forget.choice", 'write it as "forget.choice<=0.35"'),
        ("forget.choice=0.35", "can't be read"),
        ("forget.choice<=", "can't be read"),
        ("forget.choice<=nan", "can't be read"),
        ("forget.choice<=0.3.5", "can't be read"),
        ("", "can't be read"),
    ],
)
def test_what_is_not_known_is_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(["forget.choice<=1", text])
    (line,) = caught.value.lines
    assert said in line and (not text or text in line)


def test_every_known_figure_can_be_asked_for() -> None:
    required = parse([f"{name}<=1" for name in KNOWN])
    assert len(check(required, report(), ATTACKS)) == len(KNOWN)


def test_every_metric_of_an_attack_can_be_asked_for() -> None:
    """Prompts for answers that are sentences are measured by ROUGE-L alone."""
    assert set(OF_ATTACKS) == set(METRICS)
    figure = attack("plain", 0, 0.4).model_copy(update={"attack": "prompt", "metric": "rouge_l_recall"})
    (found,) = check(parse(["prompt.rouge_l_recall<=0.35"]), report(), [figure])
    assert found.line.startswith("prompt.rouge_l_recall is 40 %") and not found.holds
