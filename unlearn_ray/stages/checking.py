"""Counts a run's data, and checks them before a model is trained on them. synth/enough.py has the floors and their reasons."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import RunConfig, Topic
from unlearn_ray.engines.protocols import Generator
from unlearn_ray.errors import ConfigError
from unlearn_ray.evals.probes import read_probes, with_topics
from unlearn_ray.rows import GROUPS, Probe
from unlearn_ray.stages.dataset_rows import FindTouched
from unlearn_ray.stages.questions import user_questions
from unlearn_ray.stages.retaining import user_retained
from unlearn_ray.stages.spans import Table, spans_of
from unlearn_ray.stages.stage import Unit, finished_manifest, topic_of
from unlearn_ray.synth.enough import Data, Shortfall, TopicData, Written, impossible, most_retained, shortfalls


def counted(topic: Topic, entities: Folder, answers: Folder, num_forget: int, generator: Generator) -> dict[str, int]:
    """The counts in a dataset's manifest, for `topic_shortfalls`.

    Args:
        entities: rows of naming.Name, of the questions stage.
        answers: the folder of that stage.
        num_forget: forget rows to train on.
    """
    names = (row["name"] for row in entities.read_rows(["name", "drop"]) if not row["drop"])
    belonging = tuple(dict.fromkeys([*topic.terms, *names]))
    tables, touched = tuple(Table.of(answers / name) for name in ("rows", "unguarded")), set[str]()
    if belonging:
        find = FindTouched(tables, belonging)
        generator.each(find, spans_of(tables[0]), touched.update, label="dataset, what is touched")
    return {"forget": num_forget, "entities": len(belonging), "touched": len(touched)}


def met(topics: Sequence[Topic], mixture: Folder) -> dict[str, Any]:
    """The counts in a mixture's manifest, for `model_shortfalls`: training rows to retain per topic, and probes by group."""
    names = tuple(topic.name for topic in topics)
    retain, probes = Counter[str](), Counter[str]()
    for (topic, split), number in (mixture / "retain").counts(["topic", "split"]).items():
        retain[topic] += number if split == "train" else 0
    for row in (mixture / "probes").read_rows(["topic", "near"]):
        probe = Probe(row["topic"], "", "", near=tuple(row["near"] or ()))
        probes[probe.group_in(names)] += 1
    return {"retain": {name: retain[name] + retain[""] for name in names}, "probes": dict(probes)}


def topic_shortfalls(unit: Unit) -> list[Shortfall]:
    """The floors that a topic's own data miss. Its data stages must be finished.

    Raises:
        ArtifactError: a data stage is unfinished.
    """
    config, topic = unit.config, unit.topic
    questions, answers, dataset = (finished_manifest(unit.home / name) for name in ("questions", "answers", "dataset"))
    found = dataset.details["topic"]
    num_kept = questions.num_rows["kept"]
    written = {
        "questions": Written(num_kept, questions.drops, config.questions.num_questions),
        "guarded answers": Written(answers.num_rows["kept"], answers.drops, num_kept * config.answers.num_samples),
    }
    data = Data([TopicData(topic.name, found["forget"], 0, found["entities"], found["touched"])], written, {})
    thin = shortfalls(data, config.dataset.floors, retains=False)
    if len(config.topics) == 1:
        return thin
    return [
        replace(each, finding=f"{each.finding} of {topic.name!r}") if each.floor == "kept" else each for each in thin
    ]


