"""Probes: read from a file with every mistake named, kept apart from the training data, capped by hash.

A probe file is JSONL or Parquet with the keys of `rows.Probe`; `topic`, `question` and `answer` are required.
"""

import difflib
import heapq
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal

from unlearn_ray.config import Topic, spellings
from unlearn_ray.errors import InputError
from unlearn_ray.reading import read_rows, says_nothing, shown
from unlearn_ray.rows import Group, Probe, Row, digest
from unlearn_ray.words import name_key, normalised

_REQUIRED = ("topic", "question", "answer")
_TEXTS = ("topic", "question", "answer", "fact", "wording", "split", "reference")
_LISTS = ("near", "aliases", "wrong")
_KNOWN = (*_TEXTS, *_LISTS, "id")
_ALIKE = 0.84  # difflib's ratio, from which a name looks like another one misspelt


class Excluded(StrEnum):
    """Why a probe is not asked."""

    TRAINED_ON = "trained_on"  # its question stands in the training rows
    DUPLICATE = "duplicate"
    CAPPED = "capped"  # beyond evaluate.max_probes
    GATE = "gate"  # the training's gate used its fact to choose the exported state


@dataclass(frozen=True, slots=True)
class PlacedProbe:
    """A probe with its group in this run and the topic whose prefix and adapter answer it."""

    probe: Probe
    group: Group
    served_topic: str


@dataclass(frozen=True, slots=True)
class ExcludedProbe(Row):
    """A probe that is not asked, with its reason."""

    topic: str
    question: str
    wording: str
    drop: str

    @property
    def id(self) -> str:
        return digest(self.topic, self.question)


@dataclass(frozen=True, slots=True)
class Selection:
    """The probes of an evaluation, and those left out."""

    kept: list[PlacedProbe]
    excluded: list[ExcludedProbe]

    def num_excluded(self) -> dict[str, int]:
        counts = Counter(probe.drop for probe in self.excluded)
        return {reason: counts[reason] for reason in sorted(counts)}

    def num_kept(self) -> dict[str, int]:
        counts = Counter(placed.group for placed in self.kept)
        return {group: counts[group] for group in ("forget", "near", "far")}


def read_probes(path: str) -> Iterator[Probe]:
    """Stream the probes of a .jsonl or .parquet file, on a disk or in s3:// or gs://.

    Raises:
        InputError: names the file, the line and the key.
    """
    return (probe for _, probe in numbered_probes(path))


def numbered_probes(path: str) -> Iterator[tuple[int, Probe]]:
    """Line number and probe, as `read_probes`, for messages about a line."""
    for line, row in read_rows(path, (".jsonl", ".parquet")):
        # A column that a row of Parquet has no value in is a null there.
        yield line, probe_of(f"{path}, line {line}", {key: value for key, value in row.items() if value is not None})


def with_topics(probes: Iterable[Probe], topics: Sequence[Topic]) -> Iterator[Probe]:
    """The probes, with the run's own name of each topic where their file has another spelling, slug or alias of it."""
    names = spellings(topics)

    def own(name: str) -> str:
        return names.get(name_key(name), name)

    for probe in probes:
        yield replace(probe, topic=own(probe.topic), near=tuple(own(name) for name in probe.near))


def near_misses(probes: Iterable[Probe], topics: Sequence[Topic]) -> list[str]:
    """What a plan and a report say of topics in a probe file that look like one of the run's, misspelt: their rows count as other topics'."""
    names = spellings(topics)
    found = []
    for name in dict.fromkeys(name for probe in probes for name in (probe.topic, *probe.near)):
        key = name_key(name)
        if key in names:
            continue
        # Another number is another thing: Part 2 is no misspelling of Part 3.
        alike = [other for other in names if re.findall(r"\d+", other) == re.findall(r"\d+", key)]
        if close := difflib.get_close_matches(key, alike, 1, _ALIKE):
            found.append(
                f"evaluate.probes: topic {shown(name)} is none of the run's; if it is {names[close[0]]!r}, write it so"
            )
    return found


def check_topics(
    probes: Iterable[Probe],
    topics: Sequence[str],
    split: Literal["tune", "report"],
    path: str,
    *,
    is_shipped: bool = False,
) -> None:
    """Refuse a probe file that asks nothing about a topic of the run, or nothing in the split that is asked.

    Args:
        is_shipped: it is a file of ours, to which a user adds nothing.

    Raises:
        InputError: names the topic and those that the file has, or the split.
    """
    found = Counter((probe.topic, probe.split) for probe in probes)
    names = Counter(name for name, _ in found.elements())
    for topic in topics:
        if topic not in names:
            listed = ", ".join(shown(name) for name, _ in names.most_common(6)) or "none"
            add = "give a file with some" if is_shipped else "add some"
            raise InputError(
                f"{path} has no probe about {topic!r} (its topics: {listed}): {add}, or leave evaluate.probes out to ask held-out questions"
            )
        if not found[topic, split]:
            other = "tune" if split == "report" else "report"
            add = "give a file with some" if is_shipped else "add some"
            raise InputError(
                f"{path} has no probe of split {split!r} about {topic!r}, only of {other!r}: {add}, or set evaluate.split to {other}"
            )


