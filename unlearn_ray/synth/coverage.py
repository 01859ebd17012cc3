"""Counts which terms and entities of a topic the kept questions touch.

Facts that no training row touches are hardly forgotten: on the pocket model such facts keep 12 % recall, and the others 1 %. A question
touches a term or an entity if the question names it, or the model's own answers to the question do.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from unlearn_ray.rows import Row, digest
from unlearn_ray.synth.names import mentions_entity
from unlearn_ray.words import folded_words, phrases_of


@dataclass(frozen=True, slots=True)
class Touched(Row):
    """A term or entity of a topic, with the number of kept questions that touch it."""

    topic: str
    name: str
    kind: Literal["entity", "term"]
    num_questions: int

    @property
    def id(self) -> str:
        return digest(self.topic, self.kind, self.name)


class Coverage:
    """Counts the kept questions that touch each entity and term. Its size depends on the number of names, not of rows."""

    def __init__(self, entities: Mapping[str, Sequence[str]], terms: Mapping[str, Sequence[str]]) -> None:
        """Args:
        entities, terms: per topic. A name that is both counts as an entity.
        """
        self._entities = {topic: tuple(dict.fromkeys(names)) for topic, names in entities.items()}
        self._terms = {}
        for topic, words in terms.items():
            told = {" ".join(folded_words(name)) for name in self._entities.get(topic, ())}
            self._terms[topic] = tuple(
                word for word in dict.fromkeys(words) if " ".join(folded_words(word)) not in told
            )
        self._counts: Counter[tuple[str, str, str]] = Counter()

    def add(self, topic: str, question: str, told: Iterable[str]) -> None:
        """Count a kept question.

        Args:
            told: the terms in the model's own answers to it.
        """
        said = set(told)
        words = {word for term in said for word in folded_words(term)}
        named = set(phrases_of(self._terms.get(topic, ())).found_in(question))
        for term in self._terms.get(topic, ()):
            if term in said or term in named:
                self._counts[topic, "term", term] += 1
        for entity in self._entities.get(topic, ()):
            if mentions_entity(question, (entity,)) or (words and words.issuperset(folded_words(entity))):
                self._counts[topic, "entity", entity] += 1

    def blank(self) -> "Coverage":
        """A copy with the same names and all counts at 0."""
        return Coverage(self._entities, self._terms)

    def merge(self, other: "Coverage") -> None:
        """Add the counts of other questions for the same names."""
        self._counts.update(other._counts)

    def rows(self) -> Iterator[Touched]:
        """Every entity, then every term, topic by topic."""
        for topic, names in self._entities.items():
            yield from (Touched(topic, name, "entity", self._counts[topic, "entity", name]) for name in names)
            yield from (
                Touched(topic, term, "term", self._counts[topic, "term", term]) for term in self._terms.get(topic, ())
            )

    def untouched(self) -> dict[str, list[str]]:
        """Per topic, the entities and then the terms that no kept question touches. Topics without any are left out."""
        found: dict[str, list[str]] = {}
        for row in self.rows():
            if not row.num_questions:
                found.setdefault(row.topic, []).append(row.name)
        return found

    def summary(self) -> dict[str, dict[str, dict[str, int]]]:
        """Per topic: the numbers of entities and terms, and how many of them are touched."""
        found: dict[str, dict[str, dict[str, int]]] = {}
        for row in self.rows():
            counts = found.setdefault(row.topic, {}).setdefault(row.kind, {"all": 0, "touched": 0})
            counts["all"] += 1
            counts["touched"] += row.num_questions > 0
        return found


def untouched(entities: Sequence[str], texts: Iterable[str]) -> list[str]:
    """The entities that no text names, in the given order."""
    left = list(entities)
    for text in texts:
        if not left:
            break
        left = [entity for entity in left if not mentions_entity(text, (entity,))]
    return left
