"""Meta-learning against relearning: the forget loss where an attacker would bring the weights."""

import random
from collections.abc import Callable, Iterable

import torch

from unlearn_ray.config import Meta
from unlearn_ray.train.lasting.displacement import Displacement

Losses = Callable[[int], Iterable[torch.Tensor]]


def meta(config: Meta, moved: Displacement, attack: Losses, forget: Losses, rate: float, draw: random.Random) -> None:
    """Move the weights as an attacker would: some AdamW steps on true answers, at one of several rates. The gradient that is then taken there counts as
    one at the weights themselves (first order), as in TAR (Tamirisa et al. 2024, arXiv 2408.00761) and MUDMAN (Sondej et al. 2025, arXiv 2506.12484).

    Args:
        attack: losses of this rank's passes over an attacker's batch, by its number; their sum over all ranks is the mean per token.
        rate: the training's highest learning rate, of which `config.rates` are multiples.
    """
    num_steps = draw.randint(*config.steps)
    optimizer = torch.optim.AdamW(moved.masters, lr=rate * draw.choice(config.rates), weight_decay=0.0)
    for number in range(num_steps):
        moved.step(optimizer, moved.gradients(attack(number)))
