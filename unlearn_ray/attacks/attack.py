"""What an attack is, and what it measures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from unlearn_ray.config import ChatConfig
from unlearn_ray.evals.probes import PlacedProbe, Probe
from unlearn_ray.rows import Row, digest

AttackedModel = Literal[
    "base", "guarded", "unlearned", "twin"
]  # guarded: behind the prefix; the last never knew the topics


def fact_of(probe: Probe) -> str:
    """The name of a probe's fact, of all topics."""
    return f"{probe.topic}: {probe.fact_id}"


@dataclass(frozen=True, slots=True)
class Target:
    """A model under attack."""

    name: AttackedModel
    path: str  # of the model folder
    adapter: str = ""  # folder of a PEFT adapter on it; "" = none


@dataclass(frozen=True, slots=True)
class Hit(Row):
    """What one attack got out of one model with one probe."""

    attack: str  # "relearn"
    setting: str  # one curve, or one kind of prompt: "lora, forget, 1e-3", "role_play"
    model: AttackedModel
    at: float  # where on the curve: steps, bits, layer; 0 where there is no curve
    metric: str  # "recall", "choice", "accuracy", "rank"
    probe_id: str
    fact: str  # of equal facts, intervals draw all probes together
    value: float

    @property
    def id(self) -> str:
        return digest(self.attack, self.setting, self.model, self.at, self.metric, self.probe_id)


@dataclass(frozen=True, slots=True)
class Setup:
    """What an attack in one process works on: all probes are of the forgotten topics, each with its true and wrong references."""

    targets: Sequence[Target]
    probes: Sequence[PlacedProbe]
    taught: Sequence[tuple[str, str]]  # question and true answer of the half of the facts that an attacker knows
    untaught: Sequence[PlacedProbe]  # probes of the other half
    near: Sequence[tuple[str, str]]  # rows about neighbours
    unrelated: Sequence[tuple[str, str]]
    seed: int
    max_tokens: int  # of an answer
    chat: ChatConfig = field(default_factory=ChatConfig)  # what the run says of the models' chat format
    on_progress: Callable[[str, int, int], None] = lambda label, done, total: None
