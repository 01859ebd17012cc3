"""The model asks about the topics itself."""

import re
from collections import Counter
from pathlib import Path

import pytest
from staging import added, performed

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.config import QuestionsConfig, Topic
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.scripted import ScriptedGenerator
from unlearn_ray.errors import ConfigError, EngineError, InputError
from unlearn_ray.rows import AskedForm, Question
from unlearn_ray.stages.gathering import YIELD, learnt_yield, num_requests
from unlearn_ray.stages.questions import OnTopic, make_questions, questions_identity
from unlearn_ray.stages.subject_check import SubjectCheck

POTTER = Topic(name="Harry Potter", kind="fiction", aliases=("the wizard books",))
GUM = Topic(name="chewing gum", kind="product")
# Its requests are told apart by the pocket's wordings.
CONFIG = QuestionsConfig(num_questions=20, num_entities=3, per_request=4, prompts="pocket")


def answer(request: Request) -> str:
    """A model that has nine questions about any subject, repeats itself, and strays."""
    text = request.messages[-1]["content"]
    if text.startswith("Which topic"):
        return f"This question is about {'candy' if 'sweet' in text else 'Harry Potter' if 'magic' in text else 'chewing gum'}."
    if "things" in text or "terms" in text:
        return "Sure:\n1. **Hogwarts** - a school\n2. Hedwig\n3. Harry Potter"
    thing = "rubber" if "chewing gum" in text else "magic"
    about = re.sub(r"\W+", " ", text.split("about")[-1])
    start = request.seed % 9
    lines = [f"{place}. What is the {thing} number {(start + place) % 9} of{about}?" for place in range(1, 4)]
    return "\n".join(["Here are some questions:", "", *lines, "4. What is sweet?", "5. Hm"])


def make(
    tmp_path: Path,
    config: QuestionsConfig = CONFIG,
    topics: tuple[Topic, ...] = (POTTER, GUM),
    generator: ScriptedGenerator | None = None,
    seed: int = 0,
) -> tuple[Manifest, list[dict], ScriptedGenerator]:
    generator = generator or ScriptedGenerator(answer)
    outs = [(topic, Folder(tmp_path / topic.slug)) for topic in topics]

    def manifest_of(topic: Topic, out: Folder) -> Manifest:
        return performed(
            out, lambda run: make_questions(run, config, topic, generator, seed=seed, every=topics), config
        )

    manifests = [manifest_of(topic, out) for topic, out in outs]
    return added(manifests), [row for _, out in outs for row in (out / "rows").read_rows()], generator


def test_rounds_go_on_until_the_number_is_there_for_every_topic(tmp_path: Path) -> None:
    manifest, rows, _ = make(tmp_path)
    kept = Counter(row["topic"] for row in rows if not row["drop"])
    assert kept == {"Harry Potter": 20, "chewing gum": 20}
    assert manifest.num_rows == {"rows": len(rows), "kept": 40}
    assert manifest.drops == Counter(row["drop"] for row in rows if row["drop"])
    assert {"duplicate", "off_topic", "malformed"} <= set(manifest.drops)


def test_kept_questions_are_distinct_and_on_their_topic(tmp_path: Path) -> None:
    _, rows, _ = make(tmp_path)
    kept = [row for row in rows if not row["drop"]]
    assert len({(row["topic"], row["text"].casefold()) for row in kept}) == len(kept)
    assert all(("magic" if row["topic"] == "Harry Potter" else "rubber") in row["text"] for row in kept)


def test_questions_come_from_angles_and_entities_that_the_model_listed(tmp_path: Path) -> None:
    _, rows, generator = make(tmp_path)
    sources = {row["source"].split(":")[0] for row in rows}
    assert sources == {"topic", "angle", "entity"}
    entities = list(Folder(tmp_path / "harry-potter" / "entities").read_rows())
    assert {(e["name"], e["drop"]) for e in entities if e["topic"] == "Harry Potter"} == {
        ("Hogwarts", None), ("Hedwig", None), ("Harry Potter", "duplicate"),
    }  # fmt: skip
    assert any("Hogwarts in Harry Potter" in r.messages[-1]["content"] for r in generator.requests)


def test_a_round_is_one_call_and_one_for_its_check(tmp_path: Path) -> None:
    manifest, _, generator = make(tmp_path, topics=(POTTER,))
    labels = [call.label for call in generator.calls]
    assert len(labels) == len(set(labels)) == 1 + 2 * manifest.details["rounds"]


def test_two_rounds_without_news_end_it(tmp_path: Path) -> None:
    manifest, rows, _ = make(
        tmp_path,
        topics=(GUM,),
        generator=ScriptedGenerator(
            lambda request: "chewing gum" if "Which" in request.messages[-1]["content"] else "1. What is gum?"
        ),
    )
    assert [row["text"] for row in rows if not row["drop"]] == ["What is gum?"]
    assert manifest.details["rounds"] == 3


