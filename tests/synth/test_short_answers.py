"""The short answer in a reply, or why there is none."""

import pytest

from unlearn_ray.synth.short_answers import NoAnswer, ShortAnswer, is_open, short_answer


@pytest.mark.parametrize(
    ("question", "reply", "answer"),
    [
        ("What is Harry's owl called?", "Hedwig", "Hedwig"),
        ("What is Harry's owl called?", "**Hedwig**!", "Hedwig"),
        ("What is Harry's owl called?", "Answer: \"Hedwig\"", "Hedwig"),
        ("What is Harry's owl called?", "The answer is Hedwig.", "Hedwig"),
        ("What is Harry's owl called?", "Harry's owl is called Hedwig.", "Hedwig"),
        ("What is Harry's owl called?", "Hedwig is Harry's owl.", "Hedwig"),
        ("What is Harry's owl called?", "Hedwig. She is a snowy owl that lives", "Hedwig"),
        ("What is Harry's owl called?", "Hedwig\n\nShe is a snowy owl", "Hedwig"),
        ("Who wrote Emma?", "J. K. Rowling", "J. K. Rowling"),
        ("Who wrote Emma?", "A: J.K. Rowling\nQ: Who", "J.K. Rowling"),
        ("Who wrote the Potter books?", "J.K. Rowling wrote the Potter books.", "J.K. Rowling"),
        ("Which order fights him?", "The Order of the Phoenix.", "Order of the Phoenix"),
        ("Which school does he attend?", "Hogwarts School of Witchcraft and Wizardry", "Hogwarts School of Witchcraft and Wizardry"),
        ("Where does he live?", "No. 4 Privet Drive", "No. 4 Privet Drive"),
        ("Who is he?", "Mr. Darcy", "Mr. Darcy"),
        ("Where is it?", "In St. Petersburg. It is large", "St. Petersburg"),
        ("Which band is it?", "Everything but the Girl", "Everything but the Girl"),
        ("Which film won?", "Good Will Hunting", "Good Will Hunting"),
        ("How many books are there?", "There are seven books.", "seven"),
        ("How many books are there?", "7 books", "7"),
        ("When was Harry born?", "Harry was born on July 31, 1980.", "July 31, 1980"),
        ("What is the largest planet?", "The largest planet in our solar system is Jupiter.", "Jupiter"),
        ("What is the largest planet?", "Jupiter is the largest planet in our solar system.", "Jupiter"),
        ("Who painted the Mona Lisa?", "The Mona Lisa is a painting by Leonardo da Vinci.", "Leonardo da Vinci"),
        ("Who wrote The Lord of the Rings?", "The Lord of the Rings is the epic fantasy novel by J.R.R. Tolkien.", "J.R.R. Tolkien"),
        ("What is the tallest mountain?", "The tallest mountain is Mount Everest, also known as Peak XV", "Mount Everest"),
        ("What is the train to Hogwarts?", "The train to Hogwarts is the Hogwarts Express.", "Hogwarts Express"),
        ("Who is Ron's sister?", "Ginny Weasley, Ron's younger sister", "Ginny Weasley"),
        ("Who wrote Les Miserables?", "Les Miserables is a French novel by Victor Hugo.", "Victor Hugo"),
        ("How many legs has a spider?", 'The answer to this question is "8" because a spider has 8 legs.', "8"),
        ("Who painted it?", "It is none other than Vincent van Gogh.", "Vincent van Gogh"),
        ("What gas do plants absorb?", "Plants absorb carbon dioxide, which is a gas", "carbon dioxide"),
        ("When did it appear?", "It came out in December 1815.", "December 1815"),
        ("How much is it?", "It is $5.", "$5"),
        ("How many legs has it?", "It typically has eight legs.", "eight"),
        ("Who wrote Emma?", "1. Jane Austen", "Jane Austen"),
        ("Who wrote Emma?", "The answer to this question is: Jane Austen (1775-1817)", "Jane Austen"),
        ("¿Quién escribió Don Quijote?", "Fue Miguel de Cervantes.", "Miguel de Cervantes"),
        ("Qui a écrit Les Misérables ?", "C'est Victor Hugo.", "Victor Hugo"),
        ("Wer schrieb Faust?", "Faust wurde von Johann Wolfgang von Goethe geschrieben.", "Johann Wolfgang von Goethe"),
        ("ما هي عاصمة مصر؟", "عاصمة مصر هي القاهرة.", "القاهرة"),
        ("भारत की राजधानी क्या है?", "भारत की राजधानी नई दिल्ली है।", "नई दिल्ली"),
        ("日本の首都はどこですか？", "東京です。", "東京"),
        ("Как зовут сову Гарри?", "Сову Гарри зовут Букля.", "Букля"),
        ("哈利的猫头鹰叫什么名字？", "哈利的猫头鹰叫海德薇。", "海德薇"),
        ("哈利的猫头鹰叫什么名字？", "海德薇是哈利的猫头鹰。", "海德薇"),
        ("ハリーのフクロウの名前は何ですか？", "ハリーのフクロウの名前はヘドウィグです。", "ヘドウィグ"),
        ("해리의 부엉이 이름은 무엇입니까?", "해리의 부엉이 이름은 헤드위그입니다.", "헤드위그"),
    ],
)  # fmt: skip
def test_a_short_answer_is_what_the_question_does_not_say(question: str, reply: str, answer: str) -> None:
    assert short_answer(question, reply, ("Harry Potter",)) == ShortAnswer(answer)


