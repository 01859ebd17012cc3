"""Gathers distinct questions on many subjects from the model, in rounds. Each round covers all subjects.

A round has two askings, the lists and then a check of the new lines. Their files stay, and all else is a pure function of these files. So a
resumed run repeats finished rounds without the model, and continues the interrupted one.
"""

import logging
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

from unlearn_ray.artifacts import Folder
from unlearn_ray.engines.protocols import Generator, Parse, Render, Reply, RowDict
from unlearn_ray.rows import AskedForm, Form, Question, Row, digest, seed_of
from unlearn_ray.stages.asking import Budget, Prompted, ask, texts_of
from unlearn_ray.stages.ledger import Ledger
from unlearn_ray.synth.coverage import untouched
from unlearn_ray.synth.forms import lines_of
from unlearn_ray.synth.prompts import FormPrompts, Prompts

log = logging.getLogger(__name__)
MIN_REQUESTS = 4  # per round and subject, so that the last missing questions do not take one round each
MAX_FIRST_ROUNDS = 2  # the most requests of a round, as a multiple of the first round's
YIELD = 0.75  # expected share of new and usable questions, until a subject has shown its own


@dataclass(frozen=True, slots=True)
class Aim:
    """The aim of one request."""

    source: str  # the value of `Question.source`
    angle: str | None = None
    entity: str | None = None
    form: Form = "question"
    language: str | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """A subject of questions."""

    name: str
    number: int  # wanted number of distinct questions
    angles: tuple[str, ...]
    entities: tuple[str, ...] = ()
    spellings: tuple[str, ...] = ()  # spellings of the name for requests, in turns; empty: the name itself
    forms: tuple[AskedForm, ...] = ()  # besides plain questions
    languages: tuple[str, ...] = ()  # besides the topic's own
    form_share: float = 0.0  # share of the requests that ask for these forms and languages

    def aim(self, index: int) -> Aim:
        """The aim of the index-th request. A share of `form_share` asks for other forms or languages, in turns, about the subject and about
        each entity. The others ask for plain questions."""
        forms = [Aim(form, form=form) for form in self.forms]
        forms += [Aim(f"other_language:{each}", form="other_language", language=each) for each in self.languages]
        share = self.form_share if forms else 0.0
        num_before = math.floor(index * share)
        if math.floor((index + 1) * share) == num_before:
            return self._plain(index - num_before)
        aim = forms[num_before % len(forms)]
        things = (None, *self.entities) if aim.language is None else (None,)
        entity = things[num_before // len(forms) % len(things)]
        return aim if entity is None else replace(aim, source=f"{aim.source}:entity:{entity}", entity=entity)

    def _plain(self, index: int) -> Aim:
        """The aim of the index-th request for plain questions.

        First the subject itself, each angle and each entity, in turns. Then entity x angle, with the entity changing fastest. Then again from
        the start.
        """
        num_turns = max(len(self.angles), len(self.entities))
        turns = [Aim("topic")]
        for turn in range(num_turns):
            if turn < len(self.angles):
                turns.append(Aim(f"angle:{self.angles[turn]}", self.angles[turn]))
            if turn < len(self.entities):
                turns.append(Aim(f"entity:{self.entities[turn]}", entity=self.entities[turn]))
        position = index % (len(turns) + len(self.angles) * len(self.entities)) - len(turns)
        if position < 0:
            return turns[position]
        entity = self.entities[position % len(self.entities)]
        # The angle changes with the entity too, so that a few requests already use all angles.
        angle = self.angles[(position // len(self.entities) + position) % len(self.angles)]
        return Aim(f"entity:{entity}|{angle}", angle, entity)


@dataclass(frozen=True, slots=True)
class Prompt(Row):
    """A request for a list."""

    topic: str
    prompt: str
    source: str = ""
    round: int = 0
    number: int = 0
    form: Form = "question"

    @property
    def id(self) -> str:
        return digest(self.topic, self.prompt, self.round, self.number)


@dataclass(frozen=True, slots=True)
class ListedLine(Row):
    """A line of a list in a reply."""

    topic: str
    text: str
    source: str
    round: int
    number: int  # number of the request
    place: int  # position in the reply
    drop: str | None = None
    form: Form = "question"

    @property
    def id(self) -> str:
        return digest(self.topic, self.round, self.number, self.place)


@dataclass(frozen=True, slots=True)
class Check:
    """The second asking of a round: takes rows of Question, returns the same rows with a `drop`."""

    render: Render
    parse: Parse


@dataclass(frozen=True, slots=True)
class Patience:
    """When to stop asking."""

    per_request: int
    rounds_without_news: int
    max_rounds: int
    least_share: float = 0.0  # share of new questions in a round up to which the round counts as fruitless
    coverage_rounds: int = 0  # further rounds about entities without a kept question


@dataclass(frozen=True, slots=True)
class _Rounds:
    """The settings and the folder of rounds."""

    prompts: Prompts
    home: Folder  # gets a folder per round
    generator: Generator
    sampling: Prompted  # for the lists; its seed also chooses wordings
    per_request: int  # questions per prompt
    check: Check | None
    label: str

    def ask(self, round_: int, aims: Sequence[tuple[Subject, int, Aim]], ledger: Ledger) -> None:
        """Ask one round of requests (subject, number of the request, aim). The checked lines go into the ledger."""
        folder = self.home / f"{round_:03d}"
        seed = self.sampling.seed
        wordings: dict[Form, tuple[str, ...]] = {
            aim.form: _form(aim.form, self.prompts).questions for _, _, aim in aims if _is_form(aim.form)
        }

        def requests() -> Iterator[Prompt]:
            return (
                _request(subject, number, round_, aim, self.prompts, self.per_request, seed)
                for subject, number, aim in aims
            )

        lists = ask(
            self.generator,
            folder,
            requests,
            Prompt.schema(),
            self.sampling,
            Lines(wordings, seed),
            ListedLine.schema(),
            label=f"{self.label}, round {round_}",
        )
        ledger.add(lists.read_rows(), round_)
        if self.check is not None:
            verdicts = ask(
                self.generator,
                folder / "check",
                lambda: ledger.fresh(round_),
                Question.schema(),
                self.check.render,
                self.check.parse,
                Question.schema(),
                label=f"{self.label}, round {round_}, topic check",
            )
            ledger.mark((row["topic"], row["text"], row["drop"]) for row in verdicts.read_rows() if row["drop"])


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
    budget: Budget = Budget(),
) -> int:
    """Fill the ledger until every subject has its number, or no new questions come. Returns the number of rounds.

    Args:
        home: the folder for one subfolder per round.
        sampling: the sampling of lists; its seed also chooses wordings.
        budget: once it is spent, only the first round is asked.
    """
    rounds = _Rounds(prompts, home, generator, sampling, patience.per_request, check, label)
    asked = dict.fromkeys((subject.name for subject in subjects), 0)
    idle = dict.fromkeys(asked, 0)
    yields = dict.fromkeys(asked, YIELD)
    num_rounds = 0
    while num_rounds < patience.max_rounds:
        kept = {subject.name: ledger.num_kept(subject.name) for subject in subjects}
        open_ = [s for s in subjects if kept[s.name] < s.number and idle[s.name] < patience.rounds_without_news]
        if not open_ or (num_rounds and budget.ends(f"{label}, round {num_rounds + 1}")):
            break
        num_rounds += 1
        aims = []
        for subject in open_:
            first = asked[subject.name]
            num_missing = subject.number - kept[subject.name]
            asked[subject.name] += num_requests(num_missing, subject.number, yields[subject.name], patience.per_request)
            aims += [(subject, number, subject.aim(number)) for number in range(first, asked[subject.name])]
        rounds.ask(num_rounds, aims, ledger)
        num_asked = Counter(subject.name for subject, _, _ in aims)
        for subject in open_:
            ledger.cap(subject.name, subject.number)
            name, number = subject.name, ledger.num_kept(subject.name)
            num_new, num_wanted = number - kept[name], patience.per_request * num_asked[name]
            yields[name] = learnt_yield(yields[name], num_new, num_wanted, patience.per_request)
            is_news = num_new > patience.least_share * num_wanted
            idle[name] = 0 if is_news else idle[name] + 1
            log.info("%s: round %d: %d of %d on %s", label, num_rounds, number, subject.number, name)
    return num_rounds + _cover(subjects, ledger, rounds, patience.coverage_rounds, num_rounds, asked, budget)


def _cover(
    subjects: Sequence[Subject],
    ledger: Ledger,
    rounds: _Rounds,
    max_rounds: int,
    num_rounds: int,
    asked: dict[str, int],
    budget: Budget,
) -> int:
    """Ask about every entity that no kept question names, in addition to the wanted number. Returns the number of rounds."""
    for round_ in range(1, max_rounds + 1):
        aims = []
        for subject in subjects:
            kept = (question.text for question in ledger.rows([subject.name]) if not question.drop)
            for entity in untouched(subject.entities, kept):
                aims.append((subject, asked[subject.name], Aim(f"entity:{entity}", entity=entity)))
                asked[subject.name] += 1
        if not aims or budget.ends(f"{rounds.label}, entities without a question"):
            return round_ - 1
        rounds.ask(num_rounds + round_, aims, ledger)
    return max_rounds


@dataclass(frozen=True, slots=True)
class Lines:
    """Reads the questions of a reply to a request for a list."""

    wordings: Mapping[Form, tuple[str, ...]]  # per form, the templates that turn a line into a question
    seed: int

    def __call__(self, row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
        first = ListedLine(row["topic"], "", row["source"], row["round"], row["number"], 0, form=row["form"])
        found: list[ListedLine] = []
        for reply in replies:
            if reply.error:
                found.append(replace(first, place=len(found), drop=reply.error))
            for text, is_truncated in texts_of(reply):
                for line in lines_of(row["form"], text, row["topic"], is_truncated):
                    question = line.text if line.drop else self._question(row, line.text)
                    found.append(replace(first, text=question, place=len(found), drop=line.drop))
        return [line.to_dict() for line in found]

    def _question(self, row: RowDict, line: str) -> str:
        wordings = self.wordings.get(row["form"], ("{line}",))
        wording = random.Random(seed_of(self.seed, row["topic"], line, "form")).choice(wordings)
        return wording.format(line=line, topic=row["topic"])


def num_requests(num_missing: int, num_wanted: int, expected: float, per_request: int) -> int:
    """Number of lists that a round requests, so that it brings all missing questions.

    Args:
        num_missing: missing questions, of `num_wanted` about the subject.
        expected: expected share of new and usable questions.
    """
    most = MAX_FIRST_ROUNDS * math.ceil(num_wanted / per_request / YIELD)
    return max(MIN_REQUESTS, min(most, math.ceil(num_missing / per_request / expected)))


def learnt_yield(expected: float, num_new: int, num_asked: int, per_request: int) -> float:
    """The share to expect after a round that brought `num_new` of `num_asked` questions. The earlier expectation has the weight of the smallest
    round, so that a long round outweighs it and a short one does not."""
    weight = MIN_REQUESTS * per_request
    return min(1.0, (num_new + weight * expected) / (num_asked + weight))


def _request(
    subject: Subject, number: int, round_: int, aim: Aim, prompts: Prompts, per_request: int, seed: int
) -> Prompt:
    wordings = _wordings(aim, prompts)
    wording = random.Random(seed_of(seed, subject.name, number, "wording")).choice(wordings)
    name = subject.spellings[number % len(subject.spellings)] if subject.spellings else subject.name
    text = wording.format(topic=name, count=per_request, angle=aim.angle, entity=aim.entity, language=aim.language)
    return Prompt(subject.name, text, aim.source, round_, number, aim.form)


def _wordings(aim: Aim, prompts: Prompts) -> Sequence[str]:
    """The wordings of requests for an aim. No others are read, because a stage may have only these."""
    if aim.form == "other_language":
        return prompts.language_questions
    if _is_form(aim.form):
        return _form(aim.form, prompts).asking(has_entity=aim.entity is not None)
    if aim.entity is not None:
        return prompts.entity_questions if aim.angle is None else prompts.entity_angle_questions
    return prompts.questions if aim.angle is None else prompts.angle_questions


def _is_form(form: Form) -> TypeGuard[AskedForm]:
    return form not in ("question", "other_language")


def _form(form: Form, prompts: Prompts) -> FormPrompts:
    found = prompts.forms[form] if _is_form(form) else None
    assert found is not None  # subjects have only forms with wordings
    return found
