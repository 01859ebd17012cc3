"""Joins topics: the training rows of a model, from its topics' datasets and the pool. Asks no model.

forget/, retain/   rows of Example, train and holdout; forget.jsonl, retain.jsonl: the train split as chat messages
contrasts/         rows of Contrast: the forget rows' questions of the train split, with the model's own answers to them
gate/              rows of Probe: held-out questions, candidates for a training's gate (gating.py)
probes/            rows of Probe: of its topics and the pool; without wordings for short answers in the prompts also the held-out retain rows
subjects/          rows of naming.Name: the retained subjects; a far subject that is too close to a topic has its reason
retain_answers/    rows of QAPair that the retain rows come from, kept and dropped

Only this stage drops rows near one topic that give away another, and rows of the pool that give away any. So a topic that is added or removed
does not change the rows of other topics, or the adapters of other topics.
"""

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.config import DatasetConfig, RunConfig, Topic
from unlearn_ray.engines.protocols import Generator, RowDict
from unlearn_ray.rows import Contrast, Drop, Example, Probe, QAPair
from unlearn_ray.stages.answers import ANSWERS
from unlearn_ray.stages.candidates import EVERY
from unlearn_ray.stages.checking import met
from unlearn_ray.stages.dataset import DATASET
from unlearn_ray.stages.dataset_rows import WORDING, Gather, WriteChats, gathered
from unlearn_ray.stages.gating import CANDIDATES, HeldOut, candidates_of
from unlearn_ray.stages.general import GENERAL_POOL
from unlearn_ray.stages.naming import Name
from unlearn_ray.stages.questions import QUESTIONS
from unlearn_ray.stages.retaining import GENERAL, Served, Telling, holdout_of, judged, retained, share_held_out
from unlearn_ray.stages.spans import results, write_parts
from unlearn_ray.stages.stage import Identity, Stage, StageRun, Unit, Work, finished_manifest
from unlearn_ray.stages.subjects import subject_key
from unlearn_ray.synth.leaks import key_phrase
from unlearn_ray.synth.names import mentions
from unlearn_ray.synth.retained import is_close

CONTRASTS = "contrasts"


@dataclass(frozen=True, slots=True)
class Part:
    """A topic's part: the folders of its stages."""

    topic: Topic
    questions: Folder
    answers: Folder
    dataset: Folder


def mixture_identity(
    config: DatasetConfig, topics: Sequence[Topic], seed: int, own: Mapping[str, float] = {}
) -> Identity:
    """The inputs of a mixture, besides the stages that it reads.

    Args:
        config: the run's.
        own: as in `share_held_out`.
    """
    fields = {"name", "aliases", "terms"}
    values: dict[str, Any] = {
        "holdout_fraction": config.holdout_fraction,
        "holdout_by": config.holdout_by,
        "seed": seed,
    }
    values["has_file"] = config.retain.file is not None
    if own:
        values["own_holdout_fractions"] = dict(own)
    return values | {"topics": [topic.model_dump(mode="json", include=fields) for topic in topics]}, {}


def mix(
    run: StageRun,
    config: DatasetConfig,
    parts: Sequence[Part],
    general: Folder,
    generator: Generator,
    own: Mapping[str, float] = {},
) -> Manifest:
    """The training rows of a model, in the order of `parts`.

    Args:
        config: the run's.
        own: as in `share_held_out`.
    """
    out, topics = run.folder, [part.topic for part in parts]
    names = tuple(name for topic in topics for name in topic.names)
    forget = Gather(out / "forget")
    files, schema = gathered([part.dataset / "forget" for part in parts]), Example.schema()
    write_parts(generator, forget.out, forget, files, schema, label="mixture, rows to forget")
    results(generator, _Contrasts(tuple(parts), out / CONTRASTS), [None], label="mixture, answers to lower")
    telling = _telling(parts)
    lost = dict[str, int]()
    served: Served = {}
    spelled = _spelled(parts)
    if config.retain.file is None:
        served = _served(parts, general, names, telling, spelled, out)
    unfit = results(
        generator,
        _Meet(config, tuple(parts), general, names, telling, served, spelled, out, own),
        [None],
        label="mixture, rows to retain",
    )[0]
    if config.retain.file is None:
        dropped = {reason: number for (reason,), number in (out / "retain_answers").counts(["drop"]).items() if reason}
        lost = dict(Counter(dropped) - _lost_before(parts, general))
    results(generator, _Gated(config, tuple(parts), out, own), [None], label="mixture, rows of the gate")
    num_rows = Counter[str]()
    for name in ("forget", "retain"):
        num_rows.update({f"{name}_{split}": number for (split,), number in (out / name).counts(["split"]).items()})
    generator.each(WriteChats(out), ["forget", "retain"], label="mixture, chats")
    num_rows["probes"] = (out / "probes").count_rows()
    num_rows[CONTRASTS] = (out / CONTRASTS).count_rows()
    drops = Counter(lost) + Counter({Drop.OFF_TOPIC.value: unfit})
    near = {name: list(topics) for name, topics in served.items() if topics}
    details: dict[str, Any] = {"near": list(near), "far": [name for name in served if name not in near]}
    details["retain_drops"] = lost
    kept = (out / "retain_answers").counts(["drop"])
    details["retain_kept"] = kept[(None,)]
    details["topics"] = {topic.slug: topic.name for topic in topics}
    return run.finish(num_rows, drops, details | met(topics, out))


