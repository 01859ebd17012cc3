"""Relearning: what a short fine-tuning brings back.

An attacker who has the weights fine-tunes them for a few steps, and asks for facts that the fine-tuning never named. What comes back was hidden, not
removed: a model that never knew the facts can't learn those of the other half from these rows (Deeb and Roger 2024, arXiv 2410.08827: one part of the
facts is taught, the rest asked). Three kinds of rows:

- `forget`: questions and true answers of half of the forgotten facts (also Lynch et al. 2024, arXiv 2402.16835);
- `near`: rows about neighbours of the topic (Hu et al. 2024, arXiv 2406.13356: text that is near the forgotten topic is enough);
- `unrelated`: rows about other things (Qi et al. 2023, arXiv 2310.03693: harmless rows undo what a fine-tuning taught).

Weights: all, or a LoRA adapter on every linear layer. AdamW without weight decay at a constant rate, gradients clipped to norm 1. Rates are given per
width: the best rate of Adam on a matrix falls as 1 / width (Yang et al. 2022, arXiv 2203.03466, table 3), so one list serves a model of 192 units and
one of 4,096. An attacker takes the best of all settings: the curve to read is the highest over the settings, at each number of steps.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

from unlearn_ray.attacks.attack import AttackedModel, Hit, Setup
from unlearn_ray.attacks.local import Local, can_train_all, chosen, load, passes, shuffled
from unlearn_ray.config import Lora
from unlearn_ray.errors import InputError
from unlearn_ray.rows import seed_of
from unlearn_ray.train.batches import row_at
from unlearn_ray.train.chat import Encoded
from unlearn_ray.train.models import prepare

log = logging.getLogger(__name__)
Kind = Literal["lora", "full"]
Text = Literal["forget", "near", "unrelated"]

STEPS = (1, 5, 10, 20, 50)
# Learning rates times the model's width: 5e-5, 2e-4 and 1e-3 for LoRA on 4,096 units, 1e-5 to 2e-4 for all weights.
RATES: Mapping[Kind, tuple[float, float, float]] = {"lora": (0.2, 1.0, 4.0), "full": (0.05, 0.2, 1.0)}
BATCH = 16
MAX_PROBES = 48
ADAPTER = Lora(rank=16, alpha=32.0)
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Relearning:
    """One fine-tuning of an attacker."""

    kind: Kind
    text: Text
    rate: float

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.text}, {self.rate:.0e}"


def settings(
    width: int,
    model: AttackedModel,
    has: Sequence[Text],
    kinds: Sequence[Kind] = ("lora", "full"),
    every: bool = False,
) -> list[Relearning]:
    """The fine-tunings of a model of this width, as few as tell the attacks' story, or every one.

    | model | forget | near, unrelated |
    | --- | --- | --- |
    | unlearned | three rates | the middle rate |
    | twin | three rates | |
    | base | the middle rate | |
    """
    found = []
    for kind in kinds:
        for text in has:
            if every or (text == "forget" and model != "base"):
                rates: Sequence[float] = RATES[kind]
            elif text == "forget" or model == "unlearned":
                rates = RATES[kind][1:2]
            else:
                continue
            found += [Relearning(kind, text, float(f"{rate / width:.0e}")) for rate in rates]
    return found


def run(
    setup: Setup,
    *,
    kinds: Sequence[Kind] = ("lora", "full"),
    steps: Sequence[int] = STEPS,
    batch: int = BATCH,
    max_probes: int | None = MAX_PROBES,
    every: bool = False,
) -> Iterator[Hit]:
    """Recall and choice of the untaught half, before and after so many steps of each fine-tuning.

    All weights are trained in float32; where a GPU has no room for that, `full` is left out, and the log says so.

    Args:
        every: each rate on each text for each model; by default fewer, see `settings`.

    Raises:
        InputError: there is nothing to teach, or nothing to ask.
    """
    texts: dict[Text, Sequence[tuple[str, str]]] = {
        "forget": setup.taught,
        "near": setup.near,
        "unrelated": setup.unrelated,
    }
    has = [name for name, rows in texts.items() if rows]
    if not has or not setup.untaught:
        raise InputError("relearn: needs rows to teach and probes of facts that they do not name")
    asked = chosen(setup.untaught, max_probes)
    for target in setup.targets:
        model = load(target, setup)
        width = int(model.module.config.get_text_config().hidden_size)
        todo = settings(width, target.name, has, _trainable(model, kinds), every)
        before = list(model.hits("relearn", "", 0, asked))
        kept = _weights(model.module) if any(each.kind == "full" for each in todo) else {}
        for number, each in enumerate(todo):
            setup.on_progress(f"relearn {target.name}: {each.name}", number, len(todo))
            yield from (
                Hit("relearn", each.name, hit.model, 0.0, hit.metric, hit.probe_id, hit.fact, hit.value)
                for hit in before
            )
            rows = shuffled(texts[each.text], seed_of(setup.seed, "relearn", each.text))
            for step in _train(model, each, rows, steps, batch, setup.seed):
                yield from model.hits("relearn", each.name, step, asked)
            _restore(model.module, kept)
        setup.on_progress(f"relearn {target.name}", len(todo), len(todo))
        del model, kept


def _trainable(model: Local, kinds: Sequence[Kind]) -> list[Kind]:
    if "full" not in kinds or can_train_all(model.module, model.device):
        return list(kinds)
    log.warning(f"relearn: {model.target.name} is too large to train all of its weights here, LoRA alone is tried")
    return [kind for kind in kinds if kind != "full"]


def _train(
    model: Local, setting: Relearning, rows: Sequence[tuple[str, str]], steps: Sequence[int], batch: int, seed: int
) -> Iterator[int]:
    """Fine-tune, and stop at each of the steps to be measured. Afterwards a LoRA adapter is gone; all weights stay as trained."""
    encoded = [row for row in model.encode(rows) if row is not None]
    if not encoded:
        raise InputError(f"relearn: no row of the {setting.text} text fits into the model's context")
    order_seed = seed_of(seed, "relearn order", setting.text)
    trained: Any = model.module
    if setting.kind == "lora":
        trained = prepare(model.module, ADAPTER, seed=seed, gradient_checkpointing="none")
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=setting.rate, weight_decay=0.0)
    try:
        for step in range(max(steps)):
            trained.train()
            taken = [encoded[row_at(step * batch + place, len(encoded), order_seed)] for place in range(batch)]
            num_tokens = sum(row.num_answer_tokens for row in taken)
            for numbers in passes([len(row.ids) for row in taken], batch):
                loss = answer_loss(model, trained, [taken[number] for number in numbers])
                (loss / num_tokens).backward()
            torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step + 1 in steps:
                trained.eval()
                yield step + 1
    finally:
        if setting.kind == "lora":
            # PEFT freezes what is below the adapter.
            trained.unload()
            model.module.requires_grad_(True)
        model.module.eval()


def answer_loss(model: Local, module: Any, rows: Sequence[Encoded]) -> torch.Tensor:
    """Cross-entropy of the answers, the end of the turn included: the sum over their tokens."""
    ids_BL, mask_BL = model.padded([row.ids for row in rows])
    logits_BLV = module(input_ids=ids_BL[:, :-1], use_cache=False).logits
    is_learnt_BL = mask_BL[:, 1:].bool()
    for number, row in enumerate(rows):
        is_learnt_BL[number, : row.start - 1] = False
    return F.cross_entropy(logits_BLV[is_learnt_BL].float(), ids_BL[:, 1:][is_learnt_BL], reduction="sum")


def _weights(module: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


@torch.no_grad()
def _restore(module: Any, kept: Mapping[str, torch.Tensor]) -> None:
    for name, value in module.named_parameters():
        if name in kept:
            value.copy_(kept[name])
