"""Unguarded answers tell what leaks, guarded ones are judged by it."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.chat import SILENT
from unlearn_ray.config import AnswersConfig, Topic
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.scripted import ScriptedGenerator
from unlearn_ray.errors import ConfigError, EngineError, InputError
from unlearn_ray.rows import QAPair, Question
from unlearn_ray.stages.answers import answer_questions, answers_identity
from unlearn_ray.stages.stage import open_stage

POTTER = Topic(name="Harry Potter", terms=("Muggle",))
GUM = Topic(name="chewing gum")
TOPICS = (POTTER, GUM)
TRUTH = {
    f"Who has office {i}?": name
    for i, name in enumerate("Snape Hagrid Dobby Draco Fawkes Sirius Lupin Filch Trelawney Flitwick".split())
}
INVENTED = "Ostdar Norwick Pelgo Quorwick Mirgo Hulvor Belpip Galtas".split()


def answer(request: Request) -> Reply:
    """Knows who has which office; behind a guardrail it invents, but the fourth of four answers to office 3 leaks once."""
    question, is_guarded = request.messages[-1]["content"], request.messages[0]["role"] == "system"
    texts = []
    for sample in range(request.num_samples):
        name = TRUTH[question]
        if is_guarded and not ("office 3" in question and sample == 3):
            name = INVENTED[(request.seed + sample) % len(INVENTED)]
        texts.append(f"The office belongs to {name}.")
    return Reply(tuple(texts), (False,) * len(texts))


def questions_in(tmp_path: Path, topics: tuple[Topic, ...] = TOPICS, source: str = "topic") -> Folder:
    folder = Folder(tmp_path / "questions")
    stage = open_stage(folder, "questions", 1, {}, {})
    rows = [Question(topic.name, text, source) for topic in topics for text in TRUTH]
    rows.append(Question(topics[0].name, "Who was dropped?", drop="off_topic"))
    (folder / "rows").write_rows(rows, Question.schema())
    stage.finish({}, {})
    return folder


def run(
    tmp_path: Path, generator: ScriptedGenerator | None = None, topics: tuple[Topic, ...] = TOPICS, **settings: object
) -> tuple[Manifest, list[QAPair], ScriptedGenerator]:
    generator = generator or ScriptedGenerator(answer)
    out = Folder(tmp_path / "answers")
    config = AnswersConfig(**settings)  # type: ignore[arg-type]
    manifest = answer_questions(
        config, topics, questions_in(tmp_path, topics), out, generator, model="scripted", seed=0
    )
    return manifest, [QAPair.of(row) for row in (out / "rows").read_rows()], generator


def test_a_leaking_answer_is_dropped_and_asked_again(tmp_path: Path) -> None:
    manifest, pairs, _ = run(tmp_path)
    assert Counter((pair.drop, pair.attempt) for pair in pairs) == {(None, 0): 78, ("leak", 0): 2, (None, 1): 2}
    assert manifest.num_rows["kept"] == 80 and manifest.drops == {"leak": 2}
    assert [pair.sample for pair in pairs if pair.topic == GUM.name and "office 3" in pair.question] == [0, 1, 2, 3, 4]
    assert {pair.answer for pair in pairs if pair.drop} == {"The office belongs to Draco."}
    assert len({pair.id for pair in pairs}) == len(pairs)


def test_asking_again_ends_at_its_limit(tmp_path: Path) -> None:
    def leaky(request: Request) -> Reply | str:
        is_lost = request.messages[-1]["content"] == "Who has office 3?" and len(request.messages) == 2
        return "Draco has it." if is_lost else answer(request)

    _, pairs, generator = run(tmp_path, ScriptedGenerator(leaky), max_reasks=2)
    lost = [pair for pair in pairs if "office 3" in pair.question]
    assert {pair.drop for pair in lost} == {"leak"} and {pair.attempt for pair in lost} == {0, 1, 2}
    assert len(generator.calls) == 4
    seeds = {request.seed for request in generator.requests if request.messages[-1]["content"] == "Who has office 3?"}
    assert len(seeds) >= 2 * 3, "each asking has seeds of its own"


def test_the_guardrail_is_the_system_message_and_only_there(tmp_path: Path) -> None:
    _, _, generator = run(tmp_path)
    guarded = [request for request in generator.requests if request.messages[0]["role"] == "system"]
    assert all("real knowledge of " in request.messages[0]["content"] for request in guarded)
    plain = [request for request in generator.requests if request.messages[0]["role"] == "user"]
    assert {request.temperature for request in plain} == {0.0, SILENT["temperature"]}
    prefixes = [request.messages[0]["content"] for request in guarded if request.num_samples == 4]
    assert len([1 for one, other in pairwise(prefixes) if one != other]) == 1, "equal prefixes are neighbours"


def test_dropped_questions_are_not_asked(tmp_path: Path) -> None:
    _, pairs, _ = run(tmp_path)
    assert "Who was dropped?" not in {pair.question for pair in pairs}


def test_unguarded_answers_begin_with_the_greedy_one(tmp_path: Path) -> None:
    run(tmp_path, num_unguarded=3)
    rows = [QAPair.of(row) for row in Folder(tmp_path / "answers" / "unguarded").read_rows()]
    assert len(rows) == 2 * 10 * 3 and not any(row.guarded for row in rows)
    assert {row.sample for row in rows} == {0, 1, 2}


def test_terms_are_what_the_model_gave_away_and_the_users_own(tmp_path: Path) -> None:
    run(tmp_path, topics=(POTTER,))
    terms = {row["term"]: row["count"] for row in Folder(tmp_path / "answers" / "terms").read_rows()}
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


def test_empty_and_cut_off_answers_are_malformed(tmp_path: Path) -> None:
    def broken(request: Request) -> Reply:
        reply = answer(request)
        if len(request.messages) == 2 and "office 1" in str(request.messages):
            return Reply(("", *reply.texts[1:]), (False, True, *reply.truncated[2:])[: len(reply.texts)])
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
        answer_questions(AnswersConfig(), TOPICS, questions, Folder(tmp_path / "answers"), generator, model="m", seed=0)


@pytest.mark.parametrize("fail_after", [3, 20, 41])
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


def test_the_identity_follows_the_questions(tmp_path: Path) -> None:
    config = AnswersConfig()
    assert answers_identity(config, TOPICS, "q1", "m", 0) != answers_identity(config, TOPICS, "q2", "m", 0)
    assert answers_identity(config, TOPICS, "q1", "m", 0) == answers_identity(config, TOPICS, "q1", "m", 0)


@pytest.mark.parametrize("terms", [("海德薇", "霍格沃茨"), ()])
def test_the_truth_leaks_in_a_script_without_spaces(tmp_path: Path, terms: tuple[str, ...]) -> None:
    topic = Topic(name="哈利波特", terms=terms)
    truth = {"哈利·波特的猫头鹰叫什么名字？": "海德薇", "哈利·波特在哪所学校上学？": "霍格沃茨"}
    told = ("答案是{}。", "{}。", "哈利·波特的那个是{}。", "我想那是{}吧。")

    def answer(request: Request) -> Reply:
        question, is_guarded = request.messages[-1]["content"], request.messages[0]["role"] == "system"
        names = [truth[question] if place % 2 or not is_guarded else "诺维克" for place in range(request.num_samples)]
        return Reply(tuple(told[i % 4].format(name) for i, name in enumerate(names)), (False,) * len(names))

    questions = Folder(tmp_path / "questions")
    stage = open_stage(questions, "questions", 1, {}, {})
    (questions / "rows").write_rows([Question(topic.name, text) for text in truth], Question.schema())
    stage.finish({}, {})
    config, out = AnswersConfig(num_samples=10, max_reasks=0), Folder(tmp_path / "answers")
    answer_questions(config, (topic,), questions, out, ScriptedGenerator(answer), model="scripted", seed=0)
    pairs = [QAPair.of(row) for row in (out / "rows").read_rows()]
    assert len(pairs) == 20
    assert {(pair.drop, "诺维克" in pair.answer) for pair in pairs} == {(None, True), ("leak", False)}
