"""One folding, one tokeniser and one look-up, good for every script and normal form."""

import ast
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_ray.evals.scoring import Ask, score_answer
from unlearn_ray.synth.leaks import found_terms
from unlearn_ray.words import (
    comparable,
    contains,
    fold,
    folded_words,
    leaked,
    letters_of,
    marked,
    num_words,
    telling,
    tells,
)

FORMS: tuple[Literal["NFC", "NFD", "NFKC", "NFKD"], ...] = ("NFC", "NFD", "NFKC", "NFKD")
# Latin, Greek, Cyrillic, Arabic, Hebrew, Devanagari, Thai, Han, kana, Korean, and what stands between words.
MIXED = st.text(
    st.one_of(
        st.sampled_from("aAbBéÉßİıﬁǅ12３٣ '’-‐_*·.,。、()\n\u00ad\u200b\u0301Ññ"),
        st.sampled_from("αΑάςёЁйЙхَهمحبאבָקिकक्याไทยเฮ็ดวิก海德薇哈利ヘドウハがド헤드위그는론ㅋ"),
        st.characters(),
    ),
    max_size=24,
)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("它叫海德薇。", "海德薇"),
        ("哈利波特的猫头鹰", "哈利·波特"),
        ("哈利·波特的猫头鹰", "哈利波特"),
        ("哈利 波特", "哈利波特"),
        ("その名はヘドウィグです", "ヘドウィグ"),
        ("ﾍﾄﾞｳｨｸﾞです", "ヘドウィグ"),
        ("ハリーポッターの本", "ハリー・ポッター"),
        ("ロンは友達です", "ロン"),
        ("นกชื่อเฮ็ดวิกครับ", "เฮ็ดวิก"),
        ("해리포터는 책이다", "해리 포터"),
        ("해리 포터의 부엉이", "해리포터"),
        ("론은 친구다", "론"),
        ("Сова ХЕДВИГ", "хедвиг"),
        ("ёлка", "елка"),
        ("مُحَمَّد", "محمد"),
        ("שָׁלוֹם", "שלום"),
        ("हैरी का उल्लू", "हैरी"),
        ("STRASSE", "Straße"),
        ("İSTANBUL", "istanbul"),
        ("ﬁre", "Fire"),
        ("ＨＥＤＷＩＧ", "Hedwig"),
        ("im Jahr ١٩٩٧", "1997"),
        ("_Hedwig_", "Hedwig"),
        ("**Hedwig**", "Hedwig"),
        ("**Hed**wig", "Hedwig"),
        ("Hedwig_", "Hedwig"),
        ("snake: harry_potter", "Harry Potter"),
        ("Hed\u00adwig", "Hedwig"),
        ("Hed\u200bwig", "Hedwig"),
        ("Hedwig™", "Hedwig"),
        ("Platform 9¾", "Platform 9 3/4"),
        ("He\u0301dwig", "Hédwig"),
        ("Hedwig’s cage", "Hedwig"),
        ("O’BRIEN", "O'Brien"),
        ("OʼBrien", "O＇Brien"),
        ("Spider Man", "Spider-Man"),
        ("Spider‑Man", "Spider Man"),
        ("Spider–Man", "spider-man"),
        ("Spiderman", "Spider-Man"),
        ("J.K. Rowling", "J. K. Rowling"),
        ("A$AP Rocky", "A$AP Rocky"),
        ("I write C++.", "C++"),
        ("Ender's Game", "Ender Game"),
        ("at McDonalds", "McDonald's"),
        ("l'Hermione", "Hermione"),
        ("叫Hedwig的猫头鹰", "Hedwig"),
        ("about 1,000 owls", "1000"),
        ("about 1000 owls", "1,000"),
        ("1 000 owls", "1,000"),
        ("1.000.000 Eulen", "1,000,000"),
        ("12.05.1997", "1997"),
        ("1997, 1998", "1997"),
        ("It costs 3.5 dollars", "3.5"),
        ("the Apollo11 crew", "Apollo 11"),
        ("the Apollo 11 crew", "Apollo11"),
        ("Lech Walesa", "Lech Wałęsa"),
        ("Jo Nesbo", "Jo Nesbø"),
        ("DANG", "Đặng"),
        ("Encyclopaedia", "Encyclopædia"),
        ("un coeur", "cœur"),
        ("Thor", "Þór"),
        ("ACDC played", "AC/DC"),
        ("AC/DC played", "ACDC"),
        ("he works at ATT", "AT&T"),
        ("he works at AT&amp;T", "AT&T"),
        ("O&#39;Brien left", "O'Brien"),
        ("Caf&eacute; left", "Café"),
        ("Hed\\_wig left", "Hedwig"),
        ("I like 🦉 here", "🦉"),
        ("I ❤️ it", "❤"),
    ],
)
def test_a_phrase_is_found_however_it_is_written(text: str, phrase: str) -> None:
    for form in FORMS:
        if not set(text) & set("™¾") or form in ("NFC", "NFD"):
            assert contains(unicodedata.normalize(form, text), phrase), form
            assert contains(text, unicodedata.normalize(form, phrase)), form
    assert any(is_hit for _, is_hit in marked(text, [phrase]))


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("Ronald", "Ron"),
        ("a therapist", "the rapist"),
        ("ロンドン", "ロン"),
        ("결론은 그렇다", "론"),
        ("I write C++.", "C"),
        ("pages 2-3", "23"),
        ("海。德薇", "海德薇"),
        ("คน", "เฮ็ดวิก"),
        ("ไม้", "ไม่"),
        ("はか", "ばか"),
        ("का", "कि"),
        ("text", "..."),
        ("", "x"),
        ("3.5", "3"),
        ("3.5", "5"),
        ("3,000", "3"),
        ("3,000", "000"),
        ("3 000", "3"),
        ("1,000", "100"),
        ("I like 🦉", "🐀"),
    ],
)
def test_a_phrase_is_not_found_in_another_word(text: str, phrase: str) -> None:
    assert not contains(text, phrase)


