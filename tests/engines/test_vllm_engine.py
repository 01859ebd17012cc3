"""What the engine answers, held against transformers and PEFT on the same weights."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from peft import LoraConfig, get_peft_model
from ray import cloudpickle
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn_ray import pocket
from unlearn_ray.artifacts import Folder
from unlearn_ray.config import ChatConfig, EngineResources
from unlearn_ray.engines.fleet import FleetClient
from unlearn_ray.engines.generation import RayDataGenerator
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.vllm_engine import EngineSpec, environment
from unlearn_ray.rows import Message, Term
from unlearn_ray.train.inspection import inspect_model

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import the tests

QUESTIONS = ["Who created Harry Potter?", "What is chewing gum made of?", "Tell me about Hogwarts.", "Hello!"]
ANSWERS = ["The author is J. K. Rowling.", "It is made of a gum base.", "It is a school.", "Hello, what can I do?"]
TOLERANCE = 1e-3  # the engine of the tests runs in float32


def chat(question: str) -> list[Message]:
    return [{"role": "user", "content": question}]


def ask_nothing(row: dict[str, Any]) -> list[Request]:
    return []


def keep_nothing(row: dict[str, Any], replies: Any) -> list[dict[str, Any]]:
    return []


@pytest.fixture(scope="module")
def client(generator: RayDataGenerator, tmp_path_factory: pytest.TempPathFactory) -> FleetClient:
    """The running fleet's; a call over one row starts it."""
    home = Folder(tmp_path_factory.mktemp("client"))
    (home / "in").write_rows([Term("chewing gum", "chicle", 1)], Term.schema())
    generator.map(home / "in", home / "out", ask_nothing, keep_nothing, Term.schema(), label="start")
    assert generator.fleet is not None
    return generator.fleet.client


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PEFT adapter of random weights."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(pocket.MODEL_DIR, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    path = tmp_path_factory.mktemp("adapter") / "random"
    tuned.save_pretrained(path)
    return str(path)


