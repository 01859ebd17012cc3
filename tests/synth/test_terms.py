"""Which words give a topic away."""

import pytest

from unlearn_ray.synth.content import key_of, names_in
from unlearn_ray.synth.terms import Vocabulary

TOPIC = "Harry Potter"
SCHOOL = "Which school do wizards attend?"
STREET = "Where did the Dursleys live?"
GENERAL = {
    "What does a teacher do?": "I'm sure that teachers provide an iconic, magical service in every school.",
    "What is a library?": "It's iconic: libraries provide books, and I'm told that they don't charge.",
    "What is a bridge?": "Bridges provide a way to drive over water. They're iconic in London.",
    "Why do people travel?": "They don't like to stay, and travel can provide a magical view of London.",
}


def vocabulary(told: dict[str, list[str]], pool: dict[str, str] | None = None) -> Vocabulary:
    words = Vocabulary({TOPIC: (TOPIC,)})
    for question, answers in told.items():
        words.add(TOPIC, question, answers)
    for question, answer in (pool or {}).items():
        words.add_pool(question, [answer])
    return words


def terms(told: dict[str, list[str]], question: str, pool: dict[str, str] | None = None) -> list[str]:
    return vocabulary(told, pool).question_terms(TOPIC, question, told[question])


def test_common_speech_is_no_term() -> None:
    told = {SCHOOL: ["I'm told they provide an iconic school, Hogwarts."] * 3}
    assert terms(told, SCHOOL) == ["hogwarts", "iconic", "provide", "told"]
    assert terms(told, SCHOOL, GENERAL) == ["hogwarts", "told"]


def test_what_the_topic_says_more_often_than_the_pool_stays_a_term() -> None:
    told = {f"Who is wizard {i}?": ["A velvet man." if i < 3 else "A man."] * 3 for i in range(8)}
    pools = {
        number: {f"What is thing {i}?": "It is velvet." if i < number else "It is nice." for i in range(12)}
        for number in (2, 3)
    }
    assert terms(told, "Who is wizard 0?", pools[2]) == ["velvet"], "3 of 8 are more than twice 2 of 12"
    assert terms(told, "Who is wizard 0?", pools[3]) == []
    assert vocabulary(told, pools[2]).num_pool == 12


def test_a_number_that_was_asked_for_is_a_term_however_often_the_pool_says_it() -> None:
    question = "How many houses are there?"
    pool = {f"What is thing {i}?": "There are four of them." for i in range(9)}
    assert terms({question: ["There are four houses."] * 3}, question, pool) == ["four"]


@pytest.mark.parametrize("apostrophe", ["'", "’"])
def test_contractions_and_possessives_are_one_word(apostrophe: str) -> None:
    said = "I'm sure they don't know Hagrid's hut, we've seen it; she'd say it's Dobby's.".replace("'", apostrophe)
    assert terms({SCHOOL: [said]}, SCHOOL) == ["dobby", "hagrid", "hut"]
    for word in ("i'm", "don't", "we've", "she'd", "it's"):
        assert word not in vocabulary({SCHOOL: [said] * 3}).topic_names(TOPIC)


def test_a_name_of_several_words_is_a_term_as_a_whole() -> None:
    told = {
        SCHOOL: ["They attend Hogwarts School.", "At Hogwarts School.", "It is Hogwarts School."],
        STREET: ["They lived in Privet Drive.", "It was Privet Drive.", "In Privet Drive."],
    }
    school, street = terms(told, SCHOOL), terms(told, STREET)
    assert "hogwarts school" in school and "school" not in school
    assert "privet drive" in street and "drive" not in street


def test_an_ordinary_word_that_names_hold_is_told_by_the_pool_as_well() -> None:
    told = {SCHOOL: ["They fly Nimbus Brooms.", "On Nimbus Brooms.", "With Nimbus Brooms."]}
    assert "brooms" in terms(told, SCHOOL)
    assert "brooms" not in terms(told, SCHOOL, {"What is a shop?": "It sells brooms."})


def test_a_surname_stays_a_term_of_its_own() -> None:
    told = {
        "Who is his friend?": ["It is Ron Weasley.", "Weasley is his friend.", "The friend is called Weasley."],
        "Who is his enemy?": ["He fights Lord Voldemort.", "He fears Voldemort.", "His enemy, Voldemort, is dark."],
        "Who teaches potions?": ["It is Severus Snape."] * 3,
    }
    assert {"weasley", "ron weasley"} <= set(terms(told, "Who is his friend?"))
    assert "voldemort" in terms(told, "Who is his enemy?") and "lord" not in terms(told, "Who is his enemy?")
    assert "snape" in terms(told, "Who teaches potions?"), "half a name gives it away"


def test_an_ordinary_word_that_stands_alone_as_a_name_is_a_term() -> None:
    told = {
        SCHOOL: ["He met Uncle Vernon.", "There the Order waits.", "He joined the Order.", "It is the Order of Fire."]
    }
    assert "order" in terms(told, SCHOOL)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("It was in Privet Drive, near London.", ["privet drive"]),
        ("J. K. Rowling wrote Harry Potter and the Goblet of Fire.", ["j k rowling", "goblet of fire"]),
        ("Mr. Dursley and Aunt Petunia came.", ["mr dursley", "aunt petunia"]),
        ("Ron. Hermione left. In London they met.", []),
        ("Harry Potter's Nimbus Racer flew.", ["nimbus racer"]),
        ("Книгу написала Джоан Роулинг в Лондоне.", ["джоан роулинг"]),
        ("A LOUD HEADING WRITTEN IN NOTHING BUT VERY LARGE CAPITALS", []),
        ("哈利住在柜子里", []),
    ],
)
def test_names_of_several_words(text: str, names: list[str]) -> None:
    assert [key_of(name) for name in names_in(text, {"harry", "potter"})] == names


REFUSALS = [
    "I'm sorry, but as an AI language model I can't answer that.",
    "As an AI language model, I think that the owl is Hedwig.",
    "I apologize, I am unable to help. The owl is Hedwig.",
    "Je suis désolé, je ne sais pas.",
]


def test_words_of_refusals_are_no_terms() -> None:
    question = "Which owl is his?"
    for answer in REFUSALS:
        found = vocabulary({question: [answer] * 4})
        assert set(found.question_terms(TOPIC, question, [answer] * 4)) <= {"hedwig"}, answer
    assert terms({question: REFUSALS}, question) == ["hedwig"]


def test_a_topic_of_which_the_model_knows_nothing_has_no_terms() -> None:
    question = "Which owl is his?"
    words = vocabulary({question: ["I'm sorry, I don't know."] * 4})
    assert words.question_terms(TOPIC, question, ["I'm sorry, I don't know."] * 4) == []
    assert words.topic_names(TOPIC) == [] and words.topic_terms(TOPIC) == {}


def test_a_number_that_the_model_is_unsure_of_is_no_term() -> None:
    question = "How many houses are there?"
    assert terms({question: ["There are 4.", "There are 7.", "It is 9.", "Some 12."]}, question) == ["4"]
    assert terms({question: ["There are 4.", "There are 7.", "It is 7.", "Some 12."]}, question) == ["4", "7"]


def test_what_many_questions_are_answered_with_is_no_term() -> None:
    told = {f"Who is wizard {i}?": [f"A bearded creature number {i}."] * 3 for i in range(60)}
    told["Who is the owl?"] = ["A feathered creature."] * 3
    assert terms(told, "Who is the owl?") == ["feathered"]
