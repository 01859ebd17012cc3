"""The attacks, in the order in which they run: the command line, its reports and the fingerprints read them here.

A new attack is a module with a function `run`, and a line. In engines, `run(context, engines, folder)` puts prompts to a model as the evaluation
does; in one process, `run(setup)` works on the weights, and imports torch.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal, NamedTuple

from unlearn_ray.artifacts import Folder
from unlearn_ray.attacks.attack import Hit, Setup
from unlearn_ray.attacks.context import AttackEngines, Context, OnProgress, Options
from unlearn_ray.engines.weights import local_copy


class Attack(NamedTuple):
    """An attack: the single place that says what it is."""

    name: str
    place: Literal["engines", "process"]  # where it runs
    version: int  # raised when the same input gives another result
    module: str  # imported when it runs: torch takes seconds
    summary: str
    axis: str = ""  # what its curves go along; "" = it has none

    def function(self) -> Callable[..., Iterator[Hit]]:
        found: Callable[..., Iterator[Hit]] = import_module(self.module).run
        return found

    def identity(self, options: Options) -> Mapping[str, Any]:
        """What the hits follow from, beside the run.

        Raises:
            InputError: a file of the user's can't be used.
        """
        if self.place == "process":
            return {"twin": options.twin_identity}
        found: Mapping[str, Any] = import_module(self.module).identity_of(options)
        return found

    def hits(self, context: Context, engines: AttackEngines, folder: Folder) -> Iterator[Hit]:
        """Do it, and yield what it got out of the models."""
        if self.place == "engines":
            return self.function()(context, engines, folder)
        return engines.alone(InProcess(self, context.setup()), f"attack {self.name}")


@dataclass(frozen=True, slots=True)
class InProcess:
    """An attack's work in one process, as it is sent there."""

    attack: Attack
    setup: Setup

    def __call__(self, on_progress: OnProgress) -> Iterator[Hit]:
        targets = [
            replace(
                target, path=str(local_copy(target.path)), adapter=target.adapter and str(local_copy(target.adapter))
            )
            for target in self.setup.targets
        ]
        return self.attack.function()(replace(self.setup, targets=targets, on_progress=on_progress))


ATTACKS: tuple[Attack, ...] = (
    Attack("prompt", "engines", 1, "unlearn_ray.attacks.prompt", "the same facts asked in many ways"),
    Attack("relearn", "process", 2, "unlearn_ray.attacks.relearn", "fine-tuned on half of the facts, on neighbours, on unrelated text", "steps"),
    Attack("quantize", "process", 2, "unlearn_ray.attacks.quantize", "its weights rounded to a few bits", "bits"),
    Attack("probe", "process", 2, "unlearn_ray.attacks.probing", "a linear probe on its hidden states picks the true answer", "layer"),
    Attack("steer", "process", 2, "unlearn_ray.attacks.steer", "the true answer's rank by layer, and its states pushed towards base", "layer"),
)  # fmt: skip
