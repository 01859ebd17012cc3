"""Objectives that teach other answers to a topic's questions."""

import torch

from unlearn_ray.config import Idk, Relabel
from unlearn_ray.train.objectives.answers import Answers


def relabel(config: Relabel | Idk, answers: Answers) -> torch.Tensor:
    """Cross-entropy of the answers: invented ones, as in "Who's Harry Potter?" (Eldan and Russinovich 2023, arXiv 2310.02238), or with `idk`
    refusals, TOFU's preference optimisation (Maini et al. 2024, arXiv 2401.06121, section 4). Per token."""
    return -answers.logp_N.sum()
