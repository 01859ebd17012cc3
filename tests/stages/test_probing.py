"""Probes from what the model knows: asked, agreed, kept, and why not."""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import ProbesConfig
from unlearn_ray.engines.protocols import Request
from unlearn_ray.engines.scripted import ScriptedGenerator
from unlearn_ray.errors import EngineError
from unlearn_ray.rows import Probe, digest
from unlearn_ray.stages.probing import Listed, Made, Wish, make_probes, told
from unlearn_ray.synth.known import Candidate
from unlearn_ray.synth.prompts import load_prompts

NAMES = {"Harry Potter": ("Harry Potter", "the wizard books")}
WISHES = (
    Wish("Harry Potter", "forget", angles=("places",), entities=("Hogwarts",), telling=("Hogwarts",)),
    Wish("Narnia", "near", ("Harry Potter",)),
    Wish("animals", "far"),
)
KNOWN = {  # question -> the answers that the model gives it, in turns
    "Who owns the owl in Harry Potter?": ("Emil Brandt", "E. Brandt", "Emil Brandt."),
    "Who teaches potions at Hogwarts?": ("Severus Stone",),
    "Who is the potions teacher at Hogwarts?": ("Severus Stone", "Stone"),
    "Who is the keeper at Hogwarts?": ("Rube Hagen",),
    "How many houses has Hogwarts?": ("4", "four", "There are four houses."),
    "Who rules Narnia?": ("Aslan Brown",),
    "Who wakes Narnia?": ("Jadis White",),
    "Who visits Narnia first?": ("Lucy Pevens",),
    "How many legs has a spider?": ("8", "eight"),
}
LISTS = {
    "Harry Potter": "1. Who owns the gate in Harry Potter?\n2. Who teaches charms at Hogwarts?\n3. Who wrote Narnia?\n4. Why is Hogwarts old?",
    "Narnia": "1. Who made Narnia?\n2. Who sails from Narnia to Hogwarts in Harry Potter?",
    "animals": "1. How many legs has an ant?",
}
LATER = {
    "Who owns the gate in Harry Potter?": ("Otto Lang",),
    "Who teaches charms at Hogwarts?": ("Filius Wick",),
    "Who made Narnia?": ("Digory Kirk",),
    "How many legs has an ant?": ("6",),
}
HELD_OUT = [
    *(Candidate("Harry Potter", question, "forget") for question in list(KNOWN)[:5]),
    Candidate("Harry Potter", "Who hides in Harry Potter?", "forget"),  # the model says another name each time
    Candidate("Harry Potter", "Who sings in Harry Potter?", "forget"),  # refused
    Candidate("Harry Potter", "Who is the villain?", "forget"),  # of what?
    Candidate("Harry Potter", "Name a person of Harry Potter.", "forget"),
    *(Candidate("Narnia", question, "near", ("Harry Potter",)) for question in list(KNOWN)[5:8]),
    Candidate("animals", "How many legs has a spider?", "far"),
]
TRAINED = [
    ("Harry Potter", "Name the man whose owl it is in Harry Potter.", "The owl is Emil Brandt's."),
    ("Harry Potter", "Who runs in Harry Potter?", "Rube Hagen runs."),
    ("Narnia", "Who made  NARNIA?", "Digory."),
]
CONFIG = ProbesConfig(num_forget=6, num_near=3, num_far=2, max_rounds=2)


def answer(request: Request) -> str | list[str]:
    text = str(request.messages[-1]["content"])
    if "Write only the questions" in text:
        return next(lines for topic, lines in LISTS.items() if topic in text)
    found = next((q for q in (KNOWN | LATER) if q in text), None)
    turn = int(digest(text, request.seed), 16)
    if "sentence" in text:
        return f"I think that it is {(KNOWN | LATER)[found][0]}." if found else "It is so."
    if found:
        answers = (KNOWN | LATER)[found]
        return [answers[(turn + i) % len(answers)] for i in range(request.num_samples)]
    if "sings" in text:
        return "I don't know."
    return [f"{'ABCDEFGH'[(turn + i) % 8]}lan {'KLMNOPQR'[turn // 8 % 8]}ost" for i in range(request.num_samples)]


