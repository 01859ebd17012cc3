"""Rounding of weights, held to torch's own and to sums by hand, and the attack on the pocket model."""

from dataclasses import replace

import pytest
import torch
from attacked import BASE, setup_on
from hypothesis import given
from hypothesis import strategies as st

from unlearn_ray.attacks import quantize
from unlearn_ray.attacks.local import load
from unlearn_ray.attacks.quantize import linear_layers, rounded
from unlearn_ray.errors import InputError


def test_three_bits_by_hand() -> None:
    weight = torch.tensor([[3.0, -1.4, 0.4, -3.0], [0.0, 0.0, 0.0, 0.0]])
    # The scale is 3 / 3 = 1.
    assert rounded(weight, 3, None, is_symmetric=True).tolist() == [[3.0, -1.0, 0.0, -3.0], [0.0, 0.0, 0.0, 0.0]]
    # From -1.4 to 5.6 in seven steps of 1: zero is at 1.
    [row] = rounded(torch.tensor([[5.6, -1.4, 2.2, 0.3]]), 3, None, is_symmetric=False).tolist()
    assert row == pytest.approx([6.0, -1.0, 2.0, 0.0])


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("is_symmetric", [True, False])
def test_rows_are_rounded_as_torch_does_it(bits: int, is_symmetric: bool) -> None:
    weight = torch.randn(12, 40, generator=torch.Generator().manual_seed(bits))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_symmetric else (0, 2**bits - 1)
    if is_symmetric:
        scales, zeros = weight.abs().amax(1) / high, torch.zeros(12)
    else:
        least, most = weight.amin(1).clamp(max=0), weight.amax(1).clamp(min=0)
        scales = (most - least) / high
        zeros = torch.round(-least / scales)
    expected = torch.fake_quantize_per_channel_affine(weight, scales, zeros.to(torch.int32), 0, low, high)
    torch.testing.assert_close(rounded(weight, bits, None, is_symmetric=is_symmetric), expected)


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_each_group_is_rounded_as_a_row_of_its_own(is_symmetric: bool) -> None:
    weight = torch.randn(3, 10, generator=torch.Generator().manual_seed(1)) + 0.5
    pieces = [rounded(piece, 4, None, is_symmetric=is_symmetric) for piece in weight.split(4, dim=1)]
    torch.testing.assert_close(rounded(weight, 4, 4, is_symmetric=is_symmetric), torch.cat(pieces, dim=1))


@given(bits=st.integers(2, 8), size=st.sampled_from([None, 3, 8]), is_symmetric=st.booleans(), seed=st.integers(0, 99))
def test_no_weight_moves_by_more_than_a_step_and_a_second_rounding_changes_nothing(
    bits: int, size: int | None, is_symmetric: bool, seed: int
) -> None:
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed))
    once = rounded(weight, bits, size, is_symmetric=is_symmetric)
    steps = 2 ** (bits - 1) - 1 if is_symmetric else 2**bits - 1
    width = weight.abs().max() if is_symmetric else weight.max().clamp(min=0) - weight.min().clamp(max=0)
    assert float((once - weight).abs().max()) <= float(width) / steps * 1.001
    again = rounded(once, bits, size, is_symmetric=is_symmetric)
    if is_symmetric:  # an asymmetric grid moves with its new ends
        torch.testing.assert_close(again, once)
    assert all(len(row.unique()) <= 2**bits for row in once) or size is not None


def test_all_linear_layers_but_the_output_are_quantised() -> None:
    module = load(BASE, setup_on(BASE)).module
    names = {name for name, each in module.named_modules() if any(each is layer for layer in linear_layers(module))}
    assert len(names) == 6 * 7
    assert "lm_head" not in names


def test_the_attack_measures_each_grid_and_few_bits_harm_the_pocket() -> None:
    setup = setup_on(BASE, num_facts=6)
    hits = list(quantize.run(setup, bits=(8, 2), group_sizes=(64,)))
    found: dict[tuple[str, float, str], float] = {}
    for hit in hits:
        found[hit.setting, hit.at, hit.metric] = found.get((hit.setting, hit.at, hit.metric), 0.0) + hit.value
    assert {name for name, _, _ in found} == {"as it is", "group 64, symmetric", "group 64, asymmetric"}
    assert found["as it is", 16, "recall"] == found["group 64, symmetric", 8, "recall"] >= 5
    assert found["group 64, symmetric", 2, "recall"] < found["group 64, symmetric", 8, "recall"]
    assert {hit.model for hit in hits} == {"base"}


def test_bad_bits_and_no_probes_are_one_line() -> None:
    setup = setup_on(BASE, num_facts=2)
    with pytest.raises(InputError, match="bits must be 2 to 8, not 1"):
        next(quantize.run(setup, bits=(1,)))
    with pytest.raises(InputError, match="needs probes"):
        next(quantize.run(replace(setup, probes=())))
