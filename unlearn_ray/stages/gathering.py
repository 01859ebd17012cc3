"""Gather distinct questions on many subjects from the model, in rounds, all subjects together in each.

A round is two askings (the lists, then a check of what is new in them) whose files stay. What follows from them is a pure
function of the files, so that a resumed run goes over finished rounds without the model and takes up the one that was cut off.
"""

import logging
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unlearn_ray.artifacts import Folder
from unlearn_ray.engines.protocols import Generator, Parse, Render, Reply, RowDict
from unlearn_ray.rows import Question, Row, digest, seed_of
from unlearn_ray.stages.asking import Prompted, ask, texts_of
from unlearn_ray.stages.ledger import Ledger
from unlearn_ray.synth.parsing import question_lines
from unlearn_ray.synth.prompts import Prompts

log = logging.getLogger(__name__)
MIN_REQUESTS = 4  # a round and subject, so that the last missing questions do not take a round each
YIELD = 0.75  # of the questions asked for, the share that is expected to be new and usable


@dataclass(frozen=True, slots=True)
class Subject:
    """What questions are wanted about."""

    name: str
    number: int  # of distinct questions
    angles: tuple[str, ...]
    entities: tuple[str, ...] = ()
    spellings: tuple[str, ...] = ()  # how requests write the name, in turns; none: as it is

    def source(self, index: int) -> tuple[str, str | None, str | None]:
        """The source of the index-th request, with its angle and entity.

        First the subject itself, each angle and each entity, in turns; then entity x angle, the entities changing fastest;
        then from the start.
        """
        num_turns = max(len(self.angles), len(self.entities))
        turns: list[tuple[str, str | None, str | None]] = [("topic", None, None)]
        for turn in range(num_turns):
            if turn < len(self.angles):
                turns.append((f"angle:{self.angles[turn]}", self.angles[turn], None))
            if turn < len(self.entities):
                turns.append((f"entity:{self.entities[turn]}", None, self.entities[turn]))
        position = index % (len(turns) + len(self.angles) * len(self.entities)) - len(turns)
        if position < 0:
            return turns[position]
        entity = self.entities[position % len(self.entities)]
        # The angle moves on with the entity too, so that a few requests already mix all angles.
        angle = self.angles[(position // len(self.entities) + position) % len(self.angles)]
        return f"entity:{entity}|{angle}", angle, entity


@dataclass(frozen=True, slots=True)
class Prompt(Row):
    """A request for a list."""

    topic: str
    prompt: str
    source: str = ""
    round: int = 0
    number: int = 0

    @property
    def id(self) -> str:
        return digest(self.topic, self.prompt, self.round, self.number)


@dataclass(frozen=True, slots=True)
class ListedLine(Row):
    """A line of a list that came back."""

    topic: str
    text: str
    source: str
    round: int
    number: int  # of the request
    place: int  # in the reply
    drop: str | None = None

    @property
    def id(self) -> str:
        return digest(self.topic, self.round, self.number, self.place)


@dataclass(frozen=True, slots=True)
class Check:
    """The second asking of a round: rows of Question in, the same rows with a `drop` out."""

    render: Render
    parse: Parse


@dataclass(frozen=True, slots=True)
class Patience:
    """When to stop asking."""

    per_request: int
    rounds_without_news: int
    max_rounds: int
    least_share: float = 0.0  # of the questions asked for in a round; no more than that is no news


def gather(
    subjects: Sequence[Subject],
    ledger: Ledger,
    prompts: Prompts,
    home: Folder,
    generator: Generator,
    sampling: Prompted,
    patience: Patience,
    check: Check | None,
    label: str,
) -> int:
    """Fill the ledger until every subject has its number or nothing new comes; returns the number of rounds.

    Args:
        home: gets a folder a round.
        sampling: how lists are sampled; its seed chooses wordings as well.
    """
    asked = dict.fromkeys((subject.name for subject in subjects), 0)
    idle = dict.fromkeys(asked, 0)
    for round_ in range(1, patience.max_rounds + 1):
        kept = {subject.name: ledger.num_kept(subject.name) for subject in subjects}
        open_ = [s for s in subjects if kept[s.name] < s.number and idle[s.name] < patience.rounds_without_news]
        if not open_:
            return round_ - 1
        num_requests = {s.name: _num_requests(s.number - kept[s.name], patience.per_request) for s in open_}
        folder = home / f"{round_:03d}"

        def requests(
            open_: list[Subject] = open_, sizes: dict[str, int] = num_requests, round_: int = round_
        ) -> Iterator[Prompt]:
            for subject in open_:
                for number in range(asked[subject.name], asked[subject.name] + sizes[subject.name]):
                    yield _request(subject, number, round_, prompts, patience.per_request, sampling.seed)

        def fresh(round_: int = round_) -> Iterator[Question]:
            return ledger.fresh(round_)

        lists = ask(
            generator,
            folder,
            requests,
            Prompt.schema(),
            sampling,
            parse_lines,
            ListedLine.schema(),
            label=f"{label}, round {round_}",
        )
        ledger.add(lists.read_rows(), round_)
        if check is not None:
            verdicts = ask(
                generator,
                folder / "check",
                fresh,
                Question.schema(),
                check.render,
                check.parse,
                Question.schema(),
                label=f"{label}, round {round_}, topic check",
            )
            ledger.mark((row["topic"], row["text"], row["drop"]) for row in verdicts.read_rows() if row["drop"])
        for subject in open_:
            ledger.cap(subject.name, subject.number)
            asked[subject.name] += num_requests[subject.name]
            news = ledger.num_kept(subject.name) - kept[subject.name]
            is_news = news > patience.least_share * patience.per_request * num_requests[subject.name]
            idle[subject.name] = 0 if is_news else idle[subject.name] + 1
            log.info(
                "%s: round %d: %d of %d on %s", label, round_, kept[subject.name] + news, subject.number, subject.name
            )
    return patience.max_rounds


def parse_lines(row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
    """The questions of a reply to a request for a list."""
    place, found = 0, []
    for reply in replies:
        if reply.error:
            found.append(ListedLine(row["topic"], "", row["source"], row["round"], row["number"], place, reply.error))
            place += 1
        for text, is_truncated in texts_of(reply):
            for line in question_lines(text, is_truncated):
                found.append(
                    ListedLine(row["topic"], line.text, row["source"], row["round"], row["number"], place, line.drop)
                )
                place += 1
    return [line.to_dict() for line in found]


def _num_requests(num_missing: int, per_request: int) -> int:
    return max(MIN_REQUESTS, math.ceil(num_missing / per_request / YIELD))


def _request(subject: Subject, number: int, round_: int, prompts: Prompts, per_request: int, seed: int) -> Prompt:
    source, angle, entity = subject.source(number)
    wordings = {
        (False, False): prompts.questions,
        (True, False): prompts.angle_questions,
        (False, True): prompts.entity_questions,
        (True, True): prompts.entity_angle_questions,
    }[angle is not None, entity is not None]
    wording = random.Random(seed_of(seed, subject.name, number, "wording")).choice(wordings)
    name = subject.spellings[number % len(subject.spellings)] if subject.spellings else subject.name
    text = wording.format(topic=name, count=per_request, angle=angle, entity=entity)
    return Prompt(subject.name, text, source, round_, number)
