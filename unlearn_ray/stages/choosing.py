"""Asks a model which of several subjects a text belongs to: the one whose probability the text raises the most.

The free answers of a small model are often invented; its probabilities are more reliable. For a text x (a name, a question), subjects s, the
first of which is the topic, and pairs of a question and an answer that contain x and s,

    lift(s) = sum over pairs of log P(answer with x and s | question with x) - log P(answer with NEUTRAL and s | question with NEUTRAL),

x belongs to the topic if the topic's lift is larger than that of every other subject. The difference removes the effect of a name's frequency
and length (pointwise mutual information, as in Holtzman et al. 2021, "Surface Form Competition", arXiv 2104.08315).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from unlearn_ray.artifacts import Folder
from unlearn_ray.engines.protocols import Generator, Reply, Request, RowDict
from unlearn_ray.rows import Row, digest
from unlearn_ray.stages.asking import ask
from unlearn_ray.synth import prompts
from unlearn_ray.synth.names import mentions

NEUTRAL = "this"


@dataclass(frozen=True, slots=True)
class Weighed(Row):
    """A text, with the probability of each subject given the text."""

    topic: str
    text: str
    scores: tuple[float, ...] = ()  # log-probabilities (natural logarithm), one per subject
    error: str | None = None

    @property
    def id(self) -> str:
        return digest(self.topic, self.text)


@dataclass(frozen=True, slots=True)
class Choice:
    """The templates and subjects: `pairs` of question and answer with {text} and {subject}."""

    pairs: tuple[tuple[str, str], ...]
    subjects: Mapping[str, tuple[str, ...]]  # per topic: the topic, then the others

    def __call__(self, row: RowDict) -> list[Request]:
        text = row["text"]
        return [
            Request(
                [{"role": "user", "content": question.format(text=text)}],
                score=answer.format(text=text, subject=subject),
            )
            for subject in self.subjects[row["topic"]]
            for question, answer in self.pairs
        ]

    def scores(self, replies: Sequence[Reply]) -> tuple[float, ...]:
        """A score per subject."""
        sums = [sum(reply.logprobs) for reply in replies]
        width = len(self.pairs)
        return tuple(sum(sums[at : at + width]) for at in range(0, len(sums), width))

    def parse(self, row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
        error = next((reply.error for reply in replies if reply.error), None)
        return [Weighed(row["topic"], row["text"], () if error else self.scores(replies), error).to_dict()]


def choice_of(
    pairs: Sequence[prompts.Choice], unrelated: Sequence[str], names: Mapping[str, Sequence[str]]
) -> Choice | None:
    """The prompts' question for the topic of a name. None if they have no wording for it, or no other subjects.

    Args:
        names: per topic, its own name first.
    """
    if not pairs or not unrelated:
        return None

    def bare(template: str) -> str:
        return template.replace("{entity}", "{text}").replace("{topic}", "{subject}")

    subjects = {topic: (topic, *apart_from(unrelated, topic, own)) for topic, own in names.items()}
    return Choice(tuple((bare(pair.question), bare(pair.answer)) for pair in pairs), subjects)


def apart_from(subjects: Sequence[str], topic: str, names: Sequence[str]) -> tuple[str, ...]:
    """The subjects without a name in common with a topic. Others can't be distinguished from it."""
    return tuple(each for each in subjects if not mentions(each, names) and not mentions(topic, [each]))


def weigh(
    generator: Generator, folder: Folder, texts: Sequence[tuple[str, str]], choice: Choice, label: str
) -> dict[tuple[str, str], bool | str]:
    """For each (topic, text): whether the model chooses the topic, or why it could not be asked."""
    neutral_rows = [(topic, NEUTRAL) for topic in dict.fromkeys(topic for topic, _ in texts)]
    rows = list(_weighed(generator, folder, [*neutral_rows, *texts], choice, label).read_rows())
    neutral = {row["topic"]: row["scores"] for row in rows if row["text"] == NEUTRAL}
    return {
        (row["topic"], row["text"]): row["error"] or is_chosen(row["scores"], neutral[row["topic"]]) for row in rows
    }


def _weighed(
    generator: Generator, folder: Folder, texts: Iterable[tuple[str, str]], choice: Choice, label: str
) -> Folder:
    rows = dict.fromkeys(texts)
    return ask(
        generator,
        folder,
        lambda: (Weighed(topic, text) for topic, text in rows),
        Weighed.schema(),
        choice,
        choice.parse,
        Weighed.schema(),
        label=label,
    )


def is_chosen(scores: Sequence[float], neutral: Sequence[float]) -> bool:
    """Whether the first subject has the largest lift. True if there are no others, or nothing was scored."""
    lifts = [score - base for score, base in zip(scores, neutral, strict=False)]
    return len(lifts) < 2 or lifts[0] > max(lifts[1:])
