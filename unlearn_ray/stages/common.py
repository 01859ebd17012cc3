"""The pool's common speech: the model's own answers to everyday questions. Their words do not give a topic away.

requests/, replies/   rows of Question and of answering.Told

This stage does not depend on any topic. A topic leaves out the rows that name it.
"""

from collections.abc import Iterator

from unlearn_ray.artifacts import Manifest
from unlearn_ray.chat import sampling_of
from unlearn_ray.config import AnswersConfig, RunConfig, Sampling
from unlearn_ray.rows import Question
from unlearn_ray.stages.answering import Told, Unguarded
from unlearn_ray.stages.asking import ask
from unlearn_ray.stages.stage import Identity, Stage, Unit, Work, asked_in_words
from unlearn_ray.synth.prompts import Prompts, load_prompts

_KEYS = {*Sampling.model_fields, "num_unguarded", "style", "max_tokens"}  # of the config that its answers depend on


def prompts_of(config: AnswersConfig) -> Prompts:
    """The texts that this stage reads.

    Raises:
        InputError: the prompts file can't be used.
    """
    return load_prompts(config.prompts).part("general_questions", f"styles.{config.style}")


def _identity(unit: Unit) -> Identity:
    config = unit.config.answers
    values = config.model_dump(mode="json", include=_KEYS) | {"model": unit.model, "seed": unit.config.seed}
    return values, {"prompts": prompts_of(config).fingerprint}


def _run(work: Work) -> Manifest:
    config, prompts = work.unit.config.answers, prompts_of(work.unit.config.answers)
    unguarded = Unguarded(
        work.unit.config.seed, config, sampling_of(config, work.engines.chat), prompts.styles[config.style]
    )

    def asked() -> Iterator[Question]:
        return (Question("", text, "general") for text in prompts.general_questions)

    replies = ask(
        work.engines.generator,
        work.run.folder,
        asked,
        Question.schema(),
        unguarded,
        unguarded.parse,
        Told.schema(),
        label="everyday questions",
    )
    return work.run.finish({"questions": replies.count_rows()}, {})


def _describe(config: RunConfig) -> tuple[str, str]:
    return f"{len(prompts_of(config.answers).general_questions)} everyday questions", asked_in_words(config)


COMMON = Stage("common", 1, "pool", (), "answers", "Everyday questions.", _identity, _run, _describe)
