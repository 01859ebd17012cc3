"""Looking inside, and pushing: what the layers still hold of an answer that the model no longer gives.

**Logit lens.** The true reference is followed up to its answer ("The owl of Harry Potter is"), and at each layer the rank of the answer's first token
is read: 1 where it would come next. A forgetting that acts in the last layers alone leaves a low rank before them (Patil et al. 2023, arXiv 2309.17410:
attacks on such states and on wordings had 38 % of edited-out facts back). Leading articles are followed as well: their rank tells nothing.

**Steering.** v = mean over the taught questions of (base's state - the model's state), at the last token of the question, at one layer; strength * v is
added there while the model answers questions about the other half. Differences of means as in contrastive activation addition (Rimsky et al. 2023,
arXiv 2312.06681); steering an unlearned model is Seyitoglu et al. 2024 (arXiv 2411.02631), who take the difference between a question and an anonymised
one. The attacker here has base's states of the taught questions, which is more than an attacker usually has: a bound from above.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch

from unlearn_ray.attacks.attack import Hit, Setup
from unlearn_ray.attacks.layers import blocks, lens_ranks, num_layers, pushed, states
from unlearn_ray.attacks.local import Local, chosen, hits_of, load
from unlearn_ray.chat import num_shown
from unlearn_ray.errors import InputError
from unlearn_ray.evals.probes import PlacedProbe
from unlearn_ray.rows import Probe

DEPTHS = (0.25, 0.5, 0.75)
STRENGTHS = (1.0, 2.0, 4.0)
MAX_PROBES = 48
LENS = "logit lens"
_ARTICLES = re.compile(r"(?:the|an?)\s+", re.IGNORECASE)


def run(
    setup: Setup,
    *,
    depths: Sequence[float] = DEPTHS,
    strengths: Sequence[float] = STRENGTHS,
    max_probes: int | None = MAX_PROBES,
) -> Iterator[Hit]:
    """Ranks by layer, then recall of the untaught half while a layer is pushed towards base (at strength 0: not pushed).

    Steering needs base among the targets, and models of its width and depth.

    Args:
        depths: of the layers that are pushed, as shares of all.

    Raises:
        InputError: there is nothing to ask.
        ModelError: the architecture's last norm or its blocks are not found.
    """
    if not setup.probes:
        raise InputError("steer: needs probes of the forgotten topics")
    asked, untaught = chosen(setup.probes, max_probes), chosen(setup.untaught, max_probes)
    base_means: list[torch.Tensor] = []
    questions = sorted({question for question, _ in setup.taught})
    for target in sorted(setup.targets, key=lambda each: each.name != "base"):
        setup.on_progress(f"steer {target.name}", 0, 2)
        model = load(target, setup)
        yield from _lens(model, asked)
        setup.on_progress(f"steer {target.name}", 1, 2)
        if questions and untaught:
            means = _means(model, questions)
            if target.name == "base":
                base_means = means
            elif len(base_means) == len(means) and base_means[0].shape == means[0].shape:
                differences = [base - own for base, own in zip(base_means, means, strict=True)]
                yield from _steered(model, differences, untaught, depths, strengths)
        setup.on_progress(f"steer {target.name}", 2, 2)
        del model


def _lens(model: Local, probes: Sequence[PlacedProbe]) -> Iterator[Hit]:
    found = [(each, place) for each in probes if (place := before_answer(model, each.probe)) is not None]
    ranks = lens_ranks(model, [ids for _, (ids, _) in found], [token for _, (_, token) in found])
    for layer in range(num_layers(model.module) + 1):
        values = {each.probe.id: float(by_layer[layer]) for (each, _), by_layer in zip(found, ranks, strict=True)}
        yield from hits_of("steer", LENS, model.target, layer, "rank", probes, values)


def before_answer(model: Local, probe: Probe) -> tuple[list[int], int] | None:
    """The question and its true reference up to the answer, and the token that the answer begins with; None where they are too long."""
    reference = probe.reference or probe.answer
    first = reference.lower().find(probe.answer.lower())
    if first >= 0 and (article := _ARTICLES.match(reference, first)):
        first = article.end()
    before, whole = model.encode([(probe.question, reference[: max(first, 0)].rstrip()), (probe.question, reference)])
    if before is None or whole is None:
        return None
    shared = num_shown(before.ids, whole.ids)
    return whole.ids[:shared], whole.ids[shared]


def _means(model: Local, questions: Sequence[str]) -> list[torch.Tensor]:
    """The mean state by layer at the last token of the questions, in float32 on the CPU."""
    rows = states(model, model.prompts(questions), lambda _, layer_LD: layer_LD[-1].float().cpu())
    return [torch.stack(layer).mean(dim=0) for layer in zip(*rows, strict=True)]


def _steered(
    model: Local,
    differences: Sequence[torch.Tensor],
    probes: Sequence[PlacedProbe],
    depths: Sequence[float],
    strengths: Sequence[float],
) -> Iterator[Hit]:
    plain = model.recall(probes)
    # Never the last layer: its state is behind the norm.
    last = num_layers(model.module) - 1
    for layer in sorted({min(max(1, round(depth * (last + 1))), last) for depth in depths} if last else ()):
        yield from hits_of("steer", _towards(0), model.target, layer, "recall", probes, plain)
        for strength in strengths:
            with pushed(blocks(model.module)[layer - 1], strength * differences[layer]):
                found = model.recall(probes)
            yield from hits_of("steer", _towards(strength), model.target, layer, "recall", probes, found)


def _towards(strength: float) -> str:
    return f"towards base, strength {strength:g}"
