"""What models write around a list, and how copies and splits are found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_ray.rows import Drop
from unlearn_ray.synth.dedup import question_key
from unlearn_ray.synth.names import mentions
from unlearn_ray.synth.parsing import affirms, is_question, names_in, question_lines
from unlearn_ray.synth.split import split_of
from unlearn_ray.words import fold

WORDS = st.text(st.characters(codec="utf-8", categories=["Ll", "Lu"]), min_size=1, max_size=9)
QUESTIONS = st.lists(WORDS, min_size=3, max_size=12).map(lambda words: f"What {' '.join(words)} now?")


def texts(reply: str, is_truncated: bool = False) -> list[str]:
    return [line.text for line in question_lines(reply, is_truncated) if not line.drop]


@pytest.mark.parametrize(
    "marker",
    ["{}. ", "{}) ", "({}) ", "{}: ", "- ", "* ", "• ", "**{}.** ", "Q{}: ", "Question {}: ", "  {}.  ", "{} - "],
)
@given(questions=st.lists(QUESTIONS, min_size=1, max_size=6))
def test_markers_are_parsed_off(marker: str, questions: list[str]) -> None:
    reply = "\n".join(marker.format(place) + question for place, question in enumerate(questions, 1))
    assert texts(reply) == [" ".join(question.split()) for question in questions]


WHO, WHERE, NAME = "Who is the owl of Harry?", "Where does Ron live?", "What is the school called?"


@pytest.mark.parametrize(
    "reply",
    [
        "1\\. {}\n2\\. {}\n3\\. {}",
        "| # | Question |\n|---|---|\n| 1 | {} |\n| 2 | {} |\n| 3 | {} |",
        "| Question | Answer |\n| :-- | --: |\n| {} | Hedwig |\n| {} | The Burrow |\n| {} | Hogwarts |",
        '["{}", "{}", "{}"]',
        "['{}', '{}', '{}']",
        'Here they are:\n```json\n[\n  "{}",\n  "{}",\n  "{}",\n]\n```\nEnjoy!',
        '[{{"question": "{}", "answer": "Hedwig"}}, {{"question": "{}"}}, {{"question": "{}"}}]',
        '{{"question": "{}"}}\n{{"question": "{}"}}\n{{"question": "{}"}}',
        '{{"questions": ["{}", "{}", "{}"]}}',
        '{{"1": "{}", "2": "{}", "3": "{}"}}',
        '[\n"{}",\n"{}",\n"{}",\n"Who is the',
        "[1] {}\n[2] {}\n[3] {}",
        "1️⃣ {}\n2️⃣ {}\n3️⃣ {}",
        "✅ {}\n🦉 {}\n👉 {}",
        "1/ {}\n2/ {}\n3/ {}",
        "i. {}\nii. {}\niii. {}",
        "(i) {}\n(ii) {}\n(iii) {}",
        "I. {}\nII. {}\nIII. {}",
        "<ol>\n<li>{}</li>\n<li>{}</li><li>{}</li></ol>",
        "- [ ] {}\n- [ ] {}\n- [x] {}",
        "> {}\n> {}\n> {}",
        "- 1. {}\n- 2. {}\n- 3. {}",
        "1. 1. {}\n2. 2. {}\n3. 3. {}",
        "Characters: {}\nPlaces: {}\nPlaces: {}",
        "1. **The Owl:** {}\n2. **Places**: {}\n3. {}",
        "{} {} {}",
        "1. {} 2. {} 3. {}",
        "a) {}\nb) {}\nc) {}",
        "A. {}\nB. {}\nC. {}",
        "(a) {}\n(b) {}\n(c) {}",
    ],
)
def test_lists_are_read_as_chat_models_write_them(reply: str) -> None:
    assert texts(reply.format(WHO, WHERE, NAME)) == [WHO, WHERE, NAME]


@pytest.mark.parametrize("options", ["a) Hedwig\nb) Errol", "A. Hedwig\nB. Errol", "(a) Hedwig\n(b) Errol"])
def test_letters_beneath_a_question_are_its_options(options: str) -> None:
    assert texts(f"{WHO}\n{options}") == [WHO]
    assert texts(f"1. {WHO}\n{options}\n2. {WHERE}") == [WHO, WHERE]


def test_a_question_that_asks_on_is_one() -> None:
    asked = "Who is the owl of Harry? Is it a snowy one?"
    assert texts(asked) == [asked]
    assert texts("In Harry Potter: who is the owl?") == ["In Harry Potter: who is the owl?"]


def test_preambles_answers_options_and_farewells_are_left_out() -> None:
    reply = """Sure! Here are 3 questions about Harry Potter:

1. **Who is the owl of Harry?**
   A) Hedwig
   B) Errol
Answer: Hedwig
2. "What is the school called?" (Answer: Hogwarts)
3. Name the giant who keeps the grounds. Answer: Hagrid

