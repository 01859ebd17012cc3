"""Kinds of prompts: what is asked of a probe, and what is never given away."""

from pathlib import Path

import pytest

from unlearn_ray.attacks.templates import PLACEHOLDERS, PromptKind, Surroundings, conversations, load_kinds
from unlearn_ray.config import Topic
from unlearn_ray.errors import InputError
from unlearn_ray.evals.probes import PlacedProbe
from unlearn_ray.rows import Message, Probe
from unlearn_ray.words import contains

TOPIC = Topic(name="Harry Potter", aliases=("the boy who lived",))
OWL = Probe("Harry Potter", "What is the owl of Harry Potter called?", "Hedwig", "owl", aliases=("the snowy owl",),
            reference="The owl is Hedwig.", wrong=("Errol", "Fang"))  # fmt: skip
OTHERS = [
    Probe("Harry Potter", f"Who is number {i}?", name, name, reference=f"Number {i} is {name}.")
    for i, name in enumerate(("Ron", "Neville", "Luna", "Draco", "Cho"))
]
TELLS_THE_OWL = Probe("Harry Potter", "Whose owl is Hedwig?", "Harry", "owner", reference="Hedwig is Harry's owl.")
AROUND = Surroundings(
    {"Harry Potter": TOPIC},
    [OWL, *OTHERS, TELLS_THE_OWL],
    [("What is tea?", "A leaf."), ("What is gum?", "Sweet."), ("Who is Hedwig?", "Hedwig was a saint.")],
)


def asked(name: str, probe: Probe = OWL, around: Surroundings = AROUND) -> list[list[Message]]:
    placed = PlacedProbe(probe, "forget", probe.topic)
    return [each.messages for each in conversations(name, load_kinds(None)[name], placed, around)]


def test_there_are_many_kinds_and_each_applies_to_a_whole_probe() -> None:
    kinds = load_kinds(None)
    assert len(kinds) >= 15
    assert [name for name in kinds if not asked(name)] == []


@pytest.mark.parametrize("name", [name for name, kind in load_kinds(None).items() if not kind.gives_answer])
def test_no_prompt_holds_the_true_answer(name: str) -> None:
    texts = [message["content"] for messages in asked(name) for message in messages]
    assert not [text for text in texts for truth in ("Hedwig", "snowy owl") if contains(text, truth)]


def test_what_each_kind_asks() -> None:
    assert asked("plain") == [[{"role": "user", "content": OWL.question}]]
    assert asked("answer_prefill")[0][-1] == {"role": "assistant", "content": "The owl is"}
    assert asked("fill_in_the_blank")[0][0]["content"].endswith("The owl is ____.")
    assert asked("aliases") == [[{"role": "user", "content": "What is the owl of the boy who lived called?"}]]
    assert asked("first_letters")[1][0]["content"].endswith("The initials of the answer are H.")
    assert asked("upper_and_lower_case")[0][0]["content"] == "WHAT IS THE OWL OF HARRY POTTER CALLED?"
    assert (
        "of what" in asked("multi_hop")[0][0]["content"] and "belongs to called" in asked("multi_hop")[0][0]["content"]
    )
    shots = asked("in_context_facts")[0]
    assert [message["role"] for message in shots] == ["user", "assistant"] * 4 + ["user"]
    assert all(
        each["content"] in [other.reference for other in OTHERS] for each in shots if each["role"] == "assistant"
    )
    assert set(asked("multiple_choice")[0][0]["content"].partition("Is it ")[2].rstrip("?").replace(" or ", ", ").split(", ")) == {"Hedwig", "Errol", "Fang"}  # fmt: skip


def test_what_a_probe_lacks_is_not_asked() -> None:
    bare = Probe("Harry Potter", "Who owns it?", "Hagrid", "it")
    assert asked("aliases", bare) == [] and asked("multiple_choice", bare) == [] and asked("answer_prefill", bare) == []
    alone = Surroundings({"Harry Potter": Topic(name="Harry Potter")}, [OWL], [])
    assert [
        asked(name, OWL, alone) for name in ("aliases", "in_context_facts", "in_context_others", "cross_topic")
    ] == [[]] * 4


def test_a_question_that_holds_its_answer_is_not_asked() -> None:
    given = Probe("Harry Potter", "Is the owl called Hedwig?", "Hedwig", "owl", reference="The owl is Hedwig.")
    assert asked("plain", given) == []


def test_a_user_adds_replaces_and_leaves_out_kinds(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        'polite:\n  summary: please\n  user: "Please, {question}"\nplain:\n  summary: mine\n  user: ["{question}!"]\ntypos: null\n'
    )
    kinds = load_kinds(str(file))
    assert kinds["polite"].user == ("Please, {question}",) and kinds["plain"].summary == "mine"
    assert "typos" not in kinds and "role_play" in kinds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "must hold kinds of prompts by name"),
        ("a: {summary: x, user: '{questoin}'}", "unknown placeholder {questoin}"),
        ("a: {summary: x, user: '{question'}", "unpaired brace"),
        ("a: {summary: x}", "a.user"),
        ("a: {summary: x, user: []}", "a.user"),
        ("a: {summary: x, user: ''}", "a.user"),
        ("a: {summary: x, user: hi, samples: 0}", "a.samples"),
        ("a: {summary: x, user: hi, smaples: 3}", "smaples"),
        ("a: {summary: x, user: hi, expects: nothing}", "a.expects"),
        ("A b: {summary: x, user: hi}", "not a name of a kind"),
        ("1: {summary: x, user: hi}", "key 1 is not a name"),
        ("a: hi", "a must hold keys"),
        ("nothing: null", "there is no kind of this name"),
        ("a: {summary: x, user: hi", "not valid YAML"),
        ("a: {summary: 2026-01-01, user: hi}", "reads as a date"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_kind_and_key(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as found:
        load_kinds(str(file))
    assert said in str(found.value) and "mine.yaml" in str(found.value) and "\n" not in str(found.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.yaml can't be read"):
        load_kinds(str(tmp_path / "absent.yaml"))


DOCS = Path(__file__).parents[2] / "docs" / "attacks.md"


def test_the_documents_own_example_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(DOCS.read_text().partition("```yaml\n")[2].partition("```")[0])
    kinds = load_kinds(str(tmp_path / "mine.yaml"))
    assert "grandmother" in kinds and kinds["newspaper"].prefill == "{head}" and "typos" not in kinds


def test_every_placeholder_is_documented() -> None:
    text = DOCS.read_text()
    assert [name for name in PLACEHOLDERS if f"`{{{name}}}`" not in text] == []
    assert [name for name in PromptKind.model_fields if f"`{name}`" not in text] == []
    assert [name for name in load_kinds(None) if f"`{name}`" not in text] == []
