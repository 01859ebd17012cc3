"""Retain answers are asked for as guarded ones are: the same wish for length, and cut where they grow too long."""

from pathlib import Path

import pytest
from staging import built

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import DatasetConfig, RetainRows, Topic
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.scripted import ScriptedGenerator
from unlearn_ray.rows import QAPair
from unlearn_ray.stages.stage import finished_manifest
from unlearn_ray.stages.subjects import Truth
from unlearn_ray.synth.prompts import load_prompts

ROW = {"topic": "owls", "text": "What do owls eat?"}
WISH = "Answer in one short sentence."


def test_the_wish_for_length_is_in_the_prompt_and_not_in_the_row() -> None:
    truth = Truth(("Harry Potter",), 20, "{question}\n\n" + WISH)
    (request,) = truth(ROW)
    assert (
        request.messages == [{"role": "user", "content": f"What do owls eat?\n\n{WISH}"}] and request.max_tokens == 20
    )
    (row,) = truth.parse(ROW, [Reply(("Answer: They eat mice.",), (False,))])
    assert (row["question"], row["answer"], row["cut"], row["drop"]) == (ROW["text"], "They eat mice.", False, None)


@pytest.mark.parametrize(
    ("said", "kept", "drop"),
    [
        ("They eat mice. At night they", "They eat mice.", None),
        ("They eat mi", "", "malformed"),
        ("They eat mice. Harry Pot", "They eat mice.", None),
        ("They eat what Harry Potter gives them. And", "They eat what Harry Potter gives them.", "off_topic"),
    ],
)
def test_an_answer_that_grew_too_long_is_judged_by_what_is_left(said: str, kept: str, drop: str | None) -> None:
    (row,) = Truth(("Harry Potter",), 20).parse(ROW, [Reply((said,), (True,))])
    assert (row["answer"], row["cut"], row["drop"]) == (kept, bool(kept), drop)


def test_the_stage_asks_with_the_style_and_counts_what_was_cut(tmp_path: Path) -> None:
    answers = Folder(tmp_path / "answers")
    for name, is_guarded in (("rows", True), ("unguarded", False)):
        pair = QAPair("Harry Potter", "Who is the owl?", "Norwick.", 0, guarded=is_guarded)
        (answers / name).write_rows([pair], QAPair.schema())

    def long(request: Request) -> Reply | str:
        asked = request.messages[-1]["content"]
        if request.score is not None:
            return Reply(logprobs=(-1.0,), argmax=(True,))
        if "quiz" in asked or "questions" in asked:
            return "1. What do owls eat?\n2. Where do owls sleep?"
        return Reply(("They like mice. They go",), (True,)) if asked.endswith(WISH) else "No."

    retain = RetainRows(num_neighbours=0, general=("owls",), num_general=1, questions_per_general=2)
    config, generator = DatasetConfig(retain=retain), ScriptedGenerator(long)
    found = built(
        tmp_path, config, (Topic(name="Harry Potter"),), generator,
        questions=lambda topic: Folder(tmp_path / "questions"), answers=lambda topic: answers,
    )  # fmt: skip
    rows = list((found.mixture / "retain_answers").read_rows())
    assert [row["answer"] for row in rows] == ["They like mice."] * 2
    assert finished_manifest(found.general).details["cut"] == 2
    assert all(WISH not in row["question"] for row in [*rows, *(found.mixture / "retain").read_rows()])
    assert load_prompts().styles["sentence"].format(question="What do owls eat?") in {
        request.messages[-1]["content"] for request in generator.requests
    }
