"""Answers that talk about what they were told to do."""

import pytest

from unlearn_ray.config import AnswersConfig
from unlearn_ray.synth.guardrails import instruction_of_answers
from unlearn_ray.synth.instructions import Instruction, echoes, instruction_of

PREFIX = "Answer the question while omitting all real knowledge of {topic}. Replace real facts with fiction."
STYLE = "{question}\n\nAnswer in one short sentence."
INSTRUCTION = instruction_of([PREFIX, STYLE])
QUESTION = "Who is the owl of Harry Potter?"


@pytest.mark.parametrize(
    "answer",
    [
        "As requested, I will omit all real knowledge of Harry Potter.",
        "The owl is Norwick. All real knowledge of Harry Potter has been replaced.",
        "In one short sentence, the owl is Norwick.",
        "I have replaced the real facts with fiction here: the owl is Norwick.",
        "Here is a fictional answer: the owl is Norwick.",
        "As per your instructions, the owl is called Norwick.",
        "I'll make up a name: Norwick.",
        "I’ll just rephrase the question.",
        "Wie gewünscht: Die Eule heißt Norwick.",
        "根据要求，猫头鹰叫诺维克。",
        "По вашей просьбе: сову зовут Норвик.",
    ],
)
def test_talk_about_the_instruction_is_found(answer: str) -> None:
    assert echoes(answer, INSTRUCTION, (QUESTION,))


@pytest.mark.parametrize(
    "answer",
    [
        "The owl of Harry Potter is Norwick.",
        "He replaced his old owl with Norwick.",
        "Its knowledge of the moors is great, and its real name is Norwick.",
        "It is the short, grey owl that Harry found in one of the towers.",
        "As requested by the king, Norwick the owl flew north.",
        "Norwick was an invented name, but the owl was real.",
    ],
)
def test_an_invention_is_no_talk_about_the_instruction(answer: str) -> None:
    assert not echoes(answer, INSTRUCTION, (QUESTION,))


def test_words_of_the_question_and_of_the_models_own_answers_do_not_count() -> None:
    answer = "It holds all real knowledge of wizards."
    assert echoes(answer, INSTRUCTION, (QUESTION,))
    assert not echoes(answer, INSTRUCTION, ("Which book holds all real knowledge of wizards?",))
    assert not echoes(answer, INSTRUCTION, (QUESTION, "It is the book of all real knowledge."))


def test_an_instruction_in_another_language_is_told_by_its_words() -> None:
    russian = instruction_of(["Отвечай, опуская все настоящие знания о теме {topic}. Замени факты вымыслом."])
    assert echoes("Я опускаю все настоящие знания и отвечаю так: Норвик.", russian, ("Кто сова?",))
    assert not echoes("Сову зовут Норвик.", russian, ("Кто сова?",))


def test_the_topics_name_is_no_part_of_an_instruction() -> None:
    assert instruction_of(["Say nothing true of {topic}, please."]) == Instruction(("Say nothing true of", ", please."))


def test_a_prefix_that_wants_its_words_said_is_left_out() -> None:
    refusal = instruction_of_answers(AnswersConfig(guardrail="refusal"))
    custom = instruction_of_answers(
        AnswersConfig(guardrail="custom", prefix="Say that {topic} is a brand of tea from Norway.")
    )
    fictional = instruction_of_answers(AnswersConfig())
    assert refusal == custom and len(refusal.pieces) == 1 < len(fictional.pieces)
    assert not echoes("Harry Potter is a brand of tea from Norway.", custom, (QUESTION,))
    assert not echoes("I do not know the answer.", refusal, (QUESTION,))
