"""The logit lens and steering, held to plain forward passes."""

from dataclasses import replace

import pytest
import torch
from attacked import BASE, TOPIC, probes_of, setup_on
from transformers import AutoConfig, AutoModelForCausalLM

from unlearn_ray.attacks import steer
from unlearn_ray.attacks.layers import blocks, final_norm, lens_ranks, pushed
from unlearn_ray.attacks.local import Local, load
from unlearn_ray.attacks.steer import before_answer
from unlearn_ray.errors import InputError

PROBES = probes_of(TOPIC, 5)


@pytest.fixture(scope="module")
def base() -> Local:
    return load(BASE, setup_on(BASE))


def test_the_lens_at_the_last_layer_is_the_models_own_answer(base: Local) -> None:
    places = [place for each in PROBES if (place := before_answer(base, each.probe)) is not None]
    ranks = lens_ranks(base, [ids for ids, _ in places], [token for _, token in places])
    decoder = base.module.get_decoder()
    for (ids, token), by_layer in zip(places, ranks, strict=True):
        with torch.no_grad():
            logits = base.module(input_ids=torch.tensor([ids])).logits[0, -1]
            embedded = base.module.lm_head(decoder.norm(decoder.embed_tokens(torch.tensor(ids[-1]))))
        assert len(by_layer) == 7
        assert by_layer[-1] == logits.argsort(descending=True).tolist().index(token) + 1
        assert by_layer[0] == embedded.argsort(descending=True).tolist().index(token) + 1
    assert sum(by_layer[-1] == 1 for by_layer in ranks) >= 4


def test_the_reference_is_followed_up_to_its_answer_and_over_an_article(base: Local) -> None:
    probe = replace(PROBES[0].probe, answer="the Burrow", reference="The house of the Weasleys is the Burrow.")
    place = before_answer(base, probe)
    assert place is not None
    ids, token = place
    assert base.tokenizer.decode(ids).endswith("The house of the Weasleys is the")
    assert base.tokenizer.decode([token]).strip()
    assert " Burrow".startswith(base.tokenizer.decode([token]))
    alone = before_answer(base, replace(probe, answer="Burrow", reference=""))
    assert alone is not None
    assert base.tokenizer.decode(alone[0]) == base.tokenizer.decode(base.prompts([probe.question])[0])


def test_a_push_moves_the_last_token_of_a_pass_alone_and_ends(base: Local) -> None:
    ids = torch.tensor(base.prompts([PROBES[0].probe.question]))
    caught: list[torch.Tensor] = []
    handle = blocks(base.module)[3].register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    by = torch.randn(192, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        base.module(ids)
        with pushed(blocks(base.module)[2], by):
            base.module(ids)
        base.module(ids)
    handle.remove()
    plain, moved, after = (state_BLD[0] for state_BLD in caught)
    torch.testing.assert_close(moved[-1], plain[-1] + by)
    torch.testing.assert_close(moved[:-1], plain[:-1])
    torch.testing.assert_close(after, plain)


def test_a_target_equal_to_base_is_pushed_nowhere() -> None:
    setup = setup_on(replace(BASE, name="twin"), BASE, num_facts=4)  # base is read first wherever it stands
    hits = list(steer.run(setup, depths=(0.5,), strengths=(4.0,)))
    lens = {(hit.model, hit.probe_id, hit.at): hit.value for hit in hits if hit.setting == steer.LENS}
    assert {at for _, _, at in lens} == set(range(7))
    assert all(value == lens["base", probe, at] for (_, probe, at), value in lens.items())
    steered = {(hit.setting, hit.probe_id): hit.value for hit in hits if hit.setting != steer.LENS}
    assert {hit.setting for hit in hits} == {steer.LENS, "towards base, strength 0", "towards base, strength 4"}
    assert {(hit.model, hit.at) for hit in hits if hit.setting != steer.LENS} == {("twin", 3)}
    assert all(value == steered["towards base, strength 0", probe] for (_, probe), value in steered.items())


def test_no_probes_are_one_line() -> None:
    with pytest.raises(InputError, match="needs probes"):
        next(steer.run(replace(setup_on(BASE), probes=())))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "phi", "gemma2", "qwen3"])
def test_norm_and_blocks_are_found_in_other_architectures(kind: str) -> None:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2} if kind == "gpt2" else {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 16, "head_dim": 8,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=40, pad_token_id=0, **sizes)).eval()
    assert len(blocks(model)) == 2
    with torch.no_grad():
        ids = torch.tensor([[1, 2, 3]])
        hidden = model(ids, output_hidden_states=True).hidden_states
        caught: list[torch.Tensor] = []
        final_norm(model).register_forward_hook(lambda _, __, output: caught.append(output))
        with pushed(blocks(model)[0], torch.zeros(16)):
            again = model(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(caught[0], hidden[-1])
    torch.testing.assert_close(again[-1], hidden[-1])
