"""The loop in one process, on the pocket model."""

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from unlearn_ray import pocket
from unlearn_ray.config import FinetuneConfig, FullWeights, Lora, Recomputing, RetainTerm
from unlearn_ray.errors import ConfigError
from unlearn_ray.train.batches import Batches
from unlearn_ray.train.encoded import EncodedRows
from unlearn_ray.train.loop import Objective, learning_rate, mean_ce, train
from unlearn_ray.train.models import DTYPES, AnswerLogits, load_base, prepare
from unlearn_ray.train.objectives.terms import answer_ce
from unlearn_ray.train.plain import PlainRuntime
from unlearn_ray.train.records import StepRecord

CPU = torch.device("cpu")
LORA = Lora(rank=4)


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    torch.set_num_threads(1)
    return load_base(str(pocket.MODEL_DIR), torch.float32, CPU)


def config(**values: object) -> FinetuneConfig:
    values = {
        "num_steps": 4,
        "forget_batch": 4,
        "retain_batch": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "precision": "fp32",
    } | values
    return FinetuneConfig(**values)


def batches(forget: EncodedRows, retain: EncodedRows | None, micro_batch: int = 80) -> Batches:
    return Batches(
        forget, retain, forget_batch=4, retain_batch=2, micro_batch=micro_batch, world_size=1, seed=0, pad_id=5
    )


def run(
    base: PreTrainedModel,
    settings: FinetuneConfig,
    rows: Batches,
    first_step: int = 0,
    module: torch.nn.Module | None = None,
) -> tuple[list[StepRecord], torch.nn.Module]:
    module = module or prepare(copy.deepcopy(base), settings.weights, seed=0, gradient_checkpointing="none")
    records: list[StepRecord] = []
    train(PlainRuntime(module, settings, CPU), rows, settings, seed=0, first_step=first_step, on_step=records.append)
    return records, module


def test_the_head_sees_learnt_positions_alone_and_gives_the_same_logits(
    base: PreTrainedModel, forget: EncodedRows, retain: EncodedRows
) -> None:
    (batch,) = batches(forget, retain).micro_batches(0, 0)
    with torch.no_grad():
        found_NV = AnswerLogits(base)(base, batch)
        whole_BLV = base(input_ids=batch.inputs_BL).logits
    assert found_NV.shape[0] == len(batch.targets_N)
    torch.testing.assert_close(found_NV, whole_BLV[batch.predicts_BL], rtol=1e-4, atol=1e-4)


def test_filling_up_a_row_does_not_change_its_logits(
    base: PreTrainedModel, forget: EncodedRows, retain: EncodedRows
) -> None:
    rows = batches(forget, retain)
    placed = sorted(rows.placed(0), key=lambda row: row.num_tokens)
    alone, together = rows.collate(placed[:1]), rows.collate([placed[0], placed[-1]])
    with torch.no_grad():
        answers = AnswerLogits(base)
        alone_NV, together_NV = answers(base, alone), answers(base, together)
    torch.testing.assert_close(together_NV[: len(alone_NV)], alone_NV, rtol=1e-4, atol=1e-4)


def test_each_term_is_a_mean_over_its_own_tokens_of_the_whole_step(
    base: PreTrainedModel, forget: EncodedRows, retain: EncodedRows
) -> None:
    weight, rows = 1.5, batches(forget, retain)
    (whole,) = rows.micro_batches(0, 0)
    with torch.no_grad():
        logits_NV = base(input_ids=whole.inputs_BL).logits[whole.predicts_BL]
    parts = [
        answer_ce(logits_NV[whole.is_retain_N == kind], whole.targets_N[whole.is_retain_N == kind]).item()
        / int((whole.is_retain_N == kind).sum())
        for kind in (False, True)
    ]
    settings = config(weights=FullWeights(), retain=RetainTerm(kind="gd", weight=weight), num_steps=1)
    (record,), _ = run(base, settings, rows)
    assert (record.forget_loss, record.retain_loss) == pytest.approx(tuple(parts), rel=1e-4)
    assert record.loss == pytest.approx(parts[0] + weight * parts[1], rel=1e-4)


@pytest.mark.parametrize("kind", ["gd", "kl", "none"])
def test_passes_of_any_size_give_the_same_training(
    base: PreTrainedModel, forget: EncodedRows, retain: EncodedRows, kind: str
) -> None:
    settings = config(weights=LORA, retain=RetainTerm(kind=kind))
    kept = None if kind == "none" else retain
    whole, _ = run(base, settings, batches(forget, kept, micro_batch=80))
    single, _ = run(base, settings, batches(forget, kept, micro_batch=1))
    assert [record.loss for record in single] == pytest.approx([record.loss for record in whole], rel=1e-3)
    assert [record.grad_norm for record in single] == pytest.approx([record.grad_norm for record in whole], rel=1e-2)


@pytest.mark.parametrize("weights", [LORA, FullWeights()], ids=["lora", "full"])
def test_the_kl_term_begins_at_zero_and_grows(
    base: PreTrainedModel, forget: EncodedRows, retain: EncodedRows, weights: Lora | FullWeights
) -> None:
    records, _ = run(base, config(weights=weights, retain=RetainTerm(kind="kl", weight=1.0)), batches(forget, retain))
    assert records[0].retain_loss == pytest.approx(0.0, abs=1e-6)
    assert records[-1].retain_loss is not None and records[-1].retain_loss > 1e-5


def test_without_a_retain_term_the_loss_is_the_forget_loss(base: PreTrainedModel, forget: EncodedRows) -> None:
    records, _ = run(base, config(weights=LORA, retain=RetainTerm(kind="none")), batches(forget, None))
    assert all(record.retain_loss is None and record.loss == record.forget_loss for record in records)


