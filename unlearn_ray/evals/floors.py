"""The floor of a metric: what a model without knowledge gets, measured on the same probe. A figure means what it is above its floor.

Where only a word of a long sentence is the fact, a wrong answer in the form of the true one shares most of the sentence with it: such a
metric hardly sees whether the fact is known.
"""

from collections.abc import Callable
from typing import Any

# A measure and what one model said to one probe -> the floor at this probe; None where there is none.
Floor = Callable[[Any, Any], float | None]


def by_wrong_answers(measure: Any, said: Any) -> float | None:
    """The mean over the probe's wrong answers, each put in the place of what the model said or was scored on."""
    found = [measure.of(said.with_wrong(index)) for index in range(said.num_wrong)]
    values = [value for value in found if value is not None]
    return sum(values) / len(values) if values else None


def by_chance(_: Any, said: Any) -> float | None:
    """One of the candidates at random: 1 / (1 + number of wrong answers)."""
    scored = sum(bool(logprobs) for logprobs in said.wrong_logprobs)
    return 1 / (1 + scored) if scored else None


def without_knowledge(_: Any, said: Any) -> float | None:
    """Of the truth ratio: it is 1 where true and wrong answers are equally likely, which counts 1 on forget and 0 elsewhere."""
    return float(said.group == "forget") if any(said.wrong_logprobs) else None
