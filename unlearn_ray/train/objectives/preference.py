"""Objectives that prefer anything, or the invented answer, over the model's own."""

import torch
import torch.nn.functional as F

from unlearn_ray.config import Dpo, Npo, SimNpo
from unlearn_ray.train.objectives.answers import Answers


def npo(config: Npo, answers: Answers) -> torch.Tensor:
    """-2 / beta * log sigmoid(-beta * log(p(y | x) / p_base(y | x))): negative preference optimisation (Zhang et al. 2024, arXiv 2404.05868,
    eq. 3). Per row."""
    return -2 / config.beta * F.logsigmoid(-config.beta * (answers.logp_B - answers.base_logp_B)).sum()


def simnpo(config: SimNpo, answers: Answers) -> torch.Tensor:
    """-2 / beta * log sigmoid(-beta * (log p(y | x) / |y| + delta)): NPO with the mean log-probability in the place of the ratio to a base model
    (Fan et al. 2024, arXiv 2410.07163, section 4); the margin stands inside beta, as open-unlearning has it. Per row."""
    mean_logp_B = answers.logp_B / answers.num_tokens_B
    return -2 / config.beta * F.logsigmoid(-config.beta * (mean_logp_B + config.delta)).sum()


def dpo(config: Dpo, answers: Answers) -> torch.Tensor:
    """-2 / beta * log sigmoid(beta * (log(p(z | x) / p_base(z | x)) - log(p(y | x) / p_base(y | x)))) for an invented answer z and the model's own
    y: direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, eq. 7) in NPO's scale. Per row."""
    invented = answers.invented
    assert invented is not None
    ratio_B = answers.logp_B - answers.base_logp_B
    invented_ratio_B = invented.logp_B - invented.base_logp_B
    return -2 / config.beta * F.logsigmoid(config.beta * (invented_ratio_B - ratio_B)).sum()