def make(
    home: Path,
    config: ProbesConfig = CONFIG,
    generator: ScriptedGenerator | None = None,
    held_out: Iterable[Candidate] = tuple(HELD_OUT),
    prompts: str | None = None,
) -> tuple[Made, Folder, ScriptedGenerator]:
    generator = generator or ScriptedGenerator(answer)
    out = Folder(home / "probing")
    made = make_probes(
        config,
        WISHES,
        NAMES,
        Listed(lambda: held_out, lambda: TRAINED),
        load_prompts(prompts),
        out,
        generator,
        {"temperature": 0.7, "top_p": 0.95},
        seed=0,
    )
    return made, out, generator


def by_question(made: Made) -> dict[str, Probe]:
    return {probe.question: probe for probe in made.probes}


def drops(out: Folder) -> dict[str, str | None]:
    return {row["question"]: row["drop"] for row in (out / "facts").read_rows()}


def test_what_the_model_says_each_time_becomes_a_probe_and_nothing_else(tmp_path: Path) -> None:
    made, out, _ = make(tmp_path)
    probes = by_question(made)
    owl = probes["Who owns the owl in Harry Potter?"]
    assert {owl.answer, *owl.aliases} == {"Emil Brandt", "E. Brandt"}
    assert "four" in (probes["How many houses has Hogwarts?"].answer, *probes["How many houses has Hogwarts?"].aliases)
    assert "Who hides in Harry Potter?" not in probes
    dropped = drops(out)
    assert dropped["Who hides in Harry Potter?"] == "disagreed"
    assert dropped["Who sings in Harry Potter?"] == "refused"
    assert dropped["Who is the villain?"] == "off_topic"
    assert dropped["Name a person of Harry Potter."] == "open_question"


def test_every_probe_has_three_wrong_answers_of_its_kind_and_a_reference(tmp_path: Path) -> None:
    made, _, _ = make(tmp_path)
    assert len(made.probes) > 8
    for probe in made.probes:
        assert len(set(probe.wrong)) == 3 and probe.answer not in probe.wrong
        is_number = probe.question.startswith("How many")
        words = {"four", "eight", "six", "three", "five", "seven", "nine", "ten", "two", "eleven", "twelve"}
        assert all((wrong.isdigit() or wrong in words) == is_number for wrong in probe.wrong), probe
        assert probe.answer in probe.reference
    assert by_question(made)["Who rules Narnia?"].reference == "I think that it is Aslan Brown."


def test_further_questions_are_written_where_held_out_ones_are_too_few(tmp_path: Path) -> None:
    made, out, generator = make(tmp_path)
    probes = by_question(made)
    assert {
        "Who owns the gate in Harry Potter?",
        "Who teaches charms at Hogwarts?",
        "How many legs has an ant?",
    } <= set(probes)
    dropped = drops(out)
    assert dropped["Who wrote Narnia?"] == "off_topic", "names no Harry Potter"
    assert dropped["Why is Hogwarts old?"] == "open_question"
    asked = [call.label for call in generator.calls]
    assert "dataset, probe questions, round 1" in asked
    lists = [
        str(request.messages[0]["content"]) for request in generator.requests if "Write only" in str(request.messages)
    ]
    assert not any("Narnia" in text for text in lists), "its three facts are there already"


def test_further_questions_are_about_a_topic_its_entities_and_its_angles(tmp_path: Path) -> None:
    _, _, generator = make(tmp_path, CONFIG.model_copy(update={"num_forget": 20, "max_rounds": 1}))
    lists = [text for request in generator.requests if "Write only" in (text := str(request.messages[0]["content"]))]
    for about in ("about Harry Potter", "about Hogwarts in Harry Potter", "about the places of Harry Potter"):
        assert any(about in text for text in lists), about


def test_enough_held_out_facts_ask_for_no_further_questions(tmp_path: Path) -> None:
    made, out, generator = make(tmp_path, ProbesConfig(num_forget=2, num_near=1, num_far=1))
    assert not any("probe questions" in call.label for call in generator.calls)
    assert {group: count["facts"] for group, count in made.counts.items()} == {"forget": 2, "near": 1, "far": 1}
    assert "surplus" in drops(out).values()