def model_shortfalls(unit: Unit) -> list[Shortfall]:
    """The floors that what a model is to retain, and its probes, do not reach; its mixture is finished.

    Raises:
        ArtifactError: it is not.
        InputError: the file of probes can't be used.
    """
    config = unit.config
    mixture, general = finished_manifest(unit.home / "mixture"), finished_manifest(config.pool_folder / "general")
    datasets = {
        topic.name: finished_manifest(config.folder / "topics" / topic.slug / "dataset") for topic in unit.topics
    }
    # A topic's forget rows were checked after its dataset stage.
    no_floor = {"forget_rows": 0}
    topics = [
        TopicData(
            topic.name,
            datasets[topic.name].details["topic"]["forget"],
            mixture.details["retain"][topic.name],
            0,
            0,
            unit.base.of_topic(topic).dataset.floors.model_copy(update=no_floor),
        )
        for topic in unit.topics
    ]
    written: dict[str, Written] = {}
    if config.dataset.retain.file is None:
        found = [each.details for each in (*datasets.values(), general)]
        lost = {name: Counter[str]() for name in ("questions", "answers")}
        for details in found:
            for name, drops in lost.items():
                drops.update(details["retain_drops"][name])
        lost["answers"].update(mixture.details["retain_drops"])
        num_asked = sum(details["retain_asked"] for details in found)
        num_kept = sum(details["retain_kept"]["questions"] for details in found)
        written["questions to retain"] = Written(num_kept, lost["questions"], num_asked)
        written["answers to retain"] = Written(mixture.details["retain_kept"], lost["answers"], num_kept)
    data = Data(topics, written, _num_probes(config, unit.topics, mixture.details["probes"]))
    floors = config.dataset.floors.model_copy(update=no_floor)
    return shortfalls(data, floors, retains=config.finetune.retain.kind != "none")


def shortfalls_of(unit: Unit) -> list[Shortfall]:
    """All floors that the data of a model miss.

    Raises:
        ArtifactError: its mixture is unfinished.
        InputError: the file of probes can't be used.
    """
    topics = (topic_of(unit.base, topic, unit.model) for topic in unit.topics)
    return [*(each for topic in topics for each in topic_shortfalls(topic)), *model_shortfalls(unit)]


def known_shortfalls(config: RunConfig) -> list[Shortfall]:
    """The floors that the run can't reach, because its config requests too little. They are known before it begins.

    Raises:
        InputError: the file of questions can't be used.
    """
    num_questions = Counter(row["topic"] for row in user_questions(config.questions, config.topics))
    return impossible(config, num_questions)


def retains_nothing(config: RunConfig) -> Iterator[str]:
    """Notes, before a run begins, on models with a retain term that will have no retain rows.

    Raises:
        ConfigError: the objective makes no sense without a retain term.
        InputError: the file of retain rows can't be used.
    """
    if not config.finetune.retains:
        return
    rows = config.dataset.retain
    if rows.file is not None:
        if any(row.split == "train" for row in user_retained(config.dataset)):
            return
        what = f"{rows.file} has none to train on (dataset.retain.file): add rows, or lower dataset.holdout_fraction"
    else:
        most = [
            most_retained(config.of_topic(topic), topic, config.dataset.holdout_fraction) for topic in config.topics
        ]
        is_empty = all if config.finetune.adapters == "joint" else any
        if not is_empty(number == 0 for number in most):
            return
        what = "the config requests none: raise dataset.retain.num_neighbours or num_general"
    kind = config.finetune.retain.kind
    if config.finetune.objective.kind == "grad_diff":
        raise ConfigError(f"finetune.objective: grad_diff needs retain rows, and {what}")
    yield f"finetune.retain: {kind} has no rows to retain, so nothing protects the model's other knowledge: {what}, or set finetune.retain.kind: none"


def _num_probes(config: RunConfig, topics: Sequence[Topic], made: Mapping[str, int]) -> dict[str, int]:
    """Number of probes by group that the evaluation will ask. Groups that should have probes are included with 0."""
    path, rows = config.evaluate.probes_path, config.dataset.retain
    if path is not None:
        names = tuple(topic.name for topic in topics)
        asked = (
            probe for probe in with_topics(read_probes(path), config.topics) if probe.split == config.evaluate.split
        )
        found = Counter[str](probe.group_in(names) for probe in asked)
        return {group: found[group] for group in GROUPS if group == "forget" or found[group]}
    wanted = {
        "near": rows.file is None and (rows.num_neighbours or any(topic.neighbours for topic in topics)),
        "far": rows.file is None and (rows.num_general or rows.general),
    }
    found = Counter(made)
    return {group: found[group] for group in GROUPS if group == "forget" or found[group] or wanted[group]}