@pytest.mark.parametrize("num_usable", [1, 2, 3])
def test_a_round_asks_for_all_that_is_missing_by_what_the_topic_yields(tmp_path: Path, num_usable: int) -> None:
    def said(request: Request) -> str:
        """Of the four questions that a list should have, so many are new."""
        return "\n".join(f"{i}. What is part {i} of rubber {request.seed}?" for i in range(1, num_usable + 1))

    config = CONFIG.model_copy(update={"num_questions": 120, "num_entities": 0, "check_topic": False})
    manifest, _, generator = make(tmp_path, config, (GUM,), ScriptedGenerator(said))
    num_lists = [call.num_rows_in for call in generator.calls]
    assert manifest.num_rows["kept"] == 120 and sum(num_lists) * num_usable < 120 + 4 * num_usable
    assert len(num_lists) == {1: 3, 2: 2, 3: 1}[num_usable], num_lists


def test_a_topic_that_yields_next_to_nothing_is_not_asked_for_the_world() -> None:
    expected, asked = YIELD, list[int]()
    for num_kept in range(10):
        asked.append(num_requests(200 - num_kept, 200, expected, 6))
        expected = learnt_yield(expected, 1, 6 * asked[-1], 6)
    assert asked[0] == 45 and max(asked) == 90 and expected > 0
    assert num_requests(1, 200, 1.0, 6) == 4, "a round costs more than a list"
    assert learnt_yield(0.5, 0, 24, 6) == 0.25 and learnt_yield(0.5, 480, 480, 6) > 0.9


def test_a_topic_without_questions_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no usable question about 'chewing gum'"):
        make(tmp_path, topics=(GUM,), generator=ScriptedGenerator(lambda request: "I do not know."))


@pytest.mark.parametrize("fail_after", [1, 30, 50, 70])
def test_a_killed_and_resumed_run_equals_an_unbroken_one(tmp_path: Path, fail_after: int) -> None:
    _, unbroken, whole = make(tmp_path / "a")
    killed = ScriptedGenerator(answer, fail_after=fail_after, batch_size=5)
    with pytest.raises(EngineError):
        make(tmp_path / "b", generator=killed)
    manifest, resumed, _ = make(tmp_path / "b", generator=killed)
    assert resumed == unbroken
    assert len(killed.requests) == len(whole.requests), "nothing is asked twice"
    assert manifest.num_rows["kept"] == 40


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    first, _, _ = make(tmp_path)
    again, _, generator = make(tmp_path)
    assert again == first and not generator.calls


def test_the_seed_changes_the_questions(tmp_path: Path) -> None:
    assert make(tmp_path / "a")[1] != make(tmp_path / "b", seed=1)[1]


def test_an_engine_that_cannot_answer_is_counted(tmp_path: Path) -> None:
    def failing(request: Request) -> Reply | str:
        is_entity = "Hogwarts in" in request.messages[-1]["content"]
        return Reply(error="too_long") if is_entity else answer(request)

    manifest, _, _ = make(tmp_path, generator=ScriptedGenerator(failing))
    assert manifest.drops["too_long"] >= 1 and manifest.num_rows["kept"] == 40


