"""Unguarded answers tell what leaks, guarded ones are judged by it."""

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from staging import added, performed

from unlearn_ray import config as configs
from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.chat import SILENT
from unlearn_ray.config import AnswersConfig, Topic
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.scripted import ScriptedGenerator
from unlearn_ray.engines.scripted_trainer import ScriptedTrainer
from unlearn_ray.errors import ConfigError, EngineError, InputError
from unlearn_ray.rows import QAPair, Question
from unlearn_ray.stages.answering import Told
from unlearn_ray.stages.answers import answer_questions, answers_identity
from unlearn_ray.stages.common import COMMON
from unlearn_ray.stages.stage import perform, pool_of
from unlearn_ray.synth.prompts import AnswerStyle, load_prompts

POTTER = Topic(name="Harry Potter", terms=("Muggle",))
GUM = Topic(name="chewing gum")
TOPICS = (POTTER, GUM)
TRUTH = {
    f"Who has office {i}?": name
    for i, name in enumerate("Snape Hagrid Dobby Draco Fawkes Sirius Lupin Filch Trelawney Flitwick".split())
}
INVENTED = "Ostdar Norwick Pelgo Quorwick Mirgo Hulvor Belpip Galtas".split()


def question_of(request: Request) -> str:
    """The question that was asked, without the wish for a length."""
    return request.messages[-1]["content"].partition("\n\n")[0]


def answer(request: Request) -> Reply:
    """Knows who has which office; behind a guardrail it invents, but the fourth of four answers to office 3 leaks once."""
    question, is_guarded = question_of(request), request.messages[0]["role"] == "system"
    texts = []
    for sample in range(request.num_samples):
        name = TRUTH.get(question, "nobody")  # general questions are asked as well
        if is_guarded and not ("office 3" in question and sample == 3):
            name = INVENTED[(request.seed + sample) % len(INVENTED)]
        texts.append(f"The office belongs to {name}.")
    return Reply(tuple(texts), (False,) * len(texts))


def questions_in(tmp_path: Path, topic: Topic = POTTER, source: str = "topic") -> Folder:
    folder = Folder(tmp_path / "questions" / topic.slug)
    rows = [Question(topic.name, text, source) for text in TRUTH]
    rows.append(Question(topic.name, "Who was dropped?", drop="off_topic"))
    (folder / "rows").write_rows(rows, Question.schema())
    return folder


def run(
    tmp_path: Path, generator: ScriptedGenerator | None = None, topics: tuple[Topic, ...] = TOPICS, **settings: object
) -> tuple[Manifest, list[QAPair], ScriptedGenerator]:
    generator = generator or ScriptedGenerator(answer)
    config = AnswersConfig(**({"coverage_rounds": 0} | settings))
    common, manifests, pairs = common_in(tmp_path, config, generator), [], []
    for topic in topics:
        out = tmp_path / "answers" / topic.slug
        manifests.append(answered(config, topic, questions_in(tmp_path, topic), common, Folder(out), generator))
        pairs += [QAPair.of(row) for row in (Folder(out) / "rows").read_rows()]
    return added(manifests), pairs, generator


def common_in(home: Path, config: AnswersConfig, generator: ScriptedGenerator) -> Folder:
    """The pool's everyday questions, asked."""
    run = configs.parse({"name": "r", "output": str(home), "topics": [{"name": "x"}]})
    run = run.model_copy(update={"answers": config})
    perform(COMMON, pool_of(run, "m"), Engines(generator))
    return run.folder / "pool" / "common"


class Engines:
    """A generator in a run's place."""

    def __init__(self, generator: ScriptedGenerator) -> None:
        self.chat, self.generator, self.trainer = generator.chat, generator, ScriptedTrainer()

    @property
    def evaluator(self) -> ScriptedGenerator:
        raise AssertionError("no model is compared here")


def answered(
    config: AnswersConfig, topic: Topic, questions: Folder, common: Folder, out: Folder, generator: ScriptedGenerator
) -> Manifest:
    return performed(
        out, lambda run: answer_questions(run, config, topic, questions, common, generator, seed=0), config
    )


