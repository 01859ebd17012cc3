"""Stage two: each question is answered unguarded, which tells what gives the truth away, then behind the guardrail, and judged.

told/       one row a question with the model's own answers; unguarded/ holds the same as rows of QAPair
asked/      one folder an attempt: the questions asked behind the guardrail, with their terms, and the answers
rows/       guarded answers as rows of QAPair, kept and dropped
terms/      rows of Term: the words that give each topic away
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.chat import Drawn, sampling_of
from unlearn_ray.config import AnswersConfig, Topic
from unlearn_ray.engines.protocols import Generator, Reply, Request, RowDict
from unlearn_ray.errors import ConfigError, InputError
from unlearn_ray.rows import Drop, QAPair, Question, Row, Term, digest, seed_of
from unlearn_ray.stages.asking import ask, in_order, texts_of
from unlearn_ray.stages.stage import finished_manifest, open_stage
from unlearn_ray.synth.guardrails import guardrail_prefixes
from unlearn_ray.synth.leaks import Evidence, Vocabulary, judge
from unlearn_ray.synth.prompts import load_prompts
from unlearn_ray.words import fold

STAGE, VERSION = "answers", 2


@dataclass(frozen=True, slots=True)
class Told(Row):
    """A question with all unguarded answers of the model: the greedy one first. `error`: the engine could not answer."""

    topic: str
    question: str
    source: str
    answers: tuple[str, ...]
    truncated: tuple[bool, ...]
    error: str | None = None

    @property
    def id(self) -> str:
        return digest(self.topic, self.question)


@dataclass(frozen=True, slots=True)
class Asked(Row):
    """A question to be answered behind the guardrail."""

    topic: str
    question: str
    terms: tuple[str, ...]  # that answer it
    known: tuple[str, ...]  # all that the unguarded answers say beyond it
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
    known: tuple[str, ...]
    first_sample: int
    attempt: int
    answers: tuple[str, ...]
    truncated: tuple[bool, ...]
    error: str | None = None

    @property
    def id(self) -> str:
        return digest(self.topic, self.question)


def answers_identity(
    config: AnswersConfig, topics: Sequence[Topic], questions: str, model: str, seed: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Config and inputs that make this stage's fingerprint; `questions` is that of the questions stage.

    Raises:
        InputError: a user's file can't be read.
    """
    values = config.model_dump(mode="json", exclude={"prompts"})
    values |= {"model": model, "seed": seed}
    values["topics"] = [topic.model_dump(mode="json", include={"name", "aliases", "terms"}) for topic in topics]
    return values, {"questions": questions, "prompts": load_prompts(config.prompts).fingerprint}


def answer_questions(
    config: AnswersConfig,
    topics: Sequence[Topic],
    questions: Folder,
    out: Folder,
    generator: Generator,
    *,
    model: str,
    seed: int,
) -> Manifest:
    """Guarded answers to every kept question in `out/rows`.

    Raises:
        ConfigError: no answer about a topic was kept.
        InputError: a question of the user's is too long for the model.
    """
    prefixes = guardrail_prefixes(config, topics)
    fingerprint = finished_manifest(questions).fingerprint
    stage = open_stage(out, STAGE, VERSION, *answers_identity(config, topics, fingerprint, model, seed))
    if stage.is_finished:
        return finished_manifest(out)
    told = _tell(config, questions, out, generator, seed)
    vocabulary = Vocabulary({topic.name: (topic.name, *topic.aliases) for topic in topics})
    for known in map(Told.of, told.read_rows()):
        vocabulary.add(known.topic, known.question, _whole(known))
    (out / "unguarded").write_rows(_unguarded(told), QAPair.schema())

    sampling = sampling_of(config, generator.chat)
    guard = Guarded(prefixes, seed, config, sampling)
    attempts = [_first_attempt(out, told, vocabulary, guard, generator)]
    for replied in map(Replied.of, attempts[0].read_rows()):
        vocabulary.add_guarded(replied.topic, replied.terms, replied.answers)
    judge_row = Judge(config, topics, vocabulary)
    for attempt in range(1, config.max_reasks + 1):
        attempts.append(_reasked(out, attempts[-1], attempt, judge_row, guard, generator))
        if not attempts[-1].count_rows():
            break

    tally = Tally()
    (out / "rows").write_rows(tally.count(_pairs(attempts, judge_row)), QAPair.schema())
    (out / "terms").write_rows(_terms(topics, vocabulary), Term.schema())
    for topic in topics:
        if not tally.kept[topic.name]:
            reasons = ", ".join(f"{reason} {number}" for reason, number in tally.drops.most_common())
            raise ConfigError(
                f"answers: no guarded answer about {topic.name!r} was kept ({reasons}): try another answers.guardrail or prefix"
            )
    num_rows = {"rows": sum(tally.kept.values()) + sum(tally.drops.values()), "kept": sum(tally.kept.values())}
    num_rows |= {"unguarded": (out / "unguarded").count_rows(), "terms": (out / "terms").count_rows()}
    return stage.finish(
        num_rows, tally.drops, {"kept": dict(tally.kept), "attempts": len(attempts), "sampling": sampling}
    )