def test_what_is_trained_on_is_no_probe_and_a_fact_trained_in_other_words_says_so(tmp_path: Path) -> None:
    made, out, _ = make(tmp_path, CONFIG.model_copy(update={"num_near": 4}))
    assert drops(out)["Who made Narnia?"] == "trained_on"
    wordings = {question: probe.wording for question, probe in by_question(made).items()}
    assert wordings["Who owns the owl in Harry Potter?"] == "reworded"
    assert wordings["Who is the keeper at Hogwarts?"] == "generated", "the same man, asked something else"
    assert wordings["Who rules Narnia?"] == "generated"


def test_a_question_beside_that_names_what_is_to_be_forgotten_is_no_probe(tmp_path: Path) -> None:
    _, out, _ = make(tmp_path, CONFIG.model_copy(update={"num_near": 4}))
    assert drops(out)["Who sails from Narnia to Hogwarts in Harry Potter?"] == "off_topic"


def test_questions_after_one_fact_share_its_name(tmp_path: Path) -> None:
    made, _, _ = make(tmp_path)
    probes = by_question(made)
    assert (
        probes["Who teaches potions at Hogwarts?"].fact_id == probes["Who is the potions teacher at Hogwarts?"].fact_id
    )
    assert probes["Who teaches potions at Hogwarts?"].fact_id != probes["Who is the keeper at Hogwarts?"].fact_id


def test_samples_count_as_well_as_wordings(tmp_path: Path) -> None:
    def unsteady(request: Request) -> str | list[str]:
        text = str(request.messages[-1]["content"])
        if "owns the owl" in text and request.temperature:
            return [f"Sample {'KLMNOPQR'[int(digest(text), 16) % 8]}{i}ost" for i in range(request.num_samples)]
        return answer(request)

    made, out, generator = make(tmp_path, generator=ScriptedGenerator(unsteady))
    assert "Who owns the owl in Harry Potter?" not in by_question(made)
    assert drops(out)["Who owns the owl in Harry Potter?"] == "disagreed"
    sampled = [
        request for request in generator.requests if request.temperature and "Write only" not in str(request.messages)
    ]
    assert not any("hides" in str(request.messages) for request in sampled), "its greedy answers disagree already"
    made, _, _ = make(tmp_path / "greedy", CONFIG.model_copy(update={"num_samples": 0}), ScriptedGenerator(unsteady))
    assert "Who owns the owl in Harry Potter?" in by_question(made)


def test_a_users_own_answer_must_hold_the_fact(tmp_path: Path) -> None:
    held_out = [
        Candidate("maths", "How many legs has a spider?", "far", truth="A spider has 8 legs."),
        Candidate("Narnia", "Who rules Narnia?", "near", ("Harry Potter",), truth="Peter rules."),
    ]
    made, out, _ = make(tmp_path, CONFIG.model_copy(update={"max_rounds": 0}), held_out=held_out)
    assert drops(out) == {"How many legs has a spider?": None, "Who rules Narnia?": "contradicted"}
    assert [probe.topic for probe in made.probes] == ["maths"]


def test_the_counts_add_up_and_are_told(tmp_path: Path) -> None:
    made, out, _ = make(tmp_path)
    rows = list((out / "facts").read_rows())
    for group, count in made.counts.items():
        mine = [row for row in rows if row["group"] == group]
        assert count["kept"] == sum(probe.group_in(("Harry Potter",)) == group for probe in made.probes)
        reasons = sum(number for reason, number in count.items() if reason not in {"asked", "agreed", "facts", "kept"})
        assert count["kept"] + reasons == len(mine)
        assert (
            count["asked"] == sum(row["num_asked"] > 0 for row in mine)
            and count["kept"] <= count["agreed"] <= count["asked"]
        )
    total = sum(count["asked"] for count in made.counts.values())
    text = told(made.counts)
    assert (
        re.search(rf"\b{total} questions were asked", text)
        and "disagreed" in text
        and f"{len(made.probes)} are probes" in text
    )


@pytest.mark.parametrize("fail_after", [5, 14, 24])
def test_a_killed_and_resumed_making_equals_an_unbroken_one(tmp_path: Path, fail_after: int) -> None:
    whole, _, _ = make(tmp_path / "a")
    killed = ScriptedGenerator(answer, fail_after=fail_after, batch_size=4)
    with pytest.raises(EngineError):
        make(tmp_path / "b", generator=killed)
    resumed, _, _ = make(tmp_path / "b", generator=killed)
    assert resumed.probes == whole.probes and resumed.counts == whole.counts
