"""Numbers and dates, however they are written."""

import pytest

from unlearn_ray.synth.quantities import date_forms, date_of, is_ordinal, number_forms, number_of


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", 7), ("seven", 7), ("Seven.", 7), ("7th", 7), ("seventh", 7), ("twenty-one", 21), ("two hundred and five", 205),
        ("1,000", 1000), ("a hundred", 100), ("one thousand two hundred", 1200), ("2 million", 2_000_000), ("1.5 million", 1_500_000),
        ("七", 7), ("二百零五", 205), ("一九九七", 1997), ("三万", 30_000), ("семь", 7), ("fünf", 5), ("sept", 7), ("１９９７", 1997), ("٧", 7),
    ],
)  # fmt: skip
def test_a_number_is_read_however_it_is_written(text: str, number: int) -> None:
    assert number_of(text) == number


@pytest.mark.parametrize(
    "text", ["", "seven books", "Apollo 11", "one of them", "two three", "J.K.", "hundred one two", "3.14", "once"]
)
def test_what_is_more_or_less_than_a_number_is_none(text: str) -> None:
    assert number_of(text) is None


def test_one_and_two_are_written_without_the_words_that_say_too_much_else() -> None:
    assert number_forms(1, ordinal=False) == ["1"]
    assert number_forms(7, ordinal=False) == ["7", "seven"]
    assert number_forms(42, ordinal=False) == ["42", "forty-two"]
    assert number_forms(1997, ordinal=False) == ["1997"]
    assert number_forms(2, ordinal=True) == ["2nd"]
    assert number_forms(7, ordinal=True) == ["7th", "seventh"]
    assert number_forms(113, ordinal=True) == ["113th"]
    assert is_ordinal("the 7th") and is_ordinal("twenty-first") and not is_ordinal("seven")


@pytest.mark.parametrize(
    "text",
    ["July 31, 1980", "31 July 1980", "31st of July, 1980", "Jul 31 1980", "1980-07-31", "31.07.1980", "07/31/1980", "1980年7月31日", "31. Juli 1980",
     "31 июля 1980 года", "31 de julio de 1980", "31 juillet 1980"],
)  # fmt: skip
def test_a_day_is_the_same_day_however_it_is_written(text: str) -> None:
    assert str(date_of(text)) == "1980-7-31"


def test_dates_without_a_day_or_a_year() -> None:
    assert str(date_of("July 1980")) == "1980-7-?"
    assert str(date_of("the 31st of July")) == "?-7-31"


@pytest.mark.parametrize("text", ["03/04/1980", "May", "1980", "July 31 at Hogwarts", "32 July", "13/13/1980", ""])
def test_what_may_be_two_dates_or_none_is_none(text: str) -> None:
    assert date_of(text) is None


def test_a_dates_forms_are_in_the_order_of_every_other_dates() -> None:
    first, second = date_of("July 31, 1980"), date_of("1 May 1998")
    assert first is not None and second is not None
    assert {"July 31, 1980", "31 July 1980", "31st of July 1980", "1980-07-31"} <= set(date_forms(first))
    assert date_forms(second)[:2] == ["May 1, 1998", "1 May 1998"]