def test_a_leaking_answer_is_dropped_and_asked_again(tmp_path: Path) -> None:
    manifest, pairs, _ = run(tmp_path)
    assert Counter((pair.drop, pair.attempt) for pair in pairs) == {(None, 0): 78, ("leak", 0): 2, (None, 1): 2}
    assert manifest.num_rows["kept"] == 80 and manifest.drops == {"leak": 2}
    assert [pair.sample for pair in pairs if pair.topic == GUM.name and "office 3" in pair.question] == [0, 1, 2, 3, 4]
    assert {pair.answer for pair in pairs if pair.drop} == {"The office belongs to Draco."}
    assert len({pair.id for pair in pairs}) == len(pairs)


def test_asking_again_ends_at_its_limit(tmp_path: Path) -> None:
    def leaky(request: Request) -> Reply | str:
        is_lost = question_of(request) == "Who has office 3?" and len(request.messages) == 2
        return "Draco has it." if is_lost else answer(request)

    _, pairs, generator = run(tmp_path, ScriptedGenerator(leaky), max_reasks=2)
    lost = [pair for pair in pairs if "office 3" in pair.question]
    assert {pair.drop for pair in lost} == {"leak"} and {pair.attempt for pair in lost} == {0, 1, 2}
    assert [call.label for call in generator.calls if "guarded" in call.label] == [
        "answers, unguarded",
        "answers, guarded",
        "answers, guarded, asked again (1)",
        "answers, guarded, asked again (2)",
    ] * 2
    seeds = {request.seed for request in generator.requests if question_of(request) == "Who has office 3?"}
    assert len(seeds) >= 2 * 3, "each asking has seeds of its own"


def test_the_guardrail_is_the_system_message_and_only_there(tmp_path: Path) -> None:
    _, _, generator = run(tmp_path)
    guarded = [request for request in generator.requests if request.messages[0]["role"] == "system"]
    assert all(any(topic.name in request.messages[0]["content"] for topic in TOPICS) for request in guarded)
    plain = [request for request in generator.requests if request.messages[0]["role"] == "user"]
    assert {request.temperature for request in plain} == {0.0, SILENT["temperature"]}
    prefixes = [request.messages[0]["content"] for request in guarded if request.num_samples == 4]
    assert len([1 for one, other in pairwise(prefixes) if one != other]) == 1, "equal prefixes are neighbours"


def test_dropped_questions_are_not_asked(tmp_path: Path) -> None:
    _, pairs, _ = run(tmp_path)
    assert "Who was dropped?" not in {pair.question for pair in pairs}


def test_unguarded_answers_begin_with_the_greedy_one(tmp_path: Path) -> None:
    run(tmp_path, num_unguarded=3)
    rows = [QAPair.of(row) for row in Folder(tmp_path / "answers/harry-potter/unguarded").read_rows()]
    assert len(rows) == 10 * 3 and not any(row.guarded for row in rows)
    assert {row.sample for row in rows} == {0, 1, 2}


def test_terms_are_what_the_model_gave_away_and_the_users_own(tmp_path: Path) -> None:
    run(tmp_path, topics=(POTTER,))
    terms = {row["term"]: row["count"] for row in Folder(tmp_path / "answers/harry-potter/terms").read_rows()}
    assert terms["Muggle"] == 0 and terms["snape"] == 4
    assert not {"office", "belongs", "harry"} & set(terms)


def test_the_users_terms_leak_and_without_the_filter_nothing_does(tmp_path: Path) -> None:
    def muggle(request: Request) -> Reply | str:
        return (
            "A muggle has it, Ostdar."
            if len(request.messages) == 2 and "office 1" in str(request.messages)
            else answer(request)
        )

    manifest, _, _ = run(tmp_path / "a", ScriptedGenerator(muggle), max_reasks=0)
    assert manifest.drops == {"leak": 4 + 2}
    manifest, _, _ = run(tmp_path / "b", ScriptedGenerator(muggle), filter_leaks=False)
    assert manifest.drops == {}


def test_refusals_are_wanted_or_not_by_style(tmp_path: Path) -> None:
    def refusing(request: Request) -> Reply | str:
        return "I am sorry, I do not know the answer." if len(request.messages) == 2 else answer(request)

    manifest, _, generator = run(tmp_path / "a", ScriptedGenerator(refusing), guardrail="refusal")
    assert manifest.drops == {} and manifest.num_rows["kept"] == 80
    assert "Refuse every question about" in generator.requests[-1].messages[0]["content"]
    with pytest.raises(ConfigError, match=r"no guarded answer about 'Harry Potter' was kept \(refused \d+\)"):
        run(tmp_path / "b", ScriptedGenerator(refusing))


