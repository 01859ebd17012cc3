"""Makes probes from the model's knowledge. Each candidate question is asked for a short answer in several wordings, and kept if they agree.

rounds/      the requests and replies: 000 asks the held-out questions, later ones ask further questions that the model writes
facts/       rows of Judged: every candidate, kept or dropped with its reason

A candidate is never a question that is trained on. First each wording gets a greedy answer. If more than `dataset.probes.agreement` of these
agree, answers are sampled too, and more than that share of all answers must agree. A probe's wording is `reworded` if training asks for its
fact in other words, and `generated` if not.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from unlearn_ray.artifacts import Folder
from unlearn_ray.chat import Drawn
from unlearn_ray.config import ProbesConfig
from unlearn_ray.engines.protocols import Generator
from unlearn_ray.rows import GROUPS, Group, Probe, digest, seed_of
from unlearn_ray.stages.asking import Prompted, ask, in_order
from unlearn_ray.stages.gathering import Lines, ListedLine, Prompt
from unlearn_ray.stages.short_asking import FurtherAsking, ShortAsking
from unlearn_ray.synth.dedup import question_key
from unlearn_ray.synth.known import (
    Candidate,
    Judged,
    Replied,
    Unfit,
    judge_replies,
    probes_of,
    taught_facts,
    told_apart,
)
from unlearn_ray.synth.names import mentions
from unlearn_ray.synth.prompts import Prompts
from unlearn_ray.synth.short_answers import is_open
from unlearn_ray.words import phrases_of

LIST_TOKENS = 400
PER_REQUEST = 6  # questions per prompt
YIELD = 0.25  # expected share of questions that become facts
MIN_REQUESTS, MAX_REQUESTS = 2, 60  # lists per subject and round
LEAST_NEWS = 0.1  # new facts, as a share of the missing ones, that justify a further round
HELD_OUT = 4  # held-out questions asked per wanted fact
Names = Mapping[str, Sequence[str]]
Limits = Mapping[tuple[Group, str], int]  # number of questions by group and, in the group forget, topic


class Own(Protocol):
    """The model's own answers, some of them held out of training. There may be many; the results of these methods are small."""

    def held_out(self, limits: Limits) -> list[Candidate]:
        """See `chosen`."""
        ...

    def trained_on(self, keys: frozenset[str]) -> set[str]:
        """Those of these question keys that belong to a training question."""
        ...

    def taught(self, rows: Sequence[Judged], names: Names) -> frozenset[str]:
        """See `known.taught_facts`."""
        ...


@dataclass(frozen=True, slots=True)
class Listed:
    """`Own` for rows in memory or in a file. The results of several parts can be merged: `chosen` of all of them gives the result for all."""

    candidates: Callable[[], Iterable[Candidate]]
    trained: Callable[[], Iterable[tuple[str, str, str]]]  # topic, question and answer

    def held_out(self, limits: Limits) -> list[Candidate]:
        return chosen(self.candidates(), limits)

    def trained_on(self, keys: frozenset[str]) -> set[str]:
        return {key for _, question, _ in self.trained() if (key := question_key(question)) in keys} if keys else set()

    def taught(self, rows: Sequence[Judged], names: Names) -> frozenset[str]:
        return taught_facts(rows, self.trained(), names)


def chosen(candidates: Iterable[Candidate], limits: Limits) -> list[Candidate]:
    """The held-out questions to ask: the first of each share, in the order of a hash."""
    piles: dict[tuple[Group, str], list[Candidate]] = {}
    for candidate in candidates:
        share = _share_of(candidate)
        pile = piles.setdefault(share, [])
        pile.append(candidate)
        if len(pile) > 2 * limits[share]:
            piles[share] = sorted(pile, key=_by_hash)[: limits[share]]
    return [each for share, pile in sorted(piles.items()) for each in sorted(pile, key=_by_hash)[: limits[share]]]


@dataclass(frozen=True, slots=True)
class Wish:
    """A subject for probes."""

    name: str
    group: Group
    near: tuple[str, ...] = ()  # forgotten topics that it neighbours
    angles: tuple[str, ...] = ()
    entities: tuple[str, ...] = ()
    telling: tuple[str, ...] = ()  # a question about it must have one of these; empty: any question is allowed


