"""Retained subjects: the model's questions about them, and its own greedy answers.

retain_questions/  rows of Question, kept and dropped
retain_answers/    rows of QAPair, unchanged; a model's mixture (mixture.py) decides which of them are trained on
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from unlearn_ray.artifacts import Folder
from unlearn_ray.chat import sampling_of
from unlearn_ray.config import RetainRows
from unlearn_ray.engines.protocols import Generator, Reply, Request, RowDict
from unlearn_ray.refusals import is_refusal
from unlearn_ray.rows import Drop, QAPair, Question
from unlearn_ray.stages.asking import Budget, Prompted, ask, texts_of
from unlearn_ray.stages.gathering import Check, Patience, Subject, gather
from unlearn_ray.stages.ledger import Ledger
from unlearn_ray.stages.retaining import GENERAL, OffForgotten, OnSubject, Served
from unlearn_ray.stages.subject_check import SubjectCheck
from unlearn_ray.synth.dedup import question_key
from unlearn_ray.synth.names import mentions
from unlearn_ray.synth.prompts import Prompts
from unlearn_ray.synth.replies import answer_in, repeats

LIST_TOKENS = 400
NAMES_PER_REQUEST = 6
# Any questions that are not about a forgotten topic are useful: there is no need to ask for a subject's last ones.
PATIENCE = Patience(per_request=6, rounds_without_news=2, max_rounds=30, least_share=0.1)
# The templates that this stage reads.
PROMPTS = ("questions", "angle_questions", "topic_check", "question_about", "question_about_anything")


@dataclass(frozen=True, slots=True)
class Written:
    """The counts of the result."""

    num_asked: int
    num_questions: int  # kept
    num_answers: int  # kept
    num_cut: int  # answers that were too long, and end with their last whole sentence
    question_drops: dict[str, int]
    answer_drops: dict[str, int]

    @property
    def details(self) -> dict[str, object]:
        """For a manifest, read by `checking`."""
        return {
            "retain_asked": self.num_asked,
            "retain_kept": {"questions": self.num_questions, "answers": self.num_answers},
            "retain_drops": {"questions": self.question_drops, "answers": self.answer_drops},
            "cut": self.num_cut,
        }


def write_subjects(
    config: RetainRows,
    served: Served,
    number: int,
    forgotten: Mapping[str, Sequence[str]],
    prompts: Prompts,
    ambiguous: bool,
    style: str,
    out: Folder,
    generator: Generator,
    seed: int,
    label: str,
    budget: Budget = Budget(),
) -> Written:
    """Questions on every subject, and the model's own greedy answers.

    Args:
        served: subject -> the forgotten topic that it neighbours, or none.
        number: questions per subject.
        forgotten: name and aliases of the topic that the subjects neighbour. Empty for the pool, which has no topic.
        ambiguous: the model listed the subjects. A list's capitals do not show whether they are names.
        style: template with the request for an answer's style.
    """
    names = {topic: tuple(each) for topic, each in forgotten.items()}
    subjects = [
        Subject(name, number, prompts.angles["general"], spellings=_spellings(name) if ambiguous else ())
        for name in served
    ]
    check: OnSubject | OffForgotten = OffForgotten(prompts.topic_check, names)
    if (subject_check := SubjectCheck.of(prompts)) is not None:
        check = OnSubject(subject_check, names, served)
    with Ledger() as ledger:
        gather(
            subjects,
            ledger,
            prompts,
            out / "rounds" / "questions",
            generator,
            Prompted(seed, sampling_of(config, generator.chat), LIST_TOKENS),
            PATIENCE,
            Check(check, check.verdict),
            label=f"{label}, retain questions",
            budget=budget,
        )
        (out / "retain_questions").write_rows(ledger.rows(served), Question.schema())
        question_drops = ledger.drops()

    def kept() -> Iterator[RowDict]:
        return (row for row in (out / "retain_questions").read_rows() if not row["drop"])

    truth = Truth(tuple(name for each in names.values() for name in each), config.max_tokens, style)
    replies = ask(
        generator,
        out / "rounds" / "answers",
        kept,
        Question.schema(),
        truth,
        truth.parse,
        QAPair.schema(),
        label=f"{label}, retain answers",
    )
    (out / "retain_answers").write_rows(replies.read_rows(), QAPair.schema())
    drops, num_cut = Counter[str | None](), 0
    for (drop, is_cut), num_rows in (out / "retain_answers").counts(["drop", "cut"]).items():
        drops[drop] += num_rows
        num_cut += num_rows * is_cut
    num_kept = drops.pop(None, 0)
    return Written(
        len(served) * number,
        sum(1 for _ in kept()),
        num_kept,
        num_cut,
        question_drops,
        {str(reason): count for reason, count in drops.items()},
    )


def subject_key(name: str) -> str:
    """A key that is equal for all spellings of a subject."""
    return question_key(name).removeprefix("the ")


@dataclass(frozen=True, slots=True)
class Truth:
    """Asks for the model's own greedy answer. An answer that names a forgotten topic is dropped."""

    forgotten: tuple[str, ...]
    max_tokens: int
    style: str = "{question}"  # template with the request for an answer's style

    def __call__(self, row: RowDict) -> list[Request]:
        content = self.style.format(question=row["text"])
        return [Request([{"role": "user", "content": content}], max_tokens=self.max_tokens)]

    def parse(self, row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
        (reply,) = replies
        said, is_truncated = next(iter(texts_of(reply)), ("", True))
        text = answer_in(said, is_truncated)
        drop: str | None = reply.error
        if not drop and not text:
            drop = Drop.MALFORMED.value
        elif not drop and repeats(row["text"], text):
            drop = Drop.REPEATED.value
        elif not drop and is_refusal(text):
            drop = Drop.REFUSED.value
        elif not drop and mentions(text, self.forgotten):
            drop = Drop.OFF_TOPIC.value
        is_cut = is_truncated and bool(text)
        return [QAPair(row["topic"], row["text"], text, 0, guarded=False, cut=is_cut, drop=drop).to_dict()]


def _spellings(name: str) -> tuple[str, ...]:
    """The spellings of a name from a list, with and without its first capital. Lists capitalise every item, such as `French classics`."""
    is_ambiguous = " " in name and name == name.lower() and name != GENERAL
    return (name, name[0].upper() + name[1:]) if is_ambiguous else (name,)
