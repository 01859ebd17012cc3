"""Stage three: a topic's forget rows, its neighbours, and probes. A model's mixture joins the topics later.

forget/            rows of Example from the kept pairs, train and holdout
neighbours/        rows of naming.Name: subjects that the model lists as close to the topic
retain_questions/, retain_answers/  about the neighbours (subjects.py)
probes/            rows of Probe: the model's knowledge of the topic and near it (see probing), from questions that are not trained on. Without
                   wordings for short answers in the prompts: the held-out questions about the topic, with the model's one greedy answer
probing/           the work behind the probes: facts/ holds rows of known.Judged, kept and dropped
rounds/            the requests and replies
"""

from collections import Counter
from dataclasses import replace
from typing import Any

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.chat import sampling_of
from unlearn_ray.config import DatasetConfig, RunConfig, Topic
from unlearn_ray.engines.protocols import Generator
from unlearn_ray.rows import Drop, Example, Probe
from unlearn_ray.stages.answers import ANSWERS
from unlearn_ray.stages.asking import Budget, Prompted
from unlearn_ray.stages.asking_back import apart
from unlearn_ray.stages.candidates import About, known_probes
from unlearn_ray.stages.checking import counted
from unlearn_ray.stages.dataset_rows import WriteForgotten, WriteHeldOut
from unlearn_ray.stages.naming import Name, ask_names
from unlearn_ray.stages.questions import QUESTIONS
from unlearn_ray.stages.retaining import Served, holdout_of
from unlearn_ray.stages.spans import Table, spans_of, write_parts
from unlearn_ray.stages.stage import Identity, Stage, StageRun, Unit, Work, asked_in_words, limited
from unlearn_ray.stages.subjects import LIST_TOKENS, NAMES_PER_REQUEST, PROMPTS, subject_key, write_subjects
from unlearn_ray.synth.names import mentions
from unlearn_ray.synth.parsing import in_sentence
from unlearn_ray.synth.prompts import AnswerStyle, Prompts, load_prompts

_OF_POOL = {"num_general", "questions_per_general", "general", "file"}  # keys of `retain` that topics do not read


def dataset_identity(config: DatasetConfig, topic: Topic, model: str, seed: int, style: AnswerStyle) -> Identity:
    """The inputs of a topic's rows, besides its questions and answers.

    Raises:
        InputError: a user's file can't be read.
    """
    exclude: Any = {"prompts": True, "floors": True, "retain": _OF_POOL, "probes": {"num_far"}}
    values = config.model_dump(mode="json", exclude=exclude) | {"model": model, "seed": seed}
    values["topic"] = topic.model_dump(mode="json", include={"name", "aliases", "neighbours"})
    values["asks_neighbours"] = config.retain.file is None
    return values, {"prompts": prompts_of(config, topic, style).fingerprint}


def prompts_of(config: DatasetConfig, topic: Topic, style: AnswerStyle) -> Prompts:
    """The texts that this stage reads.

    Raises:
        InputError: the prompts file can't be used.
    """
    prompts, read = load_prompts(config.prompts), ["short_answers", "angles.", "styles."]
    if config.retain.file is None:
        read += [*PROMPTS, "neighbours", "neighbour_check", "angles.general", f"styles.{style}"]
    if prompts.short_answers:
        read += ["probe_questions", "angles.general", f"angles.{topic.kind}", "styles.sentence"]
    return prompts.part(*read)


def build_dataset(
    run: StageRun,
    config: DatasetConfig,
    topic: Topic,
    questions: Folder,
    answers: Folder,
    generator: Generator,
    *,
    seed: int,
    style: AnswerStyle = "sentence",
    budget: Budget = Budget(),
) -> Manifest:
    """A topic's forget rows, near rows and probes.

    Args:
        style: the style of the guarded answers. Retain answers have the same.
        budget: once it is spent, questions about the neighbours are requested only once.

    Raises:
        InputError: the prompts can't be used.
    """
    prompts, out, rows = prompts_of(config, topic, style), run.folder, config.retain
    splits = _forget(config, topic, answers, out, generator)
    served: Served = {}
    details: dict[str, object] = {"sampling": sampling_of(rows, generator.chat)}
    drops: Counter[str] = Counter()
    if rows.file is None:
        near = _neighbours(config, topic, prompts, out, generator, seed)
        served = {name: (topic.name,) for name in near}
        number = rows.questions_per_neighbour
        names, text = {topic.name: topic.names}, prompts.styles[style]
        written = write_subjects(
            rows, served, number, names, prompts, True, text, out, generator, seed, "dataset", budget
        )
        details |= {"near": list(near)} | written.details
        drops.update(written.question_drops)
        drops.update(written.answer_drops)
    if prompts.short_answers:
        about = About(topic, questions / "entities", answers)
        made = known_probes(config, about, served, (), prompts, out, generator, seed)
        (out / "probes").write_rows(made.probes, Probe.schema())
        details["probing"] = made.counts
    else:
        _write_held_out(config, topic, answers, out, generator)
    num_rows = {"forget_train": splits["train"], "forget_holdout": splits["holdout"]}
    if served:
        num_rows["near"] = written.num_answers
    num_rows["probes"] = (out / "probes").count_rows()
    details["topic"] = counted(topic, questions / "entities", answers, splits["train"], generator)
    return run.finish(num_rows, drops, details | budget.details)