@dataclass(frozen=True, slots=True)
class Made:
    """The probes, with counts of the candidates."""

    probes: list[Probe]
    counts: dict[str, dict[str, int]]  # group -> asked, agreed, facts, kept, and dropped ones by reason


def make_probes(
    config: ProbesConfig,
    wishes: Sequence[Wish],
    forgotten: Names,
    own: "Own",
    prompts: Prompts,
    out: Folder,
    generator: Generator,
    sampling: Drawn,
    seed: int,
) -> Made:
    """Probes about every wish, until there are enough facts or `config.max_rounds` rounds are done.

    Args:
        forgotten: names and aliases of each topic to forget.
        own: the model's own answers, held out and trained on.
        out: the folder for `rounds` and `facts`.
    """
    maker = _Maker(config, {wish.name: wish for wish in wishes}, forgotten, prompts, out, generator, sampling, seed)
    asked: list[Folder] = []
    unfit: list[Judged] = []
    before: Mapping[tuple[Group, str], int] = {}
    for round_ in range(config.max_rounds + 1):
        missing = maker.missing(told_apart(maker.judged(asked), maker.names))
        if round_:  # if further questions brought hardly any facts, more will not
            missing = {
                share: number
                for share, number in missing.items()
                if number
                and maker.has_wish(share)
                and (round_ == 1 or number <= (1 - LEAST_NEWS) * before.get(share, 0))
            }
            before = missing
        if not any(missing.values()):
            break
        found = own.held_out(maker.limits()) if round_ == 0 else maker.written(round_, missing)
        seen = {question_key(row["question"]) for folder in asked for row in folder.read_rows(["question"])}
        taught = own.trained_on(frozenset(question_key(each.question) for each in found))
        candidates, others = maker.sifted(found, seen, taught)
        unfit += others
        if candidates or round_ == 0:
            asked.append(maker.ask_short(round_, candidates))
    rows = maker.within(told_apart(maker.judged(asked), maker.names))
    probes, rows = probes_of(rows, maker.sentences(asked), own.taught(rows, maker.names))
    rows = [*rows, *unfit]
    (out / "facts").write_rows(rows, Judged.schema())
    return Made(probes, counts_of(rows))


def counts_of(rows: Iterable[Judged]) -> dict[str, dict[str, int]]:
    """Group -> candidates asked, candidates that agreed, facts, probes kept, and dropped candidates by reason."""
    counts: dict[str, Counter[str]] = {group: Counter(asked=0, agreed=0, facts=0, kept=0) for group in GROUPS}
    facts: dict[str, set[str]] = {group: set() for group in GROUPS}
    for row in rows:
        count = counts[row.group]
        count["asked"] += row.num_asked > 0
        count["agreed"] += row.num_agreed > 0
        count["kept"] += row.drop is None
        if row.drop:
            count[row.drop] += 1
        else:
            facts[row.group].add(row.fact)
    return {
        group: dict(counts[group]) | {"facts": len(facts[group])} for group in GROUPS if sum(counts[group].values())
    }


def told(counts: Mapping[str, Mapping[str, int]]) -> str:
    """A sentence for readers of a report."""
    total: Counter[str] = Counter()
    for count in counts.values():
        total.update(count)
    kept = ", ".join(f"{group} {count['kept']}" for group, count in counts.items())
    known = {"asked", "agreed", "facts", "kept"}
    reasons = ", ".join(
        f"{number} {reason.replace('_', ' ')}"
        for reason, number in total.most_common()
        if reason not in known and number
    )
    return (
        f"Probes are what the model says each time: {total['asked']} questions were asked for short answers in several wordings, {total['agreed']} "
        f"times they agreed, {total['kept']} are probes ({kept})" + (f"; left out: {reasons}." if reasons else ".")
    )


