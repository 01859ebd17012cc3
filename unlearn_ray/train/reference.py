"""What the base model gives to the answers of a training: log-probabilities that NPO and DPO compare with, computed once, before the first step.

So no second model is held beside the trained one, and a row that comes again costs nothing. They lie in every checkpoint: a training that
is taken up again has no base model any more, unless it is an adapter.
"""

from pathlib import Path

import numpy as np
import torch

from unlearn_ray.train.batches import Batches
from unlearn_ray.train.loop import Runtime, learnt_logps

REFERENCE = "base_logps.npz"
BaseLogps = tuple[
    np.ndarray, np.ndarray
]  # of the forget rows, and of the invented halves of pairs; NaN where no step asks


@torch.no_grad()
def base_logps(runtime: Runtime, batches: Batches, num_steps: int) -> BaseLogps:
    """Of the rows of the first `num_steps` steps. The model is the base still, and in evaluation mode; every rank runs its share."""
    found = tuple(np.zeros(number) for number in batches.num_rows)
    for rows, batch in batches.forget_passes(num_steps, runtime.rank):
        batch = batch.to(runtime.device)
        logp_N = learnt_logps(runtime, batch)
        sums_B = logp_N.new_zeros(len(batch.ids_BL)).index_add(0, batch.row_N, logp_N)
        for placed, value in zip(
            rows, sums_B.tolist(), strict=False
        ):  # a pass without rows of its own has one that is empty
            found[placed.is_invented][placed.row] = value
    forget, invented = (np.array(runtime.sum(values.tolist())) for values in found)
    return forget, invented


def write_base_logps(folder: Path, found: BaseLogps) -> None:
    np.savez(folder / REFERENCE, forget=found[0], invented=found[1])


def read_base_logps(folder: Path) -> BaseLogps:
    with np.load(folder / REFERENCE) as arrays:
        return arrays["forget"], arrays["invented"]
