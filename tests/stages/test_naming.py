"""Names that the model lists count by agreement, and are asked back."""

from pathlib import Path

import pytest

from unlearn_ray.artifacts import Folder
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.scripted import ScriptedGenerator
from unlearn_ray.errors import EngineError
from unlearn_ray.stages.asking import Prompted
from unlearn_ray.stages.asking_back import Apart, Described, belonging
from unlearn_ray.stages.choosing import choice_of, is_chosen
from unlearn_ray.stages.naming import AskBack, Name, Parts, ask_names, fates, min_agreeing
from unlearn_ray.synth.names import parts_of
from unlearn_ray.synth.prompts import load_prompts

OWN = {"Harry Potter": ("Harry Potter",)}
PROMPTS = load_prompts()
SAMPLING = Prompted(0, {"temperature": 0.7}, 100)
OFTEN = ["Hogwarts", "Hedwig", "Harry Potter and the Goblet of Fire", "Spaghetti"]


def answer(request: Request) -> Reply | str:
    """Lists four names again and again, and another each time; finds that two of them go with Harry Potter, and spaghetti with cooking."""
    text = request.messages[-1]["content"]
    if request.score is None:
        return "\n".join(f"{place}. {name}" for place, name in enumerate([*OFTEN, f"Once {request.seed}"], start=1))
    goes_together = ("Potter" in request.score and ("Hogwarts" in text or "Hedwig" in text)) or (
        "cooking" in request.score and "Spaghetti" in text
    )
    return Reply(logprobs=(-5.0, -1.0 if goes_together else -3.0))


def listed(
    folder: Path, ask_back: bool = True, generator: ScriptedGenerator | None = None, number: int = 24
) -> list[Name]:
    generator = generator or ScriptedGenerator(answer)
    check: AskBack | None = belonging(generator, PROMPTS, OWN, OWN) if ask_back else None
    return ask_names(
        generator, Folder(folder), PROMPTS.entities, {"Harry Potter": number}, SAMPLING, lambda topic, name: None, "names",
        ask_back=check,
    )  # fmt: skip


def test_a_name_that_one_list_alone_holds_is_dropped_as_rare(tmp_path: Path) -> None:
    drops = {name.name: name.drop for name in listed(tmp_path, ask_back=False)}
    assert {name for name, drop in drops.items() if drop is None} == set(OFTEN)
    assert {drop for name, drop in drops.items() if name.startswith("Once")} == {"rare"}


@pytest.mark.parametrize(("num_lists", "least"), [(8, 2), (12, 2), (24, 2), (25, 3), (120, 10)])
def test_the_agreement_wanted_grows_with_the_lists(num_lists: int, least: int) -> None:
    assert min_agreeing(num_lists) == least


def test_a_name_is_kept_where_it_makes_its_topic_likelier_than_any_other_subject(tmp_path: Path) -> None:
    names = listed(tmp_path)
    drops = {name.name: name.drop for name in names}
    assert drops["Hogwarts"] is None and drops["Hedwig"] is None
    assert drops["Spaghetti"] == "unconfirmed"
    assert fates(names) == {"kept": 3, "unconfirmed": 1, "rare": len(names) - 4}


def test_a_name_that_holds_the_topics_is_not_asked_back(tmp_path: Path) -> None:
    generator = ScriptedGenerator(answer)
    names = {name.name: name.drop for name in listed(tmp_path, generator=generator)}
    assert names["Harry Potter and the Goblet of Fire"] is None
    assert not any("Goblet" in str(r.messages) for r in generator.requests if r.score is not None)


def test_the_question_does_not_tell_the_topic(tmp_path: Path) -> None:
    generator = ScriptedGenerator(answer)
    listed(tmp_path, generator=generator)
    asked = [request for request in generator.requests if request.score is not None]
    assert asked and not any("Potter" in str(request.messages) for request in asked)


def test_names_beyond_the_number_are_surplus_and_only_twice_as_many_are_asked_back(tmp_path: Path) -> None:
    drops = [name.drop for name in listed(tmp_path, number=1) if name.name in OFTEN]
    assert drops == [None, "surplus", "surplus", "surplus"]


def test_an_interrupted_check_goes_on(tmp_path: Path) -> None:
    generator = ScriptedGenerator(answer, fail_after=26, batch_size=1)
    with pytest.raises(EngineError):
        listed(tmp_path, generator=generator)
    assert listed(tmp_path, generator=generator) == listed(tmp_path / "unbroken")


def test_subjects_that_share_a_name_with_the_topic_are_no_choice() -> None:
    choice = choice_of(
        PROMPTS.entity_check,
        ("football", "cooking", "rules of football"),
        {"Football": ("Football", "soccer")},
    )
    assert choice is not None and choice.subjects == {"Football": ("Football", "cooking")}
    assert choice_of((), ("cooking",), OWN) is None and choice_of(PROMPTS.entity_check, (), OWN) is None


def test_the_largest_lift_is_chosen_and_not_the_likeliest_subject() -> None:
    assert is_chosen([-9.0, -2.0], neutral=[-12.0, -2.5])
    assert not is_chosen([-9.0, -2.0], neutral=[-9.5, -4.0])
    assert is_chosen([], neutral=[-1.0]), "an engine that could not answer says nothing against it"


@pytest.mark.parametrize(
    ("texts", "drop"),
    [
        (("Narnia is a land behind a wardrobe.", "A country in books by C. S. Lewis."), None),
        (("The school of Harry Potter.", "Hogwarts, from Harry Potter."), "unconfirmed"),
        (("I'm sorry, I don't know what that is.", "I am not familiar with it."), "unconfirmed"),
        (("A land.", "Like Harry Potter.", "A wardrobe.", "A lion."), None),
        ((), "unconfirmed"),
    ],
)
def test_a_neighbour_is_something_and_not_a_part_of_the_topic(texts: tuple[str, ...], drop: str | None) -> None:
    check = Apart(ScriptedGenerator({}), "What is {entity}?", OWN, SAMPLING)
    assert check.reason(Described("Harry Potter", "name", texts)) == drop


def test_a_word_that_lists_dress_up_in_other_ways_counts_by_the_lists_that_hold_it(tmp_path: Path) -> None:
    dresses = ["Hogwarts Castle", "Hogwarts School", "Old Hogwarts", "Ron Weasley"]

    def dressed(request: Request) -> str:
        return f"1. {dresses[request.seed % 3]}\n2. Ron Weasley\n3. Harry Potter's Diary"

    def names(folder: Path, parts: Parts | None) -> dict[str, str | None]:
        return {
            name.name: name.drop
            for name in ask_names(
                ScriptedGenerator(dressed), Folder(folder), PROMPTS.entities, {"Harry Potter": 60}, SAMPLING,
                lambda topic, name: None, "names", parts=parts,
            )
        }  # fmt: skip

    found = names(tmp_path / "parts", lambda topic, name: parts_of(name, OWN[topic]))
    assert found["Hogwarts"] is None
    assert "Ron" not in found and "Weasley" not in found, "the whole name is as frequent"
    assert "Potter" not in found and "Diary" not in found
    assert "Hogwarts" not in names(tmp_path / "wholes", None)
