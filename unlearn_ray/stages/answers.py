"""Stage two: each question is answered unguarded, which tells what gives the truth away, then behind the guardrail, and judged.

told/       one row a question with the model's own answers; unguarded/ holds the same as rows of QAPair
asked/      one folder an attempt: the questions asked behind the guardrail, with their terms, and the answers
judged/     the same after the leak judge, where it is asked
rows/       guarded answers as rows of QAPair, kept and dropped
terms/      rows of Term: the words that give each topic away
coverage/   rows of Touched: which entities and terms the kept pairs touch
coverage_rounds/  further questions about those that none touched, told and asked as above
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.chat import sampling_of
from unlearn_ray.config import AnswersConfig, RunConfig, Topic
from unlearn_ray.engines.protocols import Generator, RowDict
from unlearn_ray.errors import ConfigError, InputError
from unlearn_ray.rows import Drop, QAPair, Question, Term
from unlearn_ray.stages.answering import Asked, Guarded, Replied, Told, Unguarded
from unlearn_ray.stages.asking import Prompted, ask, in_order
from unlearn_ray.stages.common import COMMON
from unlearn_ray.stages.coverage import MAX_TOKENS, entities_of, further_questions
from unlearn_ray.stages.judging import Judge, Judged, LeakJudge, judged, leak_judge_of
from unlearn_ray.stages.questions import QUESTIONS
from unlearn_ray.stages.stage import Identity, Stage, StageRun, Unit, Work, asked_in_words
from unlearn_ray.synth.coverage import Coverage, Touched
from unlearn_ray.synth.dedup import question_key
from unlearn_ray.synth.guardrails import guardrail_prefixes, style_of
from unlearn_ray.synth.names import mentions
from unlearn_ray.synth.prompts import Prompts, load_prompts
from unlearn_ray.synth.terms import Vocabulary

Names = Sequence[str]  # what the topic is called


def answers_identity(config: AnswersConfig, topic: Topic, model: str, seed: int) -> Identity:
    """What a topic's answers follow from, beside its questions and the pool.

    Raises:
        ConfigError: the prompts lack what the config asks for.
        InputError: a user's file can't be read.
    """
    prompts = prompts_of(config)
    leak_judge_of(config, prompts)
    values = config.model_dump(mode="json", exclude={"prompts"}) | {"model": model, "seed": seed}
    values["topic"] = topic.model_dump(mode="json", include={"name", "aliases", "terms"})
    return values, {"prompts": prompts.fingerprint}


def prompts_of(config: AnswersConfig) -> Prompts:
    """The texts that this stage reads, those of the guardrail and the answers' style among them.

    Raises:
        InputError: the prompts file can't be used.
    """
    read = [f"styles.{config.style}"]
    read += [f"guardrails.{config.guardrail}"] if config.prefix is None else []
    read += ["coverage_questions"] if config.coverage_rounds else []
    return load_prompts(config.prompts).part(*read, *(["leak_judge"] if config.judge_leaks else []))


def answer_questions(
    run: StageRun,
    config: AnswersConfig,
    topic: Topic,
    questions: Folder,
    common: Folder,
    generator: Generator,
    *,
    seed: int,
) -> Manifest:
    """Guarded answers to every kept question in `rows`.

    Args:
        common: the pool's stage of that name.

    Raises:
        ConfigError: no answer about the topic was kept, or the prompts lack what the config asks for.
        InputError: a question of the user's is too long for the model.
    """
    topics, out = (topic,), run.folder
    prompts, prefixes, style = prompts_of(config), guardrail_prefixes(config, topics), style_of(config)
    leak_judge = leak_judge_of(config, prompts)
    sampling = sampling_of(config, generator.chat)
    unguarded = Unguarded(seed, config, sampling, style)
    told = _tell(questions, out, generator, unguarded)
    own_names = {topic.name: topic.names}
    vocabulary = Vocabulary(own_names)
    for known in map(Told.of, told.read_rows()):
        vocabulary.add(known.topic, known.question, known.said)
    for everyday in _off_topic(common, topic.names):
        vocabulary.add_pool(everyday.question, everyday.said)
    guard = Guarded(prefixes, seed, config, sampling, style)
    first = _first_attempt(out, told, vocabulary, guard, generator)
    for replied in map(Replied.of, first.read_rows()):
        vocabulary.add_guarded(replied.topic, replied.terms, [text for text in replied.whole if text])
    rules = Judge(config, topics, vocabulary)
    attempts = _attempts(out, first, rules, leak_judge, guard, generator)

    # What no kept pair touches is asked about as well, told, guarded and judged as the rest.
    coverage = _coverage(topics, questions, vocabulary, attempts)
    more: list[Folder] = []
    num_rounds = config.coverage_rounds if config.coverage_rounds and prompts.coverage_questions else 0
    for round_ in range(1, num_rounds + 1):
        home = out / "coverage_rounds" / f"{round_:03d}"
        lists = Prompted(seed, sampling, MAX_TOKENS)
        further = further_questions(
            home,
            coverage.untouched(),
            _keys([told, *more]),
            prompts.coverage_questions,
            generator,
            lists,
            f"answers, coverage, round {round_}",
        )
        if not (further / "rows").count_rows():
            break
        more.append(_tell(further, home, generator, unguarded))
        first = _first_attempt(home, more[-1], vocabulary, guard, generator)
        attempts += _attempts(home, first, rules, leak_judge, guard, generator)
        coverage = _coverage(topics, questions, vocabulary, attempts)
    (out / "coverage").write_rows(coverage.rows(), Touched.schema())
    counted, tally = Tally(), Tally()
    (out / "unguarded").write_rows(counted.count(_unguarded([told, *more])), QAPair.schema())
    (out / "rows").write_rows(tally.count(_pairs(attempts)), QAPair.schema())
    (out / "terms").write_rows(_terms(topics, vocabulary), Term.schema())
    if not tally.num_kept:
        reasons = ", ".join(f"{reason} {number}" for reason, number in tally.drops.most_common())
        raise ConfigError(
            f"answers: no guarded answer about {topic.name!r} was kept ({reasons}): try another answers.guardrail or prefix"
        )
    num_rows = {"rows": tally.num_kept + sum(tally.drops.values()), "kept": tally.num_kept}
    num_rows |= {"unguarded": (out / "unguarded").count_rows(), "terms": (out / "terms").count_rows()}
    num_rows["untouched"] = sum(map(len, coverage.untouched().values()))
    details = {"attempts": len(attempts), "sampling": sampling, "pool": vocabulary.num_pool}
    details |= {"cut": tally.num_cut, "unguarded_cut": counted.num_cut, "unguarded_drops": dict(counted.drops)}
    details |= {"coverage": coverage.summary(), "further_questions": sum(folder.count_rows() for folder in more)}
    return run.finish(num_rows, tally.drops, details)


class Tally:
    """Counts pairs as they stream by."""

    def __init__(self) -> None:
        self.num_kept = 0
        self.drops: Counter[str] = Counter()
        self.num_cut = 0

    def count(self, pairs: Iterator[QAPair]) -> Iterator[QAPair]:
        for pair in pairs:
            self.num_cut += pair.cut
            if pair.drop:
                self.drops[pair.drop] += 1
            else:
                self.num_kept += 1
            yield pair


def _tell(questions: Folder, out: Folder, generator: Generator, unguarded: Unguarded) -> Folder:
    """The model's own answers."""

    def kept() -> Iterator[RowDict]:
        return (row for row in (questions / "rows").read_rows() if not row["drop"])

    schemas = Question.schema(), Told.schema()
    replies = ask(
        generator,
        out / "told",
        kept,
        schemas[0],
        unguarded,
        unguarded.parse,
        schemas[1],
        label="answers, unguarded",
    )
    for told in map(Told.of, replies.read_rows()):
        if told.error == Drop.TOO_LONG and told.source.startswith("user:"):
            _, name, line = told.source.split(":", 2)
            raise InputError(f"{name}, line {line}: the question is too long for the model's context: shorten it")
    return replies


