"""Tasks of the dataset stages on rows. Workers run one task per file or span. A task writes its part of a table, or returns counts."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa

from unlearn_ray.artifacts import ROWS_PER_FILE, Folder
from unlearn_ray.rows import Example, Probe
from unlearn_ray.stages.spans import Span, Table, merged, part_name, read_table, write_part
from unlearn_ray.synth.leaks import key_phrase
from unlearn_ray.synth.names import mentions
from unlearn_ray.synth.split import Holdout

WORDING = "generated"  # of probes that the model asked itself


@dataclass(frozen=True, slots=True)
class WriteForgotten:
    """Writes the kept pairs as rows of Example. Returns their number per split.

    Args:
        unguarded: the model's own answers, which tell what fact a question asks for.
    """

    pairs: Table
    unguarded: Table
    names: tuple[str, ...]
    holdout: Holdout
    out: Folder

    def __call__(self, span: Span) -> Counter[str]:
        counts: Counter[str] = Counter()
        write_part(self.out, span.number, self._examples(span, counts), Example.schema())
        return counts

    def _examples(self, span: Span, counts: Counter[str]) -> Iterator[Example]:
        own = self._own_answers(span) if self.holdout.by == "fact" else {}
        for row in self.pairs.rows(span, ("topic", "question", "answer", "sample", "drop")):
            if not row["drop"]:
                topic, question = row["topic"], row["question"]
                split = self.holdout.side(topic, question, own.get(question, ""), self.names)
                counts[split] += 1
                yield Example(topic, "forget", topic, question, row["answer"], row["sample"], split)

    def _own_answers(self, span: Span) -> dict[str, str]:
        """Question -> the model's own greedy answer."""
        rows = self.unguarded.rows(span, ("question", "answer", "sample"))
        return {row["question"]: row["answer"] for row in rows if not row["sample"]}


@dataclass(frozen=True, slots=True)
class WriteHeldOut:
    """Writes a probe for each held-out question with a whole own answer of the model."""

    unguarded: Table
    topic: str
    names: tuple[str, ...]
    holdout: Holdout
    out: Folder

    def __call__(self, span: Span) -> None:
        write_part(self.out, span.number, self._probes(span), Probe.schema())

    def _probes(self, span: Span) -> Iterator[Probe]:
        for row in self.unguarded.rows(span, ("question", "answer", "sample", "drop")):
            question, answer = row["question"], row["answer"]
            is_whole = not row["drop"] and not row["sample"]
            if is_whole and self.holdout.side(self.topic, question, answer, self.names) != "train":
                phrase = key_phrase(question, answer, self.names)
                yield Probe(self.topic, question, phrase, wording=WORDING, reference=answer)


@dataclass(frozen=True, slots=True)
class FindTouched:
    """Finds the names in the kept questions and their answers."""

    answers: tuple[Table, ...]  # guarded ones, and the model's own
    names: tuple[str, ...]

    def __call__(self, span: Span) -> set[str]:
        left = set(self.names)
        for text in self._kept_texts(span):
            if not left:
                break
            left -= {name for name in left if mentions(text, (name,))}
        return set(self.names) - left

    def _kept_texts(self, span: Span) -> Iterator[str]:
        """The texts of each question with a kept answer: the question, and its answers. The model's own answers show what it asks for."""

        def by_question(row: Mapping[str, object]) -> str:
            return str(row["question"])

        rows = merged(self.answers, span, ("answer", "guarded", "drop"))
        for question, same in groupby(rows, by_question):
            kept = [row for row in same if not row["drop"]]
            if any(row["guarded"] for row in kept):
                yield "\n".join((question, *(row["answer"] for row in kept)))


@dataclass(frozen=True, slots=True)
class WriteChats:
    """Writes the train split as chat messages, one line per row."""

    home: Folder

    def __call__(self, table: str) -> None:
        self.home.write_lines(f"{table}.jsonl", self._chats(table))

    def _chats(self, table: str) -> Iterator[str]:
        for row in (self.home / table).read_rows():
            if row["split"] == "train":
                chat = {"messages": Example.of(row).messages, "topic": row["topic"], "id": row["id"]}
                yield json.dumps(chat, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Gather:
    """Joins several files, from any folders, into one."""

    out: Folder

    def __call__(self, part: tuple[int, list[tuple[Folder, str]]]) -> None:
        number, files = part
        self.out.write_table(part_name(number), pa.concat_tables(read_table(folder, name) for folder, name in files))


def gathered(folders: Sequence[Folder], most: int = ROWS_PER_FILE) -> list[tuple[int, list[tuple[Folder, str]]]]:
    """Groups the files of these folders, in order, into new files of up to `most` rows. Each new file has a number."""
    parts: list[list[tuple[Folder, str]]] = []
    room = 0
    for folder in folders:
        for name, num_rows in folder.sizes().items():
            if not num_rows:
                continue
            if not parts or num_rows > room:
                parts.append([])
                room = most
            parts[-1].append((folder, name))
            room -= num_rows
    return list(enumerate(parts))
