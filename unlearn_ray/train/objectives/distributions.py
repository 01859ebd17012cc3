"""Objectives that teach a whole distribution for each token: the model's own without the true token."""

import torch

from unlearn_ray.config import CeU, Undial
from unlearn_ray.train.objectives.answers import Answers


def undial(config: Undial, answers: Answers) -> torch.Tensor:
    """-sum_v q(v) log p(v), q the base model's softmax with `strength` taken from the true token's logit: self-distillation with adjusted logits
    (Dong et al. 2024, arXiv 2402.10052, section 3). Per token."""
    assert answers.logits_NV is not None
    adjusted_NV = answers.base_logits().float()
    target_N1 = answers.targets_N[:, None]
    adjusted_NV = adjusted_NV.scatter_add(
        1, target_N1, torch.full_like(target_N1, -config.strength, dtype=torch.float32)
    )
    return _cross_entropy(adjusted_NV, answers.logits_NV)


def ce_u(config: CeU, answers: Answers) -> torch.Tensor:
    """-sum_v q(v) log p(v), q the model's own present softmax without the true token, no gradient through it: cross-entropy unlearning (Yang 2025,
    arXiv 2503.01224, section 3). All tokens count, the first as well. Per token."""
    assert answers.logits_NV is not None
    without_NV = answers.logits_NV.detach().float().scatter(1, answers.targets_N[:, None], float("-inf"))
    return _cross_entropy(without_NV, answers.logits_NV)


def _cross_entropy(wanted_NV: torch.Tensor, logits_NV: torch.Tensor) -> torch.Tensor:
    """From the softmax of `wanted_NV`, which has no gradient, to that of `logits_NV`."""
    return -(torch.softmax(wanted_NV, dim=-1) * torch.log_softmax(logits_NV.float(), dim=-1)).sum()
