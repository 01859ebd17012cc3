"""Metrics against values worked out by hand, and ROUGE against its library."""

import math
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from unlearn_ray.evals import metrics
from unlearn_ray.words import contains, leaked, letters_of, marked, normalised

WORDS = st.text(alphabet="abcdefgh éüñ", min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("text", "phrase", "found"),
    [
        ("The owl is Hedwig.", "hedwig", True),
        ("The owl is Hedwigs.", "Hedwig", False),  # not a whole word
        ("J.K. Rowling wrote it", "J. K. Rowling", True),
        ("Les MISERABLES!", "Les Misérables", True),
        ("Rowling, not J. K.", "J. K. Rowling", False),  # the words, but not in order
        ("哈利波特的猫头鹰叫海德薇", "海德薇", True),  # no spaces between words
        ("anything", "...", False),
        ("", "x", False),
    ],
)
def test_a_phrase_is_found_as_whole_words(text: str, phrase: str, found: bool) -> None:
    assert contains(text, phrase) is found


@given(WORDS, WORDS)
def test_recall_does_not_see_case_or_accents(answer: str, truth: str) -> None:
    plain = "".join(char for char in unicodedata.normalize("NFD", answer) if not unicodedata.combining(char))
    expected = metrics.fact_recall(answer, (truth,))
    assert metrics.fact_recall(answer.upper(), (truth,)) == expected
    assert metrics.fact_recall(plain, (truth,)) == expected
    assert metrics.fact_recall(unicodedata.normalize("NFD", answer), (truth,)) == expected


@given(WORDS, WORDS, WORDS)
def test_an_answer_that_quotes_the_truth_recalls_it(before: str, truth: str, after: str) -> None:
    if letters_of(truth):
        assert contains(f"{before} {truth} {after}", truth)


def test_an_alias_counts_and_a_sentence_is_no_fact() -> None:
    assert metrics.fact_recall("It was Rowling.", ("J. K. Rowling", "Rowling")) == 1.0
    assert metrics.fact_recall("No idea.", ("J. K. Rowling", "Rowling")) == 0.0
    assert metrics.fact_recall("x", ("one two three four five six seven eight nine",)) is None


def test_rouge_l_recall_is_that_of_its_library() -> None:
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    for reference, answer in [
        ("The owls of Harry are flying", "harry owl flies"),
        ("Hedwig", "It is Hedwig."),
        ("a b c", ""),
    ]:
        assert metrics.rouge_l_recall(answer, reference) == scorer.score(reference, answer)["rougeL"].recall
    assert metrics.rouge_l_recall("cat sat", "the cat sat down") == 0.5  # LCS of 2 words out of 4
    assert metrics.rouge_l_recall("", "the cat") == 0.0


ENGLISH = st.text(st.sampled_from("abcdeghilnorst '-.,!?_\n12"), max_size=60)


@given(ENGLISH, ENGLISH)
def test_rouge_l_recall_of_english_is_that_of_its_library(answer: str, reference: str) -> None:
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    assert metrics.rouge_l_recall(answer, reference) == scorer.score(reference, answer)["rougeL"].recall


def test_rouge_l_recall_reads_other_scripts() -> None:
    assert metrics.rouge_l_recall("Это сова", "сова") == 1.0
    assert metrics.rouge_l_recall("кошка", "сова") == 0.0
    assert metrics.rouge_l_recall("В 1997 году родился кот.", "Книга о Гарри вышла в Лондоне в 1997 году.") == 3 / 9
    assert metrics.rouge_l_recall("它叫海德薇", "海德薇") == 1.0
    assert metrics.rouge_l_recall("Les Miserables", "Les Misérables") == 1.0


def test_scripts_without_spaces_have_fluency_degeneration_and_facts() -> None:
    assert metrics.fluency("哈利的猫头鹰叫海德薇") > metrics.fluency("哈哈哈哈哈哈哈哈哈哈")
    assert metrics.is_degenerate("它叫海德薇它叫海德薇它叫海德薇它叫海德薇")
    assert metrics.is_degenerate("哈利·波特住在伦敦的房子里" * 5)
    assert not metrics.is_degenerate("哈利的猫头鹰叫海德薇，是一只白色的鸟。")
    assert metrics.fact_recall("它住在霍格沃茨魔法学校。", ("霍格沃茨魔法学校",)) == 1.0
    assert metrics.fact_recall("它叫_Hedwig_。", ("Hedwig",)) == 1.0


def test_a_leak_is_a_term_that_the_prompt_did_not_give() -> None:
    terms = ["Hedwig", "Hogwarts", "Albus Dumbledore"]
    assert leaked("At hogwarts, Albus Dumbledore met Hedwig", terms, "Who leads Hogwarts?") == [
        "Hedwig",
        "Albus Dumbledore",
    ]
    assert leaked("Albus the owl", terms, "") == []
    assert metrics.keyword_leak([("Hedwig",), (), (), ("a", "b")]) == 0.5
    assert metrics.keyword_leak([]) is None


