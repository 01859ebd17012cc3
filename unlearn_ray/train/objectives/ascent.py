"""Gradient ascent on the model's own answers, plain and with a weight for each token."""

import torch

from unlearn_ray.config import GradAscent, GradDiff, SatImp, Wga
from unlearn_ray.train.objectives.answers import Answers


def grad_ascent(config: GradAscent | GradDiff, answers: Answers) -> torch.Tensor:
    """log p(y_n | x, y_<n), which descent lowers: gradient ascent on the cross-entropy (Jang et al. 2022, arXiv 2210.01504, eq. 2). With a
    retain term it is GradDiff, gradient difference (Liu et al. 2022, arXiv 2203.12817), and with `retain.kind: kl` TOFU's "KL minimization"
    (Maini et al. 2024, arXiv 2401.06121, section 4). Unbounded: it lowers what is lowered already. Per token."""
    return answers.logp_N.sum()


def wga(config: Wga, answers: Answers) -> torch.Tensor:
    """p^beta log p, the weight p^beta without a gradient: weighted gradient ascent (Wang et al. 2025, arXiv 2502.19301, section 4), which lets
    go of tokens as they become unlikely. Per token."""
    weight_N = (config.beta * answers.logp_N.detach()).exp()
    return (weight_N * answers.logp_N).sum()


def satimp(config: SatImp, answers: Answers) -> torch.Tensor:
    """p^saturation (1 - p)^importance log p, the weights without a gradient (Yang et al. 2025, arXiv 2505.11953, section 5).
    Per token."""
    p_N = answers.logp_N.detach().exp()
    return (p_N**config.saturation * (1 - p_N) ** config.importance * answers.logp_N).sum()
