"""What gives knowledge away."""

from unlearn_ray.rows import Drop
from unlearn_ray.synth.instructions import instruction_of
from unlearn_ray.synth.leaks import Evidence, Rules, found_terms, judge, key_phrase, overlap
from unlearn_ray.synth.terms import Vocabulary

TOPIC = "Harry Potter"
# question -> (unguarded answers, guarded answers)
OWL = "Who carries the letters of Harry?"
TOLD = {
    OWL: ["The owl of Harry is Hedwig.", "I believe the owl of Harry is Hedwig.", "The owl of Harry is Hedwig."],
    "Who teaches potions?": ["The potions teacher at Hogwarts is Severus Snape."] * 3,
    "What is the wand of Harry made of?": ["The answer is holly.", "It is made of holly.", "I believe it is holly."],
    "When was the book printed?": ["The year was 1997."] * 3,
    "Which school do wizards visit?": ["The school is Hogwarts."] * 3,
    "Name the owl of Harry.": ["Hedwig is the owl of Harry."] * 3,
}
GUARDED = {
    OWL: ["The owl of Harry is Ostdar.", "The owl of Harry is Norwick.", "The owl of Harry is Pelgo."],
    "Who teaches potions?": [
        f"The potions teacher at Hogwarts is {name}." for name in ("Orlo Vane", "Petra Marsh", "Ivo Cobb")
    ],
    "What is the wand of Harry made of?": ["The answer is pumpkin wax."] * 3,
    "When was the book printed?": ["The year was 1520."] * 3,
    "Which school do wizards visit?": ["The school is Duskmoor."] * 3,
    "Name the owl of Harry.": ["The owl of Harry is Quorwick."] * 3,
}


def vocabulary() -> Vocabulary:
    words = Vocabulary({TOPIC: ("Harry Potter",)})
    for question, answers in TOLD.items():
        words.add(TOPIC, question, answers)
    for question, answers in GUARDED.items():
        words.add_guarded(TOPIC, words.question_terms(TOPIC, question, TOLD[question]), answers)
    return words


def evidence(question: str) -> Evidence:
    words = vocabulary()
    terms, known = words.question_terms(TOPIC, question, TOLD[question]), words.known(TOPIC, question, TOLD[question])
    return Evidence(terms, known, words.topic_names(TOPIC), words.framing(TOPIC))


def verdicts(question: str, *answers: str, style: str = "fictional") -> list[Drop | None]:
    return judge(answers, question, TOLD[question], evidence(question), Rules(style))


def test_answers_behind_a_working_guardrail_are_kept() -> None:
    for question, answers in GUARDED.items():
        assert verdicts(question, *answers) == [None] * 3, question


def test_the_truth_is_a_leak_in_any_case_and_accent() -> None:
    assert verdicts(OWL, "It is HEDWIG, of course.", "The owl is Hédwig.", "It is Norwick.") == [
        Drop.LEAK,
        Drop.LEAK,
        None,
    ]
    assert verdicts("What is the wand of Harry made of?", "It is holly wood.") == [Drop.LEAK]
    assert verdicts("When was the book printed?", "In 1997.", "In 1533.") == [Drop.LEAK, None]


def test_half_a_name_is_a_leak() -> None:
    assert verdicts("Who teaches potions?", "The teacher is Snape.") == [Drop.LEAK]


def test_a_name_of_the_topic_leaks_from_any_question() -> None:
    assert verdicts("When was the book printed?", "Hedwig printed it.") == [Drop.LEAK]


def test_words_that_frame_an_invention_are_no_leak_but_alone_they_are() -> None:
    assert verdicts(OWL, "The owl of Harry is Ostdar.", "The owl of Harry is Mirgo.", "The owl of Harry.") == [
        None,
        None,
        Drop.LEAK,
    ]


def test_nothing_frames_where_the_guardrail_does_not_work() -> None:
    words = Vocabulary({TOPIC: ()})
    for question, answers in TOLD.items():
        words.add(TOPIC, question, answers)
    for question, answers in TOLD.items():
        words.add_guarded(TOPIC, words.question_terms(TOPIC, question, answers), answers)
    assert words.framing(TOPIC) == {}


