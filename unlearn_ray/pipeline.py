"""The stages in order, on one screen. What is already there is `plan`'s business, how a stage works its own."""

from collections.abc import Callable, Sequence
from typing import Protocol

from unlearn_ray.artifacts import Manifest
from unlearn_ray.chat import ChatFormat
from unlearn_ray.config import RunConfig
from unlearn_ray.engines.protocols import Generator, Trainer
from unlearn_ray.errors import ThinDataError
from unlearn_ray.plan import STAGES, fingerprints, identity_of
from unlearn_ray.stages import answers, dataset, evaluate, finetune, questions
from unlearn_ray.stages.checking import shortfalls_of
from unlearn_ray.stages.stage import state_of
from unlearn_ray.synth.enough import Shortfall, told
from unlearn_ray.synth.guardrails import guardrail_prefixes


def refuse(found: Sequence[Shortfall]) -> None:
    """Train on nothing that is too little."""
    raise ThinDataError(told(found))


class Engines(Protocol):
    """The engines of a run, started when a stage first needs them."""

    @property
    def chat(self) -> ChatFormat:
        """How the run's model is talked to."""
        ...

    @property
    def generator(self) -> Generator:
        """What data are asked of."""
        ...

    @property
    def evaluator(self) -> Generator:
        """What models are compared on: it takes adapters, and answers for all of them alike."""
        ...

    @property
    def trainer(self) -> Trainer: ...


def run(
    config: RunConfig,
    engines: Engines,
    selected: Sequence[str] = STAGES,
    on_start: Callable[[str], None] = lambda stage: None,
    on_finish: Callable[[str, Manifest], None] = lambda stage, manifest: None,
    on_thin: Callable[[Sequence[Shortfall]], None] = refuse,
) -> dict[str, Manifest]:
    """Run the selected stages in order; finished ones with the same fingerprint are skipped by the stages themselves.

    Args:
        on_thin: told which floors the data do not reach, before a model is trained on them. The dataset is finished by then.

    Raises:
        ThinDataError: there are such floors, and nobody accepts it.
    """
    home, topics, seed = config.folder, config.topics, config.seed
    model, path = identity_of(config), config.model_path
    at = {stage: home / stage for stage in STAGES}
    guardrails = guardrail_prefixes(config.answers, topics)

    steps: dict[str, Callable[[], Manifest]] = {
        "questions": lambda: questions.make_questions(
            config.questions, topics, at["questions"], engines.generator, model=model, seed=seed
        ),
        "answers": lambda: answers.answer_questions(
            config.answers, topics, at["questions"], at["answers"], engines.generator, model=model, seed=seed
        ),
        "dataset": lambda: dataset.build_dataset(
            config.dataset, topics, at["questions"], at["answers"], at["dataset"], engines.generator, model=model, seed=seed,
            style=config.answers.style,
        ),
        "finetune": lambda: finetune.finetune(
            config.finetune, topics, at["dataset"], at["finetune"], engines.trainer, model=model, model_path=path,
            chat=engines.chat, seed=seed,
        ),
        "evaluate": lambda: evaluate.evaluate(
            config.evaluate, topics, at["dataset"], at["answers"], at["finetune"], at["evaluate"], engines.evaluator,
            model=model, model_path=path, guardrail=guardrails, seed=seed,
            notes=[found.note for found in shortfalls_of(config)],
        ),
    }  # fmt: skip

    manifests = {}
    for stage in (name for name in STAGES if name in selected):
        if stage == "finetune" and "dataset" not in selected:
            check_data(config, on_thin)
        on_start(stage)
        manifests[stage] = steps[stage]()
        on_finish(stage, manifests[stage])
        if stage == "dataset":
            check_data(config, on_thin)
    return manifests


def check_data(config: RunConfig, on_thin: Callable[[Sequence[Shortfall]], None]) -> None:
    """Tell which floors the data do not reach, unless the training on them is done."""
    trained = state_of(config.folder / "finetune", fingerprints(config)["finetune"])
    if trained != "finished" and (found := shortfalls_of(config)):
        on_thin(found)