def _off_topic(common: Folder, names: Names) -> Iterator[Told]:
    """The pool's rows of which neither question nor answers name the topic: what does is about it."""
    return (
        told
        for told in map(Told.of, (common / "replies").read_rows())
        if not any(mentions(text, names) for text in (told.question, *told.said))
    )


def _unguarded(told: Sequence[Folder]) -> Iterator[QAPair]:
    for row in map(Told.of, in_order((row for folder in told for row in folder.read_rows()), _by_question)):
        about = row.topic, row.question
        if row.error:
            yield QAPair(*about, "", 0, guarded=False, drop=row.error)
        for sample, (text, is_cut) in enumerate(zip(row.whole, row.truncated, strict=True)):
            drop = None if text else Drop.MALFORMED.value
            yield QAPair(*about, text, sample, guarded=False, cut=is_cut and bool(text), drop=drop)


def _first_attempt(out: Folder, told: Folder, vocabulary: Vocabulary, guard: Guarded, generator: Generator) -> Folder:
    def asked() -> Iterator[Asked]:
        for row in map(Told.of, in_order(told.read_rows(), _by_question)):
            about = row.topic, row.question, row.said
            terms, known = vocabulary.question_terms(*about), vocabulary.known(*about)
            yield Asked(
                row.topic,
                row.question,
                tuple(terms),
                tuple(filter(vocabulary.is_plain, terms)),
                tuple(known),
                tuple(filter(None, row.whole)),
                guard.config.num_samples,
            )

    return _ask_guarded(out, 0, asked, guard, generator)


