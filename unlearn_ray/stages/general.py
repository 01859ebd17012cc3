"""The pool of everyday subjects, to retain knowledge far from all topics: the model's questions and answers about them, and probes.

subjects/          rows of naming.Name (topic "")
retain_questions/, retain_answers/  about the subjects (subjects.py)
given/             the user's own retain rows, if there is a file of them: rows of Example
probes/, probing/  far probes of the model's knowledge, if the prompts have wordings for short answers
rounds/            the requests and replies

This stage does not depend on any topic. A model's mixture leaves out subjects that are too close to one.
"""

from dataclasses import replace
from typing import Any

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.chat import sampling_of
from unlearn_ray.config import DatasetConfig, RetainRows, RunConfig
from unlearn_ray.engines.protocols import Generator
from unlearn_ray.reading import fingerprint_of_file
from unlearn_ray.rows import Drop, Example, Probe
from unlearn_ray.stages.asking import Prompted
from unlearn_ray.stages.candidates import known_probes
from unlearn_ray.stages.naming import Name, ask_names
from unlearn_ray.stages.retaining import GENERAL, user_retained
from unlearn_ray.stages.stage import Identity, Stage, StageRun, Unit, Work, asked_in_words
from unlearn_ray.stages.subjects import LIST_TOKENS, NAMES_PER_REQUEST, PROMPTS, write_subjects
from unlearn_ray.synth.parsing import in_sentence
from unlearn_ray.synth.prompts import AnswerStyle, Prompts, load_prompts
from unlearn_ray.synth.retained import spread

_OF_TOPICS = {"num_neighbours", "questions_per_neighbour", "file"}  # keys of `retain` that are not read here


def general_identity(config: DatasetConfig, model: str, seed: int, style: AnswerStyle) -> Identity:
    """The inputs of the pool's retained subjects.

    Raises:
        InputError: a user's file can't be read.
    """
    exclude: Any = {"prompts": True, "floors": True, "retain": _OF_TOPICS, "probes": {"num_forget"}}
    values = config.model_dump(mode="json", exclude=exclude) | {"model": model, "seed": seed}
    inputs = {"prompts": prompts_of(config, style).fingerprint}
    if config.retain.file is not None:
        inputs["file"] = fingerprint_of_file(config.retain.file)
    return values, inputs


def prompts_of(config: DatasetConfig, style: AnswerStyle) -> Prompts:
    """The texts that this stage reads.

    Raises:
        InputError: the prompts file can't be used.
    """
    prompts, read = load_prompts(config.prompts), ["short_answers", "angles.", "styles."]
    if config.retain.file is None:
        read += [*PROMPTS, "general_subjects", "general_topics", "angles.general", f"styles.{style}"]
    if prompts.short_answers:
        read += ["probe_questions", "angles.general", "styles.sentence"]
    return prompts.part(*read)


def write_general(
    run: StageRun, config: DatasetConfig, generator: Generator, *, seed: int, style: AnswerStyle = "sentence"
) -> Manifest:
    """Rows and probes about everyday subjects.

    Raises:
        InputError: the user's retain rows or prompts can't be used.
    """
    prompts, out, rows = prompts_of(config, style), run.folder, config.retain
    details: dict[str, object] = {"sampling": sampling_of(rows, generator.chat)}
    num_rows, served, given = dict[str, int](), dict[str, tuple[str, ...]](), list[Example]()
    drops: dict[str, int] = {}
    if rows.file is None:
        names = _subjects(rows, prompts, out, generator, seed)
        (out / "subjects").write_rows(names, Name.schema())
        served = {each.name: () for each in names if not each.drop}
        is_listed = not rows.general and bool(prompts.general_subjects)
        written = write_subjects(
            rows,
            served,
            rows.questions_per_general,
            {},
            prompts,
            not is_listed,
            prompts.styles[style],
            out,
            generator,
            seed,
            "general",
        )
        details |= {"far": list(served), "is_listed": is_listed} | written.details
        num_rows |= {"questions": written.num_questions, "answers": written.num_answers}
        drops = {
            reason: written.question_drops.get(reason, 0) + written.answer_drops.get(reason, 0)
            for reason in {*written.question_drops, *written.answer_drops}
        }
    else:
        given = list(user_retained(config))
        num_rows["given"] = (out / "given").write_rows(given, Example.schema())
    if prompts.short_answers:
        made = known_probes(config, None, served, given, prompts, out, generator, seed)
        num_rows["probes"] = (out / "probes").write_rows(made.probes, Probe.schema())
        details["probing"] = made.counts
    return run.finish(num_rows, drops, details)


def _subjects(config: RetainRows, prompts: Prompts, out: Folder, generator: Generator, seed: int) -> list[Name]:
    """Everyday subjects: the user's, an even selection from the prompts' list, or subjects that the model lists."""
    if config.general:
        return [Name("", name, 0) for name in config.general]
    if prompts.general_subjects:
        chosen = set(spread(prompts.general_subjects, config.num_general, seed))
        dropped = Drop.SURPLUS.value
        names = [Name("", name, 0, None if name in chosen else dropped) for name in prompts.general_subjects]
    elif not config.num_general:
        return []
    else:
        asked = ask_names(
            generator,
            out / "rounds" / "subjects",
            prompts.general_topics,
            {"": config.num_general},
            Prompted(seed, sampling_of(config, generator.chat), LIST_TOKENS),
            lambda topic, name: None,
            "general, subjects",
            per_request=NAMES_PER_REQUEST,
        )
        names = [replace(each, name=in_sentence(each.name)) for each in asked]
    if sum(not each.drop for each in names) < config.num_general:
        names.append(Name("", GENERAL, 0))
    return names


def _identity(unit: Unit) -> Identity:
    config = unit.config
    return general_identity(config.dataset, unit.model, config.seed, config.answers.style)


def _run(work: Work) -> Manifest:
    config = work.unit.config
    return write_general(work.run, config.dataset, work.engines.generator, seed=config.seed, style=config.answers.style)


def _describe(config: RunConfig) -> tuple[str, str]:
    rows = config.dataset.retain
    number = (len(rows.general) or rows.num_general) * rows.questions_per_general
    return "your own retain rows" if rows.file else f"up to {number:,} far rows", asked_in_words(config)


GENERAL_POOL = Stage("general", 2, "pool", (), "dataset", "Rows about everyday subjects.", _identity, _run, _describe)