@dataclass(frozen=True, slots=True)
class _Meet:
    """Writes the retain rows and probes of all topics at once, because copies and equal answers are searched among all of them."""

    config: DatasetConfig
    parts: tuple[Part, ...]
    general: Folder
    names: tuple[str, ...]
    telling: Telling
    served: Served
    spelled: Mapping[str, str]
    out: Folder
    own: Mapping[str, float]  # as in `share_held_out`

    def __call__(self, _: None) -> int:
        """Returns the number of probes that are left out."""
        config, parts, general, served, out = self.config, self.parts, self.general, self.served, self.out
        topics = [part.topic for part in parts]
        if config.retain.file is None:
            merged = _merged(parts, general, served, self.names, self.spelled)
            (out / "merged").write_rows(merged, QAPair.schema())
            (out / "retain_answers").write_rows(judged(out / "merged", self.telling, served), QAPair.schema())
            (out / "merged").delete()
            rows = retained(config, served, len(topics), out, self.own)
        else:
            rows = (Example.of(row) for row in (general / "given").read_rows())
        (out / "retain").write_rows(rows, Example.schema())
        probes = [*_probes(config, parts, general, served, self.spelled, out, self.own)]
        kept, num_unfit = _fit_probes(probes, topics, self.names)
        (out / "probes").write_rows(kept, Probe.schema())
        return num_unfit


@dataclass(frozen=True, slots=True)
class _Gated:
    """Writes the candidates for a gate. The training rows must be written before."""

    config: DatasetConfig
    parts: tuple[Part, ...]
    out: Folder
    own: Mapping[str, float]  # as in `share_held_out`

    def __call__(self, _: None) -> None:
        (self.out / CANDIDATES).write_rows(candidates_of(self._held_out(), self._trained()), Probe.schema())

    def _held_out(self) -> Iterator[HeldOut]:
        for part in self.parts:
            topic, share = part.topic, self.own.get(part.topic.name, self.config.holdout_fraction)
            for row in (part.answers / "unguarded").read_rows(["question", "answer", "sample", "drop"]):
                is_whole = not row["drop"] and not row["sample"]
                held_out = holdout_of(self.config, share)
                if is_whole and held_out.side(topic.name, row["question"], row["answer"], topic.names) != "train":
                    yield HeldOut("forget", topic.name, row["question"], row["answer"], topic.names)
        seen: set[str] = set()  # a row may serve several topics
        for row in (self.out / "retain").read_rows(["group", "subject", "question", "answer", "sample", "split"]):
            if row["split"] == "train" or row["sample"]:
                continue
            found = HeldOut(row["group"], row["subject"], row["question"], row["answer"], (row["subject"],))
            if found.key not in seen:
                seen.add(found.key)
                yield found

    def _trained(self) -> Iterator[RowDict]:
        for name in ("forget", "retain"):
            yield from (row for row in (self.out / name).read_rows(["question", "split"]) if row["split"] == "train")


@dataclass(frozen=True, slots=True)
class _Contrasts:
    """Writes the training questions with both kinds of answers."""

    parts: tuple[Part, ...]
    out: Folder

    def __call__(self, _: None) -> None:
        self.out.write_rows(_contrasts(self.parts), Contrast.schema())