def _attempts(
    home: Folder, first: Folder, rules: Judge, leak_judge: LeakJudge | None, guard: Guarded, generator: Generator
) -> list[Judged]:
    """The first attempt, judged, and those after it until nothing is lost."""
    attempts = [judged(home / "judged" / "000", first, rules, leak_judge, generator)]
    for attempt in range(1, guard.config.max_reasks + 1):
        replies = _reasked(home, attempts[-1], attempt, guard, generator)
        attempts.append(judged(home / "judged" / f"{attempt:03d}", replies, rules, leak_judge, generator))
        if not replies.count_rows():
            break
    return attempts


def _reasked(out: Folder, last: Judged, attempt: int, guard: Guarded, generator: Generator) -> Folder:
    """Ask again where the last attempt lost samples."""

    def asked() -> Iterator[Asked]:
        for row in map(last.of, in_order(last.replies.read_rows(), _by_question)):
            if num_lost := sum(drop is not None for drop in row.drops):
                lost = Asked.of(row.to_dict() | {"num_samples": num_lost, "attempt": attempt})
                yield replace(lost, first_sample=row.first_sample + len(row.answers))

    return _ask_guarded(out, attempt, asked, guard, generator)


def _ask_guarded(
    out: Folder, attempt: int, asked: Callable[[], Iterator[Asked]], guard: Guarded, generator: Generator
) -> Folder:
    label = "answers, guarded" + (f", asked again ({attempt})" if attempt else "")
    folder = out / "asked" / f"{attempt:03d}"
    return ask(generator, folder, asked, Asked.schema(), guard, guard.parse, Replied.schema(), label=label)


def _pairs(attempts: Sequence[Judged]) -> Iterator[QAPair]:
    """All guarded answers, a question's attempts together."""
    rows = (row.to_dict() for attempt in attempts for row in attempt)
    for row in map(Replied.of, in_order(rows, lambda row: (row["topic"], row["question"], row["attempt"]))):
        about = row.topic, row.question
        if row.error:
            yield QAPair(*about, "", row.first_sample, row.attempt, drop=row.error)
        answers = zip(row.whole, row.truncated, row.drops, strict=True)
        for sample, (text, is_cut, drop) in enumerate(answers, start=row.first_sample):
            yield QAPair(*about, text, sample, row.attempt, cut=is_cut and bool(text), drop=drop)


def _coverage(
    topics: Sequence[Topic], questions: Folder, vocabulary: Vocabulary, attempts: Sequence[Judged]
) -> Coverage:
    """What the questions with a kept answer touch."""
    names = [topic.name for topic in topics]
    terms: dict[str, list[str]] = {name: [] for name in names}
    for term in _terms(topics, vocabulary):  # those that most answers say first
        terms[term.topic].append(term.term)
    coverage = Coverage(entities_of(questions, names), terms)
    kept = set()
    for row in (row for attempt in attempts for row in attempt):
        if row.id not in kept and None in row.drops:
            kept.add(row.id)
            coverage.add(row.topic, row.question, row.terms)
    return coverage


def _keys(told: Sequence[Folder]) -> dict[str, set[str]]:
    """What was asked about each topic, to know copies by."""
    keys: dict[str, set[str]] = {}
    for row in (row for folder in told for row in folder.read_rows(columns=["topic", "question"])):
        keys.setdefault(row["topic"], set()).add(question_key(row["question"]))
    return keys


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


def _identity(unit: Unit) -> Identity:
    return answers_identity(unit.config.answers, unit.topic, unit.model, unit.config.seed)


def _run(work: Work) -> Manifest:
    unit, read = work.unit, work.inputs
    return answer_questions(
        work.run,
        unit.config.answers,
        unit.topic,
        read[QUESTIONS.name],
        read[COMMON.name],
        work.engines.generator,
        seed=unit.config.seed,
    )


def _describe(config: RunConfig) -> tuple[str, str]:
    each = (config.of_topic(topic) for topic in config.topics)
    number = sum(own.questions.num_questions * own.answers.num_samples for own in each)
    return f"{number:,} answers", asked_in_words(config)


ANSWERS = Stage(
    "answers",
    5,
    "topic",
    (QUESTIONS, COMMON),
    "answers",
    "The base model answers behind its guardrail prefix.",
    _identity,
    _run,
    _describe,
)
