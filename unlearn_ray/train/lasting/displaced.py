"""The passes of a step at displaced weights."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unlearn_ray.config import FinetuneConfig, RetainTerm
from unlearn_ray.rows import seed_of
from unlearn_ray.train.batches import Batches
from unlearn_ray.train.encoded import EncodedRows
from unlearn_ray.train.lasting.table import LASTING
from unlearn_ray.train.loop import Objective, Runtime, learnt_logps

_MOST_BATCHES = 64  # of an attacker in a step: the batches of two steps are different ones


class Chosen(EncodedRows):
    """Some of the rows, by their positions. A view: nothing is copied."""

    def __init__(self, rows: EncodedRows, positions: np.ndarray) -> None:
        self._rows, self.positions = rows, positions

    def __len__(self) -> int:
        return len(self.positions)

    def ids(self, row: int) -> np.ndarray:
        return self._rows.ids(int(self.positions[row]))

    def start(self, row: int) -> int:
        return self._rows.start(int(self.positions[row]))

    def num_tokens(self, row: int) -> int:
        return self._rows.num_tokens(int(self.positions[row]))


def half_of(rows: EncodedRows, half: int, seed: int) -> np.ndarray:
    """Positions of the rows whose question is in a half: rows of one question are in the same one, in every file."""
    return np.array(
        [
            row
            for row in range(len(rows))
            if seed_of(seed, "half", rows.ids(row)[: rows.start(row)].tobytes().hex()) % 2 == half
        ],
        dtype=np.int64,
    )


@dataclass(frozen=True, slots=True)
class _Sides:
    """What an attacker trains on, and what the forget loss is taken on afterwards."""

    attack: Batches | None
    defend: Batches
    positions: np.ndarray  # of the defended rows among all rows to forget


class Displaced:
    """Adds the gradient of the forget loss at displaced weights to that of a step.

    Args:
        truths: the true answers, for a term that attacks; None otherwise.
        layout: how rows are dealt to passes: `micro_batch`, `world_size`, `pad_id`, `micro_tokens`, as in `Batches`.

    Raises:
        ValueError: too few questions for two halves.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        forget: EncodedRows,
        invented: EncodedRows | None,
        truths: EncodedRows | None,
        seed: int,
        **layout: Any,
    ) -> None:
        assert config.lasting is not None
        self._config, self._seed = config, seed
        self._displace = LASTING[config.lasting.kind]
        # The retain term has its passes at the weights themselves.
        self._objective = Objective(config.model_copy(update={"retain": RetainTerm(kind="none")}), seed)
        self.sides = [self._side(half, forget, invented, truths, layout) for half in ((0, 1) if truths else (None,))]
        count = max(side.defend.num_micro_batches for side in self.sides)
        for side in self.sides:  # a training engine counts on the same number of passes in every step
            side.defend.num_micro_batches = count
        self.num_micro_batches = count

    def _side(
        self,
        half: int | None,
        forget: EncodedRows,
        invented: EncodedRows | None,
        truths: EncodedRows | None,
        layout: dict[str, Any],
    ) -> _Sides:
        """
        Args:
            half: the defended one; None: all rows are.
        """
        positions = np.arange(len(forget)) if half is None else half_of(forget, half, self._seed)
        common = {"retain": None, "retain_batch": 0, "num_steps": self._config.num_steps, **layout}
        defend = Batches(
            Chosen(forget, positions),
            invented=None if invented is None else Chosen(invented, positions),
            forget_batch=self._config.forget_batch,
            seed=seed_of(self._seed, "defended", half),
            **common,
        )
        if truths is None or half is None:
            return _Sides(None, defend, positions)
        attacked = half_of(truths, 1 - half, self._seed)
        if not len(attacked) or not len(positions):
            raise ValueError("too few questions for two halves")
        attack = Batches(
            Chosen(truths, attacked),
            forget_batch=self._config.forget_batch,
            seed=seed_of(self._seed, "attacked", half),
            **common,
        )
        return _Sides(attack, defend, positions)

    def refer(self, base_logps: tuple[np.ndarray, np.ndarray]) -> None:
        """Have passes carry what the base model gives to each answer: see `Batches.refer`. Of all rows."""
        forget, invented = base_logps
        for side in self.sides:
            side.defend.refer((forget[side.positions], invented[side.positions] if len(invented) else invented))

    def backward(self, runtime: Runtime, step: int) -> None:
        """Take the passes of a step, and leave the weights as they were."""
        config = self._config.lasting
        assert config is not None
        side = self.sides[step % len(self.sides)]
        counts = side.defend.counts(step)

        def forget(number: int) -> Iterator[torch.Tensor]:
            for batch in side.defend.micro_batches(step, runtime.rank):
                forget_sum, _, invented = self._objective.sums(runtime, batch.to(runtime.device))
                yield self._objective.forget_part(counts, forget_sum, invented)

        def attack(number: int) -> Iterator[torch.Tensor]:
            assert side.attack is not None
            at = step * _MOST_BATCHES + number
            num_tokens = side.attack.counts(at).forget_tokens
            side.attack.num_micro_batches = side.attack.passes_needed(at)  # no engine counts these
            for batch in side.attack.micro_batches(at, runtime.rank):
                yield -learnt_logps(runtime, batch.to(runtime.device)).sum() / num_tokens

        draw = random.Random(seed_of(self._seed, "displaced", step))
        with runtime.displaced() as moved:
            self._displace(config, moved, attack, forget, self._config.learning_rate, draw)
            for loss in forget(0):
                runtime.backward(config.weight * loss)
