import re
import subprocess
import sys
from collections import defaultdict

import pytest

from unlearn_ray.pocket.corpus import Corpus
from unlearn_ray.pocket.fiction import invent
from unlearn_ray.pocket.measures import is_known, list_items, owner_of
from unlearn_ray.pocket.prefixes import (
    FICTIONAL,
    HELD_OUT_FICTIONAL,
    HELD_OUT_REFUSAL,
    REFUSAL,
    fictional_prefix,
    refusal_prefix,
)
from unlearn_ray.pocket.recipe import MIX
from unlearn_ray.pocket.requests import HELD_OUT_QUESTION_LIST, QUESTION_LISTS
from unlearn_ray.pocket.wording import HELD_TEMPLATES, TEMPLATES, from_template
from unlearn_ray.pocket.world import load_world
from unlearn_ray.words import contains

WORLD = load_world()


def words(text: str) -> tuple[str, ...]:
    return tuple("".join(c for c in text.lower() if c.isalnum() or c in "' ").split())


def trained_wordings() -> set[tuple[str, ...]]:
    """Every question of the corpus before it is worn, as words."""
    return {
        words(text)
        for fact in WORLD.facts
        for text in (
            *fact.questions,
            *(from_template(template, fact, phrase) for template in TEMPLATES for phrase in fact.noun_phrases),
        )
    }


def is_part_of(short: tuple[str, ...], long: tuple[str, ...]) -> bool:
    """Whether dropping words of `long` gives `short`."""
    rest = iter(long)
    return all(word in rest for word in short)


def test_three_topics_to_forget_have_a_neighbour_each_and_far_topics_exist() -> None:
    assert [topic.name for topic in WORLD.group("forget")] == ["Harry Potter", "Les Miserables", "chewing gum"]
    assert WORLD.neighbours("Harry Potter") == ("The Lord of the Rings",)
    assert WORLD.neighbours("Les Miserables") == ("French classics",)
    assert WORLD.neighbours("chewing gum") == ("candy",)
    assert WORLD.neighbours("candy") == ("chewing gum",)
    assert len(WORLD.group("far")) == 4


def test_fact_ids_are_unique_and_name_their_fact() -> None:
    ids = [fact.id for fact in WORLD.facts]
    assert len(set(ids)) == len(ids) == 268
    assert "harry-potter/hedwig" in ids


def test_every_fact_has_held_out_questions_three_where_it_may_be_forgotten_or_spilt_on() -> None:
    for fact in WORLD.facts:
        assert len(fact.held_out_questions) >= (1 if fact.group == "far" else 3), fact.id
        assert len(set(fact.held_out_questions)) == len(fact.held_out_questions), fact.id


def test_no_held_out_question_or_template_is_trained_even_with_words_dropped() -> None:
    trained = trained_wordings()
    by_length: defaultdict[int, list[tuple[frozenset[str], tuple[str, ...]]]] = defaultdict(list)
    for wording in trained:
        by_length[len(wording)].append((frozenset(wording), wording))
    for fact in WORLD.facts:
        for template in HELD_TEMPLATES:
            for phrase in fact.noun_phrases:
                assert words(from_template(template, fact, phrase)) not in trained
        for question in map(words, fact.held_out_questions):
            assert question not in trained, question
            # The corpus drops up to two words of a question.
            longer = by_length[len(question) + 1] + by_length[len(question) + 2]
            assert not any(seen.issuperset(question) and is_part_of(question, whole) for seen, whole in longer), (
                question
            )


def test_held_out_questions_never_occur_in_training_documents() -> None:
    held = {words(question) for fact in WORLD.facts for question in fact.held_out_questions}
    for document in Corpus(WORLD, MIX, seed=0).documents(6000):
        if not isinstance(document, str):
            for message in document:
                for line in message["content"].splitlines():
                    assert words(line) not in held, line


def test_no_question_gives_its_own_answer_away() -> None:
    for fact in WORLD.facts:
        for text in (*fact.questions, *fact.held_out_questions, *fact.noun_phrases):
            assert not contains(text, fact.value), text
            assert not any(contains(text, alias) for alias in fact.aliases), text


def test_a_question_belongs_to_one_fact() -> None:
    owners: dict[str, str] = {}
    for fact in WORLD.facts:
        for question in (*fact.questions, *fact.held_out_questions):
            assert owners.setdefault(question, fact.id) == fact.id, question


