"""Stage two: each question is answered without the guardrail, to learn the terms, and then behind the guardrail. These answers are judged.

told/       one row per question with the model's own answers; unguarded/ holds the same as rows of QAPair
asked/      one folder per attempt: the questions asked behind the guardrail, with their terms, and the answers
judged/     the same with each answer's verdict: requests/ after the rules, replies/ after the leak judge, if it is asked
rows/       guarded answers as rows of QAPair, kept and dropped
terms/      rows of Term: the words that give each topic away
coverage/   rows of Touched: the entities and terms, with the number of kept pairs that touch them
coverage_rounds/  further questions about untouched ones, told and asked as above

All tables are in the order of their questions. Tasks (answer_rows.py) read and write the rows, one task per span of questions.
"""

from collections.abc import Callable, Iterator, Sequence

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.chat import sampling_of
from unlearn_ray.config import AnswersConfig, RunConfig, Topic
from unlearn_ray.engines.protocols import Generator
from unlearn_ray.errors import ConfigError
from unlearn_ray.rows import QAPair, Question, Term
from unlearn_ray.stages.answer_rows import (
    AskAgain,
    CountCoverage,
    CountGuarded,
    CountLost,
    CountTold,
    FirstAttempt,
    Tally,
    WriteJudged,
    WritePairs,
    WriteUnguarded,
)
from unlearn_ray.stages.answering import Asked, Guarded, Replied, Told, Unguarded
from unlearn_ray.stages.asking import Budget, Prompted, ask_written
from unlearn_ray.stages.common import COMMON
from unlearn_ray.stages.coverage import MAX_TOKENS, entities_of, further_questions
from unlearn_ray.stages.judging import Judge, LeakJudge, leak_judge_of
from unlearn_ray.stages.questions import QUESTIONS
from unlearn_ray.stages.spans import Span, Table, in_groups, joined, results, spans_of, write_in_order, write_parts
from unlearn_ray.stages.stage import Identity, Stage, StageRun, Unit, Work, asked_in_words, limited
from unlearn_ray.synth.coverage import Coverage, Touched
from unlearn_ray.synth.guardrails import guardrail_prefixes, style_of
from unlearn_ray.synth.names import mentions
from unlearn_ray.synth.prompts import Prompts, load_prompts
from unlearn_ray.synth.terms import Vocabulary

_VOCABULARIES = 32  # counted in parallel; the driver merges them


def answers_identity(config: AnswersConfig, topic: Topic, model: str, seed: int) -> Identity:
    """The inputs of a topic's answers, besides its questions and the pool.

    Raises:
        ConfigError: the prompts lack a template that the config needs.
        InputError: a user's file can't be read.
    """
    prompts = prompts_of(config)
    leak_judge_of(config, prompts)
    values = config.model_dump(mode="json", exclude={"prompts"}) | {"model": model, "seed": seed}
    values["topic"] = topic.model_dump(mode="json", include={"name", "aliases", "terms"})
    return values, {"prompts": prompts.fingerprint}


