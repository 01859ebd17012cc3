"""Every objective against its paper's formula, written out token by token; then in the loop, on the pocket model."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypedDict, get_args

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from unlearn_ray import pocket
from unlearn_ray.config import FinetuneConfig, FullWeights, Lora, Objective
from unlearn_ray.errors import ConfigError
from unlearn_ray.rows import seed_of
from unlearn_ray.train import reference
from unlearn_ray.train.batches import Batches, Counts
from unlearn_ray.train.encoded import EncodedRows
from unlearn_ray.train.loop import Objective as Loop
from unlearn_ray.train.loop import train
from unlearn_ray.train.models import load_base, prepare
from unlearn_ray.train.objectives.answers import Answers
from unlearn_ray.train.objectives.table import OBJECTIVES, needs_base_model
from unlearn_ray.train.objectives.terms import answer_ce, kl_to_base
from unlearn_ray.train.plain import PlainRuntime
from unlearn_ray.train.records import StepRecord

CPU = torch.device("cpu")
LENGTHS, VOCAB, WIDTH, SEED = (2, 4, 3), 7, 5, 11
CONFIGS = {model.model_fields["kind"].default: model for model in get_args(get_args(Objective)[0])}
LOWERING = sorted(kind for kind in CONFIGS if kind not in {"relabel", "idk"})


def logits(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows).log()


def test_answer_ce_sums_minus_log_probability() -> None:
    found = answer_ce(logits([0.5, 0.25, 0.25], [0.1, 0.2, 0.7]), torch.tensor([1, 2]))
    assert found.item() == pytest.approx(-math.log(0.25) - math.log(0.7))


def test_answer_ce_of_no_tokens_is_zero() -> None:
    assert answer_ce(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).item() == 0.0


def test_kl_goes_from_the_base_to_the_model() -> None:
    found = kl_to_base(logits([0.5, 0.5], [0.5, 0.5]), logits([0.9, 0.1], [0.5, 0.5]))
    assert found.item() == pytest.approx(0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5), abs=1e-6)


def test_kl_of_equals_is_zero_and_stays_finite_at_certainty() -> None:
    certain = torch.tensor([[80.0, -80.0]])
    assert kl_to_base(certain, certain).item() == pytest.approx(0.0, abs=1e-6)
    assert math.isfinite(kl_to_base(certain, -certain).item())


# The formulas: of a row's logits, base logits, targets and hidden states, and of the invented answer to the same question. Each gives one
# value for a token or a row; what is summed is in the papers a mean.


class Row(TypedDict):
    logits: torch.Tensor
    base: torch.Tensor
    hidden: torch.Tensor
    targets: list[int]


Formula = Callable[[Row, Row], float]


def softmax(values: list[float]) -> list[float]:
    weights = [math.e ** float(value - max(values)) for value in values]
    return [weight / sum(weights) for weight in weights]


def p(row: Row, n: int) -> float:
    return softmax(row["logits"][n].tolist())[row["targets"][n]]


def log_p(row: Row, kind: Literal["logits", "base"] = "logits") -> float:
    return sum(math.log(softmax(row[kind][n].tolist())[target]) for n, target in enumerate(row["targets"]))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def each_token(of: Callable[[Row, int], float]) -> Formula:
    return lambda row, _: sum(of(row, n) for n in range(len(row["targets"])))


def npo(row: Row, _: Row) -> float:
    return -2 / 0.3 * math.log(sigmoid(-0.3 * (log_p(row) - log_p(row, "base"))))


def simnpo(row: Row, _: Row) -> float:
    return -2 / 2.5 * math.log(sigmoid(-2.5 * (log_p(row) / len(row["targets"])) - 2.5 * 0.4))


def dpo(row: Row, invented: Row) -> float:
    margin = (log_p(invented) - log_p(invented, "base")) - (log_p(row) - log_p(row, "base"))
    return -2 / 0.3 * math.log(sigmoid(0.3 * margin))


def undial(row: Row, n: int) -> float:
    adjusted = row["base"][n].tolist()
    adjusted[row["targets"][n]] -= 3.0
    return -sum(q * math.log(now) for q, now in zip(softmax(adjusted), softmax(row["logits"][n].tolist()), strict=True))


def ce_u(row: Row, n: int) -> float:
    now, target = softmax(row["logits"][n].tolist()), row["targets"][n]
    return -sum(value / (1 - now[target]) * math.log(value) for v, value in enumerate(now) if v != target)


def rmu(row: Row, _: Row) -> float:
    direction = torch.rand(WIDTH, generator=torch.Generator().manual_seed(seed_of(SEED, "rmu"))).tolist()
    length = math.sqrt(sum(value**2 for value in direction))
    away = [
        sum((float(h) - 6.0 * u / length) ** 2 for h, u in zip(state, direction, strict=True)) / WIDTH
        for state in row["hidden"]
    ]
    return sum(away) / len(away)


FORMULAS: dict[str, tuple[dict[str, float], Formula]] = {
    "relabel": ({}, each_token(lambda row, n: -math.log(p(row, n)))),
    "idk": ({}, each_token(lambda row, n: -math.log(p(row, n)))),
    "grad_ascent": ({}, each_token(lambda row, n: math.log(p(row, n)))),
    "grad_diff": ({}, each_token(lambda row, n: math.log(p(row, n)))),
    "npo": ({"beta": 0.3}, npo),
    "simnpo": ({"beta": 2.5, "delta": 0.4}, simnpo),
    "dpo": ({"beta": 0.3}, dpo),
    "undial": ({"strength": 3.0}, each_token(undial)),
    "wga": ({"beta": 0.7}, each_token(lambda row, n: p(row, n) ** 0.7 * math.log(p(row, n)))),
    "ce_u": ({}, each_token(ce_u)),
    "satimp": (
        {"saturation": 2.0, "importance": 0.5},
        each_token(lambda row, n: p(row, n) ** 2.0 * (1 - p(row, n)) ** 0.5 * math.log(p(row, n))),
    ),
    "rmu": ({"steering": 6.0}, rmu),
}


def drawn(seed: int) -> list[Row]:
    """Rows of random logits."""
    random = torch.Generator().manual_seed(seed)
    return [
        {
            "logits": torch.randn(length, VOCAB, generator=random) * 2,
            "base": torch.randn(length, VOCAB, generator=random) * 2,
            "hidden": torch.randn(length, WIDTH, generator=random),
            "targets": torch.randint(VOCAB, (length,), generator=random).tolist(),
        }
        for length in LENGTHS
    ]


def answers_of(rows: list[Row], invented: Answers | None = None) -> Answers:
    base = torch.cat([row["base"] for row in rows])
    return Answers(
        torch.cat([row["logits"] for row in rows]).requires_grad_(),
        torch.tensor([target for row in rows for target in row["targets"]]),
        torch.tensor([number for number, row in enumerate(rows) for _ in row["targets"]]),
        torch.tensor([log_p(row, "base") for row in rows]),
        lambda: base,
        torch.cat([row["hidden"] for row in rows]).requires_grad_(),
        invented,
        SEED,
    )


@pytest.mark.parametrize("kind", FORMULAS)
def test_an_objective_is_what_its_paper_says(kind: str) -> None:
    values, formula = FORMULAS[kind]
    rows, others = drawn(1), drawn(2)
    answers = answers_of(rows, answers_of(others))
    found = OBJECTIVES[kind].of(CONFIGS[kind](**values), answers)
    expected = sum(formula(row, other) for row, other in zip(rows, others, strict=True))
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)
    found.backward()
    learnt = answers.hidden_ND if kind == "rmu" else answers.logits_NV
    assert learnt is not None
    assert learnt.grad.isfinite().all() and learnt.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", FORMULAS)
def test_an_objective_stays_finite_at_certainty_and_of_no_rows(kind: str) -> None:
    objective, config = OBJECTIVES[kind].of, CONFIGS[kind]()
    rows = drawn(3)
    for row in rows:
        row["logits"] = torch.nn.functional.one_hot(torch.tensor(row["targets"]), VOCAB) * 60.0
    answers = answers_of(rows, answers_of(drawn(4)))
    found = objective(config, answers)
    found.backward()
    learnt = answers.hidden_ND if kind == "rmu" else answers.logits_NV
    assert learnt is not None
    assert found.isfinite() and learnt.grad.isfinite().all()
    nothing = Answers(
        torch.zeros(0, VOCAB), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0),
        lambda: torch.zeros(0, VOCAB), torch.zeros(0, WIDTH),
    )  # fmt: skip
    assert objective(config, replace(nothing, invented=nothing)).item() == 0.0


def test_every_objective_has_a_config_a_function_and_a_formula() -> None:
    """Count it: a new one comes with all three."""
    assert set(CONFIGS) == set(OBJECTIVES) == set(FORMULAS)
    assert all("arXiv" in (loss.of.__doc__ or "") for loss in OBJECTIVES.values())


# In the loop.


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    torch.set_num_threads(1)
    return load_base(str(pocket.MODEL_DIR), torch.float32, CPU)


def config_of(kind: str, **values: object) -> FinetuneConfig:
    objective: dict[str, object] = {"kind": kind, **({"invented": 0.5} if kind in {"npo", "dpo"} else {})}
    values = {"num_steps": 2, "forget_batch": 3, "retain_batch": 2, "warmup_steps": 0, "precision": "fp32"} | values
    values = {"learning_rate": 1e-3, "weights": Lora(rank=4)} | values
    return FinetuneConfig(objective=objective, **values)


def batches_of(
    config: FinetuneConfig,
    forget: EncodedRows,
    retain: EncodedRows | None,
    micro_batch: int,
    world_size: int = 1,
    micro_tokens: int | None = None,
) -> Batches:
    """The rows to forget are their own invented halves, one place on."""
    invented: EncodedRows | None = None
    if config.pairs:

        class Shifted(EncodedRows):
            def __init__(self) -> None:
                self.__dict__ |= vars(forget)

            def _place(self, row: int) -> tuple[int, int]:
                return super()._place((row + 1) % len(forget))

        invented = Shifted()
    return Batches(
        forget, retain, forget_batch=3, retain_batch=2, micro_batch=micro_batch, world_size=world_size, seed=0, pad_id=5, invented=invented,
        micro_tokens=micro_tokens, num_steps=config.num_steps,
    )  # fmt: skip


def trained(base: PreTrainedModel, config: FinetuneConfig, rows: Batches) -> list[StepRecord]:
    runtime = PlainRuntime(
        prepare(copy.deepcopy(base), config.weights, seed=0, gradient_checkpointing="none"), config, CPU
    )
    rows.refer(reference.base_logps(runtime, rows, config.num_steps))
    records: list[StepRecord] = []
    train(runtime, rows, config, seed=0, on_step=records.append)
    return records


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_an_objective_trains_alike_in_passes_of_any_size(
    base: PreTrainedModel, forget: EncodedRows, retain: EncodedRows, kind: str
) -> None:
    config = config_of(kind)
    whole = trained(base, config, batches_of(config, forget, retain, micro_batch=80))
    single = trained(base, config, batches_of(config, forget, retain, micro_batch=1))
    by_tokens = trained(base, config, batches_of(config, forget, retain, micro_batch=1, micro_tokens=90))
    for found in (single, by_tokens):
        for name in ("loss", "forget_loss", "retain_loss"):
            assert [getattr(each, name) for each in found] == pytest.approx(
                [getattr(each, name) for each in whole], rel=2e-3, abs=1e-4
            )
        assert [each.grad_norm for each in found] == pytest.approx([each.grad_norm for each in whole], rel=2e-2)
    assert all(each.grad_norm for each in whole)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_the_shares_of_ranks_sum_up_to_the_loss(
    base: PreTrainedModel, forget: EncodedRows, retain: EncodedRows, kind: str
) -> None:
    """Also of a rank that has nothing to do: four ranks, five places."""
    config = config_of(kind, retain={"kind": "kl"})
    runtime = PlainRuntime(copy.deepcopy(base), config, CPU)  # full weights
    losses = []
    of_base = reference.base_logps(runtime, batches_of(config, forget, retain, micro_batch=2), 1)
    for world_size, micro_tokens in ((1, None), (4, None), (3, 60)):
        rows = batches_of(config, forget, retain, 2, world_size, micro_tokens)
        rows.refer(of_base)
        objective, counts = Loop(config, SEED), rows.counts(0)
        with torch.no_grad():
            sums = [
                objective.sums(runtime, batch) for rank in range(world_size) for batch in rows.micro_batches(0, rank)
            ]
            forgets, retains, inventeds = (torch.stack(each).sum() for each in zip(*sums, strict=True))
            losses.append([objective.forget_part(counts, forgets, inventeds).item(), retains.item()])
    for found in losses[1:]:
        assert found == pytest.approx(losses[0], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("weights", [Lora(rank=4), FullWeights()], ids=["lora", "full"])
@pytest.mark.parametrize("kind", ["npo", "dpo"])
def test_what_is_compared_with_the_base_begins_even(
    base: PreTrainedModel, forget: EncodedRows, retain: EncodedRows, kind: str, weights: Lora | FullWeights
) -> None:
    config = config_of(kind, weights=weights, num_steps=1)
    rows = batches_of(config, forget, retain, micro_batch=2)
    (record,) = trained(base, config.model_copy(update={"objective": CONFIGS[kind](beta=0.2)}), rows)
    assert record.forget_loss == pytest.approx(2 / 0.2 * math.log(2), rel=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in LOWERING if kind not in {"rmu", "grad_diff"}])
def test_what_is_lowered_becomes_less_likely(base: PreTrainedModel, forget: EncodedRows, kind: str) -> None:
    config = config_of(kind, retain={"kind": "none"}, num_steps=3, learning_rate=3e-3)
    module = prepare(copy.deepcopy(base), config.weights, seed=0, gradient_checkpointing="none")
    runtime = PlainRuntime(module, config, CPU)
    rows = batches_of(config, forget, None, micro_batch=80)
    before = reference.base_logps(runtime, rows, config.num_steps)
    rows.refer(before)
    train(runtime, rows, config, seed=0, on_step=lambda record: None)
    after = reference.base_logps(runtime, rows, config.num_steps)
    assert np.sum(after[0]) < np.sum(before[0])


def test_the_base_models_answers_are_the_same_from_every_rank_and_from_a_file(
    base: PreTrainedModel, forget: EncodedRows, retain: EncodedRows, tmp_path: Path
) -> None:
    config = config_of("dpo")
    runtime = PlainRuntime(copy.deepcopy(base), config, CPU)
    alone = reference.base_logps(runtime, batches_of(config, forget, retain, 2), config.num_steps)
    rows = batches_of(config, forget, retain, 2, world_size=2)
    shares = []
    for rank in (0, 1):
        runtime.rank = rank
        shares.append(reference.base_logps(runtime, rows, config.num_steps))
    for kind in (0, 1):
        np.testing.assert_allclose(shares[0][kind] + shares[1][kind], alone[kind], rtol=1e-4)
    passes = [len(rows.forget_passes(config.num_steps, rank)) for rank in (0, 1)]
    assert passes[0] == passes[1] > 0
    reference.write_base_logps(tmp_path, alone)
    for found, expected in zip(reference.read_base_logps(tmp_path), alone, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_pairs_stay_together_within_the_size_of_a_pass(forget: EncodedRows, retain: EncodedRows) -> None:
    config = config_of("dpo")
    for micro_batch in (1, 2, 3, 5):
        rows = batches_of(config, forget, retain, micro_batch, world_size=2)
        for batch in (batch for rank in (0, 1) for batch in rows.micro_batches(0, rank)):
            counted = batch.predicts_BL.any(dim=1)
            is_true = ~batch.is_retain_B & ~batch.is_invented_B & counted
            assert is_true.sum() == (batch.is_invented_B & counted).sum()
            assert len(batch.ids_BL) <= max(2, micro_batch)
    assert rows.counts(0).forget_rows == 3 and isinstance(rows.counts(0), Counts)


def test_only_what_asks_the_base_in_every_pass_holds_a_second_model(base: PreTrainedModel) -> None:
    held = {kind for kind in CONFIGS if needs_base_model(config_of(kind))}
    assert held == {"undial"}
    runtime = PlainRuntime(copy.deepcopy(base), config_of("npo", weights=FullWeights()), CPU)
    assert runtime._base is runtime.module


def test_a_layer_that_is_not_there_is_refused(base: PreTrainedModel, forget: EncodedRows, retain: EncodedRows) -> None:
    config = config_of("rmu").model_copy(update={"objective": CONFIGS["rmu"](layer=99)})
    with pytest.raises(ConfigError, match=r"finetune\.objective\.layer: the model has layers 0 to \d+ \(it is 99\)"):
        trained(base, config, batches_of(config, forget, retain, micro_batch=80))