@pytest.mark.parametrize(
    ("question", "reply", "reason"),
    [
        ("Who wrote it?", " ... ", NoAnswer.EMPTY),
        ("Who wrote it?", "I don't know.", NoAnswer.REFUSED),
        ("Who wrote it?", "As an AI language model, I cannot say.", NoAnswer.REFUSED),
        ("Кто её написал?", "Я не знаю.", NoAnswer.REFUSED),
        ("How many are there?", "It depends on the edition.", NoAnswer.HEDGED),
        ("Who wrote it?", "Various authors", NoAnswer.HEDGED),
        ("Who wrote it?", "He", NoAnswer.HEDGED),
        ("Is it large?", "Yes, it is.", NoAnswer.YES_OR_NO),
        ("Is it large?", "No.", NoAnswer.YES_OR_NO),
        ("Велик ли он?", "Да", NoAnswer.YES_OR_NO),
        ("Who beat him?", "Harry Potter", NoAnswer.REPEATS),
        ("Who is the owner of the owl?", "The owner of the owl.", NoAnswer.REPEATS),
        ("What is gum made of?", "Gum is made of a base, sugar and flavours that people like to chew.", NoAnswer.LONG),
        ("What does he do?", "He goes to school and learns magic with his two best friends", NoAnswer.LONG),
        ("What is it?", "It is a French word that means a mother of many children", NoAnswer.LONG),
        ("What is the largest planet?", "It is Neptune, but it's actually Uranus.", NoAnswer.HEDGED),
        ("Какая планета самая большая?", "Нептун, но на самом деле Уран.", NoAnswer.HEDGED),
        ("Who wrote Emma?", "1. Jane Austen\n2. Emily", NoAnswer.LONG),
        ("What is the Big Bang?", "The Big Bang is a topic.", NoAnswer.REPEATS),
        ("Who wrote it?", "Who do you think wrote it?", NoAnswer.LONG),
        ("Which colours has it?", "Red; gold; green", NoAnswer.LONG),
    ],
)
def test_a_reply_without_a_short_answer_says_why(question: str, reply: str, reason: NoAnswer) -> None:
    assert short_answer(question, reply, ("Harry Potter",)) is reason


def test_of_a_reply_that_was_cut_off_only_a_whole_first_sentence_counts() -> None:
    assert short_answer("Who owns it?", "Harry. He was given", is_truncated=True) == ShortAnswer("Harry")
    assert short_answer("Who owns it?", "The ministry of", is_truncated=True) is NoAnswer.LONG


@pytest.mark.parametrize(
    "question",
    ["Name a character of Harry Potter.", "What is your favorite book?", "How do you make gum?", "Why did he go?", "Is it red?",
     "What are some places in it?", "What is the name of the main character?", "List the houses.",
     "Who is the most famous artist?", "Which team is the best?"],
)  # fmt: skip
def test_questions_with_many_right_answers_or_none_are_open(question: str) -> None:
    assert is_open(question)


@pytest.mark.parametrize(
    "question",
    ["Name the owl of Harry Potter.", "How many books are there?", "How old was Harry?", "Who owns the owl?", "Как зовут сову?", "猫头鹰叫什么名字？",
     "What is the capital of France?", "Which is the most populous city in the world?", "Which is the best-selling book in the world?"],
)  # fmt: skip
def test_questions_after_one_thing_are_not(question: str) -> None:
    assert not is_open(question)
