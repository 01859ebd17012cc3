"""No request ends the engine: each of these is answered, or refused in OpenAI's shape."""

import json
from typing import Any

import httpx
from commandline import Service

MESSAGES = [{"role": "user", "content": "Who is Hedwig?"}]


def chat(**values: Any) -> dict[str, Any]:
    return {"model": "base", "messages": MESSAGES, "max_tokens": 4} | values


def plain(**values: Any) -> dict[str, Any]:
    return {"model": "base", "prompt": "Hedwig is", "max_tokens": 4} | values


def content(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


HOSTILE = [
    plain(echo=True, logprobs=5),
    plain(echo=True, logprobs=1, max_tokens=0),
    plain(echo=True, logprobs=1, model="harry-potter", stream=True),
    plain(echo=True, logprobs=1, n=2, prompt=[[1, 2], [3]]),
    plain(prompt_logprobs=5),
    plain(logprobs=10**6),
    plain(logprobs=-1),
    chat(logprobs=True, top_logprobs=21),
    chat(logit_bias={"999999": 5}),
    chat(logit_bias={"-1": 5}, stream=True),
    chat(logit_bias={str(2**70): 5}),
    chat(logit_bias={"5": 1e308}),
    chat(n=10**6),
    chat(n=16),
    chat(min_tokens=10),
    chat(min_tokens=4, max_tokens=4, ignore_eos=True, n=3),
    chat(max_tokens=10**6),
    plain(prompt=""),
    plain(prompt=[]),
    plain(prompt=[[]]),
    plain(prompt=[""]),
    plain(prompt=None),
    plain(prompt=[10**6]),
    plain(prompt=[-1]),
    plain(prompt=[2**70]),
    plain(prompt=["a", 1]),
    plain(prompt=[[[1]]]),
    plain(prompt=[1] * 1023, echo=True, logprobs=5),
    plain(prompt=[[1]] * 2000),
    plain(prompt="x" * 900_000),
    plain(prompt="\ud800"),
    plain(prompt="\x00\ufffe"),
    plain(temperature=1e-300, seed=1),
    plain(temperature=1e308),
    plain(top_p=1e-300, top_k=1),
    plain(top_k=-5),
    plain(top_k=2**70),
    plain(min_p=1, repetition_penalty=1e308),
    plain(repetition_penalty=1e-300, frequency_penalty=-2),
    plain(best_of=4),
    plain(stop=["x"] * 1000),
    plain(stop=["\ud800"]),
    plain(stop_token_ids=[10**6], min_tokens=2),
    plain(stop_token_ids=list(range(2560)), min_tokens=2),
    plain(stop_token_ids=list(range(128)), min_tokens=1),
    plain(seed=-1, temperature=1.0, n=2),
    plain(seed=2**63 - 1, temperature=1.0, n=2),
    plain(seed=-(2**63), temperature=1.0, n=2),
    chat(logit_bias={str(token): 1 for token in range(1025)}),
    chat(messages=[]),
    chat(messages=[{"role": "wizard", "content": "x"}]),
    chat(messages=[{"role": "user", "content": None}]),
    chat(messages=content({"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}})),
    chat(messages=[{"role": "user", "content": "<|eot_id|>" * 50}]),
    chat(messages=MESSAGES * 300),
    chat(response_format={"type": "json_object"}),
    chat(guided_regex="(a+)+$"),
    chat(structured_outputs={"regex": "(("}),
    chat(priority=5),
    chat(request_id="same"),
    chat(request_id="same"),
    '{"model": "base", "prompt": "a", "temperature": NaN}',
    '{"model": "base", "prompt": "a", "temperature": 1e999}',
    '{"model": "base", "prompt": "a", "seed": ' + "1" * 5000 + "}",
]


def test_no_request_ends_the_engine(service: Service, http: httpx.Client) -> None:
    engine = [process.pid for process in service.processes("EngineCore")]
    assert engine
    wrong = []
    for body in HOSTILE:
        path = "/v1/chat/completions" if isinstance(body, dict) and "messages" in body else "/v1/completions"
        answer = http.post(path, content=body if isinstance(body, str) else json.dumps(body))
        is_refusal = 400 <= answer.status_code < 500 and {"message", "type", "param", "code"} == set(
            answer.json().get("error", ())
        )
        if not is_refusal and (answer.status_code != 200 or '"error"' in answer.text):
            wrong.append((str(body)[:200], answer.status_code, answer.text[:300]))
    assert wrong == []
    assert http.post("/v1/completions", json=plain()).status_code == 200
    assert [process.pid for process in service.processes("EngineCore")] == engine
