"""Facts: agreement of short answers, their forms, and wrong answers of the same kind."""

import pytest

from unlearn_ray.synth.facts import Alternative, Fact, agreed, asks_same, kind_of, same, subject_words, wrong_answers
from unlearn_ray.words import contains


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("7", "seven"), ("7", "7th"), ("seven", "7 books"), ("1997", "1997 году"), ("1,000", "1000"), ("7 feet", "seven ft"), ("50%", "fifty percent"),
        ("July 31, 1980", "31 July 1980"), ("July 31, 1980", "1980-07-31"), ("1980", "July 31, 1980"),
        ("J. K. Rowling", "J.K. Rowling"), ("J.K. Rowling", "Joanne Rowling"), ("JK Rowling", "Joanne Rowling"), ("Rowling", "J. K. Rowling"),
        ("The Order of the Phoenix", "order of the phoenix"), ("Hogwarts", "Hogwarts School of Magic"), ("Les Misérables", "les miserables"),
        ("海德薇", "海德薇猫头鹰"), ("Spider-Man", "Spider Man"),
    ],
)  # fmt: skip
def test_two_ways_to_say_one_thing_agree(one: str, other: str) -> None:
    assert same(one, other) and same(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("7", "8"), ("7", "17"), ("11", "Apollo 11"), ("7 feet", "7 inches"), ("July 31, 1980", "July 30, 1980"), ("1981", "July 31, 1980"),
        ("James Potter", "Harry Potter"), ("J. Potter", "Harry Potter"), ("James Potter", "Lily Potter"), ("Ron", "Ron and Hermione"),
        ("red", "red, gold"), ("Ron Weasley", "Ginny Weasley"), ("cat", "catfish"), ("the", "the owl"), ("Rowling", "Tolkien"), ("海", "海德薇"),
    ],
)  # fmt: skip
def test_two_things_do_not(one: str, other: str) -> None:
    assert not same(one, other) and not same(other, one)


def test_a_fact_is_what_more_than_the_share_of_all_askings_say() -> None:
    fact = agreed("Who wrote it?", ["J.K. Rowling", "J. K. Rowling", "Rowling", "Tolkien"], 5, 0.5)
    assert fact is not None and (fact.num_agreed, fact.kind) == (3, "name")
    assert fact.forms == ("Rowling",), "who looks for it finds the longer names"
    assert agreed("Who wrote it?", ["J.K. Rowling", "J. K. Rowling", "Rowling", "Tolkien"], 6, 0.5) is None
    assert agreed("Who wrote it?", [], 4, 0.5) is None


def test_a_surname_that_two_people_have_counts_for_neither() -> None:
    assert agreed("Who died?", ["James Potter", "Lily Potter", "Potter", "Potter"], 4, 0.5) is None


def test_the_forms_of_a_number_a_date_and_a_name() -> None:
    number = agreed("How many books are there?", ["7", "seven", "7"], 3, 0.5)
    assert number is not None and number.answer == "7" and "seven" in number.aliases
    date = agreed("When was he born?", ["July 31, 1980", "July 31, 1980", "1980"], 3, 0.5)
    assert date is not None and {"31 July 1980", "1980-07-31"} <= set(date.aliases) and "1980" not in date.forms
    year = agreed("In which year was he born?", ["1980", "1980", "July 31, 1980"], 3, 0.5)
    assert year is not None and year.answer == "1980" and year.kind == "year"
    initials = agreed("Who wrote it?", ["J K Rowling", "J K Rowling"], 2, 0.5)
    assert initials is not None and "J.K. Rowling" in initials.aliases
    assert any(contains("It was written by JK Rowling.", form) for form in initials.forms)
    height = agreed("How tall is he?", ["6 feet", "6 feet"], 2, 0.5)
    assert height is not None and height.kind == "quantity" and "six ft" in height.aliases


