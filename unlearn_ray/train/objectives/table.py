"""All objectives by the names that `finetune.objective` gives them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from unlearn_ray.config import FinetuneConfig
from unlearn_ray.train.objectives.answers import Answers
from unlearn_ray.train.objectives.ascent import grad_ascent, satimp, wga
from unlearn_ray.train.objectives.distributions import ce_u, undial
from unlearn_ray.train.objectives.preference import dpo, npo, simnpo
from unlearn_ray.train.objectives.relabelling import relabel
from unlearn_ray.train.objectives.steering import rmu


@dataclass(frozen=True, slots=True)
class Loss:
    """An objective's function, and what the loop must know of it."""

    of: Callable[[Any, Answers], torch.Tensor]  # the config of its kind comes first
    per: Literal["token", "row"] = "token"  # what its sum is divided by
    # logp: the tokens' log-probabilities. base_logp: also the base model's log-probabilities of whole answers, computed once before the training.
    # hidden: also the output of a layer. logits: whole distributions, for some of the tokens at a time, so the loss must be a sum over tokens.
    # base_logits: also the base model's logits, for which full weights need a second model.
    reads: Literal["logp", "base_logp", "logits", "base_logits", "hidden"] = "logp"

    @property
    def reads_logits(self) -> bool:
        return self.reads in ("logits", "base_logits")


OBJECTIVES: Mapping[str, Loss] = {
    "relabel": Loss(relabel),
    "idk": Loss(relabel),
    "grad_ascent": Loss(grad_ascent),
    "grad_diff": Loss(grad_ascent),
    "npo": Loss(npo, per="row", reads="base_logp"),
    "simnpo": Loss(simnpo, per="row"),
    "dpo": Loss(dpo, per="row", reads="base_logp"),
    "undial": Loss(undial, reads="base_logits"),
    "wga": Loss(wga),
    "ce_u": Loss(ce_u, reads="logits"),
    "satimp": Loss(satimp),
    "rmu": Loss(rmu, per="row", reads="hidden"),
}


def needs_base_model(config: FinetuneConfig) -> bool:
    """Whether every pass asks the base model as well: an adapter is switched off for it, full weights hold a second model."""
    return config.retain.kind == "kl" or OBJECTIVES[config.objective.kind].reads == "base_logits"