@given(MIXED)
def test_all_normal_forms_have_the_same_words(text: str) -> None:
    text = "".join(
        char for char in text if char not in "™℠" and not unicodedata.decomposition(char).startswith("<fraction>")
    )
    for form in FORMS:
        other = unicodedata.normalize(form, text)
        assert letters_of(other) == letters_of(text)
        assert folded_words(other) == folded_words(text)
        assert fold(other) == fold(text)
    assert fold(fold(text)) == fold(text)


@given(MIXED, st.lists(MIXED, max_size=3))
def test_marking_changes_no_text_and_marks_what_is_contained(text: str, phrases: list[str]) -> None:
    pieces = marked(text, phrases)
    assert "".join(piece for piece, _ in pieces) == text
    assert any(is_hit for _, is_hit in pieces) == any(contains(text, phrase) for phrase in phrases)


def score(text: str, terms: tuple[str, ...], question: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The leaked terms of an evaluated answer."""
    ask = Ask("base", "p", "t", "t", "forget", "w", "f", question, "truth", (), "truth", ())
    scored = score_answer(
        ask, terms, names, answer="", samples=[text],
    )  # fmt: skip
    return scored.leaked_terms


@given(MIXED, st.lists(st.one_of(MIXED, st.just("Hedwig"), st.just("海德薇")), max_size=4), MIXED, st.booleans())
def test_data_evaluation_and_demo_find_the_same_leaks(text: str, terms: list[str], given_: str, is_told: bool) -> None:
    text = f"{text} Hedwig 叫海德薇。" if is_told else text
    found = found_terms(text, given_, terms)
    assert sorted(found) == sorted(score(text, tuple(terms), given_, ()))
    assert bool(found) == any(is_term for _, is_term in marked(text, telling(terms, given_)))
    assert found == leaked(text, terms, given_)


def test_what_a_word_a_leak_and_a_refusal_is_stands_in_one_place_each() -> None:
    """Data, evaluation, demo and the pocket's own check ask the same functions: two of a kind would disagree on some sentence."""
    homes = {
        "words.py": {"contains", "leaked", "words_of", "folded_words", "letters_of", "normalised"},
        "refusals.py": {"is_refusal"},
    }  # fmt: skip
    names = set().union(*homes.values())
    root, found = Path(__file__).parents[1], []
    for path in [*(root / "unlearn_ray").rglob("*.py"), *(root / "demo").rglob("*.py")]:
        functions = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))
        named = {node.name.removeprefix("_") for node in functions} & names
        found += [(path.name, name) for name in named if name not in homes.get(path.name, ())]
    assert found == []


