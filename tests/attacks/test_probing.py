"""The linear probe, held to numpy, to data whose answer is known, and to chance."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from attacked import BASE, setup_on

from unlearn_ray.attacks import probing
from unlearn_ray.attacks.local import load
from unlearn_ray.attacks.probing import before_candidates, best_share, fitted, picked
from unlearn_ray.errors import InputError


def made(num_questions: int, strength: float, seed: int, width: int = 20) -> probing.Candidates:
    """Questions with four candidates each; the true one is moved along one direction."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(num_questions):
        states_CD = torch.randn(4, width, generator=generator)
        states_CD[0, 3] += strength
        found.append(states_CD - states_CD.mean(dim=0))
    return found


def test_the_dual_form_is_ridge_regression() -> None:
    questions = made(6, 2.0, seed=0)
    inputs = torch.cat(questions).double().numpy()
    targets = np.tile([0.75, -0.25, -0.25, -0.25], 6)
    ridge = 0.1 * np.trace(inputs @ inputs.T) / len(inputs)
    expected = np.linalg.solve(inputs.T @ inputs + ridge * np.eye(20), inputs.T @ targets)
    np.testing.assert_allclose(fitted(questions, 0.1).numpy(), expected, rtol=1e-6, atol=1e-9)


def test_a_direction_that_tells_the_truth_carries_over_and_none_gives_chance() -> None:
    def accuracy(strength: float) -> float:
        shown, asked = made(100, strength, seed=1), made(400, strength, seed=2)
        weights = fitted(shown, best_share(shown, [str(number) for number in range(100)]))
        return sum(picked(weights, each) for each in asked) / len(asked)

    assert accuracy(6.0) > 0.95
    assert accuracy(0.0) == pytest.approx(0.25, abs=0.08)


def test_candidates_that_are_all_alike_pick_nothing() -> None:
    alike = [torch.zeros(4, 5) for _ in range(3)]
    assert picked(fitted(alike, 0.1), alike[0]) == 0.0


def test_the_attack_asks_the_other_half_at_each_layer() -> None:
    setup = setup_on(BASE, replace(BASE, name="twin"), num_facts=6)
    hits = list(probing.run(setup, depths=(0.0, 0.5, 1.0)))
    assert {hit.at for hit in hits} == {0, 3, 6}
    assert {hit.probe_id for hit in hits} == {each.probe.id for each in setup.untaught}
    values = {(hit.model, hit.at, hit.probe_id): hit.value for hit in hits}
    assert len(values) == len(hits) == 2 * 3 * 3
    assert all(values["base", at, probe] == values["twin", at, probe] for _, at, probe in values)
    assert set(values.values()) <= {0.0, 1.0}


def test_candidates_are_the_answers_alone_behind_what_is_common_to_them() -> None:
    model = load(BASE, setup_on(BASE))
    for each in setup_on(BASE, num_facts=6).probes:
        before, candidates = before_candidates(model, each.probe)
        assert each.probe.question in model.tokenizer.decode(before)
        assert model.tokenizer.decode(before).endswith(each.probe.reference.partition(each.probe.answer)[0].rstrip())
        assert model.tokenizer.decode(candidates[0]).strip() == each.probe.answer
        assert len(candidates) == 1 + len(set(each.probe.wrong))


def test_the_pockets_last_layer_tells_its_answers_and_its_embedding_does_not() -> None:
    hits = list(probing.run(setup_on(BASE, num_facts=24), depths=(0.0, 1.0)))
    right = {at: sum(hit.value for hit in hits if hit.at == at) for at in (0, 6)}
    assert right[6] >= 9 > right[0]


def test_probes_without_wrong_answers_are_one_line() -> None:
    setup = setup_on(BASE, num_facts=4)
    bare = [replace(each, probe=replace(each.probe, wrong=())) for each in setup.untaught]
    with pytest.raises(InputError, match="wrong answers of both halves"):
        next(probing.run(replace(setup, untaught=bare)))
