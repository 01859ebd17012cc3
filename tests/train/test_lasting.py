"""Terms that make forgetting last: gradients at displaced weights equal an independent computation, and the weights come back exactly."""

import copy
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from unlearn_ray.config import FinetuneConfig, FullWeights, Lora, Meta, Sam
from unlearn_ray.train.batches import Batches
from unlearn_ray.train.chat import Encoded
from unlearn_ray.train.encoded import EncodedRows, write_encoded
from unlearn_ray.train.lasting.displaced import Displaced, half_of
from unlearn_ray.train.lasting.displacement import Displacement
from unlearn_ray.train.lasting.table import LASTING
from unlearn_ray.train.loop import train
from unlearn_ray.train.models import prepare
from unlearn_ray.train.plain import PlainRuntime
from unlearn_ray.train.records import StepRecord

CPU, VOCABULARY, SEED = torch.device("cpu"), 37, 11
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}
LAYOUT: dict[str, Any] = {"micro_batch": 4, "world_size": 1, "pad_id": 0, "micro_tokens": None}


def model_of(dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), attn_implementation="eager").to(dtype).train()


def encoded(path: Path, answer: int) -> EncodedRows:
    """Twelve questions; answers of three tokens, which are others for another `answer`."""
    draw = random.Random(answer)
    rows = [Encoded([1, 2 + number, 20, *(draw.randrange(1, VOCABULARY) for _ in range(3))], 3) for number in range(12)]
    write_encoded(path, rows)
    return EncodedRows(path)


@pytest.fixture
def rows(tmp_path: Path) -> tuple[EncodedRows, EncodedRows, EncodedRows]:
    """To forget (invented answers), to retain, and the true answers."""
    return encoded(tmp_path / "forget", 1), encoded(tmp_path / "retain", 2), encoded(tmp_path / "truths", 3)


def config_of(lasting: Meta | Sam | None, **more: Any) -> FinetuneConfig:
    values: dict[str, Any] = {"weights": FullWeights(), "precision": "fp32", "learning_rate": 1e-2, "warmup_steps": 0}
    values |= {"num_steps": 3, "forget_batch": 4, "retain_batch": 2, "lasting": lasting}
    return FinetuneConfig(**values | more)


def displaced_of(config: FinetuneConfig, rows: tuple[EncodedRows, EncodedRows, EncodedRows]) -> Displaced:
    forget, _, truths = rows
    return Displaced(config, forget, None, truths if config.has_attacker else None, SEED, **LAYOUT)


def mean_loss(module: Any, batches: Batches, step: int) -> torch.Tensor:
    """The mean cross-entropy per answer token of a step's rows: transformers' own loss, summed up by hand."""
    total, number = torch.zeros(()), 0
    for batch in batches.micro_batches(step, 0):
        labels = batch.ids_BL.masked_fill(~batch.is_answer_BL, -100)
        logits = module(input_ids=batch.ids_BL).logits[:, :-1]
        total = total + torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
        )
        number += int(batch.is_answer_BL[:, 1:].sum())
    return total / number