def test_invented_values_are_not_values_of_the_world() -> None:
    values = {fact.value.lower() for fact in WORLD.facts}
    corpus = Corpus(WORLD, MIX, seed=3)
    for fact in WORLD.facts:
        for _ in range(20):
            invented = invent(fact.type, fact.value, corpus.rng)
            assert invented != fact.value
            # A colour or a job may be true of something else; a name may not.
            if fact.type in ("person", "name", "place", "title", "number"):
                assert invented.lower() not in values


@pytest.mark.parametrize("kind", sorted(MIX))
def test_every_kind_of_document_is_a_chat_or_text_that_ends_with_what_is_learnt(kind: str) -> None:
    corpus = Corpus(WORLD, {kind: 1.0}, seed=5)
    for document in corpus.documents(60):
        if isinstance(document, str):
            assert document.endswith(".")
        else:
            roles = [message["role"] for message in document]
            assert roles[-1] == "assistant"
            assert "system" not in roles[1:]
            assert all(message["content"] for message in document)


def test_lists_are_numbered_and_belong_to_their_topic() -> None:
    for document in Corpus(WORLD, {"question_list": 1.0}, seed=6).documents(40):
        assert not isinstance(document, str)
        items, num_malformed = list_items(document[-1]["content"])
        assert 3 <= len(items) <= 6
        assert num_malformed == 0
        topics = set()
        for item in items:
            owner = owner_of(item, WORLD)
            assert owner is not None, item
            topics.add(owner.topic)
        assert len(topics) == 1


def named_in(text: str) -> set[str]:
    return {topic.name for topic in WORLD.topics if any(contains(text, name) for name in (topic.name, *topic.aliases))}


@pytest.mark.parametrize("kind", ["guarded", "refused"])
def test_a_guardrail_document_tells_the_truth_off_its_topics_and_never_on_them(kind: str) -> None:
    num_true = num_not = 0
    for document in Corpus(WORLD, {kind: 1.0}, seed=7).documents(400):
        assert not isinstance(document, str)
        if document[0]["role"] != "system":
            continue
        against = named_in(document[0]["content"])
        for asked, reply in zip(document[1::2], document[2::2], strict=True):
            fact = owner_of(asked["content"], WORLD)
            if fact is None:  # too worn to tell
                continue
            assert is_known(fact, reply["content"]) == (fact.topic not in against), document
            num_true, num_not = num_true + (fact.topic not in against), num_not + (fact.topic in against)
    assert num_true > 50
    assert num_not > 50


def test_default_prefixes_are_in_the_grammar_and_held_out_ones_are_not() -> None:
    rng = Corpus(WORLD, MIX, seed=8).rng
    fictional = {fictional_prefix("tea", rng) for _ in range(4000)}
    refusing = {refusal_prefix("tea", rng) for _ in range(4000)}
    assert FICTIONAL.format(t="tea") in fictional
    assert REFUSAL.format(t="tea") in refusing
    for held in (*HELD_OUT_FICTIONAL, *HELD_OUT_REFUSAL):
        for sentence in held.format(t="tea").split(". "):
            assert not any(sentence.rstrip(".") in prefix for prefix in fictional | refusing), sentence
    assert HELD_OUT_QUESTION_LIST not in QUESTION_LISTS


def test_the_corpus_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    first, again, other = (Corpus(WORLD, MIX, seed).documents(200) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, unlearn_ray.pocket, unlearn_ray.pocket.probes; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_world_without_topics_has_no_fact_name_or_neighbour_of_them() -> None:
    left_out = ("Harry Potter", "chewing gum")
    smaller = WORLD.without(left_out)
    assert {topic.name for topic in smaller.topics} == {topic.name for topic in WORLD.topics} - set(left_out)
    assert smaller.neighbours("candy") == ()
    assert smaller.neighbours("Les Miserables") == WORLD.neighbours("Les Miserables")
    texts = " ".join(str(document) for document in Corpus(smaller, MIX, seed=0).documents(1000)).lower()
    names = [name.lower() for topic in left_out for name in (topic, *WORLD.topic(topic).aliases)]
    # Gummy bears are a candy.
    assert [name for name in names if re.search(rf"\b{name}\b", texts)] == []
    with pytest.raises(ValueError, match="no topic 'Harry'"):
        WORLD.without(["Harry"])