I hope this helps! Would you like more?"""
    assert texts(reply) == [
        "Who is the owl of Harry?",
        "What is the school called?",
        "Name the giant who keeps the grounds.",
    ]


def test_plain_lines_are_questions_too() -> None:
    assert texts("What is it called?\nTell me who Ron is.\n\nLet us go on.") == [
        "What is it called?",
        "Tell me who Ron is.",
    ]


def test_numbers_inside_a_question_stay() -> None:
    assert texts("1. What is 3.5 times 2?\n2. In 1997, what happened?") == [
        "What is 3.5 times 2?",
        "In 1997, what happened?",
    ]


def test_what_is_no_question_is_malformed() -> None:
    lines = question_lines("1. **Characters:**\n2. Who is Ron?\n3. Ron.\n4. " + "who " * 70 + "?\n5. Give me the")
    assert [line.drop for line in lines] == [Drop.MALFORMED, None, Drop.MALFORMED, Drop.MALFORMED, Drop.MALFORMED]


def test_a_line_that_was_cut_off_is_malformed() -> None:
    reply = "1. Who is the owl of Harry?\n2. Which of the four hou"
    assert texts(reply, is_truncated=True) == ["Who is the owl of Harry?"]
    assert question_lines(reply, is_truncated=True)[-1].drop == Drop.MALFORMED


def test_names_lose_what_is_said_about_them() -> None:
    reply = "Here are some:\n1. **Hogwarts** - the school\n2. Hedwig (an owl)\n3. Ron Weasley: a friend\n4. The Leaky Cauldron, a pub\n5. Jean-Luc"
    assert names_in(reply) == ["Hogwarts", "Hedwig", "Ron Weasley", "The Leaky Cauldron", "Jean-Luc"]
    assert names_in("Hogwarts, Hedwig, and Ron Weasley.") == ["Hogwarts", "Hedwig", "Ron Weasley"]


@pytest.mark.parametrize(
    "reply",
    [
        '["Hedwig", "Ron Weasley"]',
        '```json\n["Hedwig", "Ron Weasley"]\n```',
        '[{"name": "Hedwig", "role": "owl"}, {"name": "Ron Weasley", "role": "friend"}]',
        "| Name | Role |\n|---|---|\n| Hedwig | owl |\n| Ron Weasley | friend |",
        "- Hedwig\n  - the owl of Harry\n- Ron Weasley\n  - his friend",
        "- Characters:\n  - Hedwig\n  - Ron Weasley",
        "a. Hedwig\nb. Ron Weasley",
        "[1] Hedwig\n[2] Ron Weasley",
        "1\\. Hedwig\n2\\. Ron Weasley",
        "1. Hedwig → owl\n2. Ron Weasley -> friend",
        "1. Hedwig = owl\n2. Ron Weasley -- friend",
        '1. "Hedwig" by The Beatles\n2. “Ron Weasley” (1997)',
    ],
)
def test_names_are_read_as_chat_models_list_them(reply: str) -> None:
    assert names_in(reply) == ["Hedwig", "Ron Weasley"]


def test_a_name_keeps_its_subtitle_and_loses_its_description() -> None:
    assert names_in("1. 2001: A Space Odyssey\n2. Spider-Man: Homecoming\n3. Ron: a friend\n4. Errol: An old owl") == [
        "2001: A Space Odyssey", "Spider-Man: Homecoming", "Ron", "Errol",
    ]  # fmt: skip
    assert names_in("1. **Hedwig**: Snowy Owl\n2. **2001: A Space Odyssey:** Science Fiction") == [
        "Hedwig",
        "2001: A Space Odyssey",
    ]
    assert names_in("1. Hedwig: Snowy Owl\n2. Ron: a friend\n3. Errol: an old owl") == ["Hedwig", "Ron", "Errol"]
    assert names_in("Hogwarts; Hedwig; Ron Weasley") == ["Hogwarts", "Hedwig", "Ron Weasley"]


def test_sentences_and_questions_are_no_names() -> None:
    assert names_in("1. Who is the owl?\n2. The owl of Harry is Hedwig.\n3. Hedwig") == ["Hedwig"]
    assert names_in("1. Hedwig\n2. Hogw", is_truncated=True) == ["Hedwig"]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("This question is about Harry Potter.", True),
        ("Yes, it is.", True),
        ("No, this is about candy, not about Harry Potter.", False),
        ("This question is about candy.", False),
        ("HARRY POTTER", True),
        *(
            (yes, True)
            for yes in (
                "Absolutely.",
                "Correct.",
                "Yeah",
                "Yep",
                "The answer is yes.",
                "Answer: Yes",
                "Sì",
                "Evet",
                "Tak",
                "Ναι",
            )
        ),
        *(
            (f"{no} It is not Harry Potter.", False)
            for no in (
                "Absolutely not.",
                "Incorrect.",
                "Nope.",
                "Nah.",
                "The answer is no.",
                "Answer: No.",
                "Not at all.",
                "Hayır.",
                "Nie.",
                "Όχι.",
            )
        ),
        ("", False),
    ],
)
def test_a_topic_check_is_read_in_either_form(reply: str, expected: bool) -> None:
    assert affirms(reply, ["Harry Potter"]) is expected


@given(st.text(max_size=300), st.booleans())
def test_no_reply_breaks_the_parsers(reply: str, is_truncated: bool) -> None:
    for line in question_lines(reply, is_truncated):
        assert "\n" not in line.text
    names_in(reply, is_truncated)


@given(QUESTIONS)
def test_case_spacing_and_punctuation_make_no_new_question(question: str) -> None:
    key = question_key(question)
    assert key == question_key(f"  {question.rstrip('?')} !") == question_key(f"Please, {question}")
    assert key == question_key(key)


def test_accents_make_no_new_question_but_articles_and_order_do() -> None:
    assert question_key("Who is Éponine?") == question_key("who is eponine")
    assert question_key("Who is the owl?") != question_key("Who is owl the?")


@given(QUESTIONS, WORDS, st.floats(0, 1))
def test_a_question_stays_on_its_side(question: str, topic: str, fraction: float) -> None:
    side = split_of(topic, question, fraction)
    assert side == split_of(topic, f"{question} ", fraction)
    if side == "holdout":  # a larger holdout only adds to it
        assert split_of(topic, question, min(1.0, fraction + 0.1)) == "holdout"


def test_the_holdout_is_about_as_large_as_asked_for() -> None:
    sides = [split_of("topic", f"What is number {number}?", 0.1) for number in range(2000)]
    assert 150 < sides.count("holdout") < 250
    assert split_of("t", "q", 0.0) == "train" and split_of("t", "q", 1.0) == "holdout"


def test_mentions_are_whole_words_without_case_and_accents() -> None:
    assert mentions("I read LES MISERABLES.", ["Les Misérables"])
    assert mentions("a tale of lord of the rings", ["The Lord of the Rings"])
    assert not mentions("He is begumming.", ["gum"])
    assert fold("Éponine") == "eponine"


@pytest.mark.parametrize("marker", ["1、", "１．", "①", "（1）", "1。", "一、", "١. ", "١- ", "۱) ", "१. ", "•", "・", "· ", "◆", "问题1：", "Вопрос 1: ", "第1题："])  # fmt: skip
@pytest.mark.parametrize(
    "question",
    [
        "哈利·波特的猫头鹰叫什么名字？",
        "他是谁？",
        "フクロウの名前は何ですか。",
        "해리포터의 부엉이 이름은 무엇인가요?",
        "นกฮูกของแฮร์รี่ชื่ออะไร",
        "Как зовут сову Гарри?",
        "¿Cómo se llama la lechuza?",
        "ما اسم بومة هاري بوتر؟",
        "हैरी का उल्लू क्या है?",
        "Πώς λέγεται η κουκουβάγια;",
        "Ի՞նչ է նրա անունը։",
    ],
)
def test_lists_of_questions_are_read_in_any_script(marker: str, question: str) -> None:
    assert texts(f"{marker}{question}\n{marker}{question}") == [question, question]


def test_what_is_no_question_is_none_in_any_script() -> None:
    for text in ("这是一个问题。", "以下是问题：", "Это список:", "هذه قائمة.", "1、海德薇"):
        assert texts(text) == []


def test_names_are_read_in_any_script() -> None:
    assert names_in("1、海德薇：哈利的猫头鹰\n2、霍格沃茨（学校）\n3、《魔戒》\n4、邓布利多——校长") == [
        "海德薇", "霍格沃茨", "魔戒", "邓布利多",
    ]  # fmt: skip
    assert names_in("海德薇、霍格沃茨、罗恩") == ["海德薇", "霍格沃茨", "罗恩"]
    assert names_in("Хогвартс, Хедвиг, и Гермиона") == ["Хогвартс", "Хедвиг", "Гермиона"]
    assert names_in("هيدويغ، هوغوورتس، رون") == ["هيدويغ", "هوغوورتس", "رون"]
    assert names_in("1. 헤드위그: 부엉이\n2. 론 위즐리") == ["헤드위그", "론 위즐리"]
    assert names_in("1、海德薇是哈利的猫头鹰。\n2、罗恩") == ["罗恩"]


def test_punctuation_and_spacing_make_no_new_question_in_any_script() -> None:
    for one, other in [
        ("哈利·波特的猫头鹰叫什么名字？", "哈利波特的猫头鹰，叫什么名字"),
        ("해리 포터의 부엉이는?", "해리포터의 부엉이는"),
        ("Как зовут сову?", "как зовут — СОВУ"),
    ]:
        assert question_key(one) == question_key(other) == question_key(question_key(one))
    assert question_key("他是谁？") != question_key("她是谁？")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What a wonderful world.", False),
        ("What an owl it is!", False),
        ("What a wizard needs", False),
        ("What a seeker catches is called?", True),
    ],
)
def test_an_exclamation_is_no_question(text: str, expected: bool) -> None:
    assert is_question(text) is expected
