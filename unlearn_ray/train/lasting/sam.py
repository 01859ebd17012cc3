"""Sharpness-aware minimisation: the forget loss at the worst weights near by."""

import random

import torch

from unlearn_ray.config import Sam
from unlearn_ray.train.lasting.displacement import Displacement
from unlearn_ray.train.lasting.meta import Losses


@torch.no_grad()
def _climb(moved: Displacement, gradients: list[torch.Tensor], rho: float) -> None:
    norm = torch.nn.utils.get_total_norm(gradients)
    for master, gradient in zip(moved.masters, gradients, strict=True):
        master += rho / (norm + 1e-12) * gradient
    moved.put()


def sam(config: Sam, moved: Displacement, attack: Losses, forget: Losses, rate: float, draw: random.Random) -> None:
    """Move the weights by rho along the gradient g of the forget loss: w + rho g / |g| (Foret et al. 2021, arXiv 2010.01412, equation 2), as Fan et al. 2025
    (arXiv 2502.05374) do for unlearning.

    Args:
        forget: losses of this rank's passes over the rows to forget; the argument is not read.
    """
    _climb(moved, moved.gradients(forget(0)), config.rho)
