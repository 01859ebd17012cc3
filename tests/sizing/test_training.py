"""What a training takes, by hand and as it was measured."""

import pytest

from unlearn_ray.config import FinetuneConfig, Meta, Sam, WorkerResources
from unlearn_ray.sizing.shapes import KNOWN
from unlearn_ray.sizing.training import (
    Memory,
    Pass,
    checkpoint_bytes,
    num_checkpoints,
    rows_per_step,
    training_flops,
    training_memory,
)

LLAMA, N = KNOWN["llama-3-8b"], 8_030_261_248
FULL = FinetuneConfig.model_validate({"weights": {"kind": "full"}, "precision": "bf16", "retain": {"kind": "kl"}})
LORA = FinetuneConfig.model_validate({"weights": {"kind": "lora", "rank": 64}, "precision": "bf16"})
ROWS = Pass(4, 311, 1024)


def memory(config: FinetuneConfig = FULL, **workers: object) -> Memory:
    settings = WorkerResources.model_validate({"num_workers": 8, "micro_batch": 4, "zero_stage": 2} | workers)
    return training_memory(LLAMA, config, settings, ROWS, device="cuda")


def test_mixed_precision_adam_takes_sixteen_bytes_a_parameter_and_zero_shares_them_out() -> None:
    """Rajbhandari et al. 2020, figure 1: of 7.5 B parameters on 64 GPUs 120 GB, then 31.4, 16.6 and 1.9 GB."""
    two, three = memory(), memory(zero_stage=3)
    assert (two.weights, two.gradients, two.optimizer) == (2 * N, 2 * N / 8, 12 * N / 8)
    assert (three.weights, three.gradients, three.optimizer) == (2 * N / 8, 2 * N / 8, 12 * N / 8)
    alone = memory(num_workers=1, zero_stage=1)
    assert alone.weights + alone.gradients + alone.optimizer == 16 * N
    assert (two.reference, three.reference) == (2 * N, 2 * N / 8)
    assert memory(FULL.model_copy(update={"retain": LORA.retain})).reference == 0


def test_an_adapter_takes_the_model_once_and_little_more() -> None:
    found = memory(LORA)
    assert found.weights == 2 * (N + 167_772_160)
    assert found.optimizer == 12 * 167_772_160 / 8
    assert found.reference == 0  # it is the model without the adapter


def test_recomputation_keeps_a_fraction_of_the_activations() -> None:
    assert memory(gradient_checkpointing="full").activations < memory().activations / 8
    assert (
        memory(gradient_checkpointing="full").activations
        < memory(gradient_checkpointing="selective").activations
        < memory().activations / 2
    )
    assert memory().activations == pytest.approx(memory(LORA).activations, rel=0.3)


def test_offloading_leaves_the_optimizer_to_the_cpu() -> None:
    assert memory(offload="optimizer").optimizer == 0
    assert memory(zero_stage=3, offload="all").weights == 0


def test_displaced_weights_are_whole_on_each_worker_and_take_their_passes() -> None:
    learnt, meta = 167_772_160, LORA.model_copy(update={"lasting": Meta(steps=(2, 8))})
    assert memory(meta).displaced == learnt * (2 + 4 + 4 + 8)  # as they were, masters, gradients, moments
    assert memory(LORA.model_copy(update={"lasting": Sam()})).displaced == learnt * (2 + 4 + 4)
    assert memory(meta).total - memory(LORA).total == memory(meta).displaced
    assert rows_per_step(meta) == rows_per_step(LORA) + LORA.forget_batch * (1 + 5)


def test_training_takes_six_operations_a_parameter_and_token_and_an_adapter_four() -> None:
    """C = 6 N D: with an untied model's embedding, which is only looked up, left out."""
    multiplied = N - 128_256 * 4096
    plain = FULL.model_copy(update={"retain": LORA.retain})
    assert training_flops(LLAMA, plain, 1e6, 1.0, "none") == pytest.approx(6 * multiplied * 1e6, rel=1e-3)
    assert training_flops(LLAMA, LORA, 1e6, 1.0, "none") == pytest.approx(4 * multiplied * 1e6, rel=1e-3)
    assert training_flops(LLAMA, plain, 1e6, 1.0, "full") == pytest.approx(8 * multiplied * 1e6, rel=1e-3)
    # Attention at 8,192 tokens: 12 layers x width x length a token.
    long = training_flops(LLAMA, plain, 1e6, 8192.0, "none") - 6 * multiplied * 1e6
    assert long == pytest.approx(12 * 32 * 4096 * 8192 * 1e6, rel=1e-6)


def test_checkpoints_of_the_full_8b_training_are_counted() -> None:
    config = FULL.model_copy(update={"num_steps": 900, "checkpoint_every": 50})
    assert num_checkpoints(config) == 17  # none after the last step
    assert checkpoint_bytes(LLAMA, config) == 12 * N  # 96.4 GB
    assert checkpoint_bytes(LLAMA, LORA) == 12 * 167_772_160