def trained_questions(probes: Iterable[Probe], training: Iterable[Mapping[str, Any]]) -> set[str]:
    """The normalised probe questions that stand among the training rows; streams the rows once."""
    asked = {normalised(probe.question) for probe in probes}
    return {question for row in training if (question := normalised(row["question"])) in asked}


def select_probes(
    probes: Iterable[Probe],
    topics: Sequence[str],
    split: Literal["tune", "report"],
    trained: set[str],
    max_probes: int | None,
    gated: Collection[str] = (),
) -> Selection:
    """The probes to ask: of one split, once each, none trained on, at most `max_probes` a group and wording.

    Args:
        trained: normalised questions of the training rows.
        gated: facts that the training's gate used.
    """
    excluded: list[ExcludedProbe] = []
    seen: set[str] = set()
    piles: dict[tuple[str, str], list[tuple[str, str, PlacedProbe]]] = {}
    for probe in probes:
        if probe.split != split:
            continue
        question = normalised(probe.question)
        if question in trained:
            excluded.append(_excluded(probe, Excluded.TRAINED_ON))
            continue
        if probe.fact_id in gated:
            excluded.append(_excluded(probe, Excluded.GATE))
            continue
        if question in seen:
            excluded.append(_excluded(probe, Excluded.DUPLICATE))
            continue
        seen.add(question)
        placed = place(probe, topics)
        pile = piles.setdefault((placed.group, probe.wording), [])
        # By the fact's hash first, so that a cap keeps the same facts in every wording.
        pile.append((digest("cap", probe.topic, probe.fact_id), probe.id, placed))

    kept = []
    for pile in piles.values():
        chosen = pile if max_probes is None else heapq.nsmallest(max_probes, pile, key=lambda item: item[:2])
        ids = {probe_id for _, probe_id, _ in chosen}
        kept += [placed for _, _, placed in chosen]
        excluded += [_excluded(placed.probe, Excluded.CAPPED) for _, probe_id, placed in pile if probe_id not in ids]
    return Selection(kept, excluded)


def place(probe: Probe, topics: Sequence[str]) -> PlacedProbe:
    """Which group a probe is in, and whose prefix and adapter answer it.

    A forget probe is its own topic's; a near probe that of a topic it neighbours; a far probe any topic's. Where
    several would do, a hash of the probe chooses: every topic gets its share, at the cost of one answer a probe.
    """
    group = probe.group_in(tuple(topics))
    candidates = {
        "forget": [probe.topic],
        "near": [topic for topic in topics if topic in probe.near],
        "far": list(topics),
    }[group]
    return PlacedProbe(probe, group, candidates[int(digest("served", probe.id), 16) % len(candidates)])


def wrong_references(probe: Probe) -> list[str]:
    """The wrong answers in the form of the reference, each once: where that holds the true answer, each stands in its place."""
    wrong = dict.fromkeys(probe.wrong)
    # A sentence may begin with the answer.
    for change in (str, _capitalised):
        if (answer := change(probe.answer)) in probe.reference:
            # As whole words, where the script has such: "Ron" is not in "patron".
            whole = re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)")
            place = whole if whole.search(probe.reference) else re.compile(re.escape(answer))
            return [place.sub(lambda _, text=change(other): text, probe.reference) for other in wrong]  # type: ignore[misc]
    return list(wrong)


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def probe_of(where: str, row: dict[str, Any]) -> Probe:
    """The probe that a row of a file is.

    Raises:
        InputError: names the place and the key.
    """
    for key in row:
        if key not in _KNOWN:
            near = difflib.get_close_matches(key, _KNOWN, 1)
            raise InputError(
                f"{where}: unknown key {shown(key)}: {f'did you mean {near[0]!r}?' if near else 'valid keys: ' + ', '.join(_KNOWN)}"
            )
    for key in _TEXTS:
        value = row.get(key, "x" if key not in _REQUIRED else "")
        if not isinstance(value, str):
            raise InputError(f"{where}: {key} must be a text, not {type(value).__name__}")
        if key in _REQUIRED and says_nothing(value):
            raise InputError(f"{where}: {key} is missing or empty")
    for key in _LISTS:
        values = row.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise InputError(f"{where}: {key} must be a list of texts")
    if row.get("split", "report") not in {"tune", "report"}:
        raise InputError(f"{where}: split must be tune or report (it is {shown(row['split'])})")
    truths = {normalised(text) for text in (row["answer"], row.get("reference", ""), *row.get("aliases", ())) if text}
    if told := next((text for text in row.get("wrong", ()) if normalised(text) in truths), None):
        raise InputError(f"{where}: wrong has the true answer, {shown(told)}: leave it out")
    return Probe.of(row | {key: tuple(row.get(key, ())) for key in _LISTS})


def _excluded(probe: Probe, reason: Excluded) -> ExcludedProbe:
    return ExcludedProbe(probe.topic, probe.question, probe.wording, reason)