def test_training_lowers_the_loss_of_the_answers(
    base: PreTrainedModel, forget: EncodedRows, retain: EncodedRows
) -> None:
    settings = config(weights=LORA, num_steps=12, learning_rate=5e-3)
    rows = batches(forget, retain)
    records, module = run(base, settings, rows)
    first, last = records[0], records[-1]
    assert first.loss is not None and first.forget_loss is not None and last.forget_loss is not None
    assert last.forget_loss < 0.7 * first.forget_loss
    (check,) = rows.micro_batches(0, 0)
    assert mean_ce(PlainRuntime(module.eval(), settings, CPU), [check]) < first.loss


def test_training_again_gives_the_same_losses_even_with_dropout(
    base: PreTrainedModel, forget: EncodedRows, retain: EncodedRows
) -> None:
    settings = config(weights=Lora(rank=4, dropout=0.3))
    first, _ = run(base, settings, batches(forget, retain))
    assert run(base, settings, batches(forget, retain))[0] == first


def test_a_later_first_step_reads_and_rates_as_if_unbroken(
    base: PreTrainedModel, forget: EncodedRows, retain: EncodedRows
) -> None:
    settings = config(weights=LORA)
    whole, _ = run(base, settings, batches(forget, retain))
    rest, _ = run(base, settings, batches(forget, retain), first_step=2)
    assert [record.step for record in rest] == [2, 3]
    assert [record.lr for record in rest] == [record.lr for record in whole[2:]]


@pytest.mark.parametrize("weights", [LORA, FullWeights()], ids=["lora", "full"])
def test_recomputing_changes_memory_not_results(
    base: PreTrainedModel, forget: EncodedRows, retain: EncodedRows, weights: Lora | FullWeights
) -> None:
    """The more is computed again, the more matrix products."""
    settings, rows = config(weights=weights, num_steps=1), batches(forget, retain)
    kinds: tuple[Recomputing, ...] = ("none", "selective", "full")
    found: dict[str, StepRecord] = {}
    products: dict[str, int] = {}
    for kind in kinds:
        module = prepare(copy.deepcopy(base), weights, seed=0, gradient_checkpointing=kind)
        with Products() as counted:
            (found[kind],), _ = run(base, settings, rows, module=module)
        products[kind] = counted.number
    for kind in kinds[1:]:
        assert (found[kind].loss, found[kind].grad_norm) == pytest.approx(
            (found["none"].loss, found["none"].grad_norm), rel=1e-5
        )
    assert products["none"] < products["selective"] < products["full"]


class Products(TorchDispatchMode):
    """Counts matrix products."""

    number = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        self.number += func in {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}
        return func(*args, **(kwargs or {}))


def test_the_scale_of_an_adapter_is_alpha_over_its_rank_or_over_its_root(base: PreTrainedModel) -> None:
    scales = []
    for rslora in (False, True):
        weights = Lora(rank=16, alpha=32, rslora=rslora)
        module = prepare(copy.deepcopy(base), weights, seed=0, gradient_checkpointing="none")
        scales.append({layer.scaling["default"] for layer in module.modules() if hasattr(layer, "lora_A")})
    assert scales == [{2.0}, {8.0}]


def test_the_rate_warms_up_and_decays_to_its_last_fraction() -> None:
    settings = config(num_steps=11, warmup_steps=4, learning_rate=1.0, final_lr_fraction=0.1)
    rates = [learning_rate(step, settings) for step in range(11)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[-1] == pytest.approx(0.1)
    steps = [after - before for before, after in pairwise(rates[4:])]
    assert steps == pytest.approx([steps[0]] * len(steps))


def test_a_warm_up_as_long_as_the_training_is_allowed() -> None:
    settings = config(num_steps=2, warmup_steps=8, learning_rate=1.0)
    assert [learning_rate(step, settings) for step in range(2)] == [0.125, 0.25]
    assert learning_rate(0, config(num_steps=1, warmup_steps=0)) > 0


def test_modules_that_are_not_there_are_a_config_error(base: PreTrainedModel) -> None:
    with pytest.raises(ConfigError, match=r"finetune.weights.target_modules: .* none of w_pack"):
        prepare(copy.deepcopy(base), Lora(target_modules=("w_pack",)), seed=0, gradient_checkpointing="none")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_is_left_out_and_said(
    forget: EncodedRows, retain: EncodedRows, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(str(pocket.MODEL_DIR), DTYPES[precision], CPU)
    settings = config(weights=FullWeights(), precision=precision, num_steps=3)
    module = prepare(base, settings.weights, seed=0, gradient_checkpointing="none")
    runtime = PlainRuntime(module, settings, CPU)
    backward, before = runtime.backward, {name: value.clone() for name, value in module.named_parameters()}
    monkeypatch.setattr(runtime, "backward", lambda loss: backward(loss * float("inf")))
    records: list[StepRecord] = []
    train(runtime, batches(forget, retain), settings, seed=0, on_step=records.append)
    assert [record.grad_norm for record in records] == [None] * 3 and all(record.is_skipped for record in records)
    assert all(torch.equal(value, before[name]) for name, value in module.named_parameters())


def test_a_pass_without_retain_rows_has_no_retain_loss(
    base: PreTrainedModel, forget: EncodedRows, retain: EncodedRows
) -> None:
    rows = batches(forget, retain)
    only_forget = rows.collate([row for row in rows.placed(0) if not row.is_retain])
    runtime = PlainRuntime(copy.deepcopy(base), config(weights=FullWeights(), retain=RetainTerm(kind="kl")), CPU)
    objective = Objective(config(retain=RetainTerm(kind="kl")), seed=0)
    forget_sum, retain_sum, _ = objective.sums(runtime, only_forget)
    assert forget_sum.item() > 0 and retain_sum.item() == 0.0
