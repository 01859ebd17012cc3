"""Holding out by fact: no question about a held-out fact is trained on, in whatever words."""

from hypothesis import given
from hypothesis import strategies as st

from unlearn_ray.synth.split import Holdout, fact_of, split_of

VALUES = [f"Hedwig{number}" for number in range(40)]


def test_questions_with_one_answer_are_about_one_fact() -> None:
    one = fact_of("What is the name of Harry's owl?", "The name of Harry's owl is Hedwig.", ("Harry Potter",))
    other = fact_of("Who carries letters for Harry?", "Hedwig carries letters for Harry.", ("Harry Potter",))
    assert one == other == "hedwig"
    assert fact_of("What colour is it?", "It is snow white.") == "snow white"
    long = "Well, there are many things that one could say about owls, and most of what people tell is not quite what it seems to be at first."
    assert fact_of("What about owls?", long) == "" == fact_of("What?", "")


@given(st.sampled_from(VALUES), st.floats(0, 1), st.sampled_from(["Who is it?", "Name it.", "What is it called?"]))
def test_a_fact_is_on_one_side_in_all_its_wordings(value: str, fraction: float, question: str) -> None:
    holdout = Holdout(fraction, "fact")
    side = holdout.side("t", question, f"It is {value}.")
    assert side == holdout.side("t", "And which one is the owl of the boy?", f"The owl of the boy is {value}.")
    assert Holdout(min(1.0, fraction + 0.1), "fact").side("t", question, value) == "holdout" or side == "train"


def test_the_share_of_facts_is_held_out() -> None:
    sides = [Holdout(0.25, "fact").side("t", "Who?", f"It is Owl{number}.") for number in range(1000)]
    assert 200 < sides.count("holdout") < 300
    assert {Holdout(0.0, "fact").side("t", "Who?", "It is Hedwig."), split_of("t", "q", 0.0)} == {"train"}


def test_by_question_the_answer_does_not_matter_and_a_long_answer_leaves_the_question() -> None:
    for number in range(50):
        question = f"What is number {number}?"
        assert Holdout(0.5).side("t", question, "Hedwig") == split_of("t", question, 0.5)
        assert Holdout(0.5, "fact").side("t", question, "") == split_of("t", question, 0.5)