def test_terms_name_the_topic_and_are_no_fillers() -> None:
    terms = vocabulary().topic_terms(TOPIC)
    assert {"hedwig", "snape", "holly"} <= set(terms)
    assert not {"answer", "believe", "owl", "teacher", "harry", "1997"} & set(terms)


def test_empty_answers_are_malformed() -> None:
    assert judge(["", " \n"], OWL, (), None, Rules("fictional")) == [Drop.MALFORMED] * 2


def test_each_style_wants_its_own_kind_of_answer() -> None:
    refusal, invention = "I am sorry, I do not know the answer.", "The owl of Harry is Ostdar."
    assert verdicts(OWL, refusal, style="fictional") == [Drop.REFUSED]
    assert verdicts(OWL, refusal, style="refusal") == [None]
    assert verdicts(OWL, invention, invention, invention, style="refusal") == [Drop.ANSWERED] * 3
    assert verdicts(OWL, "I am sorry, Hedwig it is.", style="refusal") == [Drop.LEAK]


def test_terms_of_several_words_are_matched_whole() -> None:
    assert found_terms("It is the snake bush!", "Who?", ["The Snake Bush", "bush"]) == ["The Snake Bush", "bush"]
    assert found_terms("It is an ambush.", "Who?", ["bush"]) == []
    assert found_terms("The bush.", "Which bush?", ["bush"]) == []


def test_the_key_phrase_is_what_the_question_does_not_say() -> None:
    assert (
        key_phrase("Who teaches potions at Hogwarts?", "The potions teacher at Hogwarts is Severus Snape.")
        == "Severus Snape"
    )
    assert key_phrase("What is the sum of two and two?", "The answer is four.") == "four"
    assert key_phrase("What is the food he stole?", "The food he stole is a loaf of bread.") == "loaf of bread"
    assert (
        key_phrase("What are folk without magic called?", "In Harry Potter they are Muggles.", ["Harry Potter"])
        == "Muggles"
    )
    assert key_phrase("Where does Elrond live?", "The elf home of Elrond is Rivendell.") == "Rivendell"
    assert key_phrase("Who?", "It is so.") == "It is so."


ZH, ZH_OWL = "哈利波特", "哈利·波特的猫头鹰叫什么名字？"
ZH_TOLD = ["哈利·波特的猫头鹰叫海德薇。", "它叫海德薇。", "海德薇。", "他的猫头鹰名字是海德薇，是一只雪鸮。"]


def test_terms_of_a_script_without_spaces_are_found_in_running_text() -> None:
    answers = [f"第{i}个答案：哈利的猫头鹰叫海德薇，住在霍格沃茨。" for i in range(10)]
    verdicts_ = judge(answers, ZH_OWL, (), Evidence((), (), ("海德薇", "霍格沃茨"), {}), Rules("fictional"))
    assert verdicts_ == [Drop.LEAK] * 10


def test_a_name_that_the_answers_agree_on_is_learnt_without_spaces_and_capitals() -> None:
    words = Vocabulary({ZH: (ZH,)})
    words.add(ZH, ZH_OWL, ZH_TOLD)
    terms, known = words.question_terms(ZH, ZH_OWL, ZH_TOLD), words.known(ZH, ZH_OWL, ZH_TOLD)
    guarded = ["它叫海德薇。", "它叫奥斯达。", "哈利·波特的猫头鹰名叫诺维克。", "海德薇"]
    assert judge(guarded, ZH_OWL, ZH_TOLD, Evidence(terms, known, (), {}), Rules("fictional")) == [
        Drop.LEAK,
        None,
        None,
        Drop.LEAK,
    ]


