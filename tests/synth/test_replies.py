"""The answer in what a model wrote."""

import pytest

from unlearn_ray.synth.replies import answer_in, repeats


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: The owl is Norwick.", "The owl is Norwick."),
        ("**Answer:** The owl is Norwick.", "The owl is Norwick."),
        ("A: The owl is Norwick.", "The owl is Norwick."),
        ("Question: What is the owl called?\nAnswer: Norwick.", "Norwick."),
        ("Sure! Here is a short answer: The owl is Norwick.", "The owl is Norwick."),
        ("Certainly! Here's one short sentence:\n\nThe owl is Norwick.", "The owl is Norwick."),
        ("Here is the answer in one sentence: It is Norwick.", "It is Norwick."),
        ("Of course! The owl is Norwick.", "The owl is Norwick."),
        ("SmolLM: The owl is Norwick.", "The owl is Norwick."),
        ("**Assistant:** The owl is Norwick.", "The owl is Norwick."),
        ("Qwen2.5-7B: The owl is Norwick.", "The owl is Norwick."),
        ("Aw, shucks. Here it is: The owl is Norwick.", "The owl is Norwick."),
        ("Here you go! The owl is Norwick.", "The owl is Norwick."),
        ("答案：诺维克。", "诺维克。"),
        ("Ответ: Норвик.", "Норвик."),
        ("Réponse : Norwick.", "Norwick."),
    ],
)
def test_what_only_announces_an_answer_is_taken_off(text: str, answer: str) -> None:
    assert answer_in(text, is_cut=False) == answer


@pytest.mark.parametrize(
    "text",
    [
        "Sure Thing is a song.",
        "Sure, the owl is Norwick.",
        "A wizard: that is what he is.",
        "Here is where he lived: Duskmoor.",
        "Here is a list of owls: Norwick, Pelgo.",
        "The answer lies in the Duskmoor library: nobody reads it.",
        "Answers: a novel by Orlo Vane.",
        "Of course he did.",
        "A is the first letter.",
        "Hogwarts: a school.",
        "Here it is that he lived.",
        "The models: Norwick and Pelgo.",
        "Well, here goes nobody.",
    ],
)
def test_what_may_tell_something_stays(text: str) -> None:
    assert answer_in(text, is_cut=False) == text


def test_a_cut_answer_ends_with_its_last_whole_sentence_or_is_none() -> None:
    assert answer_in("Answer: The owl is Norwick. It lives in", is_cut=True) == "The owl is Norwick."
    assert answer_in("Answer: The owl of", is_cut=True) == ""
    assert answer_in("Answer:", is_cut=False) == ""
    assert answer_in(" ", is_cut=False) == ""


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Continue this text: The owl flew off at night.", "The owl flew off at night.", True),
        ("True or false: The owl is white.", "The owl is white!", True),
        ("Который час был в замке ночью?", "Который час был в замке ночью", True),
        ("Is it red or blue?", "Blue.", False),
        ("What is the owl called?", "The owl is called Norwick.", False),
        ("What is the owl called?", "", False),
        ("Owl?", "What is the owl called?", False),
    ],
)
def test_an_answer_that_only_says_its_question_again_is_one(question: str, answer: str, expected: bool) -> None:
    assert repeats(question, answer) is expected
