"""Entities and terms that no kept pair touches are reported, and asked about."""

from pathlib import Path

import pytest
from staging import performed

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.config import AnswersConfig, Topic
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.scripted import ScriptedGenerator
from unlearn_ray.errors import EngineError
from unlearn_ray.rows import Question
from unlearn_ray.stages.answers import answer_questions
from unlearn_ray.stages.naming import Name

POTTER = Topic(name="Harry Potter", terms=("Muggle",))
NAMES = "Snape Hagrid Dobby Draco Fawkes Sirius Lupin Filch Trelawney Flitwick Quirrell Sprout".split()
TRUTH = {f"Who has office {number}?": name for number, name in enumerate(NAMES)}


def answer(request: Request) -> Reply | str:
    """Behind the guardrail it refuses to speak of office 3, so that nothing about Draco is kept; asked for questions about a name, it has some."""
    question, is_guarded = request.messages[-1]["content"].split("\n\n")[0], request.messages[0]["role"] == "system"
    if question.startswith("Write"):
        name = next((name for name in ("Draco", "Muggle", "Hogwarts") if name in question), None)
        return f"1. Who is {name} in Harry Potter?\n2. Who has office 1?\n3. What is the weather?" if name else "1. Hm"
    what = "The office" if "office" in question else "It"
    if is_guarded:
        return (
            "I am sorry, I can't answer that."
            if "office 3" in question
            else f"{what} belongs to Ostdar{'abcdefg'[request.seed % 7]}."
        )
    return f"{what} belongs to {TRUTH.get(question, 'Lucius')}."


def run(
    tmp_path: Path, generator: ScriptedGenerator | None = None, **settings: object
) -> tuple[Manifest, Folder, ScriptedGenerator]:
    questions, out, generator = (
        Folder(tmp_path / "questions"),
        Folder(tmp_path / "answers"),
        generator or ScriptedGenerator(answer),
    )
    if not questions.exists():
        (questions / "rows").write_rows([Question("Harry Potter", text) for text in TRUTH], Question.schema())
        names = [Name("Harry Potter", "Hogwarts", 4), Name("Harry Potter", "Spaghetti", 3, "unconfirmed")]
        (questions / "entities").write_rows(names, Name.schema())
    config = AnswersConfig(**settings)
    common = Folder(tmp_path / "common")  # nothing is known of it
    manifest = performed(
        out, lambda run: answer_questions(run, config, POTTER, questions, common, generator, seed=0), config
    )
    return manifest, out, generator


def touched(out: Folder) -> dict[tuple[str, str], int]:
    return {(row["kind"], row["name"]): row["num_questions"] for row in (out / "coverage").read_rows()}


def test_the_report_says_what_kept_pairs_touch_and_what_none_does(tmp_path: Path) -> None:
    manifest, out, _ = run(tmp_path, coverage_rounds=0)
    found = touched(out)
    assert found["term", "snape"] == 1
    assert found["term", "draco"] == found["term", "Muggle"] == found["entity", "Hogwarts"] == 0
    assert ("entity", "Spaghetti") not in found, "a name that was dropped is none of the topic's"
    counts = manifest.details["coverage"]["Harry Potter"]
    assert counts["entity"] == {"all": 1, "touched": 0}
    assert counts["term"] == {"all": len(found) - 1, "touched": len(found) - 3}
    assert manifest.num_rows["untouched"] == 3 and manifest.details["further_questions"] == 0


def test_what_is_untouched_is_asked_about_told_guarded_and_judged(tmp_path: Path) -> None:
    manifest, out, generator = run(tmp_path)
    rows = list((out / "rows").read_rows())
    kept = {row["question"] for row in rows if not row["drop"]}
    assert "Who is Hogwarts in Harry Potter?" in kept, "entities come first"
    assert "What is the weather?" not in {row["question"] for row in rows}, "it names neither the thing nor the topic"
    assert sum(row["question"] == "Who has office 1?" for row in rows) == 4, "a copy is not asked again"
    assert manifest.details["further_questions"] == 1 and touched(out)["entity", "Hogwarts"] == 1
    guarded = [request for request in generator.requests if "Hogwarts in" in request.messages[-1]["content"]]
    assert {request.messages[0]["role"] for request in guarded} == {"user", "system"}
    told = {row["question"] for row in (out / "unguarded").read_rows()}
    assert "Who is Hogwarts in Harry Potter?" in told


def test_no_more_is_asked_than_a_quarter_of_the_questions(tmp_path: Path) -> None:
    _, out, _ = run(tmp_path)
    assert (out / "coverage_rounds" / "001" / "requests").count_rows() == 1


def test_prompts_without_a_wording_ask_nothing_more(tmp_path: Path) -> None:
    manifest, _, generator = run(tmp_path, prompts="pocket")
    assert manifest.details["further_questions"] == 0
    assert not any(str(request.messages[-1]["content"]).startswith("Write") for request in generator.requests)


@pytest.mark.parametrize("fail_after", [14, 26, 27, 28])
def test_an_interrupted_round_goes_on(tmp_path: Path, fail_after: int) -> None:
    killed = ScriptedGenerator(answer, fail_after=fail_after, batch_size=1)
    with pytest.raises(EngineError):
        run(tmp_path / "a", killed)
    _, resumed, _ = run(tmp_path / "a", killed)
    _, unbroken, _ = run(tmp_path / "b")
    assert list((resumed / "rows").read_rows()) == list((unbroken / "rows").read_rows())
    assert touched(resumed) == touched(unbroken)