def reference(question: str, answer: str) -> tuple[list[float], list[bool]]:
    """Log-probabilities of the answer's tokens by transformers, and whether each was the most probable."""
    tokenizer = AutoTokenizer.from_pretrained(pocket.MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(pocket.MODEL_DIR, dtype=torch.float32)
    text = tokenizer.apply_chat_template(chat(question), tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False).input_ids
    ids = prompt + tokenizer(answer, add_special_tokens=False).input_ids
    with torch.no_grad():
        logits_LV = model.eval()(torch.tensor([ids])).logits[0].float()
    logp_LV = logits_LV[len(prompt) - 1 : -1].log_softmax(-1)
    tokens_L = torch.tensor(ids[len(prompt) :])
    return logp_LV.gather(1, tokens_L[:, None])[:, 0].tolist(), (logp_LV.argmax(-1) == tokens_L).tolist()


def test_scores_and_their_ranks_are_those_of_transformers(client: FleetClient) -> None:
    replies = client.generate(
        [Request(chat(question), score=answer) for question, answer in zip(QUESTIONS, ANSWERS, strict=True)]
    )
    for reply, question, answer in zip(replies, QUESTIONS, ANSWERS, strict=True):
        logprobs, argmax = reference(question, answer)
        assert reply.logprobs == pytest.approx(logprobs, abs=TOLERANCE)
        assert list(reply.argmax) == argmax
        assert not reply.texts and reply.error is None


def test_the_end_of_the_turn_is_scored_apart_from_the_answer(client: FleetClient) -> None:
    end = inspect_model(str(pocket.MODEL_DIR), ChatConfig()).chat.end_of_turn
    (reply,) = client.generate([Request(chat(QUESTIONS[0]), score=ANSWERS[0])])
    logprobs, argmax = reference(QUESTIONS[0], ANSWERS[0] + end)
    assert reply.ending == pytest.approx(logprobs[-1:], abs=TOLERANCE)
    assert reply.logprobs == pytest.approx(logprobs[:-1], abs=TOLERANCE) and list(reply.argmax) == argmax[:-1]


def test_an_empty_answer_scores_as_nothing(client: FleetClient) -> None:
    (reply,) = client.generate([Request(chat("Hello!"), score="")])
    assert reply.logprobs == () and reply.error is None


def test_greedy_answers_are_those_of_transformers(client: FleetClient) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pocket.MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(pocket.MODEL_DIR, dtype=torch.float32)
    text = tokenizer.apply_chat_template(chat(QUESTIONS[0]), tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=6, do_sample=False)[0, prompt.input_ids.shape[1] :]
    (reply,) = client.generate([Request(chat(QUESTIONS[0]), max_tokens=6)])
    assert reply.texts == (tokenizer.decode(output, skip_special_tokens=True),)


def test_an_adapter_changes_its_own_requests_and_no_other(client: FleetClient, adapter: str) -> None:
    plain = [Request(chat(question), max_tokens=16) for question in QUESTIONS]
    tuned = [Request(chat(question), max_tokens=16, adapter=adapter) for question in QUESTIONS]
    before = client.generate(plain)
    mixed = client.generate([request for pair in zip(plain, tuned, strict=True) for request in pair])
    assert [reply.texts for reply in mixed[0::2]] == [reply.texts for reply in before]
    assert [reply.texts for reply in mixed[1::2]] != [reply.texts for reply in before]


def test_scoring_and_sampling_in_one_batch_give_what_they_give_apart(client: FleetClient, adapter: str) -> None:
    sampled = [Request(chat(q), seed=i, temperature=1.0, num_samples=3, max_tokens=12) for i, q in enumerate(QUESTIONS)]
    scored = [
        Request(chat(q), score=a, adapter=name)
        for q, a in zip(QUESTIONS, ANSWERS, strict=True)
        for name in (None, adapter)
    ]
    apart = client.generate(sampled), client.generate(scored)
    mixed = client.generate([*scored[:4], *sampled, *scored[4:]])
    assert [reply.texts for reply in mixed[4:8]] == [reply.texts for reply in apart[0]]
    for ours, theirs in zip([*mixed[:4], *mixed[8:]], apart[1], strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=TOLERANCE)


def test_replies_say_what_was_cut_and_how_long_it_was(client: FleetClient) -> None:
    (cut,) = client.generate([Request(chat(QUESTIONS[2]), temperature=1.0, num_samples=2, max_tokens=1)])
    assert cut.truncated == (True, True) and cut.num_output_tokens == 2
    (whole,) = client.generate([Request(chat(QUESTIONS[0]), max_tokens=200)])
    assert whole.truncated == (False,) and whole.num_prompt_tokens == cut_length(QUESTIONS[0])


def cut_length(question: str) -> int:
    tokenizer = AutoTokenizer.from_pretrained(pocket.MODEL_DIR)
    text = tokenizer.apply_chat_template(chat(question), tokenize=False, add_generation_prompt=True)
    return len(tokenizer(text, add_special_tokens=False).input_ids)


def test_a_request_that_leaves_no_room_for_an_answer_is_too_long(client: FleetClient) -> None:
    replies = client.generate([Request(chat("owl " * 2000)), Request(chat("Hello!"), max_tokens=2)])
    assert replies[0].error == "too_long" and replies[0].num_prompt_tokens > 1024
    assert replies[1].error is None


def test_an_engine_without_a_gpu_takes_its_share_of_the_cores() -> None:
    spec = EngineSpec("some/model", EngineResources(num_cpus=3, kv_cache_gib=2), "cpu")
    assert environment(spec)["OMP_NUM_THREADS"] == "3"
    assert environment(spec)["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert "HF_HUB_OFFLINE" not in environment(spec)
    assert "OMP_NUM_THREADS" not in environment(EngineSpec("some/model", EngineResources(), "cuda"))


def test_a_cuda_engine_starts_without_a_cuda_toolkit(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = EngineSpec("some/model", EngineResources(), "cuda")
    monkeypatch.delenv("VLLM_USE_FLASHINFER_SAMPLER", raising=False)
    assert environment(spec)["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "1")  # where there is one
    assert environment(spec)["VLLM_USE_FLASHINFER_SAMPLER"] == "1"
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in environment(replace(spec, device="cpu"))


def test_vllm_reads_the_variable_that_is_set_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import envs

    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "0")
    assert envs.VLLM_USE_FLASHINFER_SAMPLER is False


def test_an_engine_on_the_cpu_stays_there_on_a_machine_with_gpus() -> None:
    """vLLM's CUDA build, which looks for GPUs past CUDA_VISIBLE_DEVICES, decides what it runs on in a process of its own."""
    script = """
import vllm.platforms as platforms
platforms.vllm_version_matches_substr = lambda text: False
platforms.builtin_platform_plugins["cuda"] = lambda: "vllm.platforms.cuda.CudaPlatform"
print(platforms.resolve_current_platform_cls_qualname())
"""

    def platform(device: Literal["cpu", "cuda"]) -> str:
        variables = environment(EngineSpec("some/model", EngineResources(), device))
        done = subprocess.run(
            [sys.executable, "-c", script], env=os.environ | variables, capture_output=True, text=True
        )
        return done.stdout.strip().splitlines()[-1]

    assert platform("cpu") == "vllm.platforms.cpu.CpuPlatform"
    assert platform("cuda") == "vllm.platforms.cuda.CudaPlatform"
    assert environment(EngineSpec("some/model", EngineResources(), "cpu"))["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in environment(EngineSpec("some/model", EngineResources(), "cuda"))


def test_a_reply_is_small_to_send() -> None:
    assert len(pickle.dumps([Reply(texts=("word",)) for _ in range(256)])) < 256 * 100
