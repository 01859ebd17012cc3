"""Probing: whether the hidden states still tell the true answer from wrong ones.

Each fact has an answer of its own, so a classifier of answers could not be asked about facts that it was not trained on. What carries over from one half
of the facts to the other is how a state points at an answer. So the model reads a question and its reference up to where the answer stands, and a linear
probe on state and candidate (Alain and Bengio 2016, arXiv 1610.01644), trained on half of the facts, picks the answer among the true and the wrong ones
of each question of the other half. By chance it picks the true one of k wrong and one true in 1 / (k + 1).

- Features of a candidate: s * e, number by number, less their mean over the question's candidates. s: the state before the answer, e: the mean row of
  the model's head over the candidate's tokens, both of length 1. A weight of 1 for each is their cosine, and at the last layers the logit lens.
- Probe: ridge regression w = X' (X X' + lambda I)^-1 y, y = 1 for the true answer and 0 else, less their mean. lambda is the share of tr(X X') / n, of
  SHARES, that picks best when each fifth of the taught facts is left out in turn.
- Layer 0, the embedding of the word before the answer, is the control: there only the look of the answers tells, as in a twin that never knew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean

import torch
import torch.nn.functional as F

from unlearn_ray.attacks.attack import Hit, Setup, fact_of
from unlearn_ray.attacks.layers import num_layers, states
from unlearn_ray.attacks.local import MAX_TOKENS, Local, chosen, hits_of, load
from unlearn_ray.chat import num_shown
from unlearn_ray.errors import InputError
from unlearn_ray.evals.probes import PlacedProbe, wrong_references
from unlearn_ray.rows import Probe, digest

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
SHARES = (0.01, 0.1, 1.0, 10.0)
NUM_FOLDS = 5
MAX_PROBES = 96
SETTING = "true among wrong answers"
Candidates = list[torch.Tensor]  # of each question (candidates, width), the true answer first


def run(setup: Setup, *, depths: Sequence[float] = DEPTHS, max_probes: int | None = MAX_PROBES) -> Iterator[Hit]:
    """Accuracy on the untaught half by layer, 1 where the probe picks the true answer.

    Args:
        depths: of the layers, as shares of all; 0 is the embedding.
        max_probes: of each half.

    Raises:
        InputError: a half has no probe with a wrong answer.
    """
    untaught_ids = {each.probe.id for each in setup.untaught}
    halves = [
        [each for each in half if each.probe.wrong]
        for half in ([each for each in setup.probes if each.probe.id not in untaught_ids], setup.untaught)
    ]
    if not all(halves):
        raise InputError("probe: needs probes with wrong answers of both halves of the facts")
    taught, untaught = (chosen(half, max_probes) for half in halves)
    for target in setup.targets:
        setup.on_progress(f"probe {target.name}", 0, 1)
        model = load(target, setup)
        layers = sorted({round(depth * num_layers(model.module)) for depth in depths})
        shown, asked = (_features(model, half, layers) for half in (taught, untaught))
        facts = [fact_of(each.probe) for each in taught]
        for layer in layers:
            weights_D = fitted(shown[layer], best_share(shown[layer], facts))
            picks = {each.probe.id: picked(weights_D, own) for each, own in zip(untaught, asked[layer], strict=True)}
            yield from hits_of("probe", SETTING, target, layer, "accuracy", untaught, picks)
        setup.on_progress(f"probe {target.name}", 1, 1)
        del model


def _features(model: Local, probes: Sequence[PlacedProbe], layers: Sequence[int]) -> dict[int, Candidates]:
    """By layer, of each probe its candidates."""
    head_VD = model.module.get_output_embeddings().weight.detach()
    read = [before_candidates(model, each.probe) for each in probes]
    found = states(model, [before for before, _ in read], lambda _, layer_LD: layer_LD[-1].float().cpu())
    features: dict[int, Candidates] = {layer: [] for layer in layers}
    for (_, candidates), by_layer in zip(read, found, strict=True):
        ends_CD = torch.stack([head_VD[tokens].float().mean(dim=0).cpu() for tokens in candidates])
        for layer in layers:
            products_CD = F.normalize(by_layer[layer], dim=0) * F.normalize(ends_CD, dim=1)
            features[layer].append(products_CD - products_CD.mean(dim=0))
    return features


def before_candidates(model: Local, probe: Probe) -> tuple[list[int], list[list[int]]]:
    """The question and its reference up to the answer, and the tokens of each candidate that could follow, the true one first.

    Raises:
        InputError: they are longer than what is read.
    """
    references = [probe.reference or probe.answer, *wrong_references(probe)]
    first = max(0, references[0].lower().find(probe.answer.lower()))
    before, *rows = model.encode([(probe.question, text) for text in (references[0][:first].rstrip(), *references)])
    whole = [row.ids for row in rows if row is not None]
    if before is None or len(whole) < len(rows):
        raise InputError(f"probe: {probe.question!r} with its answer is longer than {MAX_TOKENS} tokens: shorten it")
    shared = min(num_shown(before.ids, ids) for ids in whole)
    # What follows the answer is the same for all.
    behind = min(num_shown(whole[0][::-1], ids[::-1]) for ids in whole[1:])
    return whole[0][:shared], [ids[shared : max(shared + 1, len(ids) - behind)] for ids in whole]


def fitted(questions: Candidates, share: float) -> torch.Tensor:
    """Weights (D) of the ridge regression, in its dual form: there are fewer candidates than a large model's states have numbers."""
    inputs_ND = torch.cat(questions).double()
    targets_N = torch.cat([torch.eye(len(each), 1, dtype=torch.float64)[:, 0] - 1 / len(each) for each in questions])
    products_NN = inputs_ND @ inputs_ND.T
    ridge = share * products_NN.trace() / len(products_NN)
    # Where all candidates are alike, any ridge will do.
    ridge = ridge if ridge > 0 else torch.ones((), dtype=torch.float64)
    return inputs_ND.T @ torch.linalg.solve(products_NN + ridge * torch.eye(len(products_NN)), targets_N)


def picked(weights_D: torch.Tensor, candidates_CD: torch.Tensor) -> float:
    """1 if the true answer, the first, scores higher than each wrong one."""
    scores_C = candidates_CD.double() @ weights_D
    return float(bool((scores_C[0] > scores_C[1:]).all()))


def best_share(questions: Candidates, facts: Sequence[str]) -> float:
    """The ridge that picks best where each fifth of the facts is left out in turn; the largest of equals."""
    order = {fact: place for place, fact in enumerate(sorted(set(facts), key=lambda fact: digest("fold", fact)))}
    folds = [order[fact] % NUM_FOLDS for fact in facts]

    def accuracy(share: float) -> float:
        found = []
        for fold in sorted(set(folds)):
            kept = [each for each, own in zip(questions, folds, strict=True) if own != fold]
            if not kept:
                continue
            weights_D = fitted(kept, share)
            found += [picked(weights_D, each) for each, own in zip(questions, folds, strict=True) if own == fold]
        return mean(found) if found else 0.0

    return max(reversed(SHARES), key=accuracy)
