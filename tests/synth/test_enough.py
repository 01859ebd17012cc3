"""When a run's data are too little to train on, and what is said of them."""

from dataclasses import replace
from pathlib import Path

import pytest

from unlearn_ray import config as configs
from unlearn_ray.config import Floors, RunConfig
from unlearn_ray.synth.enough import ACCEPT, Data, TopicData, Written, impossible, shortfalls, told

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
GOOD = Data(
    topics=(TopicData("Harry Potter", 724, 674, 24, 22),),
    written={
        "questions": Written(200, {"duplicate": 83, "malformed": 10, "off_topic": 11}, 200),
        "guarded answers": Written(794, {"leak": 35}, 800),
        "questions to retain": Written(760, {"duplicate": 246, "malformed": 26, "surplus": 55}, 920),
        "answers to retain": Written(758, {"forgotten_term": 2}, 760),
    },
    probes={"forget": 70, "near": 41, "far": 45},
)


def with_topic(**changes: object) -> Data:
    return replace(GOOD, topics=(replace(GOOD.topics[0], **changes),))  # type: ignore[arg-type]


def with_written(kind: str, *, base: Data = GOOD, **changes: object) -> Data:
    return replace(base, written={**base.written, kind: replace(base.written[kind], **changes)})  # type: ignore[arg-type]


def test_the_pockets_data_are_enough() -> None:
    assert shortfalls(GOOD, Floors()) == []


@pytest.mark.parametrize(
    ("data", "floor", "parts"),
    [
        (with_topic(num_forget=57), "forget_rows", ("57 rows to forget 'Harry Potter' (floor: 100)", "leak, 35 of 829 guarded answers")),
        (with_topic(num_retain=11), "retain_per_forget", ("11 retain rows for 724 rows to forget 'Harry Potter' (floor: 0.5 each)", "duplicate, 246 of 1087 questions to retain", "num_general")),
        (with_written("guarded answers", num_kept=3, drops={"malformed": 66}), "kept", ("4 % of the guarded answers kept (floor: 25 %)", "malformed, 66 of 69", "answers.max_tokens")),
        (with_written("questions", num_kept=200, drops={"off_topic": 900}), "kept", ("18 % of the questions kept", "off_topic, 900 of 1100", "aliases")),
        (with_written("questions to retain", num_kept=76, drops={"off_topic": 640}), "kept", ("11 % of the questions to retain", "off_topic, 640 of 716", "dataset.retain.general")),
        (with_written("answers to retain", num_kept=10, drops={"forgotten_term": 90}), "kept", ("10 % of the answers to retain", "forgotten_term, 90 of 100", "farther")),
        (with_topic(num_touched=3), "coverage", ("3 of 24 entities of 'Harry Potter' touched by kept pairs (floor: 50 %)",)),
        (replace(GOOD, probes={"forget": 1, "near": 30, "far": 30}), "probes", ("1 forget probes (floor: 20)", "questions.num_questions")),
        (replace(GOOD, probes={"forget": 30, "near": 30, "far": 0}), "probes", ("0 far probes", "dataset.retain")),
    ],
)  # fmt: skip
def test_data_below_a_floor_are_said_with_number_floor_reason_and_what_to_change(
    data: Data, floor: str, parts: tuple[str, ...]
) -> None:
    (found,) = shortfalls(data, Floors())
    assert found.floor == floor
    assert all(part in str(found) for part in parts), str(found)


def test_copies_and_surplus_are_no_loss_and_a_few_texts_of_many_wanted_are_their_reason() -> None:
    many_copies = with_written("questions", drops={"duplicate": 5000, "surplus": 900})
    assert shortfalls(many_copies, Floors()) == []
    few = with_written(
        "questions", base=with_topic(num_forget=40), num_kept=12, drops={"duplicate": 90, "surplus": 200}
    )
    assert "duplicate, 90 of 302 questions: raise questions.num_entities" in str(shortfalls(few, Floors())[0])


def test_where_nothing_was_dropped_more_is_to_be_asked_for() -> None:
    whole = replace(GOOD, written={kind: replace(each, drops={}) for kind, each in GOOD.written.items()})
    (found,) = shortfalls(replace(whole, topics=with_topic(num_forget=22).topics), Floors())
    assert "raise questions.num_questions or answers.num_samples" in str(found)


def test_a_users_own_retain_rows_that_are_few_are_to_be_more() -> None:
    written = {kind: each for kind, each in GOOD.written.items() if "retain" not in kind}
    (found,) = shortfalls(replace(with_topic(num_retain=40), written=written), Floors())
    assert str(found).endswith("give more of your own")


def test_a_reason_that_nobody_foresaw_is_named_all_the_same() -> None:
    data = with_written("guarded answers", num_kept=1, drops={"judge": 60})
    assert "judge, 60 of 61 guarded answers: look at the rows" in str(shortfalls(data, Floors())[0])


def test_without_a_retain_term_retain_rows_are_not_counted() -> None:
    assert shortfalls(with_topic(num_retain=0), Floors(), retains=False) == []


def test_floors_of_nothing_are_always_reached() -> None:
    empty = Data((TopicData("It", 0, 0, 9, 0),), {"questions": Written(0, {"malformed": 9}, 9)}, {"forget": 0})
    none = Floors(forget_rows=0, retain_per_forget=0.0, kept=0.0, coverage=0.0, probes=0)
    assert shortfalls(empty, none) == [] and len(shortfalls(empty, Floors())) == 4


def test_what_is_said_is_one_line_that_names_all_floors_and_the_way_on() -> None:
    thin = replace(with_topic(num_forget=57, num_retain=11), probes={"forget": 1, "near": 3, "far": 40})
    line = told(shortfalls(thin, Floors()))
    assert "\n" not in line and line.startswith("dataset: 57 rows to forget") and ACCEPT in line
    assert all(part in line for part in ("11 retain rows", "1 forget probes", "3 near probes")), line


def asking(**sections: dict[str, object]) -> RunConfig:
    return configs.parse({"name": "mine", "topics": [{"name": "Dune"}, {"name": "It"}]} | sections)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_run_asks_for_enough(path: Path) -> None:
    assert impossible(configs.load(path), {}) == []


def test_the_defaults_ask_for_enough() -> None:
    assert impossible(asking(), {}) == []


def test_a_run_that_asks_too_little_is_known_before_it_begins() -> None:
    small = asking(questions={"num_questions": 12})
    found = impossible(small, {"Dune": 300})
    assert [each.finding for each in found] == ["at most 43 rows to forget 'It' (floor: 100)"]
    assert impossible(asking(questions={"num_questions": 12}, dataset={"floors": {"forget_rows": 40}}), {}) == []


def test_too_few_retain_rows_are_known_as_well_unless_none_are_trained_on_or_they_are_the_users(tmp_path: Path) -> None:
    few: dict[str, object] = {
        "num_neighbours": 1,
        "questions_per_neighbour": 8,
        "num_general": 2,
        "questions_per_general": 8,
    }
    found = impossible(asking(dataset={"retain": few}), {})
    assert found[0].finding == "at most 22 retain rows for 1440 rows to forget 'Dune' (floor: 0.5 each)"
    assert impossible(asking(dataset={"retain": few}, finetune={"retain": {"kind": "none"}}), {}) == []
    assert impossible(asking(dataset={"retain": few | {"file": str(tmp_path / "own.jsonl")}}), {}) == []
