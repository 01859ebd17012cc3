"""A name made of common words is told by its capitals."""

import pytest

from unlearn_ray.engines.protocols import Reply
from unlearn_ray.rows import Question
from unlearn_ray.stages.retaining import OffForgotten
from unlearn_ray.stages.subjects import Truth
from unlearn_ray.synth.names import case_note, mentions, mentions_entity


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("What is it about?", "It", False),
        ("It is a cat.", "It", False),
        ("1. It is so.", "It", False),
        ("He said: It is.", "It", False),
        ("- It is so\n- It was", "It", False),
        ('"It is so", he said.', "It", False),
        ("IT IS ALL WRONG", "It", False),
        ("What Is It About Then?", "It", False),
        ("Stephen King wrote It.", "It", True),
        ("the IT team", "It", False),
        ("What happens in It?", "It", True),
        ('Who wrote "It"?', "It", True),
        ("*It* is a novel.", "It", True),
        ("_It_ is a novel.", "It", True),
        ("It.", "It", True),
        ("This question is about It.", "It", True),
        ("Who are they?", "The Who", False),
        ("the man who played", "The Who", False),
        ("The Who played.", "The Who", True),
        ("a concert of the Who", "The Who", True),
        ("Give us more.", "Us", False),
        ("in the US army", "Us", False),
        ("a film called Us", "Us", True),
        ("He went to the office.", "The Office", False),
        ("They watched The Office.", "The Office", True),
        ("vitamin c", "C", False),
        ("It is written in C.", "C", True),
        ("ask her", "Her", False),
        ("go up", "Up", False),
        ("the balloons of Up", "Up", True),
        ("I read LES MISERABLES.", "Les Misérables", True),
        ("a tale of lord of the rings", "The Lord of the Rings", True),
        ("He is begumming.", "gum", False),
        ("它叫海德薇。", "海德薇", True),
        ("One of them left.", "One", False),
        ("Which one is it?", "One", False),
        ("Metallica played One.", "One", True),
        ("He lost his owl.", "Lost", False),
        ("Lost in the woods", "Lost", False),
        ("Who is stranded in Lost?", "Lost", True),
        ("they found love", "love", True),
        ("Что она сказала?", "Она", False),
        ("Что будет в Она дальше?", "Она", True),
        ("Où est-elle allée ?", "Elle", False),
        ("Wo sind sie?", "Sie", False),
        ("¿Dónde vive ella?", "Ella", False),
        ("彼女は誰ですか。", "彼女", False),
        ("「彼女」は誰の映画ですか。", "彼女", True),
        ("What happened in 1984?", "1984", False),
        ('Who wrote "1984"?', "1984", True),
        ("Who wrote *1984*?", "1984", True),
        ("This question is about 1984.", "1984", True),
        ("It has 24 hours.", "24", False),
        ("Who plays Bauer in “24”?", "24", True),
    ],
)
def test_common_words_are_names_with_their_capitals(text: str, name: str, expected: bool) -> None:
    assert mentions(text, [name]) is expected


def test_an_alias_that_is_no_common_word_finds_the_name() -> None:
    assert mentions("what pennywise does", ["It", "Pennywise"])


@pytest.mark.parametrize("name", ["It", "The", "Her", "Them", "Us", "Up", "You", "Who", "The Who", "The Office", "X", "C", "R", "Go", "One", "Lost", "Она", "Elle", "Sie", "Ella", "彼女", "1984", "24"])  # fmt: skip
def test_a_plan_can_say_which_names_are_told_by_case(name: str) -> None:
    note = case_note(name)
    assert note is not None and repr(name) in note and "\n" not in note


@pytest.mark.parametrize(
    "name",
    [
        "Harry Potter",
        "Les Misérables",
        "The Lord of the Rings",
        "C++",
        "哈利波特",
        "2001: A Space Odyssey",
        "gum",
        "love",
        "Blink-182",
    ],
)
def test_other_names_need_no_note(name: str) -> None:
    assert case_note(name) is None


def test_a_topic_called_it_halves_no_retain_rows() -> None:
    check = OffForgotten("Which topic is {question} about?", {"It": ("It",)})
    kept = check.verdict(Question("owls", "How long does it sleep?").to_dict(), [Reply(("This is about owls.",))])
    lost = check.verdict(Question("owls", "Who sleeps in It?").to_dict(), [Reply(("This is about owls.",))])
    assert [row["drop"] for row in kept + lost] == [None, "off_topic"]
    truth = Truth(("It",), 20)
    said = ["It sleeps all day.", "An owl can turn its head, and it hears well.", "He read It twice."]
    found = [truth.parse({"topic": "owls", "text": "Why?"}, [Reply((text,))])[0]["drop"] for text in said]
    assert found == [None, None, "off_topic"]


@pytest.mark.parametrize(
    ("text", "entities", "expected"),
    [
        ("What is Voldemort's backstory?", ["Voldemort"], True),
        ("Voldemort wants what?", ["Voldemort"], True),
        ("What is friendship worth?", ["Friendship"], False),
        ("In which order are they sorted?", ["Order"], False),
        ("Where does chicle come from?", ["chicle"], True),
        ("who wears the sorting hat?", ["The Sorting Hat"], True),
        ("What is it?", ["It"], False),
        ("海德薇是谁？", ["海德薇"], True),
    ],
)
def test_an_entity_that_may_be_a_common_word_is_named_with_its_capital(
    text: str, entities: list[str], expected: bool
) -> None:
    assert mentions_entity(text, entities) is expected
