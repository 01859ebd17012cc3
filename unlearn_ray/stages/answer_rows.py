"""Tasks of the answers stage on rows. Workers run one task per span of questions. A task writes its part of a table, or returns counts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from unlearn_ray.artifacts import Folder
from unlearn_ray.engines.protocols import RowDict
from unlearn_ray.errors import InputError
from unlearn_ray.rows import Drop, QAPair, Question
from unlearn_ray.stages.answering import Asked, Replied, Told, whole_of
from unlearn_ray.stages.asking import in_order
from unlearn_ray.stages.judging import Judge
from unlearn_ray.stages.spans import Span, Table, merged, write_part
from unlearn_ray.synth.coverage import Coverage
from unlearn_ray.synth.dedup import question_key
from unlearn_ray.synth.names import mentions
from unlearn_ray.synth.terms import Vocabulary

_ANSWERED = ("topic", "question", "answers", "truncated")


@dataclass(slots=True)
class Tally:
    """Counts of pairs."""

    num_kept: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    num_cut: int = 0

    def count(self, pairs: Iterator[QAPair]) -> Iterator[QAPair]:
        """The pairs, counted as they stream through."""
        for pair in pairs:
            self.num_cut += pair.cut
            if pair.drop:
                self.drops[pair.drop] += 1
            else:
                self.num_kept += 1
            yield pair

    def merge(self, other: "Tally") -> None:
        self.num_kept += other.num_kept
        self.drops.update(other.drops)
        self.num_cut += other.num_cut


@dataclass(frozen=True, slots=True)
class CountTold:
    """The vocabulary of the model's own answers to spans of questions."""

    told: Table
    names: tuple[str, tuple[str, ...]]  # the topic, and all its names

    def __call__(self, spans: Sequence[Span]) -> Vocabulary:
        """The vocabulary of the spans.

        Raises:
            InputError: a question of the user's is too long for the model.
        """
        topic, names = self.names
        vocabulary = Vocabulary({topic: names})
        for span in spans:
            for row in map(Told.of, self.told.rows(span)):
                if row.error == Drop.TOO_LONG and row.source.startswith("user:"):
                    _, name, line = row.source.split(":", 2)
                    raise InputError(
                        f"{name}, line {line}: the question is too long for the model's context: shorten it"
                    )
                vocabulary.add(row.topic, row.question, row.said)
        return vocabulary


@dataclass(frozen=True, slots=True)
class WriteUnguarded:
    """The model's own answers as rows of QAPair."""

    told: tuple[Table, ...]
    out: Folder

    def __call__(self, span: Span) -> Tally:
        tally = Tally()
        rows = map(Told.of, merged(self.told, span, ("source", "error", *_ANSWERED)))
        pairs = tally.count(pair for row in rows for pair in _own_pairs(row))
        write_part(self.out, span.number, pairs, QAPair.schema())
        return tally


def _own_pairs(row: Told) -> Iterator[QAPair]:
    about = row.topic, row.question
    if row.error:
        yield QAPair(*about, "", 0, guarded=False, drop=row.error)
    for sample, (text, is_cut) in enumerate(zip(row.whole, row.truncated, strict=True)):
        drop = None if text else Drop.MALFORMED.value
        yield QAPair(*about, text, sample, guarded=False, cut=is_cut and bool(text), drop=drop)


@dataclass(frozen=True, slots=True)
class FirstAttempt:
    """Writes the questions to ask behind the guardrail, with their terms."""

    told: Table
    vocabulary: Vocabulary
    num_samples: int
    out: Folder

    def __call__(self, span: Span) -> None:
        write_part(self.out, span.number, map(self._asked, map(Told.of, self.told.rows(span))), Asked.schema())

    def _asked(self, row: Told) -> Asked:
        about = row.topic, row.question, row.said
        terms, known = self.vocabulary.question_terms(*about), self.vocabulary.known(*about)
        return Asked(
            row.topic,
            row.question,
            tuple(terms),
            tuple(filter(self.vocabulary.is_plain, terms)),
            tuple(known),
            tuple(filter(None, row.whole)),
            self.num_samples,
        )


@dataclass(frozen=True, slots=True)
class CountGuarded:
    """Counts the terms that guarded answers keep, with `Vocabulary.add_guarded`."""

    replies: Table

    def __call__(self, spans: Sequence[Span]) -> Vocabulary:
        vocabulary = Vocabulary({})
        for span in spans:
            for row in self.replies.rows(span, ("terms", *_ANSWERED)):
                whole = whole_of(row["answers"], row["truncated"])
                vocabulary.add_guarded(row["topic"], row["terms"], [text for text in whole if text])
        return vocabulary


