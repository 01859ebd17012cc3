"""Objectives that act on hidden states."""

import torch

from unlearn_ray.config import Rmu
from unlearn_ray.rows import seed_of
from unlearn_ray.train.objectives.answers import Answers


def rmu(config: Rmu, answers: Answers) -> torch.Tensor:
    """|h - c u|^2 / D, a mean over a row's learnt tokens; h: what a layer gives out, u: a random unit vector with entries drawn from [0, 1), c:
    `steering`. The forget loss of representation misdirection (Li et al. 2024, arXiv 2403.03218, section 4). The retain term is the loop's, where
    the paper holds retain rows' hidden states. Per row."""
    hidden_ND = answers.hidden_ND
    assert hidden_ND is not None
    generator = torch.Generator().manual_seed(seed_of(answers.seed, "rmu"))
    direction_D = torch.rand(hidden_ND.shape[1], generator=generator)
    aim_D = (config.steering * direction_D / direction_D.norm()).to(hidden_ND.device)
    away_N = (hidden_ND.float() - aim_D).pow(2).mean(dim=1)
    return (answers.sum_B(away_N) / answers.num_tokens_B).sum()