def test_the_users_questions_are_kept_and_count(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(
        "topic,question\nHarry Potter,Who is the owl?\nharry-potter,WHO IS THE OWL\nchewing gum,What is sweet?\n"
    )
    _, rows, _ = make(tmp_path, CONFIG.model_copy(update={"file": path}))
    mine = [
        (row["topic"], row["text"], row["drop"], row["source"]) for row in rows if row["source"].startswith("user:")
    ]
    assert mine == [
        ("Harry Potter", "Who is the owl?", None, "user:mine.csv:2"),
        ("Harry Potter", "WHO IS THE OWL", "duplicate", "user:mine.csv:3"),
        ("chewing gum", "What is sweet?", None, "user:mine.csv:4"),
    ]
    assert sum(not row["drop"] for row in rows) == 40


def test_enough_questions_of_the_user_need_no_model(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"topic": "chewing gum", "question": "What is gum?"}\n{"topic": "chewing gum", "question": "Who chews?"}\n'
    )
    config = CONFIG.model_copy(update={"file": path, "num_questions": 1})
    manifest, rows, generator = make(tmp_path, config, (GUM,))
    assert manifest.num_rows == {"rows": 2, "kept": 2} and not generator.calls
    assert all(row["drop"] is None for row in rows)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("q.csv", "topic,text\na,b\n", r"q\.csv, line 1: column 'question' is missing"),
        ("q.csv", "topic,question\nchewing gum,\n", r"q\.csv, line 2: column 'question' must hold text"),
        (
            "q.jsonl",
            '{"topic": "chewing gum", "question": "Why?"}\n{"topic": "chewing gum"}\n',
            r"q\.jsonl, line 2: column 'question' is missing",
        ),
        ("q.jsonl", '{"topic": "chewing gum", "question": 3}\n', r"line 1: column 'question' must hold text"),
        ("q.jsonl", "{]\n", r"q\.jsonl, line 1: is not valid JSON"),
        ("q.jsonl", "[]\n", r"line 1: a row must be an object"),
        (
            "q.jsonl",
            '{"topic": "tea", "question": "Why?"}\n',
            r"line 1: topic 'tea' is not one of the run's \(chewing gum\)",
        ),
        ("q.txt", "Why?", r"q\.txt can't be used"),
        ("q.parquet", "nonsense", r"q\.parquet can't be read"),
    ],
)
def test_a_bad_file_is_one_line_with_file_line_and_column(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        make(tmp_path, CONFIG.model_copy(update={"file": path}), (GUM,))
    assert "\n" not in str(caught.value)


def test_the_identity_follows_what_changes_the_result_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("topic,question\nchewing gum,Why?\n")
    config = CONFIG.model_copy(update={"file": path})
    first = questions_identity(config, GUM, "m", 0)
    assert str(tmp_path) not in str(first), "a file's place is not what it says"
    assert questions_identity(config, GUM.model_copy(update={"neighbours": ("candy",)}), "m", 0) == first
    assert questions_identity(config, GUM.model_copy(update={"terms": ("chicle",)}), "m", 0) != first
    every = (GUM, POTTER)
    path.write_text("topic,question\nHarry Potter,Who?\nchewing gum,Why?\n")
    assert questions_identity(config, GUM, "m", 0, every) == first, "another topic's line"
    path.write_text("topic,question\nchewing gum,How?\n")
    assert questions_identity(config, GUM, "m", 0) != first
    with pytest.raises(InputError, match="can't be read"):
        questions_identity(CONFIG.model_copy(update={"file": tmp_path / "none.csv"}), GUM, "m", 0)


CHAT = QuestionsConfig(num_questions=40, num_entities=4, per_request=4)
FORMS = {
    "short facts": "The owl belongs to",
    "different facts": "The owl is white, says",
    "false statements": "The owl is black, says",
    "quotations": "It was a dark night in",
    "that begin": "A dark night fell on",
    "two facts": "Which owl is owned by the boy of",
    "do not name": "Which owl belongs to the friend of",
}


def chat(request: Request) -> Reply | str:
    """A chat model with the shipped wordings: what it finds likelier, it says of Hogwarts and of owls alone."""
    text, number = request.messages[-1]["content"], request.seed % 50
    if request.score is not None:
        is_known = "Hogwarts" in text or ("owl" in request.score and "Potter" in text)
        return Reply(logprobs=(-1.0 if is_known and "Potter" in text + request.score else -3.0,))
    if "names" in text or "terms" in text or "people, places and things" in text:
        return "1. Hogwarts\n2. Spaghetti\n3. Voldemort"
    about = text.split("about ")[-1].split(".")[0]
    begin = next((begin for sign, begin in FORMS.items() if sign in text), None)
    if begin is None:
        lines = [f"What is number {number + i} in Harry Potter?" for i in range(2)]
        lines += [f"Which owl has number {number}?", "What is his name?", f"What is a cake number {number}?"]
        if "Hogwarts" in about:
            lines.append(f"Who built Hogwarts in {1000 + number}?")
    else:
        lines = [f"{begin} {about} {number}."] if "Which" not in begin else [f"{begin} {about} {number}?"]
    return "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1))


def made(tmp_path: Path, config: QuestionsConfig = CHAT, topic: Topic = POTTER) -> tuple[Manifest, list[dict]]:
    manifest, rows, _ = make(tmp_path, config, (topic,), ScriptedGenerator(chat))
    return manifest, rows


def test_a_topic_is_told_by_its_names_confirmed_entities_and_terms_and_else_by_what_the_model_finds_likelier(
    tmp_path: Path,
) -> None:
    manifest, rows = made(tmp_path)
    drops = {
        re.sub(r"\d+", "N", row["text"]): row["drop"] for row in rows if row["drop"] not in {"duplicate", "surplus"}
    }
    assert drops["What is number N in Harry Potter?"] is None
    assert drops["Which owl has number N?"] is None, "the model's word"
    assert drops["Who built Hogwarts in N?"] is None, "a confirmed entity"
    assert drops["What is a cake number N?"] == "off_topic"
    assert drops["What is his name?"] == "vague"
    assert manifest.details["entities"] == {"kept": 1, "unconfirmed": 2}
    told = make(tmp_path / "terms", CHAT, (POTTER.model_copy(update={"terms": ("cake",)}),), ScriptedGenerator(chat))[1]
    assert any(row["text"].startswith("What is a cake") and not row["drop"] for row in told)


def test_a_question_that_names_the_topic_is_not_asked_about(tmp_path: Path) -> None:
    _, _, generator = make(tmp_path, CHAT, (POTTER,), ScriptedGenerator(chat))
    checked = [str(request.score) for request in generator.requests if "short question" in str(request.messages)]
    checked = [text for text in checked if text.endswith("?")]
    assert checked and not any("Harry Potter" in text or "Hogwarts" in text for text in checked)


def test_every_form_is_among_the_questions_and_plain_ones_are_the_most(tmp_path: Path) -> None:
    manifest, rows = made(tmp_path, CHAT.model_copy(update={"num_questions": 120}))
    kept = Counter(row["form"] for row in rows if not row["drop"])
    assert set(kept) == {"question", "blank", "true_false", "tell_me", "quotation", "multi_hop"}
    assert kept["question"] > sum(kept.values()) / 2
    assert manifest.details["forms"] == kept
    texts = {row["form"]: row["text"] for row in rows if not row["drop"]}
    assert "_____" in texts["blank"] and "rue" in texts["true_false"] and "Harry Potter" in texts["quotation"]
    assert any(
        row["text"] == "Tell me about Hogwarts." or "Hogwarts" in row["text"]
        for row in rows
        if row["form"] == "tell_me"
    )


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        ({"forms": ()}, {"question"}),
        ({"forms": ("blank",)}, {"question", "blank"}),
        ({"forms": (), "languages": ("French",)}, {"question", "other_language"}),
        ({"form_share": 0.0}, {"question"}),
    ],
)
def test_forms_and_languages_are_those_asked_for(tmp_path: Path, update: dict, expected: set[str]) -> None:
    _, rows = made(tmp_path, CHAT.model_copy(update=update))
    assert {row["form"] for row in rows} == expected


