"""Errors in one line."""

from unlearn_ray.errors import gist


def test_a_short_error_is_told_whole_in_one_line() -> None:
    assert gist(ValueError("one\n  two\tthree")) == "one two three"
    assert gist(ValueError()) == "ValueError"


def test_a_long_one_ends_with_a_sentence_or_a_word_and_says_so() -> None:
    sentences = "The first is told. The second is longer than what there is room for, by far."
    assert gist(sentences, 40) == "The first is told. ..."
    words = "one word after the other and never an end of it in sight"
    assert gist(words, 30) == "one word after the other and ..."
    assert gist("x" * 50, 20) == "x" * 20 + " ..."
