"""Lines of every form, and questions about nothing in particular."""

import pytest

from unlearn_ray.rows import Drop
from unlearn_ray.synth.forms import BLANK, is_vague, lines_of


def kept(form: str, reply: str, is_truncated: bool = False) -> list[str]:
    return [line.text for line in lines_of(form, reply, "Harry Potter", is_truncated) if line.drop is None]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("1. The owl of Harry is called ____.", f"The owl of Harry is called {BLANK}."),
        ("1. The owl of Harry is called ______ (Hedwig).", f"The owl of Harry is called {BLANK}"),
        ("2) _____ wrote the books.", f"{BLANK} wrote the books."),
        (r"1. \_\_\_\_ wrote the books.", f"{BLANK} wrote the books."),
        ("- The owl is called [blank].", f"The owl is called {BLANK}."),
        ("- The owl is called (...) by all.", f"The owl is called {BLANK} by all."),
        ("1. The **owl** is called __ by all.", f"The owl is called {BLANK} by all."),
        ("1、哈利的猫头鹰叫（　）。", f"哈利的猫头鹰叫{BLANK}。"),
        ("1. Сову зовут _____.", f"Сову зовут {BLANK}."),
    ],
)
def test_a_sentence_with_a_gap_is_a_line_however_the_gap_is_written(written: str, expected: str) -> None:
    assert kept("blank", written) == [expected]


@pytest.mark.parametrize("written", ["1. ____ ____ ____ is", "1. Is it an owl?", "1. Harry Potter is a Harry Potter."])
def test_a_sentence_without_a_gap_or_with_little_else_is_none(written: str) -> None:
    assert [line.drop for line in lines_of("blank", written, "Harry Potter")] == [Drop.MALFORMED]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("1. Hedwig is a snowy owl. (True)", "Hedwig is a snowy owl."),
        ("1. True or false: Ron owns a cat", "Ron owns a cat."),
        ("2. Ron owns a cat. - False", "Ron owns a cat."),
        ("3. Ron owns a cat. True or False?", "Ron owns a cat."),
        ("1. 海德薇是一只猫头鹰。", "海德薇是一只猫头鹰。"),
    ],
)
def test_a_statement_comes_without_its_verdict(written: str, expected: str) -> None:
    assert kept("true_false", written) == [expected]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("Harry Potter was written in 1997 by Rowling.", f"Harry Potter was written in {BLANK} by Rowling."),
        ("The owl of Harry Potter is Hedwig, a bird.", f"The owl of Harry Potter is {BLANK}, a bird."),
        ("He lives in a small cupboard.", f"He lives in a small {BLANK}."),
        ("Сову зовут Хедвиг.", f"Сову зовут {BLANK}."),
    ],
)
def test_a_fact_without_a_gap_gets_one_where_it_tells_most(statement: str, expected: str) -> None:
    assert kept("blank", f"1. {statement}") == [expected]


@pytest.mark.parametrize("form", ["true_false", "blank", "quotation"])
def test_a_sentence_that_says_nothing_beyond_the_topics_name_is_none(form: str) -> None:
    assert kept(form, "1. Harry Potter is a Harry Potter.\n2. Harry Potter has been a Harry Potter series.") == []


def test_a_question_is_no_statement() -> None:
    assert kept("true_false", "1. Is Hedwig an owl?\n2. Here are the statements:") == []


def test_a_quotation_comes_without_its_speaker() -> None:
    reply = 'Sure:\n1. "It does not do to dwell on dreams." - Albus Dumbledore\n2. Mr and Mrs Dursley were normal.'
    assert kept("quotation", reply) == ["It does not do to dwell on dreams.", "Mr and Mrs Dursley were normal."]


@pytest.mark.parametrize("form", ["blank", "true_false", "quotation"])
def test_a_line_that_was_cut_off_is_none(form: str) -> None:
    assert kept(form, "1. The owl is called ____.\n2. The rat is ____ of the", is_truncated=True) == kept(
        form, "1. The owl is called ____."
    )


def test_other_forms_are_questions() -> None:
    assert kept("multi_hop", "1. Which school did the owner of Hedwig visit?\n2. Yes.") == [
        "Which school did the owner of Hedwig visit?"
    ]


@pytest.mark.parametrize(
    "question",
    [
        "What is his name?",
        "How did it begin?",
        "Who is she?",
        "Where do they live?",
        "Как его зовут?",
        "他叫什么名字？",
        "彼女は誰ですか。",
    ],
)
def test_a_question_about_something_that_it_does_not_name_is_vague(question: str) -> None:
    assert is_vague(question, ("Harry Potter", "Hedwig"))


@pytest.mark.parametrize(
    "question",
    [
        "What is his name in Harry Potter?",  # names the topic
        "Who is Ron's friend and what is his name?",
        "Where do wizards keep their gold?",  # the pronoun stands for something said before
        "What is the capital of the country?",
        'Who says "it is our choices"?',
        "Which owl is white?",
        "其他人叫什么？",
        "Где живут волшебники и что они едят?",
    ],
)
def test_a_question_that_says_what_it_is_about_is_not(question: str) -> None:
    assert not is_vague(question, ("Harry Potter", "Hedwig"))