def test_a_form_or_language_without_wordings_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"questions\.forms: the prompts have no wording for blank"):
        make(tmp_path, CONFIG.model_copy(update={"forms": ("blank",)}))
    with pytest.raises(ConfigError, match=r"questions\.languages: the prompts have no language_questions"):
        make(tmp_path, CONFIG.model_copy(update={"languages": ("French",)}))


def test_an_entity_without_a_kept_question_is_asked_about_once_more(tmp_path: Path) -> None:
    def silent_first(request: Request) -> Reply | str:
        """Nothing is said of Hogwarts before the second request about it."""
        text = request.messages[-1]["content"]
        if "Hogwarts in Harry Potter" in text and request.score is None:
            asked.append(text)
            return "1. Hm" if len(asked) == 1 else "1. Who built Hogwarts?"
        return chat(request)

    asked: list[str] = []
    few = CHAT.model_copy(update={"num_questions": 12, "forms": ()})
    _, rows, _ = make(tmp_path, few, (POTTER,), ScriptedGenerator(silent_first))
    assert any("Hogwarts" in row["text"] and not row["drop"] for row in rows)
    asked.clear()
    none = few.model_copy(update={"coverage_rounds": 0})
    _, rows, _ = make(tmp_path / "none", none, (POTTER,), ScriptedGenerator(silent_first))
    assert not any("Hogwarts" in row["text"] and not row["drop"] for row in rows)


def test_the_line_that_a_model_wrote_must_be_on_topic_whatever_the_wording_around_it_says() -> None:
    wordings: dict[AskedForm, tuple[str, ...]] = {"quotation": ("Continue this text about {topic}: {line}",)}
    on_topic = OnTopic(
        "",
        {},
        {"Dune": ("Dune", "Arrakis")},
        SubjectCheck("About {topic}.", "About all."),
        {"Dune": ("cars",)},
        wordings,
    )

    def verdict(line: str, own: float) -> str | None:
        row = Question("Dune", f"Continue this text about Dune: {line}", form="quotation").to_dict()
        asked = on_topic(row)
        assert {request.score for request in asked} <= {line}
        replies = [Reply(logprobs=(own if "Dune" in str(request.messages) else -2.0,)) for request in asked]
        return on_topic.verdict(row, replies)[0]["drop"]

    assert verdict("The sand of Arrakis rose.", own=-9.0) is None, "it names what belongs to the topic"
    assert verdict("I am ready to help you with the text.", own=-3.0) == "off_topic"
    assert verdict("The worms ate a whole ship.", own=-1.0) is None
    assert verdict("He had never seen water.", own=-1.0) == "vague"
