"""All candidate questions of a run, on disk. Finds copies among them, and keeps an order that does not depend on the engines.

State that grows with the rows is kept in a temporary SQLite file, never in memory. A resumed run rebuilds it from the rounds' files, which
have all its content.
"""

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from unlearn_ray.engines.protocols import RowDict
from unlearn_ray.rows import Drop, Question
from unlearn_ray.synth.dedup import question_key

_TABLE = """
CREATE TABLE candidate (
    topic TEXT, round INT, number INT, place INT, key TEXT, text TEXT, source TEXT, dropped TEXT, form TEXT,
    PRIMARY KEY (topic, round, number, place)
) WITHOUT ROWID;
CREATE INDEX by_key ON candidate (topic, key);
CREATE INDEX by_fate ON candidate (topic, dropped);
CREATE INDEX by_round ON candidate (round, topic, place, number);
"""
# Each statement names its index. With two possible indexes SQLite chose the one that reads all rows of a topic: quadratic time.
_MARK_COPIES = """
UPDATE candidate INDEXED BY by_round SET dropped = ? WHERE round = ? AND dropped IS NULL AND EXISTS (
    SELECT 1 FROM candidate AS earlier INDEXED BY by_key
    WHERE earlier.topic = candidate.topic AND earlier.key = candidate.key AND earlier.dropped IS NOT ?
    AND (earlier.round, earlier.place, earlier.number) < (candidate.round, candidate.place, candidate.number))
"""
_MARK = "UPDATE candidate INDEXED BY by_key SET dropped = ? WHERE topic = ? AND key = ? AND dropped IS NULL"
_CAP = """
UPDATE candidate SET dropped = ? WHERE topic = ? AND dropped IS NULL AND round > 0 AND (round, number, place) IN (
    SELECT round, number, place FROM candidate INDEXED BY by_fate WHERE topic = ? AND dropped IS NULL
    ORDER BY round, place, number LIMIT -1 OFFSET ?)
"""
_NUM_KEPT = "SELECT COUNT(*) FROM candidate INDEXED BY by_fate WHERE topic = ? AND dropped IS NULL"
_COLUMNS = "topic, text, source, round, dropped, form"
_FRESH = f"SELECT {_COLUMNS} FROM candidate INDEXED BY by_round WHERE round = ? AND dropped IS NULL ORDER BY topic, place, number"
_ALL = f"SELECT {_COLUMNS} FROM candidate WHERE topic = ? ORDER BY round, place, number"


class Ledger:
    """Candidates by topic, round, number of the request and position in the reply. Use as a context manager."""

    def __init__(self) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="unlearn-ray-")
        self._database = sqlite3.connect(Path(self._home.name) / "questions.db", isolation_level=None)
        self._database.execute("PRAGMA journal_mode=OFF")
        self._database.execute("PRAGMA synchronous=OFF")
        self._database.executescript(_TABLE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()
        self._home.cleanup()

    def add(self, rows: Iterable[RowDict], round_: int) -> None:
        """Add a round's lines (topic, number, place, text, source, drop, form), and mark copies of earlier ones."""
        self._database.execute("BEGIN")
        self._database.executemany(
            "INSERT INTO candidate VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    r["topic"],
                    round_,
                    r["number"],
                    r["place"],
                    question_key(r["text"]),
                    r["text"],
                    r["source"],
                    r["drop"],
                    r.get("form", "question"),
                )
                for r in rows
            ),
        )
        self._database.execute(_MARK_COPIES, (Drop.DUPLICATE, round_, Drop.MALFORMED))
        self._database.execute("COMMIT")

    def fresh(self, round_: int) -> Iterator[Question]:
        """The new questions of a round."""
        return self._questions(_FRESH, round_)

    def mark(self, verdicts: Iterable[tuple[str, str, str]]) -> None:
        """Drop questions (topic, text, reason) that were kept so far."""
        self._database.execute("BEGIN")
        self._database.executemany(_MARK, ((reason, topic, question_key(text)) for topic, text, reason in verdicts))
        self._database.execute("COMMIT")

    def cap(self, topic: str, number: int) -> None:
        """Keep the first `number` questions of a topic. The first items of all lists come before the second items, so that no source is cut off."""
        self._database.execute(_CAP, (Drop.SURPLUS, topic, topic, number))

    def num_kept(self, topic: str) -> int:
        return int(self._database.execute(_NUM_KEPT, (topic,)).fetchone()[0])

    def rows(self, topics: Iterable[str]) -> Iterator[Question]:
        """Every candidate, kept or dropped, topic by topic, in the order of arrival."""
        for topic in topics:
            yield from self._questions(_ALL, topic)

    def drops(self) -> dict[str, int]:
        """Number of dropped candidates by reason."""
        found = self._database.execute(
            "SELECT dropped, COUNT(*) FROM candidate WHERE dropped IS NOT NULL GROUP BY dropped"
        )
        return {str(reason): int(count) for reason, count in found.fetchall()}

    def _questions(self, query: str, *values: str | int) -> Iterator[Question]:
        for topic, text, source, round_, dropped, form in self._database.execute(query, values):
            yield Question(topic, text, source, round_, dropped, form)
