"""One template file, any part of which a user overrides."""

from pathlib import Path

import pytest

from unlearn_ray.config import AnswersConfig, Topic
from unlearn_ray.errors import ConfigError, InputError
from unlearn_ray.pocket import prefixes, requests
from unlearn_ray.synth.guardrails import guardrail_prefixes
from unlearn_ray.synth.prompts import load_prompts

TOPICS = (Topic(name="Harry Potter"), Topic(name="chewing {gum}"))


def test_the_pocket_model_was_trained_on_the_wordings_of_its_file() -> None:
    prompts = load_prompts("pocket")
    trained = {
        "questions": requests.QUESTION_LISTS,
        "angle_questions": requests.ANGLE_LISTS,
        "entity_questions": requests.ENTITY_QUESTION_LISTS,
        "entity_angle_questions": requests.ENTITY_ANGLE_LISTS,
        "entities": requests.ENTITY_LISTS,
        "neighbours": requests.NEIGHBOUR_LISTS,
        "general_topics": requests.KNOWN_TOPIC_LISTS,
    }
    names = {"{n}": "{count}", "{t}": "{topic}", "{e}": "{entity}"}
    for key, wordings in trained.items():
        known = set()
        for wording in wordings:
            for short, long in names.items():
                wording = wording.replace(short, long)
            known.add(wording)
        assert set(getattr(prompts, key)) <= known, key
    assert prompts.topic_check.replace("{question}", "{q}") in requests.TOPIC_CHECKS
    assert {angle for angles in prompts.angles.values() for angle in angles} <= set(requests.ANGLES)
    assert prompts.guardrails["fictional"] == prefixes.FICTIONAL.replace("{t}", "{topic}")
    assert prompts.guardrails["refusal"] == prefixes.REFUSAL.replace("{t}", "{topic}")


def test_a_users_file_overrides_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text("questions: ['{count} on {topic}']\nguardrails: {refusal: 'Say nothing of {topic}.'}\n")
    prompts = load_prompts(path)
    assert prompts.questions == ("{count} on {topic}",)
    assert prompts.guardrails["refusal"] == "Say nothing of {topic}."
    assert prompts.guardrails["fictional"] == load_prompts().guardrails["fictional"]
    assert prompts.fingerprint != load_prompts().fingerprint


@pytest.mark.parametrize("nothing", ["null", "[]"])
def test_what_is_null_or_empty_leaves_its_step_out(tmp_path: Path, nothing: str) -> None:
    path = tmp_path / "prompts.yaml"
    steps = ("coverage_questions", "entity_check", "language_questions", "unrelated")
    path.write_text("".join(f"{step}: {nothing}\n" for step in steps) + "neighbour_check: null\nforms: {}\n")
    prompts = load_prompts(path)
    assert not any(getattr(prompts, step) for step in (*steps, "neighbour_check", "forms"))