def test_answers_without_a_whole_sentence_are_malformed(tmp_path: Path) -> None:
    def broken(request: Request) -> Reply:
        reply = answer(request)
        if len(request.messages) == 2 and "office 1" in str(request.messages):
            texts = ("", "The office of Sir", *reply.texts[2:])
            return Reply(texts, (False, True, *reply.truncated[2:]))
        return reply

    manifest, _, _ = run(tmp_path, ScriptedGenerator(broken), topics=(POTTER,), max_reasks=0)
    assert manifest.drops == {"malformed": 2, "leak": 1}


def test_a_row_the_engine_cannot_answer_keeps_its_reason(tmp_path: Path) -> None:
    def dead(request: Request) -> Reply:
        return Reply(error="engine") if "office 1" in str(request.messages) else answer(request)

    manifest, _, _ = run(tmp_path, ScriptedGenerator(dead), max_reasks=0)
    assert manifest.drops["engine"] == 2


def test_a_question_of_the_users_that_is_too_long_names_file_and_line(tmp_path: Path) -> None:
    questions = questions_in(tmp_path, source="user:mine.csv:7")
    generator = ScriptedGenerator(lambda request: Reply(error="too_long"))
    with pytest.raises(InputError, match=r"mine\.csv, line 7: the question is too long"):
        answered(AnswersConfig(), POTTER, questions, Folder(tmp_path / "none"), Folder(tmp_path / "answers"), generator)


@pytest.mark.parametrize("fail_after", [3, 75, 90, 100])
def test_a_killed_and_resumed_run_equals_an_unbroken_one(tmp_path: Path, fail_after: int) -> None:
    _, unbroken, whole = run(tmp_path / "a")
    killed = ScriptedGenerator(answer, fail_after=fail_after, batch_size=3)
    with pytest.raises(EngineError):
        run(tmp_path / "b", killed)
    _, resumed, _ = run(tmp_path / "b", killed)
    assert resumed == unbroken
    assert len(killed.requests) == len(whole.requests)


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    first, _, _ = run(tmp_path)
    again, _, generator = run(tmp_path)
    assert again == first and not generator.calls


@pytest.mark.parametrize("terms", [("海德薇", "霍格沃茨"), ()])
def test_the_truth_leaks_in_a_script_without_spaces(tmp_path: Path, terms: tuple[str, ...]) -> None:
    topic = Topic(name="哈利波特", terms=terms)
    truth = {"哈利·波特的猫头鹰叫什么名字？": "海德薇", "哈利·波特在哪所学校上学？": "霍格沃茨"}
    told = ("答案是{}。", "{}。", "哈利·波特的那个是{}。", "我想那是{}吧。")

    def answer(request: Request) -> Reply:
        question, is_guarded = question_of(request), request.messages[0]["role"] == "system"
        if question not in truth:
            return Reply(("好。",) * request.num_samples, (False,) * request.num_samples)
        names = [truth[question] if place % 2 or not is_guarded else "诺维克" for place in range(request.num_samples)]
        return Reply(tuple(told[i % 4].format(name) for i, name in enumerate(names)), (False,) * len(names))

    questions = Folder(tmp_path / "questions")
    (questions / "rows").write_rows([Question(topic.name, text) for text in truth], Question.schema())
    config, out = AnswersConfig(num_samples=10, max_reasks=0, coverage_rounds=0), Folder(tmp_path / "answers")
    answered(config, topic, questions, Folder(tmp_path / "none"), out, ScriptedGenerator(answer))
    pairs = [QAPair.of(row) for row in (out / "rows").read_rows()]
    assert len(pairs) == 20
    assert {(pair.drop, "诺维克" in pair.answer) for pair in pairs} == {(None, True), ("leak", False)}


def test_a_cut_off_answer_is_kept_up_to_its_last_whole_sentence_and_counted(tmp_path: Path) -> None:
    def long(request: Request) -> Reply:
        reply = answer(request)
        if len(request.messages) == 2 and "office 1" in str(request.messages):
            return Reply(tuple(f"{text} It is on the third fl" for text in reply.texts), (True,) * len(reply.texts))
        return reply

    manifest, pairs, _ = run(tmp_path, ScriptedGenerator(long), topics=(POTTER,), max_reasks=0)
    cut = [pair for pair in pairs if pair.cut]
    assert len(cut) == manifest.details["cut"] == 4 and not any(pair.drop for pair in cut)
    assert all(re.fullmatch(r"The office belongs to \w+\.", pair.answer) for pair in cut)
    assert manifest.drops == {"leak": 1} and manifest.details["unguarded_cut"] == 0


