"""`attacks.json`: the figures of the attacks on a model, as the report, its gate and its certificate read them."""

import json
import math
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, ValidationError

from unlearn_ray.artifacts import Folder
from unlearn_ray.errors import ArtifactError

ATTACKS_FILE = "attacks.json"
ATTACKS = ("relearn", "prompt", "quantize", "probe", "steer")


class AttackFigure(BaseModel):
    """What one attack got out of one model, over all its probes."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    attack: str  # "relearn"
    setting: str  # "lora, forget, 1e-3", "role_play"
    model: str  # base, unlearned, twin
    at: float  # steps, bits, layer; 0 where there is no curve
    metric: str  # recall, choice, accuracy, rank
    value: float
    low: float  # 95 % interval
    high: float
    num: int


def read_attacks(evaluated: Folder) -> list[AttackFigure]:
    """The figures of the attacks on the model of an evaluation; none where it was not attacked.

    Args:
        evaluated: the folder of its evaluation; the attacks are beside it.

    Raises:
        ArtifactError: they can't be read.
    """
    home = evaluated.parent
    folder = next((each for each in (home / "attacks", home) if each.exists(ATTACKS_FILE)), None)
    if folder is None:
        return []
    try:
        found = json.loads(folder.read_text(ATTACKS_FILE))
        rows = found["figures"] if isinstance(found, dict) else found
        return [AttackFigure.model_validate(row) for row in rows]
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise ArtifactError(f"{folder}/{ATTACKS_FILE} can't be read: attack the run anew") from error


def worst(figures: Iterable[AttackFigure], attack: str, metric: str, model: str = "unlearned") -> AttackFigure | None:
    """The setting that brought most back; None where the attack was not tried."""
    found = (each for each in figures if (each.attack, each.metric, each.model) == (attack, metric, model))
    return max((each for each in found if math.isfinite(each.value)), key=lambda each: each.value, default=None)