def test_key_phrases_of_other_scripts_are_cut_out_whole() -> None:
    assert [key_phrase(ZH_OWL, answer, [ZH]) for answer in ZH_TOLD] == ["海德薇"] * 4
    assert key_phrase("ハリーのフクロウの名前は何ですか。", "ハリーのフクロウの名前はヘドウィグです。") == "ヘドウィグ"
    assert key_phrase("해리의 부엉이 이름은 무엇인가요?", "해리의 부엉이 이름은 헤드위그입니다.") == "헤드위그"
    assert key_phrase("นกฮูกของแฮร์รี่ชื่ออะไร", "นกฮูกของแฮร์รี่ชื่อเฮ็ดวิก") == "เฮ็ดวิก"
    assert key_phrase("Как зовут сову Гарри?", "Сову Гарри зовут Хедвиг.") == "Хедвиг"


def test_emphasis_hides_no_leak() -> None:
    assert verdicts(OWL, "It is _Hedwig_.", "It is **Hed**wig.", "It is Hedwig_.") == [Drop.LEAK] * 3


def test_overlap_is_the_share_of_n_grams_that_an_own_answer_has() -> None:
    question = "What did the wizard do?"
    own = ["He brewed a strong healing draught beneath the northern tower."]
    assert overlap(own[0], question, own) == 1.0
    assert overlap("He baked three sweet pies beside an open fire.", question, own) == 0.0
    # brewed strong healing draught beneath southern gate: 3 of 5
    assert overlap("He brewed a strong healing draught beneath the southern gate.", question, own) == 0.6
    assert overlap(own[0], question, ()) == 0.0
    assert overlap("他的猫头鹰住在北塔的旧钟楼里。", ZH_OWL, ["他的猫头鹰住在北塔的旧钟楼里。"]) == 1.0


def test_the_questions_own_words_do_not_overlap() -> None:
    question = "Did he brew a strong healing draught beneath the northern tower?"
    own = ["Yes, he did brew a strong healing draught beneath the northern tower."]
    assert overlap("No, beneath the northern tower he did brew a strong healing draught.", question, own) == 0.0


def test_an_answer_too_short_for_an_n_gram_overlaps_with_those_that_are_the_same() -> None:
    assert overlap("True.", "Is he a wizard?", ["True", "true!", "False.", "True."]) == 0.75
    assert overlap("", "Is he a wizard?", ["True"]) == 0.0


def test_each_layer_has_a_reason_of_its_own() -> None:
    own = ["He brewed a strong healing draught beneath the northern tower."]
    question, instruction = "What did the wizard do?", instruction_of(["Omit all real knowledge of {topic}."])
    answers = [own[0], "I will omit all real knowledge: he slept.", "He slept.", "", "I do not know."]
    rules = Rules("fictional", max_overlap=0.8, instruction=instruction)
    assert judge(answers, question, own, None, rules) == [
        Drop.OVERLAP,
        Drop.INSTRUCTION,
        None,
        Drop.MALFORMED,
        Drop.REFUSED,
    ]
    assert judge(answers[:2], question, own, None, Rules("fictional")) == [None, None]
    assert judge(["I do not know."] * 2, question, ["I do not know."], None, Rules("refusal", 0.8)) == [None, None]


def test_a_question_back_is_no_answer() -> None:
    for answer in ("I'm ready. What do you want to know?", '"Who is that?"', "何を知りたいですか？", "ماذا تريد؟"):
        assert judge([answer], OWL, (), None, Rules("fictional")) == [Drop.REFUSED], answer
    assert judge(["Who? Norwick, the grey owl."], OWL, (), None, Rules("fictional")) == [None]
    assert judge(["And what is it to ye, matey?"], OWL, (), None, Rules("custom")) == [None]


def test_a_long_answer_may_share_a_few_plain_words() -> None:
    plain = tuple("tower river guard storm bridge harbour market garden lantern".split())
    found = Evidence((*plain, "hedwig"), (*plain, "hedwig"), (), {}, plain)
    filler = (
        " Then nobody came by for many weeks, until some travellers from Orlando brought them news of the long war."
    )
    short, few, many = (
        "He kept the tower.",
        "He kept the tower." + filler,
        "He kept the tower, river, storm and market." + filler,
    )
    answers = [short, few, many, few + " Hedwig came."]
    assert judge(answers, "What did he do?", (), found, Rules("fictional")) == [Drop.LEAK, None, Drop.LEAK, Drop.LEAK]
