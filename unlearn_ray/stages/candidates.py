"""What the data stages hand over to `probing`: the subjects to ask about, the held-out questions, and what is trained on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from unlearn_ray.artifacts import Folder
from unlearn_ray.chat import sampling_of
from unlearn_ray.config import DatasetConfig, Topic
from unlearn_ray.engines.protocols import Generator, RowDict
from unlearn_ray.rows import Example, Group
from unlearn_ray.stages.probing import Made, Wish, make_probes
from unlearn_ray.synth.known import Candidate
from unlearn_ray.synth.prompts import Prompts
from unlearn_ray.synth.split import split_of

EVERY = ""  # in the place of a topic: what a user's near row neighbours is told where topics meet


@dataclass(frozen=True, slots=True)
class About:
    """A topic to forget, and what is known of it."""

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
    """Probes from what the model knows of a topic and its neighbours, or in general.

    Args:
        about: the topic; None in the pool.
        served: subjects that are retained -> the forgotten topics that each neighbours.
        given: the user's own retain rows.
        out: the stage's folder, its rows written.
    """
    wishes = [] if about is None else [about.wish(prompts.angles[about.topic.kind])]
    if served:
        angles = prompts.angles["general"]
        wishes += [Wish(name, "near" if near else "far", near, angles) for name, near in served.items()]

    def own() -> Iterator[tuple[Group, tuple[str, ...], RowDict]]:
        """The model's own greedy answers, each with its group and what its topic neighbours."""
        if about is not None:
            for row in (about.answers / "unguarded").read_rows():
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
        for each in given:
            if each.split == "holdout" and not each.sample:
                near = (EVERY,) if each.group == "near" else ()
                yield Candidate(each.subject, each.question, each.group, near, truth=each.answer)

    def trained() -> Iterator[tuple[str, str, str]]:
        for _, _, row in own():
            if not is_held_out(row):
                yield row["topic"], row["question"], row["answer"]
        for each in given:
            if each.split == "train":
                yield each.subject, each.question, each.answer

    names = {} if about is None else {about.topic.name: about.topic.names}
    sampling = sampling_of(config.retain, generator.chat)
    return make_probes(
        config.probes, wishes, names, held_out, trained, prompts, out / "probing", generator, sampling, seed
    )