@dataclass(frozen=True, slots=True)
class WriteJudged:
    """Writes the answers with the verdicts of the rules."""

    replies: Table
    rules: Judge
    out: Folder

    def __call__(self, span: Span) -> None:
        write_part(self.out, span.number, map(self._judged, map(Replied.of, self.replies.rows(span))), Replied.schema())

    def _judged(self, row: Replied) -> Replied:
        return replace(row, drops=tuple(self.rules(row)))


@dataclass(frozen=True, slots=True)
class CountLost:
    """The number of a span, and the number of its questions for which an attempt lost answers."""

    judged: Table

    def __call__(self, span: Span) -> tuple[int, int]:
        lost = (row for row in self.judged.rows(span, ("drops",)) if any(row["drops"]))
        return span.number, sum(1 for _ in lost)


@dataclass(frozen=True, slots=True)
class AskAgain:
    """Writes the questions to ask again, with as many samples as the last attempt lost."""

    judged: Table
    attempt: int
    out: Folder

    def __call__(self, span: Span) -> None:
        write_part(self.out, span.number, self._asked(span), Asked.schema())

    def _asked(self, span: Span) -> Iterator[Asked]:
        for row in map(Replied.of, self.judged.rows(span)):
            if num_lost := sum(drop is not None for drop in row.drops):
                lost = Asked.of(row.to_dict() | {"num_samples": num_lost, "attempt": self.attempt})
                yield replace(lost, first_sample=row.first_sample + len(row.answers))


@dataclass(frozen=True, slots=True)
class CountCoverage:
    """Counts the names that the questions with a kept answer touch."""

    attempts: tuple[Table, ...]  # judged
    names: Coverage  # without counts

    def __call__(self, span: Span) -> Coverage:
        coverage, last = self.names.blank(), ""
        for row in merged(self.attempts, span, ("topic", "question", "terms", "drops")):
            if row["question"] != last and None in row["drops"]:
                last = row["question"]
                coverage.add(row["topic"], row["question"], row["terms"])
        return coverage


@dataclass(frozen=True, slots=True)
class WritePairs:
    """Writes all guarded answers as rows of QAPair, with a question's attempts together."""

    attempts: tuple[Table, ...]  # judged
    out: Folder

    def __call__(self, span: Span) -> Tally:
        tally = Tally()
        columns = ("first_sample", "attempt", "error", "drops", *_ANSWERED)
        rows = merged(self.attempts, span, columns, then=("attempt",))
        pairs = tally.count(pair for row in rows for pair in _pairs(row))
        write_part(self.out, span.number, pairs, QAPair.schema())
        return tally


def _pairs(row: RowDict) -> Iterator[QAPair]:
    about, whole = (row["topic"], row["question"]), whole_of(row["answers"], row["truncated"])
    if row["error"]:
        yield QAPair(*about, "", row["first_sample"], row["attempt"], drop=row["error"])
    answers = zip(whole, row["truncated"], row["drops"], strict=True)
    for sample, (text, is_cut, drop) in enumerate(answers, start=row["first_sample"]):
        yield QAPair(*about, text, sample, row["attempt"], cut=is_cut and bool(text), drop=drop)


@dataclass(frozen=True, slots=True)
class Fresh:
    """Writes lines about untouched names as rows of Question, if they are new and name the topic or the name."""

    lines: Folder  # rows of gathering.ListedLine
    asked: tuple[Folder, ...]  # rows of Told: copies of their questions are left out
    out: Folder

    def __call__(self, _: None) -> int:
        return self.out.write_rows(self._fresh(), Question.schema())

    def _fresh(self) -> Iterator[Question]:
        seen = {
            (row["topic"], question_key(row["question"]))
            for folder in self.asked
            for row in folder.read_rows(["topic", "question"])
        }
        for row in in_order(self.lines.read_rows(), lambda row: (row["topic"], row["number"], row["place"])):
            topic, text, key = row["topic"], row["text"], (row["topic"], question_key(row["text"]))
            if row["drop"] or key in seen:
                continue
            if mentions(text, (topic, row["source"].removeprefix("coverage:"))):
                seen.add(key)
                yield Question(topic, text, row["source"])