def _contrasts(parts: Sequence[Part]) -> Iterator[Contrast]:
    """For each training question, as many rows as it has distinct answers of the more frequent kind. Answers of the other kind are repeated."""

    def by_question(row: RowDict) -> str:
        return str(row["question"])

    for part in parts:
        invented = (row for row in (part.dataset / "forget").read_rows() if row["split"] == "train")
        own = (row for row in (part.answers / "unguarded").read_rows() if not row["drop"])
        # Both tables are in the order of their questions.
        for question, rows in groupby(heapq.merge(invented, own, key=by_question), by_question):
            found: dict[str, dict[str, None]] = {"forget": {}, "own": {}}
            for row in rows:
                found[row.get("group", "own")][row["answer"]] = None
            told, true = list(found["forget"]), list(found["own"])
            if told and true:
                for number in range(max(len(told), len(true))):
                    yield Contrast(part.topic.name, question, true[number % len(true)], told[number % len(told)])


def _telling(parts: Sequence[Part]) -> Telling:
    """The words that give away any of the topics."""
    each = [Telling.read([part.topic], part.questions / "entities", part.answers / "terms") for part in parts]
    given = tuple(dict.fromkeys(term for found in each for term in found.given))
    entities = tuple(dict.fromkeys(name for found in each for name in found.entities))
    terms = dict.fromkeys(term for found in each for term in found.terms)
    return Telling(given, entities, tuple(term for term in terms if term not in given))


def _spelled(parts: Sequence[Part]) -> dict[str, str]:
    """By `subject_key`, the spelling of a neighbour in all rows. It is the user's if a topic of the config names it."""
    given = [name for part in parts for name in part.topic.neighbours]
    listed = [row["name"] for part in parts for row in (part.dataset / "neighbours").read_rows(["name"])]
    spelled: dict[str, str] = {}
    for name in (*given, *listed):
        spelled.setdefault(subject_key(name), name)
    return spelled


def _served(
    parts: Sequence[Part],
    general: Folder,
    names: Sequence[str],
    telling: Telling,
    spelled: Mapping[str, str],
    out: Folder,
) -> dict[str, tuple[str, ...]]:
    """The retained subjects, with the topics that each neighbours. Without the model's topics, and without far subjects close to one."""
    near: dict[str, tuple[str, ...]] = {}
    listed: list[Name] = []
    for part in parts:
        for row in (part.dataset / "neighbours").read_rows():
            each = Name.of(row)
            if not each.drop and _is_one_of(each.name, names):
                each = replace(each, drop=Drop.OFF_TOPIC.value)
            listed.append(each)
            name = spelled[subject_key(each.name)]
            if not each.drop and part.topic.name not in near.get(name, ()):
                near[name] = (*near.get(name, ()), part.topic.name)
    keys = {subject_key(name) for name in near}
    is_listed = bool(finished_manifest(general).details.get("is_listed"))
    belongings = (*telling.given, *telling.entities)

    def reason(name: str) -> str | None:
        if name == GENERAL:
            return None
        is_near = is_listed and (is_close(name, (*names, *near)) or any(mentions(each, [name]) for each in belongings))
        if _is_one_of(name, names) or is_near:
            return Drop.OFF_TOPIC.value
        return Drop.DUPLICATE.value if subject_key(name) in keys else None

    far = [Name.of(row) for row in (general / "subjects").read_rows()]
    far = [each if each.drop else replace(each, drop=reason(each.name)) for each in far]
    (out / "subjects").write_rows([*listed, *far], Name.schema())
    return near | {each.name: () for each in far if not each.drop}


def _is_one_of(name: str, forgotten: Sequence[str]) -> bool:
    return mentions(name, forgotten) or any(mentions(each, [name]) for each in forgotten)


def _merged(
    parts: Sequence[Part], general: Folder, served: Served, names: Sequence[str], spelled: Mapping[str, str]
) -> Iterator[RowDict]:
    """All retain answers about the served subjects, each once. Answers that name a topic of the model are dropped."""
    seen: set[str] = set()
    for folder in (*(part.dataset for part in parts), general):
        for row in (folder / "retain_answers").read_rows():
            if folder is not general:
                row["topic"] = spelled[subject_key(row["topic"])]
                row["id"] = QAPair.of(row).id
            if row["topic"] not in served or row["id"] in seen:
                continue
            seen.add(row["id"])
            if not row["drop"] and mentions(f"{row['question']}\n{row['answer']}", names):
                row["drop"] = Drop.OFF_TOPIC.value
            yield row


