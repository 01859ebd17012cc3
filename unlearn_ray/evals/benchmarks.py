"""Rows of public benchmarks as probes, known by the names of their columns. A new format is one function and one line of `FORMATS`.

    RWKU    subject, query, answer; level, type, neighbor     arXiv 2406.10890
    RETURN  name, data: a list of question, gold_answer       arXiv 2407.10058
    WMDP    question, choices, answer: the index of one       arXiv 2403.03218
    MUSE    question, answer; or prompt, gt (verbatim)        arXiv 2407.06460
    TOFU    question, answer; paraphrased_question, paraphrased_answer, perturbed_answer   arXiv 2401.06121

What a benchmark calls its kinds of questions becomes the probes' wording, by which a report shows them apart.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearn_ray.errors import InputError
from unlearn_ray.evals.probes import probe_of
from unlearn_ray.reading import says_nothing, shown
from unlearn_ray.words import normalised

Row = Mapping[str, Any]
# RWKU's own requests at the levels that need one; what it puts into the model's mouth after them ("Answer:") is left out.
_RWKU_ASKS = {
    "1": "Please complete the blank in the following question.\nQuestion: {query}",
    "2": "Please briefly answer the following question.\nQuestion: {query}",
}
_LEVELS = {"1": "fill in the blank", "2": "question"}


class _Unusable(ValueError):
    """A row that is not as its format says."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a user says of a benchmark's rows."""

    topic: str = ""  # where rows do not name theirs
    near: tuple[str, ...] = ()  # topics that they stand beside


@dataclass(frozen=True, slots=True)
class Format:
    name: str
    columns: tuple[str, ...]  # that tell it from the others
    probes: Callable[[Row, Asked], Iterator[dict[str, Any]]]
    has_topics: bool = False  # rows name their topics


def _rwku(row: Row, asked: Asked) -> Iterator[dict[str, Any]]:
    level, kind = str(row.get("level") or ""), str(row.get("type") or "")
    query, neighbour = _text(row, "query"), row.get("neighbor")
    subject = _text(row, "subject")
    yield {
        # A probe of a neighbour is about that, beside the subject that is to be forgotten.
        "topic": neighbour if neighbour else subject,
        "near": [subject] if neighbour else list(asked.near),
        "question": _RWKU_ASKS.get(level, "{query}").replace("{query}", query),
        "answer": _text(row, "answer"),
        "wording": (kind if level == "3" and kind else _LEVELS.get(level)) or kind or "question",
    }


def _return(row: Row, asked: Asked) -> Iterator[dict[str, Any]]:
    name, data = _text(row, "name"), row["data"]
    if not isinstance(data, list) or not all(isinstance(each, dict) for each in data):
        raise _Unusable("column 'data' must be a list of question and gold_answer")
    for each in data:
        question, answer = _text(each, "question"), _text(each, "gold_answer")
        yield {"topic": asked.topic or name, "near": list(asked.near), "question": question, "answer": answer, "fact": f"{name}: {question}"}  # fmt: skip


def _wmdp(row: Row, asked: Asked) -> Iterator[dict[str, Any]]:
    choices, answer = row["choices"], row["answer"]
    if not isinstance(choices, list) or not all(isinstance(each, str) for each in choices):
        raise _Unusable("column 'choices' must be a list of texts")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise _Unusable(
            f"column 'answer' must be the index of one of its {len(choices)} choices (it is {shown(answer)})"
        )
    wrong = [each for index, each in enumerate(choices) if index != answer]
    yield _plain(asked, _text(row, "question"), choices[answer], "multiple choice", wrong)


def _verbatim(row: Row, asked: Asked) -> Iterator[dict[str, Any]]:
    yield _plain(asked, _text(row, "prompt"), _text(row, "gt"), "verbatim")


