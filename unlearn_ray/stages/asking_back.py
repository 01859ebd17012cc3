"""Checks listed names by asking the model about them: whether an entity belongs to its topic, and whether a neighbour is a different thing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from unlearn_ray.artifacts import Folder
from unlearn_ray.engines.protocols import Generator, Reply, Request, RowDict
from unlearn_ray.refusals import is_refusal
from unlearn_ray.rows import Drop, Row, digest, seed_of
from unlearn_ray.stages.asking import Prompted, ask, texts_of
from unlearn_ray.stages.choosing import Choice, choice_of, weigh
from unlearn_ray.stages.naming import Name
from unlearn_ray.synth.names import mentions
from unlearn_ray.synth.prompts import Prompts

NUM_DESCRIPTIONS = 4  # sampled per neighbour
DESCRIPTION_TOKENS = 48
IS_PART = 0.5  # share of descriptions with the topic's name from which a neighbour is a part of the topic


@dataclass(frozen=True, slots=True)
class Belonging:
    """Keeps the entities for which the model chooses their topic among several subjects."""

    generator: Generator
    choice: Choice
    names: Mapping[
        str, tuple[str, ...]
    ]  # per topic: its name, aliases and the user's terms; a name that contains one needs no check

    def __call__(self, listed: Sequence[Name], folder: Folder, label: str) -> dict[str, str | None]:
        asked = [name for name in listed if not mentions(name.name, self.names[name.topic])]
        found = weigh(self.generator, folder, [(name.topic, name.name) for name in asked], self.choice, label)
        return {name.id: _reason(found[name.topic, name.name]) for name in asked}


def belonging(
    generator: Generator,
    prompts: Prompts,
    own: Mapping[str, tuple[str, ...]],
    names: Mapping[str, tuple[str, ...]],
) -> Belonging | None:
    """The check of entities. None if the prompts have no wordings for it."""
    choice = choice_of(prompts.entity_check, prompts.unrelated, own)
    return None if choice is None else Belonging(generator, choice, names)


def _reason(found: bool | str) -> str | None:
    if isinstance(found, str):
        return found
    return None if found else Drop.UNCONFIRMED.value


@dataclass(frozen=True, slots=True)
class Described(Row):
    """A name, with the model's descriptions of it."""

    topic: str
    name: str
    texts: tuple[str, ...] = ()
    error: str | None = None

    @property
    def id(self) -> str:
        return digest(self.topic, self.name)


@dataclass(frozen=True, slots=True)
class Apart:
    """Keeps the neighbours that the model describes without naming the topic. The others are parts of the topic, or do not exist."""

    generator: Generator
    template: str  # a prompt with {entity} that does not name the topic
    names: Mapping[str, tuple[str, ...]]  # per topic: its name and aliases
    sampling: Prompted

    def __call__(self, listed: Sequence[Name], folder: Folder, label: str) -> dict[str, str | None]:
        def rows() -> Iterator[Described]:
            return (Described(name.topic, name.name) for name in listed)

        describe = Describe(self.template, self.sampling)
        replies = ask(
            self.generator,
            folder,
            rows,
            Described.schema(),
            describe,
            describe.parse,
            Described.schema(),
            label=label,
        )
        return {row["id"]: self.reason(Described.of(row)) for row in replies.read_rows()}

    def reason(self, described: Described) -> str | None:
        """Why a neighbour is dropped, judged by its descriptions."""
        if described.error:
            return described.error
        told = [text for text in described.texts if text.strip() and not is_refusal(text)]
        num_naming = sum(mentions(text, self.names[described.topic]) for text in told)
        is_known = 2 * len(told) >= len(described.texts) > 0
        is_part = num_naming >= IS_PART * len(described.texts)
        return None if is_known and not is_part else Drop.UNCONFIRMED.value


def apart(
    generator: Generator, prompts: Prompts, names: Mapping[str, tuple[str, ...]], sampling: Prompted
) -> Apart | None:
    """The check of neighbours. None if the prompts have no wording for it."""
    template = prompts.neighbour_check
    return None if template is None else Apart(generator, template, names, sampling)


@dataclass(frozen=True, slots=True)
class Describe:
    """Asks several times what a name is."""

    template: str
    sampling: Prompted

    def __call__(self, row: RowDict) -> list[Request]:
        return [
            Request(
                messages=[{"role": "user", "content": self.template.format(entity=row["name"])}],
                seed=seed_of(self.sampling.seed, row["id"], "described"),
                num_samples=NUM_DESCRIPTIONS,
                max_tokens=DESCRIPTION_TOKENS,
                **self.sampling.sampling,
            )
        ]

    def parse(self, row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
        (reply,) = replies
        texts = tuple(text for text, _ in texts_of(reply))
        return [Described(row["topic"], row["name"], texts, reply.error).to_dict()]