def test_one_form_is_left_out_or_worded_otherwise_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text("forms: {blank: null, tell_me: {questions: ['All about {entity}?']}}\n")
    forms = load_prompts(path).forms
    assert forms["blank"] is None and forms["tell_me"] is not None
    assert forms["tell_me"].questions == ("All about {entity}?",)
    assert forms["quotation"] == load_prompts().forms["quotation"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "forms: {blank: {requests: ['{count} on {topic}'], questions: ['Fill in: {lines}']}}",
            r"forms.*unknown placeholder \{lines\}",
        ),
        ("forms: {blank: {requests: ['{count} on {topic}'], questions: ['Fill in.']}}", r"forms.*has no \{line\}"),
        ("forms: {blank: {requests: ['{count} on {topic} and {entity}']}}", r"forms.*give one without \{entity\}"),
        ("forms: {tell_me: {questions: ['{line}']}}", r"forms.*unknown placeholder \{line\}"),
        ("forms: {riddle: {questions: ['{entity}']}}", "forms"),
        ("entity_check: [{question: 'What is it?', answer: 'of {topic}'}]", r"entity_check: .*has no \{entity\}"),
        ("entity_check: [{question: 'What is {entity}?', answer: 'a thing'}]", r"entity_check: .*has no \{topic\}"),
    ],
)
def test_a_form_or_check_that_can_not_be_used_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_prompts(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("questions: ['{count} about {topics}']", r"questions: .*unknown placeholder \{topics\}"),
        ("questions: ['{count} about it']", r"questions: .*has no \{topic\}"),
        ("questions: ['{count about {topic}']", "questions: "),
        ("questions: ['{count:>10000000000} about {topic}']", r"questions: .*more than a name in \{count\}"),
        ("questions: ['{count} about {topic!x}']", r"questions: .*more than a name in \{topic\}"),
        ("questions: ['{count} about {topic.name}']", r"questions: .*unknown placeholder \{topic\.name\}"),
        ("questions: ['{count} about {}']", r"questions: .*unknown placeholder \{\}"),
        ("guardrails: {fictional: '{topic:d}'}", r"guardrails: .*more than a name in \{topic\}"),
        ("topic_check: ''", "topic_check: is empty"),
        ("general_topics: [' ']", "general_topics: is empty"),
        ("questions: {count: 1}", r"questions: give a list, such as \[a, b\]"),
        ("topic_check: [a]", "topic_check: give a text"),
        ("questions: [2024-01-01]", r"questions\.0: reads as a date"),
        ("angles: {fiction: [history, '']}", r"angles\.fiction\.1: is empty"),
        ("questions: &q [*q]", "an anchor .* contains itself"),
        ("questions: []", "questions: "),
        ("question: ['{topic}']", r"unknown key question: did you mean 'questions'\?"),
        ("guardrails: {fictional: 'Forget it.'}", r"guardrails: .*has no \{topic\}"),
        ("angles: {food: [taste]}", "angles"),
        ("questions: [", "not valid YAML"),
        ("- a list", "must hold keys"),
    ],
)
def test_a_bad_override_is_one_line_that_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_prompts(path)
    assert "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_override_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml can't be read"):
        load_prompts(tmp_path / "none.yaml")


def test_prefixes_name_their_topic_even_with_braces_in_it() -> None:
    prefixes_ = guardrail_prefixes(AnswersConfig(), TOPICS)
    assert "Harry Potter" in prefixes_["Harry Potter"] and "{" not in prefixes_["Harry Potter"]
    assert "chewing {gum}" in prefixes_["chewing {gum}"]


def test_a_custom_prefix_stands_as_it_is_written() -> None:
    config = AnswersConfig(guardrail="custom", prefix="Speak of {topic} as a pirate would.")
    assert guardrail_prefixes(config, TOPICS)["Harry Potter"] == "Speak of Harry Potter as a pirate would."
    with pytest.raises(ConfigError, match=r"answers\.prefix: .*\{name\}"):
        guardrail_prefixes(AnswersConfig(guardrail="custom", prefix="Not {name}."), TOPICS)


@pytest.mark.parametrize(
    "prefix",
    [
        "About {topic:d}",
        "About {topic!x}",
        "About {topic!r}",
        "{topic:{topic}}",
        "{topic",
        "{topic!}",
        "{topic[0]}",
        "{0}",
    ],
)
def test_a_custom_prefix_that_is_no_template_is_one_line(prefix: str) -> None:
    with pytest.raises(ConfigError, match=r"answers\.prefix: "):
        guardrail_prefixes(AnswersConfig(guardrail="custom", prefix=prefix), TOPICS)


def test_a_part_of_the_prompts_has_these_keys_alone() -> None:
    prompts = load_prompts()
    part = prompts.part("questions", "angles.fiction", "forms.")
    assert part.questions == prompts.questions and part.angles == {"fiction": prompts.angles["fiction"]}
    assert part.forms == {}
    with pytest.raises(AttributeError):
        _ = part.entities
    changed = prompts.model_copy(update={"entities": ("List {count} of {topic}.",)})
    assert changed.fingerprint != prompts.fingerprint
    assert changed.part("questions").fingerprint == prompts.part("questions").fingerprint