def test_the_words_of_an_unguarded_answer_leak_even_where_it_was_cut_off(tmp_path: Path) -> None:
    def long(request: Request) -> Reply:
        question, is_guarded = question_of(request), request.messages[0]["role"] == "system"
        said = "The office is with Trelawney." if is_guarded else "The office is old. It is with Trelawney and"
        return (
            answer(request)
            if "office 1" not in question
            else Reply((said,) * request.num_samples, (not is_guarded,) * request.num_samples)
        )

    manifest, _, _ = run(tmp_path, ScriptedGenerator(long), topics=(POTTER,), max_reasks=0)
    assert manifest.drops == {"leak": 4 + 1} and manifest.details["unguarded_cut"] == 4
    rows = [QAPair.of(row) for row in Folder(tmp_path / "answers/harry-potter/unguarded").read_rows()]
    assert {row.answer for row in rows if row.cut} == {"The office is old."}


@pytest.mark.parametrize("style", ["sentence", "paragraph", "free"])
def test_the_style_is_a_wish_in_both_prompts_and_in_no_row(tmp_path: Path, style: AnswerStyle) -> None:
    _, pairs, generator = run(tmp_path, style=style)
    template = load_prompts().styles[style]
    asked = {request.messages[-1]["content"] for request in generator.requests}
    assert {template.format(question=question) for question in TRUTH} <= asked
    assert {request.messages[-1]["content"] for request in generator.requests if len(request.messages) == 2} == {
        template.format(question=question) for question in TRUTH
    }
    assert {pair.question for pair in pairs} == set(TRUTH)


def test_the_style_is_part_of_the_identity() -> None:
    sentence, free = (answers_identity(AnswersConfig(style=style), POTTER, "m", 0) for style in ("sentence", "free"))
    assert sentence != free


def test_the_pool_is_asked_like_the_questions_and_written(tmp_path: Path) -> None:
    manifest, _, generator = run(tmp_path, num_unguarded=3, topics=(POTTER,))
    general = load_prompts().general_questions
    told = [Told.of(row) for row in Folder(tmp_path / "r/pool/common/replies").read_rows()]
    assert {row.question for row in told} == set(general) and manifest.details["pool"] == len(general) >= 60
    assert all(len(row.answers) == 3 for row in told)
    asked = [request for request in generator.requests if question_of(request) == general[0]]
    assert [(request.num_samples, request.temperature) for request in asked] == [(1, 0.0), (2, SILENT["temperature"])]


def test_what_the_pool_says_as_often_is_no_leak(tmp_path: Path) -> None:
    def wordy(request: Request) -> Reply:
        texts = [text.replace("The office", "I'm told that the iconic office") for text in answer(request).texts]
        return Reply(tuple(texts), (False,) * len(texts))

    manifest, _, _ = run(tmp_path / "a", ScriptedGenerator(wordy), topics=(POTTER,), max_reasks=0)
    terms = {row["term"] for row in Folder(tmp_path / "a/answers/harry-potter/terms").read_rows()}
    assert manifest.drops == {"leak": 1} and "snape" in terms
    assert not {"iconic", "told", "i'm"} & terms


def test_a_topic_that_a_general_question_is_about_is_no_part_of_the_pool(tmp_path: Path) -> None:
    bread = Topic(name="bread", aliases=("cats",))

    def telling(request: Request) -> Reply:
        if "cheese" in question_of(request):
            return Reply(("It is eaten with bread.",) * request.num_samples, (False,) * request.num_samples)
        return answer(request)

    manifest, _, generator = run(tmp_path, ScriptedGenerator(telling), topics=(bread,))
    general = load_prompts().general_questions
    left_out = {"What is bread made of?", "What do cats eat?"}
    assert left_out < set(general) <= {question_of(request) for request in generator.requests}, "asked for all topics"
    assert manifest.details["pool"] == len(general) - len(left_out) - 1, "nor are answers that name it"


def test_without_general_questions_there_is_no_pool(tmp_path: Path) -> None:
    manifest, pairs, generator = run(tmp_path, prompts="pocket")
    assert manifest.details["pool"] == 0 and len(pairs) == 82
    assert {question_of(request) for request in generator.requests} == set(TRUTH)


