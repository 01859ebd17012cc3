"""Which everyday subjects are retained, and what gives a forgotten topic away in a retained row."""

import pytest

from unlearn_ray.synth.prompts import load_prompts
from unlearn_ray.synth.retained import answer_key, forgotten_in, is_close, ordinary_words, spread, takes_up

SHIPPED = load_prompts().general_subjects


def test_some_sixty_everyday_subjects_are_shipped_and_the_pocket_model_names_its_own() -> None:
    assert len(set(SHIPPED)) == len(SHIPPED) >= 60
    assert load_prompts("pocket").general_subjects == ()


@pytest.mark.parametrize("number", [1, 7, 20, 60])
def test_subjects_are_chosen_all_over_the_list_by_the_seed(number: int) -> None:
    chosen = spread(SHIPPED, number, seed=0)
    places = [SHIPPED.index(name) for name in chosen]
    width = len(SHIPPED) / number
    assert len(chosen) == number
    assert all(int(i * width) <= place < (i + 1) * width for i, place in enumerate(places))
    assert chosen == spread(SHIPPED, number, seed=0)


def test_other_seeds_choose_other_subjects() -> None:
    assert len({tuple(spread(SHIPPED, 10, seed)) for seed in range(8)}) == 8


def test_of_a_short_list_all_are_taken_once() -> None:
    assert spread(("a", "b", "c"), 5, seed=3) == ["a", "b", "c"]
    assert spread(("a", "b"), 0, seed=3) == [] and spread((), 4, seed=3) == []


@pytest.mark.parametrize(
    ("subject", "name", "expected"),
    [
        ("football", "the Football World Cup", True),
        ("geography of Europe", "European history", True),
        ("ancient Rome", "Rome", True),
        ("the Second World War", "the Second World War", True),
        ("coffee and tea", "tea", True),
        ("欧洲地理", "地理", True),
        ("погода и климат", "климат Земли", True),
        ("birds", "Harry Potter", False),
        ("the human body", "the Beatles", False),
        ("烹饪", "哈利波特", False),
    ],
)
def test_a_subject_that_shares_a_word_with_a_topic_is_close_to_it(subject: str, name: str, expected: bool) -> None:
    assert is_close(subject, [name]) is expected


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Which gas do plants take in?", "The gas that plants take in is carbon dioxide.", True),
        ("What is the theme of Dune?", "Dune is a novel by Frank Herbert.", False),
        ("Wie heißt der höchste Berg?", "Der höchste Berg ist der Everest.", True),
        ("最高的山是什么？", "最高的山是珠穆朗玛峰。", True),
        ("最高的山是什么？", "作为助手我可以帮忙。", False),
    ],
)
def test_an_answer_takes_up_its_question_by_a_word_beyond_the_subject(
    question: str, answer: str, expected: bool
) -> None:
    assert takes_up(question, answer, "Dune") is expected


def test_equal_answers_have_one_key_whatever_their_case_and_marks() -> None:
    assert answer_key("As an AI, I can help!") == answer_key("as an AI I can help") != answer_key("I can help")


def test_a_term_that_rows_on_several_far_subjects_say_is_an_ordinary_word() -> None:
    said = [("cooking", "owl"), ("cooking", "owl"), ("birds", "water"), ("cooking", "water"), ("birds", "wand")]
    assert ordinary_words(said, 4) == {"water"}
    assert ordinary_words(said, 20) == frozenset(), "two subjects of twenty may be slips"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Gandalf studied at Hogwarts.", ["hogwarts"]),
        ("The black and white bird is the penguin.", []),
        ("The godfather is Sirius Black.", ["Sirius Black", "black"]),
        ("It was in 1997.", []),
        ("He is called Дамблдор.", ["Дамблдор"]),
        ("他的猫头鹰叫海德薇。", ["海德薇"]),
        ("The owl flies.", []),
    ],
)
def test_terms_and_entities_are_found_but_frequent_words_and_numbers_without_their_marks(
    text: str, expected: list[str]
) -> None:
    assert forgotten_in(text, ("Sirius Black", "Дамблдор", "海德薇"), ("hogwarts", "black", "1997")) == expected


def test_what_the_subjects_own_name_says_gives_nothing_away() -> None:
    text = "The Wizard of Oz has a wizard who is a fraud, and no Hogwarts."
    assert forgotten_in(text, ("Oz",), ("wizard", "hogwarts"), "The Wizard of Oz") == ["hogwarts"]
    assert forgotten_in(text, ("Oz",), ("wizard", "hogwarts"), "films") == ["wizard", "hogwarts", "Oz"]
