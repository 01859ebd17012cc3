"""Which rows a step learns from, and who computes them: a pure function of the seed and the step.

So a resumed training reads what an unbroken one would have read, and the number of workers changes who computes, not what.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from unlearn_ray.rows import seed_of
from unlearn_ray.train.encoded import EncodedRows


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of one forward pass, filled up to the right. The token at l + 1 is predicted at position l."""

    ids_BL: torch.Tensor
    is_answer_BL: torch.Tensor  # the token at this position is learnt
    is_retain_B: torch.Tensor

    def to(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(self.ids_BL.to(device), self.is_answer_BL.to(device), self.is_retain_B.to(device))

    @property
    def inputs_BL(self) -> torch.Tensor:
        return self.ids_BL[:, :-1]

    @property
    def predicts_BL(self) -> torch.Tensor:
        """Positions of the input whose next token is learnt."""
        return self.is_answer_BL[:, 1:]

    @property
    def targets_N(self) -> torch.Tensor:
        return self.ids_BL[:, 1:][self.predicts_BL]

    @property
    def is_retain_N(self) -> torch.Tensor:
        return self.is_retain_B[:, None].expand_as(self.predicts_BL)[self.predicts_BL]

    def rows(self, chosen_B: torch.Tensor) -> "MicroBatch":
        return MicroBatch(self.ids_BL[chosen_B], self.is_answer_BL[chosen_B], self.is_retain_B[chosen_B])


@dataclass(frozen=True, slots=True)
class Placed:
    """A row of a step."""

    is_retain: bool
    row: int
    num_tokens: int


@lru_cache(maxsize=4)  # of both kinds, this epoch and the next: a step may straddle two
def permutation(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch."""
    return np.random.default_rng((seed, epoch)).permutation(num_rows)


def row_at(position: int, num_rows: int, seed: int) -> int:
    """The row at a position of the endless sequence of epochs."""
    epoch, offset = divmod(position, num_rows)
    return int(permutation(num_rows, seed, epoch)[offset])


class Batches:
    """The rows of every step, dealt to ranks and forward passes.

    A step's rows are sorted by length and cut into as many passes as needed, so that rows of a pass need little filling, and all ranks
    have passes of like length at the same time. Every rank has the same number of passes: sharded models meet in each.
    """

    def __init__(
        self,
        forget: EncodedRows,
        retain: EncodedRows | None,
        *,
        forget_batch: int,
        retain_batch: int,
        micro_batch: int,
        world_size: int,
        seed: int,
        pad_id: int,
    ) -> None:
        self._forget, self._retain = forget, retain
        self._forget_batch = forget_batch
        self._retain_batch = retain_batch if retain is not None else 0
        self._world_size = world_size
        self._seeds = {False: seed_of(seed, "order", "forget"), True: seed_of(seed, "order", "retain")}
        self._pad_id = pad_id
        num_rows = self._forget_batch + self._retain_batch
        self.num_micro_batches = -(-num_rows // (micro_batch * world_size))

    def placed(self, step: int) -> list[Placed]:
        """The rows of a step, over all ranks."""
        return [
            Placed(is_retain, row, self._rows(is_retain).num_tokens(row))
            for is_retain, size in ((False, self._forget_batch), (True, self._retain_batch))
            for position in range(step * size, (step + 1) * size)
            for row in [row_at(position, len(self._rows(is_retain)), self._seeds[is_retain])]
        ]

    def num_answer_tokens(self, step: int) -> tuple[int, int]:
        """Learnt tokens of forget and of retain rows, over all ranks."""
        counts = [0, 0]
        for placed in self.placed(step):
            counts[placed.is_retain] += self._rows(placed.is_retain).num_answer_tokens(placed.row)
        return counts[0], counts[1]

    def micro_batches(self, step: int, rank: int) -> list[MicroBatch]:
        """The forward passes of one rank."""
        ordered = sorted(self.placed(step), key=lambda placed: (placed.num_tokens, placed.is_retain, placed.row))
        count = self.num_micro_batches * self._world_size
        cuts = [len(ordered) * number // count for number in range(count + 1)]
        chunks = [ordered[cuts[n] : cuts[n + 1]] for n in range(rank, count, self._world_size)]
        # More passes than rows: the idle rank still runs, with a row that counts for nothing.
        return [self.collate(chunk) if chunk else self._idle(ordered[0]) for chunk in chunks]

    def collate(self, rows: list[Placed]) -> MicroBatch:
        longest = max(placed.num_tokens for placed in rows)
        ids_BL = torch.full((len(rows), longest), self._pad_id)
        is_answer_BL = torch.zeros((len(rows), longest), dtype=torch.bool)
        for number, placed in enumerate(rows):
            source = self._rows(placed.is_retain)
            ids_BL[number, : placed.num_tokens] = torch.from_numpy(source.ids(placed.row).astype(np.int64))
            is_answer_BL[number, source.start(placed.row) : placed.num_tokens] = True
        return MicroBatch(ids_BL, is_answer_BL, torch.tensor([placed.is_retain for placed in rows]))

    def _idle(self, row: Placed) -> MicroBatch:
        filled = self.collate([row])
        return MicroBatch(filled.ids_BL, torch.zeros_like(filled.is_answer_BL), filled.is_retain_B)

    def _rows(self, is_retain: bool) -> EncodedRows:
        if not is_retain:
            return self._forget
        assert self._retain is not None
        return self._retain
