"""`attacks/attacks.json` beside an evaluation: the figures of the attacks on its model, as the report, its gate and its certificate read them."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from unlearn_ray.artifacts import Folder, read_manifest
from unlearn_ray.errors import ArtifactError, StorageError
from unlearn_ray.evals.report import percent

log = logging.getLogger(__name__)
HOME, ATTACKS_FILE, ATTACKS_PAGE = "attacks", "attacks.json", "attacks.html"
ATTACKS = ("prompt", "relearn", "quantize", "probe", "steer")
NO_SHARES = ("rank",)  # of a token, from 1 on: the less, the worse


class Placed(Protocol):
    """What a figure says of itself, as it is read or as it is made."""

    @property
    def setting(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def at(self) -> float: ...
    @property
    def metric(self) -> str: ...
    @property
    def value(self) -> float: ...


F = TypeVar("F", bound=Placed)


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class AttackFigure(_Read):
    """What one attack got out of one model, over all its probes."""

    attack: str = ""  # "relearn"
    setting: str  # "lora, forget, 1e-3", "role_play"
    model: str  # base, guarded, unlearned, twin
    at: float  # steps, bits, layer; 0 where there is no curve
    metric: str  # recall, rouge_l_recall, choice, accuracy, rank
    value: float
    interval: tuple[float, float]  # 95 %
    num: int


class _Attack(_Read):
    name: str
    figures: list[AttackFigure]


class _Attacks(_Read):
    finetune: str  # fingerprint of the training that was attacked
    evaluate: str  # and of the evaluation, whose probes the attacks asked
    attacks: list[_Attack]


def read_attacks(evaluated: Folder) -> list[AttackFigure]:
    """The figures of the attacks on the model of an evaluation; none where it was not attacked, or trained or evaluated anew since.

    Args:
        evaluated: the folder of its evaluation; the attacks are beside it.

    Raises:
        ArtifactError: they can't be read.
    """
    folder = evaluated.parent / HOME
    if not folder.exists(ATTACKS_FILE):
        return []
    try:
        found = _Attacks.model_validate_json(folder.read_text(ATTACKS_FILE))
    except (ValidationError, ValueError) as error:
        raise ArtifactError(f"{folder}/{ATTACKS_FILE} can't be read: attack the run again") from error
    for stage, fingerprint in (("finetune", found.finetune), ("evaluate", found.evaluate)):
        manifest = read_manifest(evaluated.parent / stage)
        if manifest is None or manifest.fingerprint != fingerprint:
            return []
    return [figure.model_copy(update={"attack": each.name}) for each in found.attacks for figure in each.figures]


def page_of_attacks(evaluated: Folder) -> str:
    """Link to the page of the attacks from that of the report; "" where there is none, or it is of another training or evaluation.

    Raises:
        ArtifactError: as in `read_attacks`.
    """
    is_there = (evaluated.parent / HOME).exists(ATTACKS_PAGE) and read_attacks(evaluated)
    return f"../{HOME}/{ATTACKS_PAGE}" if is_there else ""


def refresh(evaluated: Folder) -> None:
    """Write the pages of an evaluation anew where its model was attacked since. A folder that can't be written keeps its own.

    Raises:
        ArtifactError: the report, or the attacks' figures, can't be read.
    """
    if not read_attacks(evaluated):
        return
    from unlearn_ray.evals.markdown import write_pages  # plots take a second to import

    try:
        write_pages(evaluated)
    except StorageError as error:
        log.warning("the report does not show the attacks: %s", error)


def worst_of(figures: Iterable[F], metric: str, model: str = "unlearned", at: float | None = None) -> F | None:
    """The figure of one attack that tells most of what was to be forgotten; of equals the first on its curve. None where there is none.

    Args:
        at: only there on the curves; None: anywhere.
    """
    found = (each for each in figures if (each.metric, each.model) == (metric, model))
    known = (each for each in found if at in (None, each.at) and math.isfinite(each.value))
    sign = 1 if metric in NO_SHARES else -1
    return min(known, key=lambda each: (sign * each.value, each.at), default=None)


def worst_by_model(figures: Sequence[F], metric: str, at: float | None = None) -> dict[str, F]:
    """The worst figure of the unlearned model in one attack, and of each other model at the same place on the curve.

    Each in the setting that gets most out of it: an attacker tries them all, and not every setting is tried on every model.
    Empty where the unlearned model has none.
    """
    last = worst_of(figures, metric, at=at)
    if last is None:
        return {}
    models = dict.fromkeys(each.model for each in figures)
    found = {model: worst_of(figures, metric, model, last.at) for model in models}
    return {model: figure for model, figure in found.items() if figure is not None}


@dataclass(frozen=True, slots=True)
class Worst:
    """What an attack got out of each model at most, in words; the setting is the unlearned model's."""

    attack: str
    metric: str
    setting: str
    base: str
    unlearned: str  # with its interval
    twin: str


def worst_of_each(attacks: Sequence[AttackFigure]) -> list[Worst]:
    """A line for each attack and metric; of ranks, which are no shares, none."""
    found = []
    for attack in dict.fromkeys(each.attack for each in attacks):
        figures = [each for each in attacks if each.attack == attack]
        for metric in dict.fromkeys(each.metric for each in figures if each.metric not in NO_SHARES):
            by_model = worst_by_model(figures, metric)
            if (last := by_model.get("unlearned")) is None:
                continue
            base, twin = (percent(by_model[model].value) if model in by_model else "" for model in ("base", "twin"))
            low, high = (round(100 * bound) for bound in last.interval)
            where = last.setting + (f", at {last.at:g}" if last.at else "")
            found.append(Worst(attack, metric, where, base, f"{percent(last.value)} [{low}, {high}]", twin))
    return found