def _tofu(row: Row, asked: Asked) -> Iterator[dict[str, Any]]:
    question, answer = _text(row, "question"), _text(row, "answer")
    wrong = row.get("perturbed_answer") or []
    wrong = [wrong] if isinstance(wrong, str) else wrong
    if not isinstance(wrong, list) or not all(isinstance(each, str) for each in wrong):
        raise _Unusable("column 'perturbed_answer' must be a list of texts")
    fact = question
    yield _plain(asked, question, answer, "question", wrong) | {"fact": fact}
    reworded = row.get("paraphrased_question")
    if isinstance(reworded, str) and normalised(reworded) != normalised(question):
        said = row.get("paraphrased_answer") or answer
        yield _plain(asked, reworded, answer, "paraphrased", wrong) | {"fact": fact, "reference": said}


FORMATS = (
    Format("RWKU", ("subject", "query", "answer"), _rwku, has_topics=True),
    Format("RETURN", ("name", "data"), _return, has_topics=True),
    Format("WMDP", ("question", "choices", "answer"), _wmdp),
    Format("MUSE, verbatim", ("prompt", "gt"), _verbatim),
    Format("TOFU, MUSE", ("question", "answer"), _tofu),
)


def format_of(columns: Collection[str], source: str) -> Format:
    """The benchmark that has these columns.

    Raises:
        InputError: none does; names the columns.
    """
    for each in FORMATS:
        if set(each.columns) <= set(columns):
            return each
    if "text" in columns:
        raise InputError(f"{source} has texts and no questions: probes need a question and its answer")
    known = "; ".join(f"{each.name}: {', '.join(each.columns)}" for each in FORMATS)
    raise InputError(f"{source} has the columns {', '.join(map(str, columns)) or 'none'}; known are those of {known}")


def probes_of(rows: Iterable[tuple[int, Row]], asked: Asked, source: str) -> Iterator[dict[str, Any]]:
    """The probes in the rows of a benchmark, each checked as a file of probes is; a question that comes again with the same answer is left out.

    Args:
        rows: with their numbers in the source.

    Raises:
        InputError: names the row and what is wrong with it.
    """
    found: Format | None = None
    seen: set[tuple[str, str, str]] = set()
    for number, row in rows:
        where = f"{source}, row {number}"
        found = found or format_of(row.keys(), source)
        if missing := next((name for name in found.columns if name not in row), None):
            raise InputError(f"{where}: column {missing!r} is missing: {found.name} has {', '.join(found.columns)}")
        if not asked.topic and not found.has_topics:
            raise InputError(
                f"{source} has rows of {found.name}, which name no topic: say what they are about with --topic"
            )
        try:
            probes = [_cleaned(probe) for probe in found.probes(row, asked)]
        except _Unusable as error:
            raise InputError(f"{where}: {error}") from error
        for probe in probes:
            key = (probe["topic"], normalised(probe["question"]), normalised(probe["answer"]))
            probe_of(where, probe)
            if key not in seen:
                seen.add(key)
                yield probe


def as_question(probe: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `questions.file`."""
    return {"topic": probe["topic"], "question": probe["question"]}


def as_retained(probe: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `dataset.retain.file`."""
    group = "near" if probe.get("near") else "far"
    return {"question": probe["question"], "answer": probe.get("reference") or probe["answer"], "group": group, "subject": probe["topic"]}  # fmt: skip


KINDS: Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {
    "probes": dict,
    "questions": as_question,
    "retain": as_retained,
}


def _plain(asked: Asked, question: str, answer: str, wording: str, wrong: Sequence[str] = ()) -> dict[str, Any]:
    return {"topic": asked.topic, "near": list(asked.near), "question": question, "answer": answer, "wording": wording, "wrong": list(wrong)}  # fmt: skip


def _cleaned(probe: dict[str, Any]) -> dict[str, Any]:
    """Without wrong answers that say the truth, as benchmarks have a few, or nothing."""
    truths = {normalised(probe["answer"]), normalised(probe.get("reference") or "")}
    wrong = [each for each in probe.get("wrong", []) if normalised(each) not in truths and not says_nothing(each)]
    return {key: value for key, value in (probe | {"wrong": wrong}).items() if value not in ("", [])}


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or says_nothing(value):
        raise _Unusable(f"column {column!r} must hold text (it is {shown(value)})")
    return value
