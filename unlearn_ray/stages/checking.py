"""A run counts its own data, and checks them before a model is trained on them. The floors, and why: synth/enough.py."""

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import RunConfig, Topic
from unlearn_ray.evals.probes import read_probes, with_topics
from unlearn_ray.rows import GROUPS, Probe
from unlearn_ray.stages.questions import user_questions
from unlearn_ray.stages.stage import finished_manifest
from unlearn_ray.synth.enough import Data, Shortfall, TopicData, Written, impossible, shortfalls
from unlearn_ray.synth.names import mentions


def counted(topics: Sequence[Topic], entities: Folder, answers: Folder, dataset: Folder) -> dict[str, Any]:
    """What a dataset's manifest says of its rows, for `shortfalls_of`: by topic, and probes by group.

    Args:
        entities: rows of naming.Name, of the questions stage.
        answers: of the stage of that name.
    """
    names = tuple(topic.name for topic in topics)
    forget, retain = Counter[str](), Counter[str]()
    belonging = {topic.name: dict.fromkeys(topic.terms) for topic in topics}
    for row in entities.read_rows(["topic", "name", "drop"]):
        if row["topic"] in belonging and not row["drop"]:
            belonging[row["topic"]][row["name"]] = None
    untouched = {topic: set(found) for topic, found in belonging.items()}
    for topic, text in _kept_texts(answers):
        left = untouched[topic]
        left -= {name for name in left if mentions(text, (name,))}
    for row in (dataset / "forget").read_rows(["topic", "split"]):
        forget[row["topic"]] += row["split"] == "train"
    for row in (dataset / "retain").read_rows(["topic", "split"]):
        retain[row["topic"]] += row["split"] == "train"
    probes = Counter[str]()
    for row in (dataset / "probes").read_rows(["topic", "near"]):
        probe = Probe(row["topic"], "", "", near=tuple(row["near"] or ()))
        probes[probe.group_in(names)] += 1
    return {
        "topics": {
            name: {
                "forget": forget[name],
                "retain": retain[name] + retain[""],
                "entities": len(belonging[name]),
                "touched": len(belonging[name]) - len(untouched[name]),
            }
            for name in names
        },
        "probes": dict(probes),
    }


def _kept_texts(answers: Folder) -> Iterator[tuple[str, str]]:
    """Of each question with a kept answer its topic, and the question with its answers: the model's own tell what it asks for."""

    def by_question(row: Mapping[str, Any]) -> tuple[str, str]:
        return row["topic"], row["question"]

    columns = ["topic", "question", "answer", "guarded", "drop"]
    both = ((answers / name).read_rows(columns) for name in ("rows", "unguarded"))  # each in the order of its questions
    for (topic, question), rows in groupby(heapq.merge(*both, key=by_question), by_question):
        kept = [row for row in rows if not row["drop"]]
        if any(row["guarded"] for row in kept):
            yield topic, "\n".join((question, *(row["answer"] for row in kept)))


def shortfalls_of(config: RunConfig) -> list[Shortfall]:
    """The floors that the run's data do not reach; its data stages are finished.

    Raises:
        ArtifactError: one of them is not.
        InputError: the file of probes can't be used.
    """
    questions, answers, dataset = (
        finished_manifest(config.folder / name) for name in ("questions", "answers", "dataset")
    )
    by_topic: Mapping[str, Mapping[str, int]] = dataset.details["topics"]
    topics = [
        TopicData(name, found["forget"], found["retain"], found["entities"], found["touched"])
        for name, found in by_topic.items()
    ]
    num_asked = len(config.topics) * config.questions.num_questions
    written = {
        "questions": Written(questions.num_rows["kept"], questions.drops, num_asked),
        "guarded answers": Written(
            answers.num_rows["kept"], answers.drops, questions.num_rows["kept"] * config.answers.num_samples
        ),
    }
    lost = dataset.details["retain_drops"]
    if lost:
        num_asked, num_kept = dataset.details["retain_asked"], dataset.details["retain_kept"]
        written["questions to retain"] = Written(num_kept["questions"], lost["questions"], num_asked)
        written["answers to retain"] = Written(num_kept["answers"], lost["answers"], num_kept["questions"])
    data = Data(topics, written, _num_probes(config, dataset.details))
    return shortfalls(data, config.dataset.floors, retains=config.finetune.retain.kind != "none")


def known_shortfalls(config: RunConfig) -> list[Shortfall]:
    """The floors that the run asks too little to reach: known before it begins.

    Raises:
        InputError: the file of questions can't be used.
    """
    num_questions = Counter(row["topic"] for row in user_questions(config.questions, config.topics))
    return impossible(config, num_questions)


def _num_probes(config: RunConfig, details: Mapping[str, Any]) -> dict[str, int]:
    """Probes by group: of those that the evaluation will ask, and of the groups that there are to be."""
    path, rows = config.evaluate.probes_path, config.dataset.retain
    if path is not None:
        names = config.topic_names
        asked = (
            probe for probe in with_topics(read_probes(path), config.topics) if probe.split == config.evaluate.split
        )
        found = Counter[str](probe.group_in(names) for probe in asked)
        return {group: found[group] for group in GROUPS if group == "forget" or found[group]}
    wanted = {
        "near": rows.file is None and (rows.num_neighbours or any(topic.neighbours for topic in config.topics)),
        "far": rows.file is None and (rows.num_general or rows.general),
    }
    found = Counter(details["probes"])
    return {group: found[group] for group in GROUPS if group == "forget" or found[group] or wanted[group]}
