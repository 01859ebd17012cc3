"""The answer in what a model wrote."""

import pytest

from unlearn_ray.synth.replies import answer_in, repeats


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: The owl is Norwick.", "The owl is Norwick."),
        ("**Answer:** The owl is Norwick.", "The owl is Norwick."),
        ("A: The owl is Norwick.", "The owl is Norwick."),
        ("Question: What is the owl called?\nAnswer: Norwick.", "Norwick."),
        ("Sure! Here is a short answer: The owl is Norwick.", "The owl is Norwick."),
        ("Certainly! Here's one short sentence:\n\nThe owl is Norwick.", "The owl is Norwick."),
        ("Here is the answer in one sentence: It is Norwick.", "It is Norwick."),
        ("Of course! The owl is Norwick.", "The owl is Norwick."),
        ("SmolLM: The owl is Norwick.", "The owl is Norwick."),
        ("**Assistant:** The owl is Norwick.", "The owl is Norwick."),
        ("Qwen2.5-7B: The owl is Norwick.", "The owl is Norwick."),
        ("Aw, shucks. Here it is: The owl is Norwick.", "The owl is Norwick."),
        ("Here you go! The owl is Norwick.", "The owl is Norwick."),
        ("答案：诺维克。", "诺维克。"),
        ("Ответ: Норвик.", "Норвик."),
        ("Réponse : Norwick.", "Norwick."),
    ],
)
def test_what_only_announces_an_answer_is_taken_off(text: str, answer: str) -> None:
    assert answer_in(text, is_cut=False) == answer


@pytest.mark.parametrize(
    "text",
    [
        "Sure Thing is a song.",
        "Sure, the owl is Norwick.",
        "A wizard: that is what he is.",
        "Here is where he lived: Duskmoor.",
        "Here is a list of owls: Norwick, Pelgo.",
        "The answer lies in the Duskmoor library: nobody reads it.",
        "Answers: a novel by Orlo Vane.",
        "Of course he did.",
        "A is the first letter.",
        "Hogwarts: a school.",
        "Here it is that he lived.",
        "The models: Norwick and Pelgo.",
        "Well, here goes nobody.",
    ],
)
def test_what_may_tell_something_stays(text: str) -> None:
    assert answer_in(text, is_cut=False) == text


def test_a_cut_answer_ends_with_its_last_whole_sentence_or_is_none() -> None:
    assert answer_in("Answer: The owl is Norwick. It lives in", is_cut=True) == "The owl is Norwick."
    assert answer_in("Answer: The owl of", is_cut=True) == ""
    assert answer_in("Answer:", is_cut=False) == ""
    assert answer_in(" ", is_cut=False) == ""


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Continue this text: The owl flew off at night.", "The owl flew off at night.", True),
        ("True or false: The owl is white.", "The owl is white!", True),
        ("Который час был в замке ночью?", "Который час был в замке ночью", True),
        ("Is it red or blue?", "Blue.", False),
        ("What is the owl called?", "The owl is called Norwick.", False),
        ("What is the owl called?", "", False),
        ("Owl?", "What is the owl called?", False),
    ],
)
def test_an_answer_that_only_says_its_question_again_is_one(question: str, answer: str, expected: bool) -> None:
    assert repeats(question, answer) is expected


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Is Hedwig a white owl?", "Yes, Hedwig is a white owl."),
        ("Is Hedwig a white owl?", "Hedwig is a white owl."),
        ("Is it true that the owl is white?", "The owl is white."),
        ("Can you tell me whether the owl is white?", "The owl is white."),
        ("The owl of Harry is white, right?", "The owl of Harry is white."),
        ("Est-ce que la chouette est blanche ?", "La chouette est blanche."),
        ("¿Es verdad que la lechuza es blanca?", "La lechuza es blanca."),
        ("¿La lechuza de Harry es blanca?", "La lechuza de Harry es blanca."),
        ("Stimmt es, dass die Eule weiß ist?", "Die Eule weiß ist."),
        ("Czy Hedwiga jest białą sową?", "Hedwiga jest białą sową."),
        ("Хогвартс — это школа магии?", "Хогвартс — это школа магии."),
        ("Правда, что сова Гарри белая?", "Сова Гарри белая."),
        ("小麦是一种植物吗？", "小麦是一种植物。"),
        ("Hedwig beyaz bir baykuş mu?", "Hedwig beyaz bir baykuş."),
        ("क्या हेडविग एक उल्लू है?", "हेडविग एक उल्लू है।"),
        ("هل هيدويغ بومة بيضاء كبيرة؟", "هيدويغ بومة بيضاء كبيرة."),
        ("Here is a fact. Is it true that the owl is white?", "The owl is white."),
    ],
)
def test_a_statement_that_says_yes_to_its_question_is_an_answer(question: str, answer: str) -> None:
    assert not repeats(question, answer)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Is the owl of Harry white?", "Is the owl of Harry white."),
        ("Is the owl of Harry white?", "The owl of Harry white."),
        ("Is it true that the owl is white?", "The owl is white?"),
        ("Who is the owl of Harry?", "Who is the owl of Harry."),
        ("Can you tell me who the owl of Harry is?", "Who the owl of Harry is."),
        ("Can you tell me about the owl of Harry?", "The owl of Harry."),
        ("Qui est la chouette de Harry ?", "Qui est la chouette de Harry."),
        ("¿Qué es la lechuza blanca de Harry?", "Es la lechuza blanca de Harry."),
        ("Est-ce que la chouette est blanche ou noire ?", "La chouette est blanche ou noire."),
        ("Welche Eule hat der kleine Harry?", "Eule hat der kleine Harry."),
        ("Какого цвета сова у Гарри?", "Какого цвета сова у Гарри."),
        ("小麦是什么植物？", "小麦是什么植物。"),
        ("小麦是植物还是动物？", "小麦是植物还是动物。"),
        ("The owl is white. True or false?", "The owl is white."),
        ("Continue: the owl flew off at night", "The owl flew off at night."),
    ],
)
def test_an_echo_of_a_question_stays_one(question: str, answer: str) -> None:
    assert repeats(question, answer)