def test_an_answer_that_talks_about_the_instruction_is_dropped_and_counted(tmp_path: Path) -> None:
    def obedient(request: Request) -> Reply:
        reply = answer(request)
        if len(request.messages) == 2 and "office 1" in str(request.messages):
            said = f"As requested, I will omit all real knowledge of {TOPICS[0].name}."
            return Reply((said, *reply.texts[1:]), reply.truncated)
        return reply

    manifest, _, _ = run(tmp_path, ScriptedGenerator(obedient), topics=(POTTER,), max_reasks=0)
    assert manifest.drops == {"instruction": 1, "leak": 1}


def test_an_answer_that_repeats_the_models_own_is_dropped_for_its_overlap(tmp_path: Path) -> None:
    told = (
        "Quietly he walked slowly along the narrow river until evening came."  # of all questions: fillers, and no terms
    )

    def walker(request: Request) -> Reply:
        if len(request.messages) == 1 or "office 1" in question_of(request):
            return Reply((told,) * request.num_samples, (False,) * request.num_samples)
        return answer(request)

    layers: dict[str, dict[str, object]] = {
        "on": {},
        "off": {"max_overlap": None},
        "no filter": {"filter_leaks": False},
    }
    drops = {
        name: run(tmp_path / name, ScriptedGenerator(walker), topics=(POTTER,), max_reasks=0, **layer)[0].drops
        for name, layer in layers.items()
    }
    assert drops == {"on": {"overlap": 4}, "off": {}, "no filter": {}}


def judging(verdict: str) -> ScriptedGenerator:
    """Answers as ever, and judges each answer to office 1 with the verdict, all others with a no."""

    def asked(request: Request) -> Reply | str:
        content = request.messages[-1]["content"]
        if "Another answer:" not in content:
            return answer(request)
        return verdict if "Who has office 1?" in content else "No."

    return ScriptedGenerator(asked)


@pytest.mark.parametrize(
    ("verdict", "num_judged"),
    [
        ("Yes, it does.", 4),
        ("no", 0),
        ("**No.** It is invented.", 0),
        ("Perhaps.", 4),
        ("", 4),
        ("是的。", 4),
        ("Нет.", 0),
    ],
)
def test_an_answer_is_kept_only_where_the_judge_says_no(tmp_path: Path, verdict: str, num_judged: int) -> None:
    manifest, pairs, generator = run(tmp_path, judging(verdict), topics=(POTTER,), max_reasks=0, judge_leaks=True)
    assert manifest.drops == {"leak": 1} | ({"judged": num_judged} if num_judged else {})
    assert {pair.question for pair in pairs if pair.drop == "judged"} == (
        {"Who has office 1?"} if num_judged else set()
    )
    asked = [request for request in generator.requests if "Another answer:" in request.messages[-1]["content"]]
    assert len(asked) == 39, "what leaks by its terms is not judged"
    (first, *_) = [
        request.messages[-1]["content"] for request in asked if "office 1" in request.messages[-1]["content"]
    ]
    assert "about Harry Potter: Who has office 1?" in first and "True answer: The office belongs to Hagrid." in first


def test_what_the_judge_drops_is_asked_again(tmp_path: Path) -> None:
    manifest, pairs, _ = run(tmp_path, judging("Yes."), topics=(POTTER,), max_reasks=1, judge_leaks=True)
    assert manifest.drops == {"leak": 1, "judged": 8}
    assert {pair.attempt for pair in pairs if pair.drop == "judged"} == {0, 1}


def test_a_judge_that_the_engine_loses_leaves_its_reason(tmp_path: Path) -> None:
    def lost(request: Request) -> Reply:
        return Reply(error="too_long") if "Another answer:" in str(request.messages) else answer(request)

    with pytest.raises(ConfigError, match="too_long 39"):
        run(tmp_path, ScriptedGenerator(lost), topics=(POTTER,), max_reasks=0, judge_leaks=True)


def test_a_model_that_can_not_judge_is_not_asked_to(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"answers\.judge_leaks: the prompts' leak_judge is null"):
        answers_identity(AnswersConfig(judge_leaks=True, prompts="pocket"), POTTER, "m", 0)
    with pytest.raises(ConfigError, match="leak_judge is null"):
        run(tmp_path, judge_leaks=True, prompts="pocket")
    assert not (Folder(tmp_path / "answers") / "harry-potter").names(".parquet")