@dataclass(frozen=True, slots=True)
class Unguarded:
    """Asks for the model's own answers to a row of Question: greedy first, then sampled."""

    seed: int
    config: AnswersConfig
    sampling: Drawn  # as `chat.sampling_of` says

    def __call__(self, row: RowDict) -> list[Request]:
        greedy = Request([{"role": "user", "content": row["text"]}], max_tokens=self.config.max_tokens)
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

    def __call__(self, row: RowDict) -> list[Request]:
        asked = Asked.of(row)
        return [
            Request(
                [
                    {"role": "system", "content": self.prefixes[asked.topic]},
                    {"role": "user", "content": asked.question},
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


class Judge:
    """Says of each guarded answer why it is not kept. Needs all of the first attempt: what guarded answers keep is no leak."""

    def __init__(self, config: AnswersConfig, topics: Sequence[Topic], vocabulary: Vocabulary) -> None:
        self._config = config
        self._everywhere = {topic.name: (*topic.terms, *vocabulary.topic_names(topic.name)) for topic in topics}
        self._framing = {
            topic.name: {
                word: mostly
                for word, mostly in vocabulary.framing(topic.name).items()
                if word not in map(fold, topic.terms)
            }
            for topic in topics
        }

    def __call__(self, row: Replied) -> list[Drop | None]:
        evidence = None
        if self._config.filter_leaks:
            evidence = Evidence(row.terms, row.known, self._everywhere[row.topic], self._framing[row.topic])
        return judge(row.answers, row.truncated, row.question, evidence, self._config.guardrail)


class Tally:
    """Counts pairs as they stream by."""

    def __init__(self) -> None:
        self.kept: Counter[str] = Counter()
        self.drops: Counter[str] = Counter()

    def count(self, pairs: Iterator[QAPair]) -> Iterator[QAPair]:
        for pair in pairs:
            if pair.drop:
                self.drops[pair.drop] += 1
            else:
                self.kept[pair.topic] += 1
            yield pair


def _tell(config: AnswersConfig, questions: Folder, out: Folder, generator: Generator, seed: int) -> Folder:
    """The model's own answers, in the order of the questions' topics."""

    def kept() -> Iterator[RowDict]:
        return (row for row in (questions / "rows").read_rows() if not row["drop"])

    unguarded = Unguarded(seed, config, sampling_of(config, generator.chat))
    replies = ask(
        generator,
        out / "told",
        kept,
        Question.schema(),
        unguarded,
        unguarded.parse,
        Told.schema(),
        label="answers, unguarded",
    )
    for told in map(Told.of, replies.read_rows()):
        if told.error == Drop.TOO_LONG and told.source.startswith("user:"):
            _, name, line = told.source.split(":", 2)
            raise InputError(f"{name}, line {line}: the question is too long for the model's context: shorten it")
    return replies


def _whole(told: Told) -> list[str]:
    """Unguarded answers to learn words from: cut-off ones too, their words are as true."""
    return [text for text in told.answers if text.strip()]


def _unguarded(told: Folder) -> Iterator[QAPair]:
    for row in in_order(told.read_rows(), _by_question):
        if row["error"]:
            yield QAPair(row["topic"], row["question"], "", 0, guarded=False, drop=row["error"])
        for sample, (text, is_truncated) in enumerate(zip(row["answers"], row["truncated"], strict=True)):
            drop = Drop.MALFORMED.value if is_truncated or not text.strip() else None
            yield QAPair(row["topic"], row["question"], text, sample, guarded=False, drop=drop)


def _first_attempt(out: Folder, told: Folder, vocabulary: Vocabulary, guard: Guarded, generator: Generator) -> Folder:
    def asked() -> Iterator[Asked]:
        for row in map(Told.of, in_order(told.read_rows(), _by_question)):
            about = row.topic, row.question, _whole(row)
            terms, known = vocabulary.question_terms(*about), vocabulary.known(*about)
            yield Asked(row.topic, row.question, tuple(terms), tuple(known), guard.config.num_samples)

    return _ask_guarded(out, 0, asked, guard, generator)


def _reasked(out: Folder, last: Folder, attempt: int, judge_row: Judge, guard: Guarded, generator: Generator) -> Folder:
    """Ask again where the last attempt lost samples to the judge."""

    def asked() -> Iterator[Asked]:
        for row in map(Replied.of, in_order(last.read_rows(), _by_question)):
            if num_lost := sum(drop is not None for drop in judge_row(row)):
                first_sample = row.first_sample + len(row.answers)
                yield Asked(row.topic, row.question, row.terms, row.known, num_lost, first_sample, attempt)

    return _ask_guarded(out, attempt, asked, guard, generator)


def _ask_guarded(
    out: Folder, attempt: int, asked: Callable[[], Iterator[Asked]], guard: Guarded, generator: Generator
) -> Folder:
    label = "answers, guarded" + (f", asked again ({attempt})" if attempt else "")
    folder = out / "asked" / f"{attempt:03d}"
    return ask(generator, folder, asked, Asked.schema(), guard, guard.parse, Replied.schema(), label=label)


def _pairs(attempts: Sequence[Folder], judge_row: Judge) -> Iterator[QAPair]:
    """All guarded answers, a question's attempts together."""
    rows = (row for attempt in attempts for row in attempt.read_rows())
    for row in map(Replied.of, in_order(rows, lambda row: (row["topic"], row["question"], row["attempt"]))):
        if row.error:
            yield QAPair(row.topic, row.question, "", row.first_sample, row.attempt, drop=row.error)
        for sample, (text, drop) in enumerate(zip(row.answers, judge_row(row), strict=True), start=row.first_sample):
            yield QAPair(row.topic, row.question, text, sample, row.attempt, drop=drop)


def _terms(topics: Sequence[Topic], vocabulary: Vocabulary) -> Iterator[Term]:
    for topic in topics:
        found = vocabulary.topic_terms(topic.name)
        yield from (Term(topic.name, term, 0) for term in topic.terms if term not in found)
        yield from (
            Term(topic.name, term, count) for term, count in sorted(found.items(), key=lambda item: (-item[1], item[0]))
        )


def _by_question(row: RowDict) -> tuple[str, str]:
    """By topic, so that rows behind one guardrail are neighbours and its prefix is computed once."""
    return row["topic"], row["question"]