def _forget(config: DatasetConfig, topic: Topic, answers: Folder, out: Folder, generator: Generator) -> Counter[str]:
    """Write the kept pairs. Returns their number per split."""
    pairs, splits = Table.of(answers / "rows"), Counter[str]()
    task = WriteForgotten(pairs, Table.of(answers / "unguarded"), topic.names, holdout_of(config), out / "forget")
    schema, label = Example.schema(), "dataset, rows to forget"
    write_parts(generator, task.out, task, spans_of(pairs), schema, splits.update, label=label)
    return splits


def _neighbours(
    config: DatasetConfig, topic: Topic, prompts: Prompts, out: Folder, generator: Generator, seed: int
) -> tuple[str, ...]:
    """The neighbours to retain: the user's, or those that the model lists. The topic itself is never one of them."""
    sampling = Prompted(seed, sampling_of(config.retain, generator.chat), LIST_TOKENS)

    def is_forgotten(_: str, name: str) -> str | None:
        is_it = mentions(name, topic.names) or any(mentions(own, [name]) for own in topic.names)
        return Drop.OFF_TOPIC.value if is_it else None

    if topic.neighbours:
        names = [Name(topic.name, name, 0, is_forgotten("", name)) for name in topic.neighbours]
    elif not config.retain.num_neighbours:
        names = []
    else:
        asked = ask_names(
            generator,
            out / "rounds" / "neighbours",
            prompts.neighbours,
            {topic.name: config.retain.num_neighbours},
            sampling,
            is_forgotten,
            "dataset, neighbours",
            per_request=NAMES_PER_REQUEST,
            nearest_first=True,
            ask_back=apart(generator, prompts, {topic.name: topic.names}, sampling),
        )
        names = [replace(each, name=in_sentence(each.name)) for each in asked]
    (out / "neighbours").write_rows(names, Name.schema())
    found: dict[str, str] = {}  # one spelling per subject
    for each in names:
        if not each.drop:
            found.setdefault(subject_key(each.name), each.name)
    return tuple(found.values())


def _write_held_out(config: DatasetConfig, topic: Topic, answers: Folder, out: Folder, generator: Generator) -> None:
    unguarded = Table.of(answers / "unguarded")
    task = WriteHeldOut(unguarded, topic.name, topic.names, holdout_of(config), out / "probes")
    write_parts(generator, task.out, task, spans_of(unguarded), Probe.schema(), label="dataset, held-out questions")


def _identity(unit: Unit) -> Identity:
    config = unit.config
    identity = dataset_identity(config.dataset, unit.topic, unit.model, config.seed, config.answers.style)
    return limited(identity, unit)


def _run(work: Work) -> Manifest:
    unit, read, config = work.unit, work.inputs, work.unit.config
    return build_dataset(
        work.run,
        config.dataset,
        unit.topic,
        read[QUESTIONS.name],
        read[ANSWERS.name],
        work.engines.generator,
        seed=config.seed,
        style=config.answers.style,
        budget=Budget(config.max_output_tokens, (read[QUESTIONS.name], read[ANSWERS.name], work.run.folder)),
    )


def _describe(config: RunConfig) -> tuple[str, str]:
    if config.dataset.retain.file is not None:
        return "rows to forget", asked_in_words(config)
    each = ((topic, config.of_topic(topic).dataset.retain) for topic in config.topics)
    number = sum((len(topic.neighbours) or own.num_neighbours) * own.questions_per_neighbour for topic, own in each)
    return f"rows to forget, up to {number:,} near", asked_in_words(config)


DATASET = Stage(
    "dataset", 6, "topic", (QUESTIONS, ANSWERS), "dataset", "Forget and retain rows.", _identity, _run, _describe
)
