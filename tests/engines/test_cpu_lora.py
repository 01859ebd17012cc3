"""Adapters without a GPU: every token passes through its own adapter, and through none where it has none.

vLLM is imported in the tests: every test process collects this file, and one runs it.
"""

import pytest
import torch

SLOTS, RANK, IN, OUT = 3, 2, 5, (4, 6)
SCALE = 0.5


@pytest.fixture
def weights() -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    lora_a = tuple(torch.randn(SLOTS, 1, RANK, IN) for _ in OUT)
    lora_b = tuple(torch.randn(SLOTS, 1, size, RANK) for size in OUT)
    return lora_a, lora_b


@pytest.mark.parametrize(
    "slots",
    [[0, 0, 0], [2, 2, -1], [-1, -1, -1], [2, 0, 2, -1, 1], [2, -1, *[0] * 20, 2]],
    ids=["one adapter", "the last one beside none", "none", "a few tokens each", "many tokens each"],
)
def test_each_token_passes_through_its_own_adapter(
    slots: list[int], weights: tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]
) -> None:
    from unlearn_ray.engines.cpu_lora import GroupedLora

    lora_a, lora_b = weights
    wrapper = GroupedLora(max_num_batched_tokens=32, max_batches=8, device="cpu")
    wrapper._update_prefill_metadata(torch.tensor(slots))
    x, y = torch.randn(len(slots), IN), torch.randn(len(slots), sum(OUT))
    expected = y.clone()
    for token, slot in enumerate(slots):
        if slot >= 0:
            parts = [SCALE * b[slot, 0] @ a[slot, 0] @ x[token] for a, b in zip(lora_a, lora_b, strict=True)]
            expected[token] += torch.cat(parts)
    wrapper.add_lora_linear(y, x, lora_a, lora_b, SCALE, OUT)
    torch.testing.assert_close(y, expected)


def test_vllm_takes_it_where_there_is_no_gpu() -> None:
    from vllm.lora.punica_wrapper.punica_selector import get_punica_wrapper

    from unlearn_ray.engines.cpu_lora import GroupedLora
    from unlearn_ray.engines.vllm_plugin import register

    register()
    wrapper = get_punica_wrapper(max_num_batched_tokens=8, max_batches=8, device="cpu")
    assert type(wrapper) is GroupedLora
