"""What is marked: the same words as the report counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from leaks import as_html, contains, leaks, marked, telling, tells

from unlearn_ray.evals import folding


def shown(text: str, *terms: str) -> str:
    return "".join(f"[{piece}]" if is_term else piece for piece, is_term in marked(text, terms))


def test_a_term_is_found_without_case_and_accents() -> None:
    assert shown("LES MISERABLES, by Victor hugo.", "Les Misérables", "Hugo") == "[LES MISERABLES], by Victor [hugo]."


def test_a_term_counts_as_a_whole_word_only() -> None:
    assert shown("Ronald and the iron ring", "Ron") == "Ronald and the iron ring"


def test_the_longest_term_wins() -> None:
    assert shown("Ron Weasley's rat", "Ron", "Ron Weasley") == "[Ron Weasley]'s rat"


def test_a_text_that_ends_before_the_longest_term_does_is_marked_all_the_same() -> None:
    assert shown("It is Ron", "Ron", "Ron Weasley") == "It is [Ron]"


def test_what_the_prompt_says_gives_nothing_away() -> None:
    terms = telling(["Ron", "Ron Weasley", "Hédwig"], "Who is ron? I know of HEDWIG.")
    assert terms == ["Ron Weasley"]
    assert not leaks("Ron has no Hedwig", terms) and leaks("It is ron weasley", terms)


def test_all_of_an_answer_is_escaped() -> None:
    assert (
        as_html(marked("<b>Ron</b> & <script>", ["Ron"])) == "&lt;b&gt;<mark>Ron</mark>&lt;/b&gt; &amp; &lt;script&gt;"
    )


@pytest.mark.parametrize(
    ("answer", "truths", "told"),
    [
        ("It is hédwig!", ("Hedwig",), True),
        ("By J. K. Rowling", ("Joanne Rowling", "Rowling"), True),
        ("An owl", ("Hedwig",), False),
        ("An owl", ("a sentence of which nobody expects every single word",), None),
        ("An owl", ("?",), None),
    ],
)
def test_a_probe_is_told_by_its_truth_or_an_alias(answer: str, truths: tuple[str, ...], told: bool | None) -> None:
    assert tells(answer, truths) is told


WORDS = st.text("aAbéÉ 'ß漢1-", max_size=12)


@given(WORDS, st.lists(WORDS, max_size=4))
def test_the_demo_marks_what_the_report_marks(text: str, terms: list[str]) -> None:
    assert marked(text, terms) == folding.marked(text, terms)
    assert all(contains(text, term) == folding.contains(text, term) for term in terms)
