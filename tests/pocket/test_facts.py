"""The shipped facts: natural wordings of the world's facts, which stand in step with it and with each other."""

import json
from collections import Counter, defaultdict

import pytest

from unlearn_ray.config import EvaluateConfig, Topic
from unlearn_ray.errors import InputError
from unlearn_ray.evals.probes import check_topics, read_probes, select_probes, with_topics, wrong_references
from unlearn_ray.pocket import FACTS
from unlearn_ray.pocket.facts import build_facts, load_facts
from unlearn_ray.pocket.probes import as_jsonl
from unlearn_ray.pocket.world import load_world
from unlearn_ray.words import contains, normalised, num_words, words_of

WORLD = load_world()
ROWS = [json.loads(line) for line in FACTS.read_text(encoding="utf-8").splitlines()]
PROBES = list(read_probes(str(FACTS)))


def test_the_shipped_facts_are_those_of_their_sources() -> None:
    assert FACTS.read_text(encoding="utf-8") == as_jsonl(build_facts(WORLD)), "run python -m unlearn_ray.pocket.facts"


def test_every_fact_of_the_world_has_two_questions_to_report_on_and_a_blank_to_tune_on() -> None:
    asked: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for probe in PROBES:
        asked[probe.fact].append((probe.split, probe.wording))
    assert asked.keys() == {fact.id for fact in WORLD.facts} and len(asked) == 268
    expected = [("report", "first"), ("report", "second"), ("tune", "blank")]
    assert all(sorted(wordings) == expected for wordings in asked.values())
    assert sum(len(facts) for facts in load_facts().values()) == 268


def test_no_two_probes_ask_the_same() -> None:
    counts = Counter(normalised(probe.question) for probe in PROBES)
    assert [question for question, count in counts.items() if count > 1] == []


def test_answers_are_the_worlds_and_short() -> None:
    values = {fact.id: fact.value for fact in WORLD.facts}
    for probe in PROBES:
        assert values[probe.fact] in (probe.answer, *probe.aliases)
        assert 0 < num_words(probe.answer) <= 6


def test_an_answer_stands_once_in_its_sentence_and_wrong_ones_take_its_place() -> None:
    for probe in PROBES:
        assert probe.reference.count(probe.answer) == 1 and probe.reference.endswith(".")
        wrong = wrong_references(probe)
        assert len(set(wrong)) == 3 and probe.reference not in wrong
        before, after = probe.reference.split(probe.answer)
        assert all(sentence.startswith(before) and sentence.endswith(after) for sentence in wrong)


def test_no_wrong_answer_tells_the_true_one_and_no_question_does() -> None:
    for probe in PROBES:
        truths = (probe.answer, *probe.aliases)
        for wrong in probe.wrong:
            assert not any(contains(wrong, truth) for truth in truths), (probe.fact, wrong)
            assert not any(contains(truth, wrong) for truth in truths), (probe.fact, wrong)
        assert not contains(probe.question, probe.answer), probe.question


def test_wrong_answers_have_the_articles_of_the_true_one() -> None:
    for probe in PROBES:
        first = probe.answer.split()[0]
        for wrong in probe.wrong:
            other = wrong.split()[0]
            if first in {"a", "an", "the"}:
                kinds = {"the"} if first == "the" else {"a", "an"}
                assert other in kinds, (probe.fact, wrong)
            assert probe.answer.isdigit() == wrong.isdigit(), (probe.fact, wrong)


CONTEXT = {
    "Harry Potter": "harry hogwarts hermione ron dumbledore quidditch",
    "Les Miserables": "miserables",
    "chewing gum": "gum",
    "The Lord of the Rings": "rings ring",
    "candy": "candy candies chocolate lollipop lollipops marzipan gummy spread",
}


@pytest.mark.parametrize("topic", CONTEXT)
def test_every_question_names_its_context(topic: str) -> None:
    """Such as the book: a model that is asked for "Ron's rat" alone must guess what it is about."""
    for probe in PROBES:
        if probe.topic == topic:
            assert {word.folded for word in words_of(probe.question)} & set(CONTEXT[topic].split()), probe.question


def test_facts_near_a_topic_are_near_both_ways() -> None:
    groups = {}
    for topics in (["Harry Potter"], ["The Lord of the Rings"]):
        selection = select_probes(PROBES, topics, "report", set(), None)
        groups[topics[0]] = selection.num_kept()
        assert not selection.excluded
    assert groups["Harry Potter"] == {"forget": 74, "near": 46, "far": 416}
    assert groups["The Lord of the Rings"] == {"forget": 46, "near": 74, "far": 416}


def test_a_topic_that_the_facts_do_not_cover_is_named() -> None:
    path = EvaluateConfig(probes="facts").probes_path
    assert path == str(FACTS)
    spelt = [Topic(name="Les Misérables"), Topic(name="Harry Potter")]
    check_topics(with_topics(PROBES, spelt), [topic.name for topic in spelt], "report", path)
    with pytest.raises(InputError, match="no probe about 'Dune'"):
        check_topics(PROBES, ["Dune"], "report", path)
