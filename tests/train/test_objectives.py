"""Losses against figures worked out by hand."""

import math

import pytest
import torch

from unlearn_ray.train.objectives import answer_ce, kl_to_base


def logits(*rows):
    return torch.tensor(rows).log()


def test_answer_ce_sums_minus_log_probability():
    found = answer_ce(logits([0.5, 0.25, 0.25], [0.1, 0.2, 0.7]), torch.tensor([1, 2]))
    assert found.item() == pytest.approx(-math.log(0.25) - math.log(0.7))


def test_answer_ce_of_no_tokens_is_zero():
    assert answer_ce(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).item() == 0.0


def test_kl_goes_from_the_base_to_the_model():
    found = kl_to_base(logits([0.5, 0.5], [0.5, 0.5]), logits([0.9, 0.1], [0.5, 0.5]))
    assert found.item() == pytest.approx(0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5), abs=1e-6)


def test_kl_of_equals_is_zero_and_stays_finite_at_certainty():
    certain = torch.tensor([[80.0, -80.0]])
    assert kl_to_base(certain, certain).item() == pytest.approx(0.0, abs=1e-6)
    assert math.isfinite(kl_to_base(certain, -certain).item())
