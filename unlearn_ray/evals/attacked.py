"""`attacks/attacks.json` beside an evaluation: the figures of the attacks on its model, as the report, its gate and its certificate read them."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from unlearn_ray.artifacts import Folder, read_manifest
from unlearn_ray.errors import ArtifactError, StorageError
from unlearn_ray.evals.report import percent

log = logging.getLogger(__name__)
HOME, ATTACKS_FILE, ATTACKS_PAGE = "attacks", "attacks.json", "attacks.html"
ATTACKS = ("prompt", "relearn", "quantize", "probe", "steer")


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


def worst(
    figures: Iterable[AttackFigure], attack: str, metric: str, model: str = "unlearned", at: float | None = None
) -> AttackFigure | None:
    """The setting that brought most back; None where the attack was not tried.

    Args:
        at: only there on its curve; None: anywhere.
    """
    found = (each for each in figures if (each.attack, each.metric, each.model) == (attack, metric, model))
    known = (each for each in found if at in (None, each.at) and math.isfinite(each.value))
    return max(known, key=lambda each: each.value, default=None)


@dataclass(frozen=True, slots=True)
class Worst:
    """The setting in which an attack got most out of the unlearned model, in words, and what it got out of other models there."""

    attack: str
    metric: str
    setting: str
    base: str
    unlearned: str  # with its interval
    twin: str


def worst_of_each(attacks: Sequence[AttackFigure]) -> list[Worst]:
    """A line for each attack and metric; of ranks, which are no shares, none."""
    found = []
    for attack in ATTACKS:
        for metric in dict.fromkeys(each.metric for each in attacks if each.attack == attack and each.metric != "rank"):
            if (last := worst(attacks, attack, metric)) is None:
                continue
            beside = {
                each.model: percent(each.value)
                for each in attacks
                if (each.attack, each.metric, each.setting, each.at) == (attack, metric, last.setting, last.at)
            }
            low, high = (round(100 * bound) for bound in last.interval)
            where = last.setting + (f", at {last.at:g}" if last.at else "")
            figure = f"{percent(last.value)} [{low}, {high}]"
            found.append(Worst(attack, metric, where, beside.get("base", ""), figure, beside.get("twin", "")))
    return found