def prompts_of(config: AnswersConfig) -> Prompts:
    """The texts that this stage reads, including those of the guardrail and the answers' style.

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
    budget: Budget = Budget(),
) -> Manifest:
    """Guarded answers to every kept question in `rows`.

    Args:
        common: the folder of the pool's stage of that name.
        budget: once it is spent, all questions are still asked once, and nothing else.

    Raises:
        ConfigError: no answer about the topic was kept, or the prompts lack a template that the config needs.
        InputError: a question of the user's is too long for the model.
    """
    out, prompts = run.folder, prompts_of(config)
    prefixes, style = guardrail_prefixes(config, (topic,)), style_of(config)
    sampling = sampling_of(config, generator.chat)
    unguarded = Unguarded(seed, config, sampling, style)
    guard = Guarded(prefixes, seed, config, sampling, style)
    leak_judge = leak_judge_of(config, prompts)
    told = _tell(questions, out, generator, unguarded)
    spans = spans_of(told)
    vocabulary = _vocabulary(topic, told, spans, common, generator)
    first = _first_attempt(out, told, vocabulary, guard, generator)
    count = CountGuarded(first)
    generator.each(count, in_groups(spans, _VOCABULARIES), vocabulary.merge, label="answers, what guarded ones keep")
    rules = Judge(config, (topic,), vocabulary)
    attempts = _attempts(out, first, spans, rules, leak_judge, guard, generator, budget)

    # Further questions about untouched names are told, guarded and judged in the same way.
    coverage = Coverage(entities_of(questions, [topic.name]), _listed(topic, vocabulary))
    _cover(coverage, attempts, spans, generator)
    more: list[Table] = []
    num_rounds = config.coverage_rounds if config.coverage_rounds and prompts.coverage_questions else 0
    for round_ in range(1, num_rounds + 1):
        if budget.ends(f"answers, coverage, round {round_}"):
            break
        home = out / "coverage_rounds" / f"{round_:03d}"
        further = further_questions(
            home,
            coverage.untouched(),
            [each.folder for each in (told, *more)],
            prompts.coverage_questions,
            generator,
            Prompted(seed, sampling, MAX_TOKENS),
            f"answers, coverage, round {round_}",
        )
        if not (further / "rows").count_rows():
            break
        more.append(_tell(further, home, generator, unguarded))
        own = spans_of(more[-1])
        first = _first_attempt(home, more[-1], vocabulary, guard, generator)
        again = _attempts(home, first, own, rules, leak_judge, guard, generator, budget)
        _cover(coverage, again, own, generator)
        attempts += again
    (out / "coverage").write_rows(coverage.rows(), Touched.schema())
    counted, tally, schema = Tally(), Tally(), QAPair.schema()
    own_answers = WriteUnguarded((told, *more), out / "unguarded")
    write_parts(
        generator, own_answers.out, own_answers, spans, schema, counted.merge, label="answers, unguarded, written"
    )
    pairs = WritePairs(tuple(attempts), out / "rows")
    write_parts(generator, pairs.out, pairs, spans, schema, tally.merge, label="answers, written")
    (out / "terms").write_rows(_terms(topic, vocabulary), Term.schema())
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
    details |= {"coverage": coverage.summary(), "further_questions": sum(each.folder.count_rows() for each in more)}
    return run.finish(num_rows, tally.drops, details | budget.details)


def _tell(questions: Folder, out: Folder, generator: Generator, unguarded: Unguarded) -> Table:
    """The model's own answers, in the order of their questions. All later tables keep this order."""

    def write(requests: Folder) -> None:
        schema, label = Question.schema(), "answers, questions in order"
        write_in_order(generator, questions / "rows", requests, schema, "text", label=label)

    replies = ask_written(
        generator, out / "told", write, unguarded, unguarded.parse, Told.schema(), label="answers, unguarded"
    )
    return Table.of(replies)


def _vocabulary(topic: Topic, told: Table, spans: Sequence[Span], common: Folder, generator: Generator) -> Vocabulary:
    """The vocabulary of the model's own answers and of the pool. Pool rows that name the topic are left out, because they are about it."""
    vocabulary = Vocabulary({topic.name: topic.names})
    count = CountTold(told, (topic.name, topic.names))
    generator.each(count, in_groups(spans, _VOCABULARIES), vocabulary.merge, label="answers, words counted")
    for everyday in map(Told.of, (common / "replies").read_rows()):
        if not any(mentions(text, topic.names) for text in (everyday.question, *everyday.said)):
            vocabulary.add_pool(everyday.question, everyday.said)
    return vocabulary


def _first_attempt(out: Folder, told: Table, vocabulary: Vocabulary, guard: Guarded, generator: Generator) -> Table:
    def write(requests: Folder) -> None:
        task = FirstAttempt(told, vocabulary, guard.config.num_samples, requests)
        write_parts(generator, requests, task, spans_of(told), Asked.schema(), label="answers, terms")

    return _ask_guarded(out, 0, write, guard, generator)


