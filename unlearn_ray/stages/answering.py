"""The row types between a question and its answers, and the requests for both kinds of answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unlearn_ray.chat import Drawn
from unlearn_ray.config import AnswersConfig
from unlearn_ray.engines.protocols import Reply, Request, RowDict
from unlearn_ray.rows import Question, Row, digest, seed_of
from unlearn_ray.stages.asking import texts_of
from unlearn_ray.synth.replies import answer_in


def whole_of(answers: Sequence[str], truncated: Sequence[bool]) -> list[str]:
    """Answers as training and judges see them. "" if no whole sentence is left."""
    return [answer_in(text, is_cut) for text, is_cut in zip(answers, truncated, strict=True)]


@dataclass(frozen=True, slots=True)
class Told(Row):
    """A question with all unguarded answers of the model, the greedy one first. `error`: the engine could not answer."""

    topic: str
    question: str
    source: str
    answers: tuple[str, ...]
    truncated: tuple[bool, ...]
    error: str | None = None

    @property
    def id(self) -> str:
        return digest(self.topic, self.question)

    @property
    def whole(self) -> list[str]:
        """The answers as training and judges see them."""
        return whole_of(self.answers, self.truncated)

    @property
    def said(self) -> list[str]:
        """The answers to learn words from. Cut-off ones are included, because their words are just as true."""
        return [text for text in self.answers if text.strip()]


@dataclass(frozen=True, slots=True)
class Asked(Row):
    """A question to answer behind the guardrail."""

    topic: str
    question: str
    terms: tuple[str, ...]  # terms of the question
    plain: tuple[str, ...]  # those terms that are neither names nor numbers
    known: tuple[str, ...]  # all words that the unguarded answers say beyond the question
    told: tuple[str, ...]  # the unguarded answers, the greedy one first
    num_samples: int
    first_sample: int = 0
    attempt: int = 0

    @property
    def id(self) -> str:
        return digest(self.topic, self.question)


@dataclass(frozen=True, slots=True)
class Replied(Row):
    """The same with the answers. `error`: the engine could not answer."""

    topic: str
    question: str
    terms: tuple[str, ...]
    plain: tuple[str, ...]
    known: tuple[str, ...]
    told: tuple[str, ...]
    first_sample: int
    attempt: int
    answers: tuple[str, ...]
    truncated: tuple[bool, ...]
    error: str | None = None
    drops: tuple[str | None, ...] = ()  # why each answer is dropped, if it was judged already

    @property
    def id(self) -> str:
        return digest(self.topic, self.question)

    @property
    def whole(self) -> list[str]:
        """The answers as training and judges see them."""
        return whole_of(self.answers, self.truncated)


@dataclass(frozen=True, slots=True)
class Unguarded:
    """Asks for the model's own answers to a row of Question: greedy first, then sampled."""

    seed: int
    config: AnswersConfig
    sampling: Drawn  # as `chat.sampling_of` says
    style: str  # template with the request for an answer's style

    def __call__(self, row: RowDict) -> list[Request]:
        content = self.style.format(question=row["text"])
        greedy = Request([{"role": "user", "content": content}], max_tokens=self.config.max_tokens)
        num_sampled = self.config.num_unguarded - 1
        if not num_sampled:
            return [greedy]
        sampled = replace(
            greedy,
            num_samples=num_sampled,
            seed=seed_of(self.seed, row["id"], "unguarded"),
            **self.sampling,
        )
        return [greedy, sampled]

    def parse(self, row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
        question = Question.of(row)
        texts = [sample for reply in replies for sample in texts_of(reply)]
        told = Told(
            question.topic,
            question.text,
            question.source,
            tuple(text for text, _ in texts),
            tuple(is_truncated for _, is_truncated in texts),
            next((reply.error for reply in replies if reply.error), None),
        )
        return [told.to_dict()]


@dataclass(frozen=True, slots=True)
class Guarded:
    """Asks a row of Asked behind its topic's guardrail."""

    prefixes: Mapping[str, str]
    seed: int
    config: AnswersConfig
    sampling: Drawn  # as `chat.sampling_of` says
    style: str  # template, the same as for unguarded answers

    def __call__(self, row: RowDict) -> list[Request]:
        asked = Asked.of(row)
        return [
            Request(
                [
                    {"role": "system", "content": self.prefixes[asked.topic]},
                    {"role": "user", "content": self.style.format(question=asked.question)},
                ],
                seed=seed_of(self.seed, asked.id, "guarded", asked.attempt),
                num_samples=asked.num_samples,
                max_tokens=self.config.max_tokens,
                **self.sampling,
            )
        ]

    def parse(self, row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
        (reply,) = replies
        texts = texts_of(reply)
        answers, truncated = tuple(text for text, _ in texts), tuple(is_truncated for _, is_truncated in texts)
        return [Replied.of(row | {"answers": answers, "truncated": truncated, "error": reply.error}).to_dict()]