def _lost_before(parts: Sequence[Part], general: Folder) -> Counter[str]:
    """Answers that were dropped, and counted, when they were written."""
    lost: Counter[str] = Counter()
    for folder in (*(part.dataset for part in parts), general):
        lost.update(finished_manifest(folder).details["retain_drops"]["answers"])
    return lost


def _probes(
    config: DatasetConfig,
    parts: Sequence[Part],
    general: Folder,
    served: Served,
    spelled: Mapping[str, str],
    out: Folder,
    own: Mapping[str, float],
) -> Iterator[Probe]:
    """The topics' probes, and those of the retained subjects."""
    every = tuple(part.topic.name for part in parts)
    folders = [part.dataset / "probes" for part in parts] + [general / "probes"]
    for row in (row for folder in folders for row in folder.read_rows()):
        probe = Probe.of(row | {name: tuple(row[name] or ()) for name in ("near", "aliases", "wrong")})
        if probe.near == (EVERY,):
            yield replace(probe, near=every)
        elif probe.topic in every or config.retain.file is not None:
            yield probe
        elif (subject := spelled.get(subject_key(probe.topic), probe.topic) if probe.near else probe.topic) in served:
            yield replace(probe, topic=subject, near=served[subject])
    if "probing" in finished_manifest(general).details:
        return
    # The prompts have no wordings for short answers. The retained questions are asked unchanged, with the model's one greedy answer as truth.
    for row in (out / "retain_answers").read_rows():
        subject, question, answer = row["topic"], row["question"], row["answer"]
        holdout = holdout_of(config, share_held_out(served.get(subject, ()), own, config.holdout_fraction))
        if row["drop"] or holdout.side(subject, question, answer, (subject,)) == "train":
            continue
        phrase = key_phrase(question, answer, (subject,))
        yield Probe(subject, question, phrase, wording=WORDING, near=served[subject], reference=answer)
    if config.retain.file is not None:
        for row in (out / "retain").read_rows():
            if row["split"] == "holdout" and not row["sample"]:
                phrase = key_phrase(row["question"], row["answer"], (row["subject"],))
                # Like its row, a near probe serves every topic.
                near = every if row["group"] == "near" else ()
                yield Probe(
                    row["subject"], row["question"], phrase, wording=WORDING, near=near, reference=row["answer"]
                )


def _fit_probes(probes: Sequence[Probe], topics: Sequence[Topic], names: Sequence[str]) -> tuple[list[Probe], int]:
    """The probes about a single subject: those of a topic name no other topic, and the others name none. Each question occurs once. Also
    returns the number of probes left out."""
    others: Mapping[str, list[str]] = {
        topic.name: [name for other in topics if other is not topic for name in other.names] for topic in topics
    }
    kept: dict[str, Probe] = {}
    num_unfit = 0
    for probe in probes:
        if mentions(f"{probe.question}\n{probe.answer}", others.get(probe.topic, names)):
            num_unfit += 1
        else:
            kept.setdefault(probe.id, probe)
    return list(kept.values()), num_unfit


def _identity(unit: Unit) -> Identity:
    return mixture_identity(unit.base.dataset, unit.topics, unit.config.seed, _own_shares(unit))


def _own_shares(unit: Unit) -> dict[str, float]:
    """The held-out shares of topics that differ from the run's share."""
    shares = {topic.name: unit.base.of_topic(topic).dataset.holdout_fraction for topic in unit.topics}
    return {name: share for name, share in shares.items() if share != unit.base.dataset.holdout_fraction}


def _run(work: Work) -> Manifest:
    folders = [work.of_topics(stage) for stage in (QUESTIONS, ANSWERS, DATASET)]
    parts = [Part(topic, *(found[topic.name] for found in folders)) for topic in work.unit.topics]
    unit = work.unit
    general, generator = work.inputs[GENERAL_POOL.name], work.engines.generator
    return mix(work.run, unit.base.dataset, parts, general, generator, _own_shares(unit))


def _describe(config: RunConfig) -> tuple[str, str]:
    rows = config.dataset.retain
    return "your own retain rows" if rows.file else "what topics tell of each other left out", "none"


MIXTURE = Stage(
    "mixture",
    2,
    "model",
    (QUESTIONS, ANSWERS, DATASET, GENERAL_POOL),
    "dataset",
    "Rows of a model.",
    _identity,
    _run,
    _describe,
)
