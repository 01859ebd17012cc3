"""Terms that several losses are made of, as functions of tensors. N: learnt tokens, V: vocabulary."""

import torch
import torch.nn.functional as F


def answer_ce(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Sum over the learnt tokens of -log p(y_n | x, y_<n): gradient descent on relabelled answers, as in "Who's Harry Potter?"
    (Eldan and Russinovich 2023, arXiv 2310.02238), and on retain rows (GradDiff's second term: Liu et al. 2022, arXiv 2203.12817)."""
    return -token_logp(logits_NV, targets_N).sum()


def token_logp(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """log p(y_n | x, y_<n) of each token, in float32."""
    return -F.cross_entropy(logits_NV.float(), targets_N, reduction="none")


def kl_to_base(logits_NV: torch.Tensor, base_logits_NV: torch.Tensor) -> torch.Tensor:
    """Sum over the learnt tokens of KL(p_base || p) = sum_v p_base(v) (log p_base(v) - log p(v)): TOFU's "KL minimization" term
    (Maini et al. 2024, arXiv 2401.06121, section 4)."""
    logp_NV = F.log_softmax(logits_NV.float(), dim=-1)
    base_logp_NV = F.log_softmax(base_logits_NV.float(), dim=-1)
    return F.kl_div(logp_NV, base_logp_NV, reduction="sum", log_target=True)
