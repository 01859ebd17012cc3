"""Checks whether a run's data are enough to train on: the counts, the floors (`dataset.floors`), and the messages for data below a floor.

forget_rows         Forget rows per topic. On 200 rows a real model with 135 M parameters forgot nothing. With fewer than 100, each row is
                    seen so often that its answer is learnt by heart, and the topic stays.
retain_per_forget   Retain rows per forget row, for each topic. Without retain rows Llama-3-8B keeps 3 % of what it should (arXiv
                    2407.10058). As many as forget rows are better. The pocket model knows few subjects, and half as many are enough for it.
kept                Share of the model's texts that are kept: questions, guarded answers, and questions and answers to retain. Copies and
                    surplus do not count. If most texts are dropped, the model does not do what it is asked, and the kept ones are of the
                    same kind.
coverage            Share of a topic's entities, and of the user's terms, that kept pairs touch: the question names it, or the model's own
                    answer to that question does. Facts that no training question touches stay: on the pocket model 12 % of them were
                    still told, and 1 % of the others.
probes              Probes per group. With fewer than 20 the interval is so wide that it shows no change.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from unlearn_ray.config import Floors, RunConfig, Topic
from unlearn_ray.rows import Drop

ACCEPT = "--accept-thin-data"
# Not the model's fault: the subject is small, or it wrote more than was requested.
_NOT_LOST = (Drop.DUPLICATE, Drop.SURPLUS)

# Kind of text -> reason of a drop -> advice.
_GUARDRAIL = "choose another answers.guardrail, or a prefix of your own"
_REMEDIES: Mapping[str, Mapping[str, str]] = {
    "questions": {
        Drop.MALFORMED: "lower questions.temperature, or word the requests anew (questions.prompts)",
        Drop.OFF_TOPIC: "give the topic aliases, or word the requests anew (questions.prompts)",
        Drop.DUPLICATE: "raise questions.num_entities, or give questions.angles or questions.file",
    },
    "guarded answers": {
        Drop.MALFORMED: "raise answers.max_tokens, or ask for shorter answers (answers.style)",
        Drop.REFUSED: _GUARDRAIL,
        Drop.LEAK: _GUARDRAIL,
        Drop.ANSWERED: _GUARDRAIL,
    },
    "questions to retain": {
        Drop.MALFORMED: "lower dataset.retain.temperature, or word the requests anew (dataset.prompts)",
        Drop.OFF_TOPIC: "name subjects that the model knows (neighbours of the topics, dataset.retain.general)",
        Drop.DUPLICATE: "raise dataset.retain.num_general, with fewer questions_per_general",
    },
    "answers to retain": {
        Drop.MALFORMED: "raise dataset.retain.max_tokens",
        Drop.REFUSED: "name other subjects (neighbours of the topics, dataset.retain.general)",
        Drop.OFF_TOPIC: "name neighbours of the topics that lie farther from them",
        Drop.FORGOTTEN_TERM: "name neighbours of the topics that lie farther from them",
        Drop.REPEATED: "raise dataset.retain.num_general, with fewer questions_per_general",
    },
}
FORGET, RETAIN = ("questions", "guarded answers"), ("questions to retain", "answers to retain")


@dataclass(frozen=True, slots=True)
class TopicData:
    """The numbers of one topic's data."""

    name: str
    num_forget: int  # forget rows to train on
    num_retain: int  # retain rows to train on that serve the topic
    num_entities: int
    num_touched: int  # entities that kept pairs touch
    floors: Floors | None = None  # the topic's own; None: those of the run


@dataclass(frozen=True, slots=True)
class Written:
    """The model's texts of one kind: the kept, the dropped by reason, and the wanted number (0: no fixed number)."""

    num_kept: int
    drops: Mapping[str, int]
    num_wanted: int = 0

    @property
    def share(self) -> float | None:
        """The share that is kept, without copies and surplus. None if nothing was written."""
        num_lost = sum(number for reason, number in self.drops.items() if reason not in _NOT_LOST)
        return self.num_kept / (self.num_kept + num_lost) if self.num_kept + num_lost else None

    @property
    def reached(self) -> float:
        """The kept texts as a share of the wanted number, or of the written texts."""
        total = self.num_wanted or self.num_kept + sum(self.drops.values())
        return self.num_kept / total if total else 1.0


