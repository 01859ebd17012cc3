"""What the dataset stage hands over to `probing`: the subjects to ask about, the held-out questions, and what is trained on."""

from collections.abc import Iterator, Mapping, Sequence

from unlearn_ray.artifacts import Folder
from unlearn_ray.chat import sampling_of
from unlearn_ray.config import DatasetConfig, Topic
from unlearn_ray.engines.protocols import Generator, RowDict
from unlearn_ray.rows import Group
from unlearn_ray.stages.probing import Made, Wish, make_probes
from unlearn_ray.synth.known import Candidate
from unlearn_ray.synth.prompts import Prompts
from unlearn_ray.synth.split import split_of


def known_probes(
    config: DatasetConfig,
    topics: Sequence[Topic],
    answers: Folder,
    served: Mapping[str, tuple[str, ...]],
    prompts: Prompts,
    out: Folder,
    generator: Generator,
    seed: int,
) -> Made:
    """Probes from what the model knows of each topic, of its neighbours and in general.

    Args:
        served: subjects that are retained -> the forgotten topics that each neighbours.
        out: the dataset's folder, its rows written.
    """
    terms: dict[str, list[str]] = {topic.name: list(topic.terms) for topic in topics}
    for row in (answers / "terms").read_rows(["topic", "term"]):
        terms.setdefault(row["topic"], []).append(row["term"])
    entities: dict[str, list[str]] = {topic.name: [] for topic in topics}
    for row in (answers.parent / "questions" / "entities").read_rows(["topic", "name", "drop"]):
        if not row["drop"]:
            entities.setdefault(row["topic"], []).append(row["name"])
    wishes = [
        Wish(
            topic.name,
            "forget",
            angles=prompts.angles[topic.kind],
            entities=tuple(entities[topic.name]),
            telling=tuple(dict.fromkeys([*terms[topic.name], *entities[topic.name]])),
        )
        for topic in topics
    ]
    wishes += [Wish(name, "near" if near else "far", near, prompts.angles["general"]) for name, near in served.items()]

    def own() -> Iterator[tuple[Group, tuple[str, ...], RowDict]]:
        """The model's own greedy answers, each with its group and what its topic neighbours."""
        for row in (answers / "unguarded").read_rows():
            if not row["sample"]:
                yield "forget", (), row
        for row in (out / "retain_answers").read_rows():
            near = served[row["topic"]]
            yield "near" if near else "far", near, row

    def is_held_out(row: RowDict) -> bool:
        return split_of(row["topic"], row["question"], config.holdout_fraction) == "holdout"

    def held_out() -> Iterator[Candidate]:
        for group, near, row in own():
            if is_held_out(row):
                yield Candidate(row["topic"], row["question"], group, near)
        if config.retain.file is not None:
            every = tuple(topic.name for topic in topics)
            for row in (out / "retain").read_rows():
                if row["split"] == "holdout" and not row["sample"]:
                    near = every if row["group"] == "near" else ()  # as its row, it serves every topic
                    yield Candidate(row["subject"], row["question"], row["group"], near, truth=row["answer"])

    def trained() -> Iterator[tuple[str, str, str]]:
        for _, _, row in own():
            if not is_held_out(row):
                yield row["topic"], row["question"], row["answer"]
        for row in (out / "retain").read_rows():
            if config.retain.file is not None and row["split"] == "train":
                yield row["subject"], row["question"], row["answer"]

    names = {topic.name: (topic.name, *topic.aliases) for topic in topics}
    sampling = sampling_of(config.retain, generator.chat)
    return make_probes(
        config.probes, wishes, names, held_out, trained, prompts, out / "probing", generator, sampling, seed
    )