@given(MIXED)
def test_a_text_contains_each_of_its_own_words(text: str) -> None:
    for word in folded_words(text):
        assert contains(f"x {word} x", word)


def test_a_term_that_was_given_is_no_leak() -> None:
    assert leaked("它叫海德薇。", ["海德薇", "霍格沃茨"], "哈利·波特的猫头鹰叫什么？") == ["海德薇"]
    assert leaked("它叫海德薇。", ["海德薇"], "海德薇是谁？") == []
    assert telling(["Spider-Man"], "Who is Spider Man?") == []


def test_overlapping_terms_are_marked_as_one() -> None:
    assert marked("它叫海德薇。", ["海德", "德薇"]) == [("它叫", False), ("海德薇", True), ("。", False)]
    assert marked("Ron Weasley's rat", ["Ron", "Ron Weasley"]) == [("Ron Weasley", True), ("'s rat", False)]
    assert marked("It is Ron", ["Ron", "Ron Weasley"]) == [("It is ", False), ("Ron", True)]


def test_english_words_keep_their_hyphens_and_lose_their_possessives() -> None:
    assert folded_words("Don't stop well-known Harry's O’Brien, HARRY'S x_y.") == (
        "don't", "stop", "well-known", "harry", "o'brien", "harry", "x", "y",
    )  # fmt: skip


@given(st.lists(st.text("abYZs", min_size=1, max_size=5), min_size=1, max_size=5), st.sampled_from(["", ".", "?", "!"]))
def test_plain_english_is_compared_by_the_same_words_as_all_else(words: list[str], mark: str) -> None:
    """A tab in the place of a space takes the other way."""
    text = " ".join(words) + mark
    assert comparable(text) == comparable(f"\t{text}") == [word.lower() for word in words]


def test_scripts_without_spaces_are_counted_in_pieces_and_korean_loses_its_particles() -> None:
    assert folded_words("叫海德薇。") == ("叫海", "海德", "德薇")
    assert folded_words("헤드위그입니다") == ("헤드위그",)
    assert num_words("one two three") == 3 and num_words("哈利·波特") == 2


def test_a_fact_is_told_by_its_truth_or_an_alias() -> None:
    assert tells("它叫海德薇。", ("海德薇",)) is True
    assert tells("By J. K. Rowling", ("Joanne Rowling", "Rowling")) is True
    assert tells("3.5", ["3"]) is False and tells("3,000", ["3"]) is False and tells("3,000", ["3000"]) is True
    assert tells("An owl", ("a sentence of which nobody expects every single word",)) is None
    assert tells("?", ("哈利的猫头鹰是一只名叫海德薇的雪白色的鸟",)) is None


def test_the_module_is_light() -> None:
    code = "import sys, unlearn_ray.words; print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'numpy', 'pydantic', 'pyarrow', 'regex', 'ray'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("apostrophe", ["'", "’"])
def test_contractions_and_possessives_are_one_word(apostrophe: str) -> None:
    text = "I'm sure they don't have Harry's owl or O'Brien's.".replace("'", apostrophe)
    assert folded_words(text) == ("i'm", "sure", "they", "don't", "have", "harry", "owl", "or", "o'brien")
