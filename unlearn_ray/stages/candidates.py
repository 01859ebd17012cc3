"""The input of `probing` from the data stages: the subjects to ask about, the held-out questions, and the training rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unlearn_ray.artifacts import Folder
from unlearn_ray.chat import sampling_of
from unlearn_ray.config import DatasetConfig, Topic
from unlearn_ray.engines.protocols import Generator, RowDict
from unlearn_ray.rows import Example, Group
from unlearn_ray.stages.probing import Limits, Listed, Made, Names, Wish, chosen, make_probes
from unlearn_ray.stages.retaining import holdout_of
from unlearn_ray.stages.spans import rows_of
from unlearn_ray.synth.known import Candidate, Judged
from unlearn_ray.synth.prompts import Prompts
from unlearn_ray.synth.split import Holdout

EVERY = ""  # stands for all topics: a model's mixture decides which topics a user's near row neighbours


@dataclass(frozen=True, slots=True)
class About:
    """A topic to forget, with its entities and answers."""

    topic: Topic
    entities: Folder  # rows of naming.Name
    answers: Folder  # of the stage of that name

    def wish(self, angles: Sequence[str]) -> Wish:
        terms = [*self.topic.terms, *(row["term"] for row in (self.answers / "terms").read_rows(["term"]))]
        entities = [row["name"] for row in self.entities.read_rows(["name", "drop"]) if not row["drop"]]
        telling = tuple(dict.fromkeys([*terms, *entities]))
        return Wish(self.topic.name, "forget", angles=tuple(angles), entities=tuple(entities), telling=telling)


def known_probes(
    config: DatasetConfig,
    about: About | None,
    served: Mapping[str, tuple[str, ...]],
    given: Sequence[Example],
    prompts: Prompts,
    out: Folder,
    generator: Generator,
    seed: int,
) -> Made:
    """Probes from the model's knowledge of a topic and its neighbours, or of general subjects.

    Args:
        about: the topic. None: for the pool.
        served: retained subject -> the forgotten topics that it neighbours.
        given: the user's own retain rows.
        out: the stage's folder, its rows written.
    """
    wishes = [] if about is None else [about.wish(prompts.angles[about.topic.kind])]
    if served:
        angles = prompts.angles["general"]
        wishes += [Wish(name, "near" if near else "far", near, angles) for name, near in served.items()]

    tables = [_OwnTable("retain_answers", out / "retain_answers", served, holdout_of(config))]
    if about is not None:
        unguarded = about.answers / "unguarded"
        tables.insert(0, _OwnTable("unguarded", unguarded, {}, holdout_of(config), about.topic.names))
    own = _OnWorkers(generator, tuple(tables), _of_user(given))
    names = {} if about is None else {about.topic.name: about.topic.names}
    sampling = sampling_of(config.retain, generator.chat)
    return make_probes(config.probes, wishes, names, own, prompts, out / "probing", generator, sampling, seed)


@dataclass(frozen=True, slots=True)
class _OwnTable:
    """Rows of QAPair with the model's own answers."""

    kind: Literal["unguarded", "retain_answers"]
    folder: Folder
    served: Mapping[str, tuple[str, ...]]  # as in `known_probes`
    holdout: Holdout
    names: tuple[str, ...] = ()  # of the topic; none: each row's subject

    def listed(self, name: str) -> Listed:
        """The rows of one of its files."""
        return Listed(lambda: self._held_out(name), lambda: self._trained(name))

    def _held_out(self, name: str) -> Iterator[Candidate]:
        for row in self._greedy(name, ("topic", "question", "answer")):
            if self._is_held_out(row):
                near = self.served.get(row["topic"], ())
                group: Group = "forget" if self.kind == "unguarded" else "near" if near else "far"
                yield Candidate(row["topic"], row["question"], group, near)

    def _trained(self, name: str) -> Iterator[tuple[str, str, str]]:
        for row in self._greedy(name, ("topic", "question", "answer")):
            if not self._is_held_out(row):
                yield row["topic"], row["question"], row["answer"]

    def _is_held_out(self, row: RowDict) -> bool:
        names = self.names or (row["topic"],)
        return self.holdout.side(row["topic"], row["question"], row["answer"], names) == "holdout"

    def _greedy(self, name: str, columns: Sequence[str]) -> Iterator[RowDict]:
        """The first answers. Retained questions have no others."""
        return (row for row in rows_of(self.folder, name, (*columns, "sample")) if not row["sample"])


def _of_user(given: Sequence[Example]) -> Listed:
    """The user's own rows."""

    def held_out() -> Iterator[Candidate]:
        for each in given:
            if each.split == "holdout" and not each.sample:
                near = (EVERY,) if each.group == "near" else ()
                yield Candidate(each.subject, each.question, each.group, near, truth=each.answer)

    def trained() -> Iterator[tuple[str, str, str]]:
        return ((each.subject, each.question, each.answer) for each in given if each.split == "train")

    return Listed(held_out, trained)


@dataclass(frozen=True, slots=True)
class _Ask:
    """Calls a method of `probing.Own` on one file of a table."""

    method: str
    arguments: tuple[object, ...]

    def __call__(self, part: tuple[_OwnTable, str]) -> Any:
        table, name = part
        return getattr(table.listed(name), self.method)(*self.arguments)


@dataclass(frozen=True, slots=True)
class _OnWorkers:
    """Implements `probing.Own` with one task per file, and with the user's rows, which are in memory."""

    generator: Generator
    tables: tuple[_OwnTable, ...]
    given: Listed

    def held_out(self, limits: Limits) -> list[Candidate]:
        found: list[Candidate] = []
        self._each("held_out", (limits,), found.extend)
        return chosen([*found, *self.given.held_out(limits)], limits)

    def trained_on(self, keys: frozenset[str]) -> set[str]:
        found = self.given.trained_on(keys)
        if keys:
            self._each("trained_on", (keys,), found.update)
        return found

    def taught(self, rows: Sequence[Judged], names: Names) -> frozenset[str]:
        found = set(self.given.taught(rows, names))
        self._each("taught", (rows, names), found.update)
        return frozenset(found)

    def _each(self, method: str, arguments: tuple[object, ...], take: Callable[[Any], object]) -> None:
        parts = [(table, name) for table in self.tables for name in table.folder.names(".parquet")]
        self.generator.each(_Ask(method, arguments), parts, take, label="dataset, own answers")