def gradients(module: Any) -> list[torch.Tensor]:
    return [parameter.grad for parameter in module.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("step", [0, 1])
def test_metas_gradient_is_that_after_an_attackers_steps(
    step: int, rows: tuple[EncodedRows, EncodedRows, EncodedRows]
) -> None:
    config = config_of(Meta(steps=(3, 3), rates=(0.5,), weight=2.0))
    module = model_of()
    before = copy.deepcopy(module.state_dict())
    runtime, displaced = PlainRuntime(module, config, CPU), displaced_of(config, rows)
    displaced.backward(runtime, step)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())

    other, side = model_of(), displaced.sides[step]
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.5 * config.learning_rate, weight_decay=0.0)
    assert side.attack is not None
    for number in range(3):
        optimizer.zero_grad()
        mean_loss(other, side.attack, step * 64 + number).backward()
        optimizer.step()
    optimizer.zero_grad()
    (2.0 * mean_loss(other, side.defend, step)).backward()
    for found, expected in zip(gradients(module), gradients(other), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_sams_gradient_is_that_at_the_worst_weights_near_by(
    rows: tuple[EncodedRows, EncodedRows, EncodedRows],
) -> None:
    config = config_of(Sam(rho=0.3))
    module = model_of()
    runtime, displaced = PlainRuntime(module, config, CPU), displaced_of(config, rows)
    displaced.backward(runtime, 0)

    other, (side,) = model_of(), displaced.sides
    mean_loss(other, side.defend, 0).backward()
    norm = sum(float(grad.square().sum()) for grad in gradients(other)) ** 0.5
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.3 * parameter.grad / norm
            parameter.grad = None
    mean_loss(other, side.defend, 0).backward()
    for found, expected in zip(gradients(module), gradients(other), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_an_attacked_question_is_not_defended_in_the_same_step(
    rows: tuple[EncodedRows, EncodedRows, EncodedRows],
) -> None:
    forget, _, truths = rows
    displaced = displaced_of(config_of(Meta()), rows)

    def asked(batches: Batches, steps: range) -> set[int]:
        passes = [batch for step in steps for batch in batches.micro_batches(step, 0)]
        return {int(row[1]) for batch in passes for row in batch.ids_BL}

    for side in displaced.sides:
        assert side.attack is not None
        attacked, defended = asked(side.attack, range(9)), asked(side.defend, range(9))
        assert attacked and defended and not attacked & defended
    halves = [half_of(forget, half, SEED) for half in (0, 1)]
    assert sorted(np.concatenate(halves)) == list(range(12))
    assert all(np.array_equal(half_of(truths, half, SEED), halves[half]) for half in (0, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_come_back_exactly_after_an_error(dtype: torch.dtype) -> None:
    module = prepare(model_of(dtype), Lora(rank=2), seed=0, gradient_checkpointing="none")
    before = copy.deepcopy(module.state_dict())
    runtime = PlainRuntime(module, config_of(Sam(), weights=Lora(rank=2)), CPU)
    with pytest.raises(ZeroDivisionError), runtime.displaced() as moved:
        for master in moved.masters:
            master += 1.0
        moved.put()
        assert not all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
        raise ZeroDivisionError
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("kind", sorted(LASTING))
@pytest.mark.parametrize("objective", ["relabel", "simnpo", "npo"])
@pytest.mark.parametrize("weights", [Lora(rank=2), FullWeights()], ids=["lora", "full"])
def test_a_training_with_any_objective_differs_from_one_without(
    kind: str, objective: str, weights: Lora | FullWeights, rows: tuple[EncodedRows, EncodedRows, EncodedRows]
) -> None:
    forget, retain, truths = rows
    found = []
    for lasting in (Meta() if kind == "meta" else Sam(), None):
        config = config_of(lasting, weights=weights, objective=objective)
        source = truths if config.lowers_truth else forget
        batches = Batches(source, retain, forget_batch=4, retain_batch=2, seed=SEED, **LAYOUT)
        displaced = None
        base_logps = (np.full(12, -9.0), np.zeros(0))
        batches.refer(base_logps)
        if config.lasting is not None:
            displaced = Displaced(config, source, None, truths if config.has_attacker else None, SEED, **LAYOUT)
            displaced.refer(base_logps)
        module = prepare(model_of(), weights, seed=0, gradient_checkpointing="full")
        records: list[StepRecord] = []
        train(PlainRuntime(module, config, CPU), batches, config, seed=SEED, lasting=displaced, on_step=records.append)
        assert all(record.loss is not None and record.grad_norm for record in records)
        found.append([record.loss for record in records])
    assert found[0][0] == pytest.approx(found[1][0]), "the loss of the first step is that at the weights themselves"
    assert found[0][1:] != pytest.approx(found[1][1:], rel=1e-6)


def test_one_question_has_no_two_halves(tmp_path: Path) -> None:
    write_encoded(tmp_path / "one", [Encoded([1, 2, 20, 5, 6], 3)] * 3)
    one = EncodedRows(tmp_path / "one")
    with pytest.raises(ValueError, match="too few questions for two halves"):
        Displaced(config_of(Meta()), one, None, one, SEED, **LAYOUT)


def test_gradients_are_added_up_over_ranks() -> None:
    def as_if_two_ranks(tensors: Sequence[torch.Tensor]) -> None:
        for each in tensors:
            each.mul_(2)

    weight = torch.nn.Parameter(torch.ones(2))
    moved = Displacement([weight], as_if_two_ranks)
    (found,) = moved.gradients([(weight * torch.tensor([1.0, 3.0])).sum(), (weight[:1] * 2).sum()])
    assert found.tolist() == [6.0, 6.0] and weight.grad is None


def test_an_attackers_batches_may_need_more_passes_than_those_of_the_training(tmp_path: Path) -> None:
    """Passes by tokens: rows of unequal lengths fill one pass in one step and several in another."""
    draw = random.Random(8)
    rows = [Encoded([1, 2 + number, 20, *[7] * draw.choice((1, 1, 1, 40))], 3) for number in range(24)]
    write_encoded(tmp_path / "rows", rows)
    every = EncodedRows(tmp_path / "rows")
    config = config_of(Meta(steps=(8, 8)), num_steps=12)
    displaced = Displaced(config, every, None, every, SEED, **LAYOUT | {"micro_tokens": 48})
    runtime = PlainRuntime(model_of(), config, CPU)
    needed = set()
    for step in range(config.num_steps):
        displaced.backward(runtime, step)
        attack = displaced.sides[step % 2].attack
        assert attack is not None
        needed.add(attack.num_micro_batches)
    assert len(needed) > 1
