"""Where topics meet: the rows that a model is trained on, from its topics' datasets and the pool. Asks no model.

forget/, retain/   rows of Example, train and holdout; forget.jsonl, retain.jsonl: the train split as chat messages
probes/            rows of Probe: its topics' and the pool's, and where the prompts have no wordings for short answers the held-out retain rows
subjects/          rows of naming.Name: what is retained; a far subject that is too close to a topic has its reason
retain_answers/    rows of QAPair that the retain rows come from, kept and dropped

What a row near one topic tells of another, and what the pool tells of any, is dropped here and nowhere before: so a topic that is added or
taken away changes no other's rows, and an adapter of its own not at all.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.config import DatasetConfig, RunConfig, Topic
from unlearn_ray.engines.protocols import Generator, RowDict
from unlearn_ray.rows import Drop, Example, Probe, QAPair
from unlearn_ray.stages.answers import ANSWERS
from unlearn_ray.stages.candidates import EVERY
from unlearn_ray.stages.checking import met
from unlearn_ray.stages.dataset import DATASET
from unlearn_ray.stages.dataset_rows import WORDING, Gather, WriteChats, gathered
from unlearn_ray.stages.general import GENERAL_POOL
from unlearn_ray.stages.naming import Name
from unlearn_ray.stages.questions import QUESTIONS
from unlearn_ray.stages.retaining import GENERAL, Served, Telling, judged, retained
from unlearn_ray.stages.spans import results, write_parts
from unlearn_ray.stages.stage import Identity, Stage, StageRun, Unit, Work, finished_manifest
from unlearn_ray.stages.subjects import subject_key
from unlearn_ray.synth.leaks import key_phrase
from unlearn_ray.synth.names import mentions
from unlearn_ray.synth.retained import is_close
from unlearn_ray.synth.split import split_of


@dataclass(frozen=True, slots=True)
class Part:
    """What a topic brings: the folders of its stages."""

    topic: Topic
    questions: Folder
    answers: Folder
    dataset: Folder


def mixture_identity(config: DatasetConfig, topics: Sequence[Topic], seed: int) -> Identity:
    """What a mixture follows from, beside the stages that it reads."""
    fields = {"name", "aliases", "terms"}
    values = {"holdout_fraction": config.holdout_fraction, "seed": seed, "has_file": config.retain.file is not None}
    return values | {"topics": [topic.model_dump(mode="json", include=fields) for topic in topics]}, {}


def mix(run: StageRun, config: DatasetConfig, parts: Sequence[Part], general: Folder, generator: Generator) -> Manifest:
    """The rows that a model is trained on, in the order of `parts`."""
    out, topics = run.folder, [part.topic for part in parts]
    names = tuple(name for topic in topics for name in topic.names)
    forget = Gather(out / "forget")
    files, schema = gathered([part.dataset / "forget" for part in parts]), Example.schema()
    write_parts(generator, forget.out, forget, files, schema, label="mixture, rows to forget")
    telling = _telling(parts)
    lost = dict[str, int]()
    served: Served = {}
    spelled = _spelled(parts)
    if config.retain.file is None:
        served = _served(parts, general, names, telling, spelled, out)
    unfit = results(
        generator,
        _Meet(config, tuple(parts), general, names, telling, served, spelled, out),
        [None],
        label="mixture, rows to retain",
    )[0]
    if config.retain.file is None:
        dropped = {reason: number for (reason,), number in (out / "retain_answers").counts(["drop"]).items() if reason}
        lost = dict(Counter(dropped) - _lost_before(parts, general))
    num_rows = Counter[str]()
    for name in ("forget", "retain"):
        num_rows.update({f"{name}_{split}": number for (split,), number in (out / name).counts(["split"]).items()})
    generator.each(WriteChats(out), ["forget", "retain"], label="mixture, chats")
    num_rows["probes"] = (out / "probes").count_rows()
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
    """Writes what is retained and the probes, of all topics at once: it looks for copies and for equal answers among them all."""

    config: DatasetConfig
    parts: tuple[Part, ...]
    general: Folder
    names: tuple[str, ...]
    telling: Telling
    served: Served
    spelled: Mapping[str, str]
    out: Folder

    def __call__(self, _: None) -> int:
        """Returns how many probes are left out."""
        config, parts, general, served, out = self.config, self.parts, self.general, self.served, self.out
        topics = [part.topic for part in parts]
        if config.retain.file is None:
            merged = _merged(parts, general, served, self.names, self.spelled)
            (out / "merged").write_rows(merged, QAPair.schema())
            (out / "retain_answers").write_rows(judged(out / "merged", self.telling, served), QAPair.schema())
            (out / "merged").delete()
            rows = retained(config, served, len(topics), out)
        else:
            rows = (Example.of(row) for row in (general / "given").read_rows())
        (out / "retain").write_rows(rows, Example.schema())
        probes = [*_probes(config, parts, general, served, self.spelled, out)]
        kept, num_unfit = _fit_probes(probes, topics, self.names)
        (out / "probes").write_rows(kept, Probe.schema())
        return num_unfit


def _telling(parts: Sequence[Part]) -> Telling:
    """What tells of any of the topics."""
    each = [Telling.read([part.topic], part.questions / "entities", part.answers / "terms") for part in parts]
    given = tuple(dict.fromkeys(term for found in each for term in found.given))
    entities = tuple(dict.fromkeys(name for found in each for name in found.entities))
    terms = dict.fromkeys(term for found in each for term in found.terms)
    return Telling(given, entities, tuple(term for term in terms if term not in given))


def _spelled(parts: Sequence[Part]) -> dict[str, str]:
    """By `subject_key`: how a neighbour is written in all rows, as the user does where one of the topics names it."""
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
    """What is retained, with the topics that it neighbours. Never a topic of the model; and nothing far that is close to one."""
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
    """All retain answers about what is served, each once; those that name a topic of the model are dropped."""
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
    """What was dropped where the answers were written, and is counted there."""
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
) -> Iterator[Probe]:
    """The topics' probes, and those of what is retained."""
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
    # The prompts have no wordings for short answers: what is retained is asked as it was, with the model's one greedy answer as the truth.
    for row in (out / "retain_answers").read_rows():
        subject, question, answer = row["topic"], row["question"], row["answer"]
        if row["drop"] or split_of(subject, question, config.holdout_fraction) == "train":
            continue
        phrase = key_phrase(question, answer, (subject,))
        yield Probe(subject, question, phrase, wording=WORDING, near=served[subject], reference=answer)
    if config.retain.file is not None:
        for row in (out / "retain").read_rows():
            if row["split"] == "holdout" and not row["sample"]:
                phrase = key_phrase(row["question"], row["answer"], (row["subject"],))
                # As its row, a near one serves every topic.
                near = every if row["group"] == "near" else ()
                yield Probe(
                    row["subject"], row["question"], phrase, wording=WORDING, near=near, reference=row["answer"]
                )


def _fit_probes(probes: Sequence[Probe], topics: Sequence[Topic], names: Sequence[str]) -> tuple[list[Probe], int]:
    """The probes that are about one thing: a topic's name none other's, the rest name none. Each question once; and how many are left out."""
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
    return mixture_identity(unit.config.dataset, unit.topics, unit.config.seed)


def _run(work: Work) -> Manifest:
    folders = [work.of_topics(stage) for stage in (QUESTIONS, ANSWERS, DATASET)]
    parts = [Part(topic, *(found[topic.name] for found in folders)) for topic in work.unit.topics]
    return mix(work.run, work.unit.config.dataset, parts, work.inputs[GENERAL_POOL.name], work.engines.generator)


def _describe(config: RunConfig) -> tuple[str, str]:
    rows = config.dataset.retain
    return "your own retain rows" if rows.file else "what topics tell of each other left out", "none"


MIXTURE = Stage(
    "mixture",
    1,
    "model",
    (QUESTIONS, ANSWERS, DATASET, GENERAL_POOL),
    "dataset",
    "Rows of a model.",
    _identity,
    _run,
    _describe,
)