def test_no_form_is_what_the_question_says() -> None:
    fact = agreed("Who is called Ron?", ["Ron Weasley", "Ron Weasley", "Ron"], 3, 0.5)
    assert fact is not None and fact.forms == ("Ron Weasley",)


def test_kinds() -> None:
    assert [kind_of(text) for text in ("July 31, 1980", "1980", "7", "7 feet", "Hedwig", "snowy owl", "海德薇")] == [
        "date", "year", "number", "quantity", "name", "words", "name",
    ]  # fmt: skip
    assert kind_of("Owl", "Hedwig is an owl.") == "words"
    assert kind_of("owl", "It is an Owl.") == "name"
    assert (kind_of("a book by Rowling"), kind_of("van Gogh")) == ("words", "name")


def test_two_questions_ask_for_one_fact_where_they_share_what_they_ask_about() -> None:
    names = ("Harry Potter",)
    owl, again, cat = (
        subject_words(text, names)
        for text in ("What is Harry Potter's owl called?", "Name the owl of Harry.", "Who has a cat in Harry Potter?")
    )
    assert asks_same(owl, again) and not asks_same(owl, cat)


def pool(*texts: str, group: str = "forget", opening: str = "who", is_fact: bool = True) -> list[Alternative]:
    return [Alternative(text, kind_of(text), group, opening, is_fact) for text in texts]  # type: ignore[arg-type]


def test_wrong_answers_are_of_the_same_kind_and_no_form_of_the_truth() -> None:
    fact = Fact("J.K. Rowling", ("Joanne Rowling",), 4, "name")
    others = pool(
        "Joanne Rowling",
        "Rowling",
        "Ron Weasley",
        "Tolkien",
        "7",
        "1997",
        "Emma Stone",
        "snowy owl",
        "Albus Dumbledore",
    )
    wrong = wrong_answers("Who wrote Emma Stone?", fact, "forget", others)
    assert sorted(wrong) == ["Albus Dumbledore", "Ron Weasley", "Tolkien"]
    assert wrong == wrong_answers("Who wrote Emma Stone?", fact, "forget", reversed(others))


def test_no_wrong_answer_is_named_by_the_question() -> None:
    fact = Fact("Ginny Weasley", (), 4, "name")
    wrong = wrong_answers(
        "Who is Ron's sister?", fact, "forget", pool("Ron", "Ron Weasley", "Luna", "Cho Chang", "Lavender")
    )
    assert sorted(wrong) == ["Cho Chang", "Lavender", "Luna"]


def test_those_of_questions_that_begin_alike_come_first_then_the_same_group_then_facts() -> None:
    fact = Fact("Ron Weasley", (), 4, "name")
    others = [
        *pool("Paris", "London", "Rome", opening="where"),
        *pool("Frodo", group="near"),
        *pool("Draco"),
        *pool("Snape", is_fact=False),
    ]
    assert wrong_answers("Who is his friend?", fact, "forget", others) == ["Draco", "Snape", "Frodo"]


def test_numbers_and_dates_are_written_like_the_truth() -> None:
    wrong = wrong_answers("How many books are there?", Fact("seven", ("7",), 4, "number"), "forget", pool("3", "12"))
    assert (
        {"three", "twelve"} <= set(wrong) and len(wrong) == 3 and all(text.replace("-", "").isalpha() for text in wrong)
    )
    date = Fact("31 July 1980", (), 4, "date")
    assert set(wrong_answers("When?", date, "far", pool("May 1, 1998", "1997-06-26"))) == {"1 May 1998", "26 June 1997"}
    years = wrong_answers("In which year?", Fact("1997", (), 4, "year"), "far", [])
    assert len(set(years)) == 3 and all(len(year) == 4 and year != "1997" for year in years)


def test_a_pool_without_three_of_the_kind_gives_fewer() -> None:
    assert wrong_answers("Who?", Fact("Ron", (), 4, "name"), "forget", pool("7", "Draco")) == ["Draco"]