def _attempts(
    home: Folder,
    first: Table,
    spans: Sequence[Span],
    rules: Judge,
    leak_judge: LeakJudge | None,
    guard: Guarded,
    generator: Generator,
    budget: Budget,
) -> list[Table]:
    """The judged attempts: the first one, and further ones until no answer is lost."""
    attempts = [_judged(home, 0, first, spans, rules, leak_judge, generator)]
    for attempt in range(1, guard.config.max_reasks + 1):
        if budget.ends(f"answers, asked again ({attempt})"):
            break
        sizes = dict(results(generator, CountLost(attempts[-1]), spans, label="answers, lost ones counted"))
        spans = joined(spans, sizes)
        replies = _reasked(home, attempts[-1], attempt, spans, guard, generator)
        attempts.append(_judged(home, attempt, replies, spans, rules, leak_judge, generator))
        if not replies.files:
            break
    return attempts


def _reasked(
    home: Folder, last: Table, attempt: int, spans: Sequence[Span], guard: Guarded, generator: Generator
) -> Table:
    """Ask the questions again for which the last attempt lost samples."""

    def write(requests: Folder) -> None:
        task = AskAgain(last, attempt, requests)
        write_parts(generator, requests, task, spans, Asked.schema(), label="answers, asked again")

    return _ask_guarded(home, attempt, write, guard, generator)


def _ask_guarded(
    out: Folder, attempt: int, write: Callable[[Folder], None], guard: Guarded, generator: Generator
) -> Table:
    label = "answers, guarded" + (f", asked again ({attempt})" if attempt else "")
    folder = out / "asked" / f"{attempt:03d}"
    return Table.of(ask_written(generator, folder, write, guard, guard.parse, Replied.schema(), label=label))


def _judged(
    home: Folder,
    attempt: int,
    replies: Table,
    spans: Sequence[Span],
    rules: Judge,
    leak_judge: LeakJudge | None,
    generator: Generator,
) -> Table:
    """The answers with their verdicts, after the rules and, if there is one, the leak judge."""
    folder = home / "judged" / f"{attempt:03d}"

    def write(requests: Folder) -> None:
        task = WriteJudged(replies, rules, requests)
        write_parts(generator, requests, task, spans, Replied.schema(), label="answers, judged by rules")

    if leak_judge is None:
        write(folder / "requests")
        return Table.of(folder / "requests")
    asked = ask_written(
        generator, folder, write, leak_judge, leak_judge.parse, Replied.schema(), label="answers, judged"
    )
    return Table.of(asked)


def _cover(coverage: Coverage, attempts: Sequence[Table], spans: Sequence[Span], generator: Generator) -> None:
    """Count the names that the questions with a kept answer touch."""
    count = CountCoverage(tuple(attempts), coverage.blank())
    generator.each(count, spans, coverage.merge, label="answers, coverage")


def _listed(topic: Topic, vocabulary: Vocabulary) -> dict[str, list[str]]:
    """The topic's terms, the most frequent first."""
    return {topic.name: [term.term for term in _terms(topic, vocabulary)]}


def _terms(topic: Topic, vocabulary: Vocabulary) -> Iterator[Term]:
    found = vocabulary.topic_terms(topic.name)
    yield from (Term(topic.name, term, 0) for term in topic.terms if term not in found)
    yield from (
        Term(topic.name, term, count) for term, count in sorted(found.items(), key=lambda item: (-item[1], item[0]))
    )


def _identity(unit: Unit) -> Identity:
    return limited(answers_identity(unit.config.answers, unit.topic, unit.model, unit.config.seed), unit)


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
        budget=Budget(unit.config.max_output_tokens, (read[QUESTIONS.name], work.run.folder)),
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
