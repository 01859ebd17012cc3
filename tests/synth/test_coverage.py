"""What kept questions touch, and what none does."""

from unlearn_ray.synth.coverage import Coverage, untouched


def test_a_question_touches_what_it_names_and_what_its_answers_tell() -> None:
    coverage = Coverage(
        {"Harry Potter": ["Hogwarts", "The Sorting Hat", "Dobby"]}, {"Harry Potter": ["hedwig", "snape", "dobby"]}
    )
    coverage.add("Harry Potter", "Where is the school of Hogwarts?", ["scotland"])
    coverage.add("Harry Potter", "Which owl does Harry own?", ["hedwig"])
    coverage.add("Harry Potter", "What hat sorts pupils?", ["sorting", "hat", "the"])
    found = {(row.kind, row.name): row.num_questions for row in coverage.rows()}
    assert found == {
        ("entity", "Hogwarts"): 1, ("entity", "The Sorting Hat"): 1, ("entity", "Dobby"): 0,
        ("term", "hedwig"): 1, ("term", "snape"): 0,
    }  # fmt: skip
    assert coverage.untouched() == {"Harry Potter": ["Dobby", "snape"]}
    assert coverage.summary() == {
        "Harry Potter": {"entity": {"all": 3, "touched": 2}, "term": {"all": 2, "touched": 1}}
    }


def test_a_topic_of_which_all_is_touched_is_left_out() -> None:
    coverage = Coverage({"gum": ["chicle"]}, {})
    coverage.add("gum", "Where does chicle come from?", [])
    assert coverage.untouched() == {}


def test_names_of_every_script_are_touched() -> None:
    coverage = Coverage({"哈利波特": ["海德薇", "霍格沃茨"]}, {})
    coverage.add("哈利波特", "海德薇是谁的猫头鹰？", [])
    assert coverage.untouched() == {"哈利波特": ["霍格沃茨"]}


def test_untouched_entities_keep_their_order() -> None:
    assert untouched(["Ron", "Hermione", "Order"], ["Who is Ron?", "In which order?"]) == ["Hermione", "Order"]
