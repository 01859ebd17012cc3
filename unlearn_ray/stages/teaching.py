"""Which of the probed facts a model was trained on, in whatever words: shown apart from those that no training row asks for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import Topic
from unlearn_ray.evals.probes import PlacedProbe
from unlearn_ray.rows import Group
from unlearn_ray.synth.known import Judged, taught_facts
from unlearn_ray.words import name_key

Fact = tuple[str, str]  # topic and fact of a probe


@dataclass(frozen=True, slots=True)
class FindTaught:
    """The facts of probes that a training row asks for: it is about the same, and the model's own answer to it holds the fact.

    A forget row has an invented answer: what its question asks for is told by the model's own one. Holds the forgotten questions in memory.

    Args:
        probes: those to ask.
        mixture: the training rows.
        unguarded: by topic to forget, the model's own answers.
    """

    probes: Sequence[PlacedProbe]
    topics: Sequence[Topic]
    mixture: Folder
    unguarded: Mapping[str, Folder]

    def __call__(self, _: None) -> set[Fact]:
        facts = {str(place): placed.probe for place, placed in enumerate(self.probes)}
        rows = [
            _judged(number, probe.topic, probe.question, placed.group, (probe.answer, *probe.aliases))
            for (number, probe), placed in zip(facts.items(), self.probes, strict=True)
        ]
        names: dict[str, Sequence[str]] = {name_key(each.probe.topic): (each.probe.topic,) for each in self.probes}
        names |= {name_key(topic.name): topic.names for topic in self.topics}
        found = taught_facts(rows, self._trained(), names)
        return {(facts[number].topic, facts[number].fact_id) for number in found}

    def _trained(self) -> Iterator[tuple[str, str, str]]:
        asked: dict[str, set[str]] = {}
        for row in (self.mixture / "forget").read_rows(["topic", "question", "split"]):
            if row["split"] == "train":
                asked.setdefault(row["topic"], set()).add(row["question"])
        for topic, questions in asked.items():
            if topic in self.unguarded:
                for row in self.unguarded[topic].read_rows(["question", "answer", "sample"]):
                    if not row["sample"] and row["question"] in questions:
                        yield name_key(topic), row["question"], row["answer"]
        for row in (self.mixture / "retain").read_rows(["subject", "question", "answer", "split"]):
            if row["split"] == "train":
                yield name_key(row["subject"]), row["question"], row["answer"]


def _judged(number: str, topic: str, question: str, group: Group, forms: tuple[str, ...]) -> Judged:
    return Judged(name_key(topic), question, group, "probe", 0, (), 0, answer=forms[0], aliases=forms[1:], fact=number)


def facts_trained_on(
    each: Callable[..., None],
    probes: Sequence[PlacedProbe],
    topics: Sequence[Topic],
    mixture: Folder,
    unguarded: Mapping[str, Folder],
) -> frozenset[Fact] | None:
    """The facts of these probes that were trained on; None where the model's own answers are not there to tell.

    Args:
        each: `Generator.each`, which runs the work off the driver.
    """
    if not unguarded:
        return None
    found: set[Fact] = set()
    each(FindTaught(tuple(probes), tuple(topics), mixture, dict(unguarded)), [None], found.update, label="evaluate, facts trained on")  # fmt: skip
    return frozenset(found)