@dataclass(frozen=True, slots=True)
class _Maker:
    """The settings of all rounds."""

    config: ProbesConfig
    wishes: Mapping[str, Wish]
    forgotten: Names
    prompts: Prompts
    out: Folder
    generator: Generator
    sampling: Drawn
    seed: int

    @property
    def names(self) -> dict[str, Sequence[str]]:
        return {name: (name,) for name in self.wishes} | dict(self.forgotten)

    def wanted(self) -> dict[tuple[Group, str], int]:
        """Wanted facts by group and, in the group forget, topic."""
        wanted: dict[tuple[Group, str], int] = {("forget", topic): self.config.num_forget for topic in self.forgotten}
        # The pool has no topic. Its near facts come from a user's rows.
        num_near = self.config.num_near * max(1, len(self.forgotten))
        return wanted | {("near", ""): num_near, ("far", ""): self.config.num_far}

    def missing(self, rows: Sequence[Judged]) -> dict[tuple[Group, str], int]:
        """Facts that are still missing."""
        facts = {(*_share_of(row), row.fact) for row in rows if not row.drop}
        have = Counter((group, topic) for group, topic, _ in facts)
        return {share: max(0, number - have[share]) for share, number in self.wanted().items()}

    def has_wish(self, share: tuple[Group, str]) -> bool:
        """Whether there is a subject to ask about."""
        return any(wish.group == share[0] and share[1] in ("", wish.name) for wish in self.wishes.values())

    def within(self, rows: Sequence[Judged]) -> list[Judged]:
        """The rows. Those beyond the wanted number of facts are dropped."""
        facts: dict[tuple[Group, str], set[str]] = {}
        found = []
        for row in rows:
            kept = facts.setdefault(_share_of(row), set())
            if not row.drop:
                if row.fact not in kept and len(kept) >= self.wanted()[_share_of(row)]:
                    row = replace(row, drop=Unfit.SURPLUS.value)
                else:
                    kept.add(row.fact)
            found.append(row)
        return found

    def limits(self) -> Limits:
        """The most held-out questions to ask: many more than the wanted facts."""
        return {share: HELD_OUT * number for share, number in self.wanted().items()}

    def written(self, round_: int, missing: Mapping[tuple[Group, str], int]) -> list[Candidate]:
        """Further questions that the model writes about each subject with missing facts."""
        if not self.prompts.probe_questions:
            return []

        def requests() -> Iterator[Prompt]:
            for wish in self.wishes.values():
                share = (wish.group, wish.name if wish.group == "forget" else "")
                alike = (
                    sum(other.group == wish.group for other in self.wishes.values()) if wish.group != "forget" else 1
                )
                need = math.ceil(missing.get(share, 0) / alike / YIELD / PER_REQUEST)
                for number in range(min(MAX_REQUESTS, max(MIN_REQUESTS, need)) if missing.get(share) else 0):
                    yield self._request(wish, round_, number)

        lists = ask(
            self.generator,
            self.out / "rounds" / f"{round_:03d}" / "lists",
            requests,
            Prompt.schema(),
            Prompted(self.seed, self.sampling, LIST_TOKENS),
            Lines({}, self.seed),
            ListedLine.schema(),
            label=f"dataset, probe questions, round {round_}",
        )
        found = []
        for row in in_order(lists.read_rows(), lambda row: (row["topic"], row["number"], row["place"])):
            if not row["drop"]:
                wish = self.wishes[row["topic"]]
                found.append(Candidate(wish.name, row["text"], wish.group, wish.near, "asked", round_))
        return found

    def _request(self, wish: Wish, round_: int, number: int) -> Prompt:
        about = [f"{entity} in {wish.name}" for entity in wish.entities]
        turns = [wish.name, *about, *(f"the {angle} of {wish.name}" for angle in wish.angles)]
        # Each round begins at a later item, so that short rounds cover all items over time.
        first = (round_ - 1) * math.ceil(len(turns) / max(1, self.config.max_rounds))
        topic = turns[(first + number) % len(turns)]
        wording = random.Random(seed_of(self.seed, wish.name, round_, number, "probe")).choice(
            self.prompts.probe_questions
        )
        return Prompt(wish.name, wording.format(topic=topic, count=PER_REQUEST), "probe", round_, number)

    def sifted(
        self, found: Iterable[Candidate], seen: set[str], taught: Collection[str]
    ) -> tuple[list[Candidate], list[Judged]]:
        """The candidates to ask, and the others with their reasons.

        Args:
            seen: keys of questions that were asked before.
            taught: keys of training questions.
        """
        seen = set(seen)
        fit, unfit = [], []
        for each in found:
            key = question_key(each.question)
            drop = self._fault(each)
            if key in taught:
                drop = Unfit.TRAINED_ON
            elif key in seen:
                drop = Unfit.DUPLICATE
            seen.add(key)
            if drop is None:
                fit.append(each)
            elif drop != Unfit.DUPLICATE or each.round == 0:  # lists repeat themselves: such copies are not recorded
                unfit.append(
                    Judged(
                        each.topic,
                        each.question,
                        each.group,
                        each.source,
                        each.round,
                        (),
                        0,
                        near=each.near,
                        drop=drop.value,
                    )
                )
        return fit, unfit

    def _fault(self, candidate: Candidate) -> Unfit | None:
        if is_open(candidate.question):
            return Unfit.OPEN
        if candidate.group == "forget":
            telling = self.wishes[candidate.topic].telling if candidate.topic in self.wishes else ()
            others = [name for topic, names in self.forgotten.items() if topic != candidate.topic for name in names]
            is_on = mentions(candidate.question, self.forgotten[candidate.topic]) or bool(
                phrases_of(telling).found_in(candidate.question)
            )
            return None if is_on and not mentions(candidate.question, others) else Unfit.OFF_TOPIC
        every = [name for names in self.forgotten.values() for name in names]
        return Unfit.OFF_TOPIC if mentions(candidate.question, every) else None

    def ask_short(self, round_: int, candidates: Sequence[Candidate]) -> Folder:
        """Rows of Replied: greedy answers to all wordings and, if these agree, sampled answers and one in a sentence."""
        home, label = self.out / "rounds" / f"{round_:03d}", f"dataset, short answers, round {round_}"
        greedy = ShortAsking(self.prompts.short_answers)
        first = ask(
            self.generator,
            home / "greedy",
            lambda: candidates,
            Candidate.schema(),
            greedy,
            greedy.parse,
            Replied.schema(),
            label=label,
        )
        further = FurtherAsking(
            self.prompts.short_answers,
            self.prompts.styles["sentence"],
            self.config.num_samples,
            self.sampling,
            self.seed,
        )
        second = ask(
            self.generator,
            home / "further",
            lambda: (row for row in self._replied([first]) if not self._judge(row).drop),
            Replied.schema(),
            further,
            further.parse,
            Replied.schema(),
            label=f"{label}, asked again",
        )
        again = {row["id"]: row for row in second.read_rows()}
        (home / "all").write_rows((again.get(row["id"], row) for row in first.read_rows()), Replied.schema())
        return home / "all"

    def judged(self, folders: Sequence[Folder]) -> list[Judged]:
        return [self._judge(row) for row in self._replied(folders)]

    def _replied(self, folders: Sequence[Folder]) -> Iterator[Replied]:
        rows = (row for folder in folders for row in folder.read_rows())
        for row in in_order(rows, lambda row: (row["round"], row["group"], row["topic"], row["id"])):
            yield Replied.of(row | {name: tuple(row[name] or ()) for name in ("near", "replies", "truncated")})

    def _judge(self, row: Replied) -> Judged:
        judged = judge_replies(row, self.names.get(row.topic, (row.topic,)), self.config.agreement)
        every = [name for topic, names in self.forgotten.items() for name in names if topic != row.topic]
        if not judged.drop and mentions(judged.answer, every):
            return replace(judged, drop=Unfit.OFF_TOPIC.value)
        return judged

    def sentences(self, folders: Sequence[Folder]) -> dict[str, str]:
        """Row id -> the model's answer in a sentence."""
        return {row.id: row.sentence for row in self._replied(folders) if row.sentence}


def _share_of(row: Candidate | Judged) -> tuple[Group, str]:
    """The share that a row counts for: its topic, all neighbours, or all far subjects."""
    return row.group, row.topic if row.group == "forget" else ""


def _by_hash(candidate: Candidate) -> str:
    return digest("candidate", candidate.topic, candidate.question)
