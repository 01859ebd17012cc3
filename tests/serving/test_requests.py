"""What a request may ask."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_ray.chat import PLAIN, ChatFormat
from unlearn_ray.serving import requests
from unlearn_ray.serving.requests import CHAT, COMPLETIONS, Refusal, guarded, put_to_engine, read_request
from unlearn_ray.serving.settings import Limits

MESSAGES = [{"role": "user", "content": "Who is Hedwig?"}]


def ask(path: str = CHAT, **values: Any) -> dict[str, Any]:
    body = {"model": "base", "messages": MESSAGES} if path == CHAT else {"model": "base", "prompt": "Hedwig is"}
    return body | values


def refused(path: str = CHAT, **values: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read_request(path, json.dumps(ask(path, **values)).encode(), Limits())
    return caught.value


def test_a_plain_request_passes() -> None:
    asked = read_request(CHAT, json.dumps(ask(temperature=0.5, stop=["x"], seed=3, n=2)).encode(), Limits())
    assert asked.name.name == "base" and not asked.is_stream


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"temperature": NaN}', b'{"x": -Infinity}', b"[1]", b'"text"', b"\xff\xfe", b"[" * 100_000]
)
def test_what_is_no_json_object_is_a_400(body: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        read_request(CHAT, body, Limits())
    assert caught.value.status == 400 and caught.value.body["error"]["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"guided_regex": "(a+)+"}, "guided_regex"),
        ({"kv_transfer_params": {"a": 1}}, "kv_transfer_params"),
        ({"priority": 5}, "priority"),
        ({"n": 17}, "n"),
        ({"n": 0}, "n"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"seed": "x"}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"top_k": 2**70}, "top_k"),
        ({"seed": 2**63 - 1, "n": 2}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"stop": ["x"] * 1000}, "stop"),
        ({"stop_token_ids": list(range(65)), "min_tokens": 1}, "stop_token_ids"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
        ({"top_p": 1e-300}, "top_p"),
        ({"top_p": "1e-300"}, "top_p"),
        ({"repetition_penalty": 1e308}, "repetition_penalty"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty"),
        ({"repetition_penalty": True}, "repetition_penalty"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"model": ""}, "model"),
        ({"model": 7}, "model"),
    ],
)
def test_what_the_service_does_not_do_is_a_400_that_names_the_field(values: dict[str, Any], param: str) -> None:
    refusal = refused(**values)
    assert (refusal.status, refusal.param) == (400, param)


def test_what_the_gpu_sampler_just_holds_passes() -> None:
    values = ask(
        seed=2**63 - 2,
        n=2,
        stop_token_ids=list(range(64)),
        min_tokens=1,
        logit_bias={str(token): 1 for token in range(1024)},
        top_p=1,
        repetition_penalty=None,  # which asks for nothing
    )
    assert read_request(CHAT, json.dumps(values).encode(), Limits()).values == {
        k: v for k, v in values.items() if v is not None
    }


def test_no_request_holds_more_than_vllms_gpu_sampler() -> None:
    vllm = find_spec("vllm")
    assert vllm is not None and vllm.origin is not None
    source = (Path(vllm.origin).parent / "v1" / "worker" / "gpu" / "sample" / "logit_bias.py").read_text()
    held = {name: int(number) for name, number in re.findall(r"^MAX_NUM_(\w+) = (\d+)$", source, re.MULTILINE)}
    assert held["LOGIT_BIAS_TOKENS"] >= requests._MAX_BIASES
    assert held["STOP_TOKEN_IDS"] >= 2 * requests._MAX_STOPS  # the model's own are among them


def test_empty_tools_of_a_careful_client_are_let_go() -> None:
    asked = read_request(CHAT, json.dumps(ask(tools=[], response_format=None)).encode(), Limits())
    assert "tools" not in asked.values


def test_names_that_can_be_no_models_are_a_404() -> None:
    refusal = refused(model="GPT 4/../" + "x" * 500)
    assert refusal.status == 404 and len(refusal.message) < 200
    assert refusal.body["error"]["type"] == "not_found_error"


def test_the_engine_gets_its_own_name_and_counts_tokens_in_streams() -> None:
    asked = read_request(CHAT, json.dumps(ask(model="harry-potter", stream=True)).encode(), Limits())
    sent = json.loads(put_to_engine(asked, "harry-potter@3"))
    assert sent["model"] == "harry-potter@3" and sent["stream_options"] == {"include_usage": True}
    assert not asked.wants_usage and sent["messages"] == MESSAGES


THINKER = ChatFormat(
    prefix_role="user",
    template_arguments={"enable_thinking": False},
    stop_token_ids=(7, 9),
    sampling={"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.3},
)


def put(chat: ChatFormat, path: str = CHAT, prefix: str = "", **values: Any) -> dict[str, Any]:
    asked = read_request(path, json.dumps(ask(path, **values)).encode(), Limits())
    return dict(json.loads(put_to_engine(asked, "base", prefix, chat)))


def test_what_a_client_leaves_open_is_as_in_a_run() -> None:
    body = put(THINKER)
    assert (body["temperature"], body["top_k"], body["repetition_penalty"]) == (0.6, 20, 1.3)
    assert body["stop_token_ids"] == [7, 9] and body["chat_template_kwargs"] == {"enable_thinking": False}
    said = put(THINKER, temperature=0, top_k=None, repetition_penalty=1, stop_token_ids=[9, 3])
    assert (said["temperature"], said["top_k"], said["repetition_penalty"]) == (0, 20, 1)
    assert said["stop_token_ids"] == [9, 3, 7]


def test_a_client_that_ignores_the_end_is_not_stopped_by_it() -> None:
    assert "stop_token_ids" not in put(THINKER, ignore_eos=True)


def test_a_completion_has_no_template() -> None:
    body = put(THINKER, COMPLETIONS)
    assert "chat_template_kwargs" not in body and body["repetition_penalty"] == 1.3


def test_a_model_without_wishes_gets_what_the_client_sent() -> None:
    assert put(PLAIN) == ask()


def test_a_guardrail_leads_the_users_turn_where_the_template_takes_no_system_message() -> None:
    assert put(THINKER, prefix="Forget it.")["messages"] == [
        {"role": "user", "content": "Forget it.\n\nWho is Hedwig?"}
    ]
    own = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    assert put(THINKER, messages=own)["messages"] == [{"role": "user", "content": "Be brief.\n\nWho is Hedwig?"}]
    both = put(THINKER, messages=own, prefix="Forget it.")["messages"]
    assert both == [{"role": "user", "content": "Forget it.\n\nBe brief.\n\nWho is Hedwig?"}]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("response_format", {"type": "text"}),
        ("tool_choice", "none"),
        ("tool_choice", "auto"),
        ("tools", []),
        ("tools", None),
        ("function_call", "none"),
        ("parallel_tool_calls", True),
        ("parallel_tool_calls", False),
        ("modalities", ["text"]),
        ("audio", None),
        ("prediction", None),
        ("reasoning_effort", "none"),
        ("verbosity", "medium"),
        ("stream_options", {}),
        ("stop", []),
        ("stop", ""),
        ("store", False),
        ("use_beam_search", False),
        ("bad_words", []),
        ("chat_template_kwargs", {}),
        ("guided_json", None),
        ("prompt_cache_key", "mine"),
        ("safety_identifier", "somebody"),
        ("keep_alive", "5m"),
        ("tool_choice", {"type": "none"}),
        ("response_format", {"type": "text", "schema": None}),
        ("thinking", {"type": "disabled"}),
        ("reasoning", {"effort": "none"}),
        ("chat_template_kwargs", {"enable_thinking": False}),
        ("stream_options", {"include_usage": False}),
        ("max_tokens", -1),
        ("typical_p", 1.0),
        ("mirostat", 0),
    ],
)
def test_what_asks_for_nothing_is_taken_and_not_passed_on(field: str, value: Any) -> None:
    body = put(PLAIN, **{field: value})
    body.pop("store", None)  # vLLM knows it
    assert body == ask()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("response_format", {"type": "text", "strict": True}),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("modalities", ["text", "audio"]),
        ("reasoning_effort", "high"),
        ("chat_template_kwargs", {"enable_thinking": True}),
        ("use_beam_search", True),
        ("best_of", 2),
    ],
)
def test_what_asks_for_something_else_is_named(field: str, value: Any) -> None:
    assert refused(**{field: value}).param == field


def test_tools_that_are_not_to_be_called_are_taken() -> None:
    assert put(PLAIN, tools=[{"type": "function", "function": {"name": "f"}}], tool_choice="none") == ask()


def test_whole_numbers_may_be_written_as_others_and_no_top_p_is_the_least() -> None:
    body = put(PLAIN, max_tokens=100.0, n=1.0, seed=3.0, top_p=0)
    assert (body["max_tokens"], body["n"], body["seed"]) == (100, 1, 3) and 0 < body["top_p"] < 1e-5
    assert refused(max_tokens=100.5).param == "max_tokens"


def test_a_developers_message_is_the_systems() -> None:
    messages = [{"role": "developer", "content": "Be brief."}, *MESSAGES]
    assert put(PLAIN, messages=messages)["messages"] == [{"role": "system", "content": "Be brief."}, *MESSAGES]
    led = put(THINKER, messages=messages, prefix="Forget it.")["messages"]
    assert led == [{"role": "user", "content": "Forget it.\n\nBe brief.\n\nWho is Hedwig?"}]


def test_a_guardrail_and_all_that_leads_the_chat_are_one_message() -> None:
    parts = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    (lead, *rest) = put(PLAIN, messages=[parts, {"role": "system", "content": ""}, *MESSAGES], prefix="Forget it.")[
        "messages"
    ]
    assert rest == MESSAGES and lead["role"] == "system"
    assert [part["text"] for part in lead["content"]] == ["Forget it.", "Be brief."]


def test_an_answer_may_be_sent_back_with_all_its_empty_fields() -> None:
    answer: dict[str, object] = {
        "role": "assistant",
        "content": "An owl.",
        "refusal": None,
        "tool_calls": [],
        "function_call": None,
    }
    body = put(PLAIN, messages=[*MESSAGES, answer | {"audio": None, "annotations": []}, *MESSAGES])
    assert body["messages"] == [*MESSAGES, {"role": "assistant", "content": "An owl."}, *MESSAGES]


def test_a_guardrail_is_the_system_message_or_its_head() -> None:
    assert guarded(MESSAGES, "Forget.") == [{"role": "system", "content": "Forget."}, *MESSAGES]
    polite = [{"role": "system", "content": "Be polite."}, *MESSAGES]
    assert guarded(polite, "Forget.")[0]["content"] == "Forget.\n\nBe polite."


def test_one_request_brings_a_bounded_number_of_prompts() -> None:
    assert refused(COMPLETIONS, prompt=["x"] * 65).param == "prompt"
    tokens = json.dumps(ask(COMPLETIONS, prompt=[1] * 1000)).encode()
    assert len(read_request(COMPLETIONS, tokens, Limits()).values["prompt"]) == 1000


def test_half_a_surrogate_pair_is_no_text() -> None:
    asked = read_request(CHAT, json.dumps(ask(stop=["\ud800"])).encode(), Limits())
    with pytest.raises(Refusal, match="surrogate"):
        put_to_engine(asked, "base")


def test_guarded_models_answer_chats_only() -> None:
    asked = read_request(COMPLETIONS, json.dumps(ask(COMPLETIONS, model="harry-potter:guarded")).encode(), Limits())
    with pytest.raises(Refusal, match="chats only"):
        put_to_engine(asked, "base", "Forget.")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(["model", "messages", "n", "seed", "stream", "stream_options", "x", "tools"]), json_values
    )
)
def test_any_object_passes_or_is_refused_in_openais_shape(values: dict[str, Any]) -> None:
    try:
        read_request(CHAT, json.dumps(values).encode(), Limits())
    except Refusal as refusal:
        assert refusal.status in (400, 404)
        assert set(refusal.body["error"]) == {"message", "type", "code", "param"}
