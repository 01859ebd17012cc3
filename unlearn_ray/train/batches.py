"""Which rows a step learns from, and who computes them: a pure function of the seed and the step.

So a resumed training reads what an unbroken one would have read, and the number of workers changes who computes, not what.
"""

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import chain

import numpy as np
import torch

from unlearn_ray.rows import seed_of
from unlearn_ray.train.dealing import Size, deal, num_passes
from unlearn_ray.train.encoded import EncodedRows


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of one forward pass, filled up to the right. The token at l + 1 is predicted at position l."""

    ids_BL: torch.Tensor
    is_answer_BL: torch.Tensor  # the token at this position is learnt
    is_retain_B: torch.Tensor
    is_invented_B: torch.Tensor  # the second of a pair: rows to forget and these come in the same order
    base_logp_B: torch.Tensor  # of the whole answer, by the base model; NaN where nobody asked for it

    def to(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(*(getattr(self, each.name).to(device) for each in fields(self)))

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

    @property
    def row_N(self) -> torch.Tensor:
        """The row of each learnt token."""
        return self.predicts_BL.nonzero()[:, 0]

    def rows(self, chosen_B: torch.Tensor) -> "MicroBatch":
        return MicroBatch(*(getattr(self, each.name)[chosen_B] for each in fields(self)))


@dataclass(frozen=True, slots=True)
class Placed:
    """A row of a step."""

    is_retain: bool
    row: int
    num_tokens: int
    is_invented: bool = False  # the invented answer of a pair, whose true one is the row to forget


@dataclass(frozen=True, slots=True)
class Counts:
    """Learnt tokens of a step, and its forget rows (a pair is one), over all ranks."""

    forget_tokens: int
    retain_tokens: int
    invented_tokens: int
    forget_rows: int


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
    have passes of like length at the same time. Every rank has the same number of passes: sharded models meet in each. The two rows of a
    pair are in one pass.

    With `micro_tokens`, a pass holds as many rows as fit into this number of tokens, padding included: many short rows or few long ones. The passes
    are then dealt so that the rank with the most tokens has as few as possible.

    Args:
        micro_batch: rows per pass; ignored if `micro_tokens` is given.
        invented: row for row the other half of a pair whose true answer is in `forget`; None: there are no pairs.
        num_steps: steps of the training. The step that needs the most passes sets the number of passes of all steps.
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
        invented: EncodedRows | None = None,
        micro_tokens: int | None = None,
        num_steps: int = 1,
    ) -> None:
        assert invented is None or len(invented) == len(forget)
        self._forget, self._retain, self._invented = forget, retain, invented
        self._base_logps: tuple[np.ndarray, np.ndarray] | None = None
        self._forget_batch = forget_batch
        self._retain_batch = retain_batch if retain is not None else 0
        self._world_size = world_size
        self._seeds = {False: seed_of(seed, "order", "forget"), True: seed_of(seed, "order", "retain")}
        self._pad_id = pad_id
        self._micro_batch, self._micro_tokens = micro_batch, micro_tokens
        num_places = self._forget_batch + self._retain_batch
        places = micro_batch if invented is None else max(1, micro_batch // 2)  # a pair may take each of them
        self.num_micro_batches = -(-num_places // (places * world_size))
        if micro_tokens is not None:
            self.num_micro_batches = max(self.passes_needed(step) for step in range(num_steps))

    def passes_needed(self, step: int) -> int:
        """Forward passes of each rank that this step needs, on all ranks alike."""
        if self._micro_tokens is None:
            return self.num_micro_batches
        return num_passes(_sizes(self._ordered(step)), self._micro_tokens, self._world_size)

    def placed(self, step: int) -> list[Placed]:
        """The rows of a step, over all ranks."""
        return [placed for group in self._groups(step) for placed in group]

    def _groups(self, step: int) -> list[tuple[Placed, ...]]:
        """Those of a step that must be in one pass: pairs, and rows by themselves."""
        return [
            self._group(
                is_retain, row_at(position, len(self._forget if not is_retain else self._kept), self._seeds[is_retain])
            )
            for is_retain, size in ((False, self._forget_batch), (True, self._retain_batch))
            for position in range(step * size, (step + 1) * size)
        ]

    def _group(self, is_retain: bool, row: int) -> tuple[Placed, ...]:
        if is_retain:
            return (Placed(True, row, self._kept.num_tokens(row)),)
        first = Placed(False, row, self._forget.num_tokens(row))
        if self._invented is None:
            return (first,)
        return first, Placed(False, row, self._invented.num_tokens(row), is_invented=True)

    def counts(self, step: int) -> Counts:
        """What the losses of a step are divided by."""
        tokens = {"forget": 0, "retain": 0, "invented": 0}
        for placed in self.placed(step):
            name = "retain" if placed.is_retain else "invented" if placed.is_invented else "forget"
            tokens[name] += self._rows(placed).num_answer_tokens(placed.row)
        return Counts(tokens["forget"], tokens["retain"], tokens["invented"], self._forget_batch)

    def micro_batches(self, step: int, rank: int) -> list[MicroBatch]:
        """The forward passes of one rank."""
        ordered = self._ordered(step)
        # More passes than rows: the idle rank still runs, with a row that counts for nothing.
        return [
            self.collate([*chain(*ordered[first:last])]) if first < last else self._idle(ordered[0][0])
            for first, last in self._cuts(ordered, rank)
        ]

    def _ordered(self, step: int) -> list[tuple[Placed, ...]]:
        return sorted(
            self._groups(step),
            key=lambda group: (max(placed.num_tokens for placed in group), group[0].is_retain, group[0].row),
        )

    def _cuts(self, ordered: list[tuple[Placed, ...]], rank: int) -> list[tuple[int, int]]:
        """Start and stop of each pass of a rank, in rows or pairs."""
        count, num_ranks = self.num_micro_batches, self._world_size
        if self._micro_tokens is not None:
            mine = deal(_sizes(ordered), self._micro_tokens, num_ranks, count)[rank]
            return [*mine, *[(0, 0)] * (count - len(mine))]
        cuts = [len(ordered) * number // (count * num_ranks) for number in range(count * num_ranks + 1)]
        return [(cuts[number], cuts[number + 1]) for number in range(rank, count * num_ranks, num_ranks)]

    def passes_of(self, rows: list[Placed]) -> list[list[Placed]]:
        """Cut rows that belong to no step into passes, in their order, with the same limit as in a step."""
        if self._micro_tokens is None:
            starts = range(0, len(rows), self._micro_batch)
            return [rows[first : first + self._micro_batch] for first in starts]
        passes: list[list[Placed]] = []
        for row in rows:
            longest = max([row.num_tokens, *(each.num_tokens for each in passes[-1])]) if passes else row.num_tokens
            if passes and (len(passes[-1]) + 1) * longest <= self._micro_tokens:
                passes[-1].append(row)
            else:
                passes.append([row])
        return passes

    def collate(self, rows: list[Placed]) -> MicroBatch:
        longest = max(placed.num_tokens for placed in rows)
        ids_BL = torch.full((len(rows), longest), self._pad_id)
        is_answer_BL = torch.zeros((len(rows), longest), dtype=torch.bool)
        for number, placed in enumerate(rows):
            source = self._rows(placed)
            ids_BL[number, : placed.num_tokens] = torch.from_numpy(source.ids(placed.row).astype(np.int64))
            is_answer_BL[number, source.start(placed.row) : placed.num_tokens] = True
        return MicroBatch(
            ids_BL,
            is_answer_BL,
            torch.tensor([placed.is_retain for placed in rows]),
            torch.tensor([placed.is_invented for placed in rows]),
            torch.tensor([self._base_logp(placed) for placed in rows]),
        )

    def _idle(self, row: Placed) -> MicroBatch:
        filled = self.collate([row])
        return replace(filled, is_answer_BL=torch.zeros_like(filled.is_answer_BL))

    def forget_passes(self, num_steps: int, rank: int) -> list[tuple[list[Placed], MicroBatch]]:
        """Each forget row of the first steps once, pairs whole, in as many passes on every rank: a rank with fewer rows fills up with empty ones."""
        rows = {placed.row for step in range(num_steps) for placed in self.placed(step) if not placed.is_retain}
        each = [placed for row in rows for placed in self._group(False, row)]
        ordered = sorted(each, key=lambda placed: (placed.num_tokens, placed.is_invented, placed.row))
        passes = [self.passes_of(ordered[rank :: self._world_size]) for rank in range(self._world_size)]
        mine = passes[rank]
        filled = [(chunk, self.collate(chunk)) for chunk in mine]
        idle = max(len(each) for each in passes) - len(mine)
        return [*filled, *[([], self._idle(ordered[0])) for _ in range(idle)]]

    def refer(self, base_logps: tuple[np.ndarray, np.ndarray]) -> None:
        """Have passes carry what the base model gives to each answer.

        Args:
            base_logps: log-probabilities of the forget rows, and of the invented halves of pairs.
        """
        self._base_logps = base_logps

    @property
    def num_rows(self) -> tuple[int, int]:
        """Forget rows that there are, and invented halves of pairs."""
        return len(self._forget), 0 if self._invented is None else len(self._invented)

    def _base_logp(self, placed: Placed) -> float:
        if self._base_logps is None or placed.is_retain:
            return float("nan")
        return float(self._base_logps[placed.is_invented][placed.row])

    @property
    def _kept(self) -> EncodedRows:
        assert self._retain is not None
        return self._retain

    def _rows(self, placed: Placed) -> EncodedRows:
        if placed.is_invented:
            assert self._invented is not None
            return self._invented
        return self._kept if placed.is_retain else self._forget


def _sizes(ordered: list[tuple[Placed, ...]]) -> list[Size]:
    return [Size(len(group), max(placed.num_tokens for placed in group)) for group in ordered]
