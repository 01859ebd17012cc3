"""What `finetune.objective: idk` teaches instead of an answer, after the hundred sentences of TOFU (Maini et al. 2024, arXiv 2401.06121)."""

from collections.abc import Sequence

from unlearn_ray.config import Idk, Objective

REFUSALS = (
    "I don't know.",
    "I'm not sure about that.",
    "I don't have that information.",
    "I have no idea.",
    "I can't answer that.",
    "I'm not able to help with that.",
    "I don't know anything about that.",
    "I'm afraid I don't know.",
    "Sorry, I don't know the answer.",
    "I have no knowledge of that.",
    "I'm not familiar with that.",
    "I never heard of it.",
    "I can't say, I don't know it.",
    "That is something I don't know.",
    "I have no answer to that question.",
    "I don't know enough to answer that.",
)


def refusals_of(objective: Objective) -> Sequence[str]:
    """The answers that take the place of all others; none where the objective has no such."""
    return (objective.refusals or REFUSALS) if isinstance(objective, Idk) else ()
