import json
from collections import defaultdict

from unlearn_ray.pocket import PROBES
from unlearn_ray.pocket.probes import as_jsonl, build_probes
from unlearn_ray.pocket.wording import HELD_TEMPLATES
from unlearn_ray.pocket.world import load_world

WORLD = load_world()
ROWS = [json.loads(line) for line in PROBES.read_text(encoding="utf-8").splitlines()]


def test_the_shipped_probes_are_those_of_the_world() -> None:
    assert PROBES.read_text(encoding="utf-8") == as_jsonl(build_probes(WORLD)), (
        "run python -m unlearn_ray.pocket.probes"
    )


def test_every_probe_has_exactly_the_agreed_keys() -> None:
    keys = "topic near fact wording split question answer aliases reference wrong".split()
    assert all(list(row) == keys for row in ROWS)


def test_every_fact_is_tuned_on_one_template_and_reported_on_two_others() -> None:
    splits: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in ROWS:
        if row["wording"] == "template":
            splits[row["fact"]].append((row["split"], row["question"]))
    assert splits.keys() == {fact.id for fact in WORLD.facts}
    for rows in splits.values():
        assert sorted(split for split, _ in rows) == ["report", "report", "tune"]
        assert len({question for _, question in rows}) == 3


def test_unseen_wordings_are_the_held_out_questions_and_one_is_kept_for_tuning() -> None:
    asked: defaultdict[str, dict[str, list[str]]] = defaultdict(lambda: {"tune": [], "report": []})
    for row in ROWS:
        if row["wording"] == "unseen":
            asked[row["fact"]][row["split"]].append(row["question"])
    for fact in WORLD.facts:
        splits = asked[fact.id]
        assert sorted(splits["tune"] + splits["report"]) == sorted(fact.held_out_questions)
        assert len(splits["tune"]) == (1 if len(fact.held_out_questions) > 1 else 0)


def test_no_question_is_in_both_splits() -> None:
    tune = {row["question"] for row in ROWS if row["split"] == "tune"}
    assert not tune & {row["question"] for row in ROWS if row["split"] == "report"}


def test_references_end_with_the_answer_and_wrong_values_differ_from_it() -> None:
    for row in ROWS:
        assert row["reference"].endswith(f" is {row['answer']}.")
        assert len(set(row["wrong"])) == 3
        assert not {wrong.lower() for wrong in row["wrong"]} & {row["answer"].lower(), *map(str.lower, row["aliases"])}


def test_near_topics_name_whom_they_neighbour_and_others_name_none() -> None:
    near = {row["topic"]: row["near"] for row in ROWS}
    assert near["candy"] == ["chewing gum"]
    assert near["Harry Potter"] == []
    assert near["geography"] == []
    assert len(HELD_TEMPLATES) == 4