@dataclass(frozen=True, slots=True)
class Data:
    """The counts of a run's data."""

    topics: Sequence[TopicData]
    written: Mapping[str, Written]  # by the keys of _REMEDIES; without rows from a user's file
    probes: Mapping[str, int]  # group -> number; only groups that the evaluation asks


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A floor that the data miss."""

    floor: str  # its key
    finding: str  # the number and the floor, as text
    advice: str  # the commonest reason, and what to change

    @property
    def note(self) -> str:
        """The note in a report."""
        return f"Thin data: {self.finding}."

    def __str__(self) -> str:
        return f"{self.finding}: {self.advice}"


def shortfalls(data: Data, floors: Floors, retains: bool = True) -> list[Shortfall]:
    """The floors that the data miss, topic by topic.

    Args:
        retains: whether the training has a retain term.
    """
    return [*_of_rows(data, floors, retains), *_of_shares(data, floors), *_of_probes(data, floors)]


def told(found: Sequence[Shortfall]) -> str:
    """All shortfalls in one line, the first one in full."""
    more = f" (and {'; '.join(each.finding for each in found[1:])})" if len(found) > 1 else ""
    return f"dataset: {found[0]}{more}. {ACCEPT} trains on them anyway"


def _of_rows(data: Data, floors: Floors, retains: bool) -> Iterator[Shortfall]:
    for topic in data.topics:
        own = topic.floors or floors
        if topic.num_forget < own.forget_rows:
            finding = f"{topic.num_forget} rows to forget {topic.name!r} (floor: {own.forget_rows})"
            none_lost = "raise questions.num_questions or answers.num_samples"
            yield Shortfall("forget_rows", finding, _advice(data, FORGET, none_lost))
        if retains and topic.num_retain < own.retain_per_forget * topic.num_forget:
            finding = f"{topic.num_retain} retain rows for {topic.num_forget} rows to forget {topic.name!r} (floor: {own.retain_per_forget:g} each)"
            none_lost = "raise dataset.retain.num_general or questions_per_general"
            yield Shortfall("retain_per_forget", finding, _advice(data, RETAIN, none_lost))


def _of_shares(data: Data, floors: Floors) -> Iterator[Shortfall]:
    for kind, written in data.written.items():
        share = written.share
        if share is not None and share < floors.kept:
            finding = f"{100 * share:.0f} % of the {kind} kept (floor: {100 * floors.kept:.0f} %)"
            yield Shortfall("kept", finding, _advice(data, (kind,), "look at its dropped rows"))
    for topic in data.topics:
        least = (topic.floors or floors).coverage
        if topic.num_touched < least * topic.num_entities:
            finding = f"{topic.num_touched} of {topic.num_entities} entities of {topic.name!r} touched by kept pairs (floor: {100 * least:.0f} %)"
            yield Shortfall("coverage", finding, _advice(data, FORGET, "raise questions.num_questions"))


def _of_probes(data: Data, floors: Floors) -> Iterator[Shortfall]:
    for group, number in data.probes.items():
        if number < floors.probes:
            finding = f"{number} {group} probes (floor: {floors.probes})"
            advice = "raise questions.num_questions" if group == "forget" else "raise the questions of dataset.retain"
            yield Shortfall("probes", finding, f"{advice} or dataset.holdout_fraction, or give evaluate.probes")


def _advice(data: Data, kinds: Sequence[str], none_lost: str) -> str:
    """The commonest drop reason of the kind of text that lost the most, with advice."""
    written = {kind: data.written[kind] for kind in kinds if kind in data.written}
    losing = {kind: each for kind, each in written.items() if _reasons(each)}
    if not losing:
        return none_lost if written else "give more of your own"
    kind = min(losing, key=lambda name: losing[name].reached)
    reasons = _reasons(losing[kind])
    reason, number = reasons.most_common(1)[0]
    num_written = losing[kind].num_kept + sum(losing[kind].drops.values())
    remedy = _REMEDIES[kind].get(reason, "look at the rows that it dropped")
    return f"commonest reason {reason}, {number} of {num_written} {kind}: {remedy}"


def _reasons(written: Written) -> Counter[str]:
    """Why texts were dropped. Copies count as a reason if fewer texts are left than were wanted."""
    is_short = written.num_kept < written.num_wanted
    ignored = (Drop.SURPLUS,) if is_short else _NOT_LOST
    return Counter({reason: number for reason, number in written.drops.items() if number and reason not in ignored})


def impossible(config: RunConfig, num_questions: Mapping[str, int]) -> list[Shortfall]:
    """The floors that a run can't reach, because its config requests too little.

    Args:
        num_questions: questions per topic in the user's file, all of which are kept.
    """
    found = []
    for topic in config.topics:
        own = config.of_topic(topic)
        floors, training = own.dataset.floors, 1.0 - own.dataset.holdout_fraction
        asked = max(own.questions.num_questions, num_questions.get(topic.name, 0))
        num_forget = round(asked * own.answers.num_samples * training)
        if num_forget < floors.forget_rows:
            finding = f"at most {num_forget} rows to forget {topic.name!r} (floor: {floors.forget_rows})"
            advice = "raise questions.num_questions or answers.num_samples, or lower dataset.floors.forget_rows"
            found.append(Shortfall("forget_rows", finding, advice))
        num_retain = most_retained(own, topic, config.dataset.holdout_fraction)
        if num_retain is not None and num_retain < floors.retain_per_forget * min(floors.forget_rows, num_forget):
            finding = f"at most {num_retain} retain rows for {num_forget} rows to forget {topic.name!r} (floor: {floors.retain_per_forget:g} each)"
            advice = (
                "raise dataset.retain.num_general or questions_per_general, or lower dataset.floors.retain_per_forget"
            )
            found.append(Shortfall("retain_per_forget", finding, advice))
    return found


def most_retained(config: RunConfig, topic: Topic, far_held_out: float) -> int | None:
    """The most retain rows that can serve a topic. None if a user's file decides, or there is no retain term.

    Args:
        config: the topic's own config.
        far_held_out: the run's `holdout_fraction`, which holds for far rows in every model.
    """
    rows = config.dataset.retain
    if rows.file is not None or config.finetune.retain.kind == "none":
        return None
    near = (len(topic.neighbours) or rows.num_neighbours) * rows.questions_per_neighbour
    far = (len(rows.general) or rows.num_general) * rows.questions_per_general
    return round(near * (1.0 - config.dataset.holdout_fraction) + far * (1.0 - far_held_out))
