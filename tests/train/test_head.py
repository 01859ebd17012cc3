"""The head in chunks: the same losses and gradients as all logits at once, within bounds of memory."""

import copy
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from transformers import AutoModelForCausalLM, GraniteConfig, LlamaConfig, PhiConfig

from unlearn_ray.config import FinetuneConfig, FullWeights, Lora
from unlearn_ray.train import head
from unlearn_ray.train.batches import MicroBatch
from unlearn_ray.train.loop import Objective, learnt_logps
from unlearn_ray.train.models import prepare
from unlearn_ray.train.objectives.table import OBJECTIVES
from unlearn_ray.train.plain import PlainRuntime

CPU, VOCABULARY, LENGTH = torch.device("cpu"), 61, 12
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}
# phi: its head has a bias. granite: its logits are the head's product divided by a number.
MODELS = {
    "llama": LlamaConfig(**SHAPE),
    "tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "phi": PhiConfig(**SHAPE),
    "granite": GraniteConfig(**SHAPE, logits_scaling=3.0),
}


def model_of(kind: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(5)
    return AutoModelForCausalLM.from_config(MODELS[kind], attn_implementation="eager").to(dtype).train()


def a_pass() -> MicroBatch:
    """Forget and retain rows, true and invented answers, and one row of nothing, of unequal lengths."""
    random = torch.Generator().manual_seed(1)
    ids_BL = torch.randint(1, VOCABULARY, (7, LENGTH), generator=random)
    is_answer_BL = torch.zeros(7, LENGTH, dtype=torch.bool)
    for row, (first, last) in enumerate(((3, 9), (4, 12), (2, 5), (5, 11), (6, 8), (3, 7))):
        is_answer_BL[row, first:last] = True
    is_retain_B = torch.tensor([True, False, True, False, False, False, True])
    is_invented_B = torch.tensor([False, False, False, True, False, True, False])
    return MicroBatch(ids_BL, is_answer_BL, is_retain_B, is_invented_B, torch.linspace(-30, -9, 7))


def seen(module: torch.nn.Module, config: FinetuneConfig, batch: MicroBatch) -> tuple[list[float], list[torch.Tensor]]:
    """Losses of a pass, and the gradients of their sum."""
    runtime = PlainRuntime(module, config, CPU)
    sums = Objective(config, seed=0).sums(runtime, batch)
    (sums[0] + 0.7 * sums[1] + 0.3 * sums[2]).backward()
    return [float(each.detach()) for each in sums], [
        value.grad for value in module.parameters() if value.requires_grad and value.grad is not None
    ]


def assert_same(kind: str, config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch, in_chunks: bool = True) -> None:
    """With the head's chunks of three tokens, and with all at once."""
    computed, product = [], head.in_chunks

    def noted(
        states_ND: torch.Tensor, layer: torch.nn.Linear, vocabulary: int, terms: Sequence[head.Term]
    ) -> list[torch.Tensor]:
        computed.append(1)
        return product(states_ND, layer, vocabulary, terms)

    monkeypatch.setattr("unlearn_ray.train.models.in_chunks", noted)
    found = []
    for size in (head.CHUNK, 3 * VOCABULARY):
        monkeypatch.setattr(head, "CHUNK", size)
        module = prepare(model_of(kind), config.weights, seed=0, gradient_checkpointing="none")
        if isinstance(config.weights, Lora):
            torch.manual_seed(2)
            with torch.no_grad():  # as after a step: a fresh adapter is the base model
                for name, value in module.named_parameters():
                    if "lora_B" in name:
                        value.normal_(std=0.3)
        found.append(seen(module, config, a_pass()))
    (losses, grads), (chunked_losses, chunked_grads) = found
    assert bool(computed) is in_chunks
    assert chunked_losses == pytest.approx(losses, rel=1e-5, abs=1e-5)
    assert len(grads) == len(chunked_grads) > 0
    for one, other in zip(grads, chunked_grads, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", [Lora(rank=2), FullWeights()], ids=["lora", "full"])
@pytest.mark.parametrize("kind", sorted(OBJECTIVES))
def test_every_objective_is_the_same_in_chunks(
    kind: str, weights: Lora | FullWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective: dict[str, object] = {"kind": kind, **({"invented": 0.5} if kind not in {"relabel", "idk"} else {})}
    for retain in ("gd", "kl"):
        config = FinetuneConfig(objective=objective, retain={"kind": retain}, weights=weights, precision="fp32")
        with monkeypatch.context() as patch:
            assert_same("llama", config, patch)


@pytest.mark.parametrize("kind", ["tied", "phi"])
def test_so_it_is_with_tied_weights_and_a_bias(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_same(kind, FinetuneConfig(weights=FullWeights(), retain={"kind": "kl"}, precision="fp32"), monkeypatch)


def test_what_is_more_than_one_product_is_computed_at_once_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert_same("granite", FinetuneConfig(weights=FullWeights(), precision="fp32"), monkeypatch, in_chunks=False)
    assert caplog.text.count("more than its head's product") == 1
    adapted = Lora(rank=2, target_modules=("lm_head", "q_proj"))
    assert_same("llama", FinetuneConfig(weights=adapted, precision="fp32"), monkeypatch, in_chunks=False)


def test_looking_at_the_head_leaves_no_trace() -> None:
    """Neither in dropout's draws nor in gradients."""
    module = model_of("llama")
    runtime = PlainRuntime(module, FinetuneConfig(weights=FullWeights(), precision="fp32"), CPU)
    torch.manual_seed(3)
    with torch.no_grad():
        learnt_logps(runtime, a_pass())
    drawn = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(4)) and all(value.grad is None for value in module.parameters())


def test_a_bf16_head_sums_its_chunks_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of the head's weight is as near to that of all logits at once as bf16 rounds."""
    config, found = FinetuneConfig(weights=FullWeights(), precision="bf16"), []
    for size in (head.CHUNK, VOCABULARY):
        monkeypatch.setattr(head, "CHUNK", size)
        module = model_of("llama", torch.bfloat16)
        seen(module, config, a_pass())
        found.append(copy.deepcopy(module.lm_head.weight.grad.float()))
    torch.testing.assert_close(found[1], found[0], rtol=2e-2, atol=2e-2)


SCRIPT = """
import resource, torch
from unlearn_ray.train import head
from unlearn_ray.train.objectives.terms import kl_to_base
torch.set_num_threads(2)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
layer = torch.nn.Linear(32, 128_256, bias=False)
states, base = torch.randn(1024, 32, requires_grad=True), torch.randn(1024, 32)
every = torch.arange(1024)
of = lambda logits, at: kl_to_base(logits, base[at] @ layer.weight.detach().T)[None]
head.in_chunks(states[:2], layer, 128_256, [head.Term(every[:2], of)])[0].sum().backward()
before = peak()
head.in_chunks(states, layer, 128_256, [head.Term(every, of)])[0].sum().backward()
print(peak() - before)
"""


def test_many_tokens_of_a_large_vocabulary_take_less_than_a_gibibyte() -> None:
    """KL of 1,024 tokens, eight chunks: 4,096 tokens take as much, and a minute. All logits at once would be 3.9 GiB."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.0
