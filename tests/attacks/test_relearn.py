"""Relearning, on the pocket model and a damaged copy of it."""

from dataclasses import replace

import pytest
import torch
from attacked import BASE, setup_on

from unlearn_ray.attacks import relearn
from unlearn_ray.attacks.attack import Target, fact_of
from unlearn_ray.attacks.local import load
from unlearn_ray.errors import InputError


def test_rates_follow_the_width_and_base_gets_the_fewest_settings() -> None:
    names = {
        model: [each.name for each in relearn.settings(192, model, ("forget", "near", "unrelated"))]
        for model in ("base", "unlearned", "twin")
    }
    assert names["base"] == ["lora, forget, 5e-03", "full, forget, 1e-03"]
    assert len(names["unlearned"]) == 10
    assert [name for name in names["twin"] if "lora" in name] == [
        "lora, forget, 1e-03", "lora, forget, 5e-03", "lora, forget, 2e-02",
    ]  # fmt: skip
    assert len(relearn.settings(192, "base", ("forget", "near", "unrelated"), every=True)) == 18
    wide = relearn.settings(4096, "base", ("forget",))
    assert [each.rate for each in wide] == [2e-4, 5e-5]


def test_what_is_taught_comes_back_and_the_curve_begins_before_it(damaged: Target) -> None:
    setup = setup_on(damaged, num_facts=4)
    taught = [each for each in setup.probes if each not in setup.untaught]
    known = replace(setup, untaught=taught, near=(), unrelated=())
    recall: dict[tuple[str, float], float] = {}
    for hit in relearn.run(known, kinds=("full",), steps=(1, 15), batch=2):
        if hit.metric == "recall":
            recall[hit.setting, hit.at] = recall.get((hit.setting, hit.at), 0.0) + hit.value
    names = sorted({name for name, _ in recall})
    assert len(names) == 3
    assert {at for _, at in recall} == {0, 1, 15}
    assert len({recall[name, 0] for name in names}) == 1
    assert max(recall[name, 15] for name in names) == len(taught) > recall[names[0], 0]


def test_each_setting_begins_from_the_same_weights_and_the_seed_decides_all(damaged: Target) -> None:
    setup = setup_on(replace(damaged, name="twin"), num_facts=2)
    first = list(relearn.run(setup, steps=(2,), batch=2))
    # In another order: had a setting left anything behind, the later ones would differ.
    other = list(relearn.run(setup, kinds=("full", "lora"), steps=(2,), batch=2))
    assert sorted(first, key=lambda hit: hit.id) == sorted(other, key=lambda hit: hit.id)
    assert len({hit.id for hit in first}) == len(first)
    assert {hit.fact for hit in first} == {fact_of(each.probe) for each in setup.untaught}


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_setting_leaves_no_adapter_and_its_weights_are_put_back(kind: relearn.Kind) -> None:
    model = load(BASE, setup_on(BASE))
    kept = relearn._weights(model.module)
    setting = relearn.Relearning(kind, "forget", 1e-2)
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        before = model.module(ids).logits
    for _ in relearn._train(model, setting, setup_on(BASE).taught, (2,), 2, seed=0):
        with torch.no_grad():
            assert not torch.equal(model.module(ids).logits, before)
    relearn._restore(model.module, kept)
    with torch.no_grad():
        assert torch.equal(model.module(ids).logits, before)
    assert all(weight.requires_grad for weight in model.module.parameters())


def test_the_loss_is_the_librarys_over_the_answers_tokens() -> None:
    model = load(BASE, setup_on(BASE))
    rows = [row for row in model.encode(setup_on(BASE).taught) if row is not None]
    expected = 0.0
    for row in rows:
        ids = torch.tensor([row.ids])
        labels = ids.clone()
        labels[0, : row.start] = -100
        with torch.no_grad():
            expected += float(model.module(input_ids=ids, labels=labels).loss) * row.num_answer_tokens
    with torch.no_grad():
        assert float(relearn.answer_loss(model, model.module, rows)) == pytest.approx(expected, rel=1e-4)


def test_nothing_to_teach_or_to_ask_is_one_line() -> None:
    setup = setup_on(BASE)
    with pytest.raises(InputError, match="rows to teach"):
        next(relearn.run(replace(setup, taught=(), near=(), unrelated=())))
    with pytest.raises(InputError, match="rows to teach"):
        next(relearn.run(replace(setup, untaught=())))