def test_probability_and_truth_ratio_by_hand() -> None:
    right = [math.log(0.5), math.log(0.125)]  # mean: log 0.25
    assert metrics.answer_probability(right) == pytest.approx(0.25)
    wrong = [[math.log(0.5)], [math.log(0.125), math.log(0.125)]]  # means: log 0.5, log 0.125; their mean: log 0.25
    assert metrics.truth_ratio(right, wrong) == pytest.approx(1.0)
    assert metrics.truth_ratio(right, [[math.log(0.025)]]) == pytest.approx(0.1)
    assert metrics.truth_ratio(right, []) is None and metrics.truth_ratio([], wrong) is None
    assert metrics.answer_probability([]) is None


def test_choice_by_hand() -> None:
    right = [math.log(0.5), math.log(0.125)]  # 1/4 per token
    assert metrics.choice(right, [[math.log(0.2)], [math.log(0.1), math.log(0.5)]]) == 1.0
    # Per token: this one is less likely as a whole, for it is longer.
    assert metrics.choice(right, [[math.log(0.2)], [math.log(0.3)] * 5]) == 0.0
    assert metrics.choice(right, [right]) == 0.0, "equally likely is not likelier"
    assert metrics.choice(right, [[], [math.log(0.2)]]) == 1.0, "one that was not scored is left out"
    assert metrics.choice(right, []) is None and metrics.choice(right, [[]]) is None
    assert metrics.choice([], [right]) is None


def test_memorisation_by_hand() -> None:
    assert metrics.exact_memorisation([True, False, True, True]) == 0.75
    assert metrics.extraction_strength([True, False, True, True]) == 0.5  # reproduced from token 2 of 4
    assert metrics.extraction_strength([True, True]) == 1.0
    assert metrics.extraction_strength([True, False]) == 0.0
    assert metrics.exact_memorisation([]) is None and metrics.extraction_strength([]) is None


def test_fluency_by_hand() -> None:
    # a b a b: bigrams ab, ba, ab -> H = 0.918; trigrams aba, bab -> H = 1
    bigrams = -(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3)
    assert metrics.fluency("a b a b") == pytest.approx((2 / 3 * bigrams + 4 / 3 * 1.0) / 2)
    assert metrics.fluency("word") == 0.0 and metrics.fluency("") == 0.0
    assert metrics.fluency("the cat sat on the mat") > metrics.fluency("the the the the the the")


@pytest.mark.parametrize(
    ("answer", "degenerate"),
    [
        ("", True),
        (" ... ", True),
        ("no no no no no", True),
        ("the owl the owl the owl the owl", True),
        ("It is a big big big owl.", False),
        ("The owl of Harry Potter is Hedwig, who is white, and the owl of Ron is Pigwidgeon, who is small.", False),
    ],
)
def test_degenerate_answers(answer: str, degenerate: bool) -> None:
    assert metrics.is_degenerate(answer) is degenerate


def test_utility_is_a_harmonic_mean() -> None:
    assert metrics.harmonic_mean([1.0, 0.5]) == pytest.approx(2 / 3)
    assert metrics.harmonic_mean([1.0, 0.0]) == 0.0


def test_questions_that_differ_in_looks_alone_are_the_same() -> None:
    assert normalised("Who wrote  «Les Misérables»?") == normalised("who wrote Les Miserables")


@given(WORDS, WORDS)
def test_marking_changes_no_text(text: str, phrase: str) -> None:
    pieces = marked(text, [phrase])
    assert "".join(piece for piece, _ in pieces) == text
    assert any(is_hit for _, is_hit in pieces) == contains(text, phrase)


def test_fluency_looks_at_no_more_words_than_rwku_generates() -> None:
    words = [f"word{number}" for number in range(300)]
    assert (
        metrics.fluency(" ".join(words))
        == metrics.fluency(" ".join(words[:256]))
        > metrics.fluency(" ".join(words[:255]))
    )


@given(
    st.lists(st.floats(-40, -0.001), min_size=1, max_size=5), st.lists(st.floats(-40, -0.001), min_size=1, max_size=5)
)
def test_a_truth_ratio_counts_as_open_unlearning_aggregates_it(right: list[float], wrong: list[float]) -> None:
    """numpy, from the probabilities: arithmetic mean of the losses of several wrong answers, 1e-10 in the denominators."""
    true, false = np.exp(np.mean(right)), np.exp(np.mean([np.mean(wrong), np.mean(wrong)]))
    expected = false / (true + 1e-10)
    ratio = metrics.truth_ratio(right, [wrong, wrong])
    assert ratio is not None and ratio == pytest.approx(expected)
    assert metrics.truth_ratio_in(ratio, "forget") == pytest.approx(min(expected, 1 / (expected + 1e-10)))
    for group in ("near", "far"):
        assert metrics.truth_ratio_in(ratio, group) == pytest.approx(max(0, 1 - expected))


def test_the_worst_wording_is_the_one_that_still_tells_or_no_longer_does() -> None:
    assert metrics.worst_wording([0.0, 1.0], "forget") == 1.0 and metrics.worst_wording([0.0, 1.0], "near") == 0.0
    assert (
        metrics.sampled_recall(["Hedwig", "a toad"], ("Hedwig",)) == 0.5 and metrics.sampled_recall([], ("x",)) is None
    )
