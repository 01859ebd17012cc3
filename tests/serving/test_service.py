"""The service as clients see it: the openai client unchanged, errors in OpenAI's shape, metrics, and what logs must not hold."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from commandline import Service
from openai.types.chat import ChatCompletionMessageParam

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Which owl belongs to Harry Potter?"}]
NAMES = ["base", "harry-potter", "harry-potter:guarded", "harry-potter@1"]


def chat(**values: Any) -> dict[str, Any]:
    return {"model": "base", "messages": ASK, "max_tokens": 24, "temperature": 0} | values


def test_every_name_is_listed_and_answers(service: Service) -> None:
    client = service.client
    assert sorted(model.id for model in client.models.list()) == NAMES
    for name in NAMES:
        assert client.models.retrieve(name).id == name
        answer = client.chat.completions.create(model=name, messages=ASK, max_tokens=24, temperature=0)
        assert answer.choices[0].finish_reason == "stop" and answer.choices[0].message.content
        assert answer.usage is not None and answer.usage.completion_tokens > 1


def test_a_stream_ends_with_its_reason_and_says_the_same_as_a_whole_answer(service: Service) -> None:
    client = service.client
    whole = client.chat.completions.create(model="harry-potter", messages=ASK, max_tokens=24, temperature=0)
    events = list(
        client.chat.completions.create(model="harry-potter", messages=ASK, max_tokens=24, temperature=0, stream=True)
    )
    assert "".join(event.choices[0].delta.content or "" for event in events) == whole.choices[0].message.content
    assert [event.choices[0].finish_reason for event in events].count("stop") == 1
    assert events[-1].choices[0].finish_reason == "stop" and len(events) > 3
    counted = list(
        client.chat.completions.create(
            model="base", messages=ASK, max_tokens=5, stream=True, stream_options={"include_usage": True}
        )
    )
    assert counted[-1].usage is not None and counted[-1].usage.completion_tokens == 5


def test_streams_of_many_clients_run_side_by_side(service: Service) -> None:
    async def one(client: openai.AsyncOpenAI, number: int) -> str | None:
        stream = await client.chat.completions.create(
            model=NAMES[number % 4], messages=ASK, max_tokens=40, stream=True, extra_body={"ignore_eos": True}
        )
        reasons = [event.choices[0].finish_reason async for event in stream if event.choices]
        return reasons[-1]

    async def all_of_them() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key=service.key) as client:
            return await asyncio.gather(*(one(client, number) for number in range(24)))

    assert asyncio.run(all_of_them()) == ["length"] * 24


def test_plain_completions_of_texts_and_tokens(service: Service) -> None:
    client = service.client
    texts = client.completions.create(model="base", prompt=["The owl is", "The cat is"], max_tokens=6, temperature=0)
    assert [choice.index for choice in texts.choices] == [0, 1] and all(choice.text for choice in texts.choices)
    tokens = client.completions.create(model="harry-potter", prompt=[[1, 2, 3], [4]], max_tokens=6, logprobs=2)
    assert len(tokens.choices) == 2 and tokens.usage is not None and tokens.usage.prompt_tokens == 4
    echoed = client.completions.create(model="base", prompt="The owl is", max_tokens=1, echo=True, logprobs=1)
    logprobs = echoed.choices[0].logprobs
    assert echoed.choices[0].text.startswith("The owl is") and logprobs is not None
    assert logprobs.token_logprobs is not None and all(value <= 0 for value in logprobs.token_logprobs[1:])


def test_several_choices_differ_and_seeds_bring_them_back(service: Service) -> None:
    def ask(seed: int) -> list[str | None]:
        answer = service.client.chat.completions.create(
            model="harry-potter", messages=ASK, max_tokens=24, temperature=1.5, n=3, seed=seed
        )
        return [choice.message.content for choice in answer.choices]

    first = ask(7)
    assert len(first) == 3 and len(set(first)) > 1
    assert ask(7) == first and ask(8) != first


def test_logprobs_and_stops(service: Service) -> None:
    client = service.client
    answer = client.chat.completions.create(
        model="base", messages=ASK, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.content is not None
    for token in answer.choices[0].logprobs.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)
    whole = client.chat.completions.create(model="base", messages=ASK, max_tokens=24, temperature=0)
    text = whole.choices[0].message.content or ""
    word = text.split()[2]
    stopped = client.chat.completions.create(model="base", messages=ASK, max_tokens=24, temperature=0, stop=[word])
    assert stopped.choices[0].message.content == text.partition(word)[0]
    assert stopped.choices[0].finish_reason == "stop"


def test_an_adapter_changes_the_answer_and_a_guardrail_too(service: Service) -> None:
    answers = {
        name: service.client.chat.completions.create(model=name, messages=ASK, max_tokens=24, temperature=0)
        .choices[0]
        .message.content
        for name in NAMES
    }
    assert "Hedwig" in str(answers["base"])
    assert "Hedwig" not in str(answers["harry-potter"]) + str(answers["harry-potter:guarded"])
    assert answers["harry-potter"] == answers["harry-potter@1"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (chat(model="dune"), 404, "model_not_found"),
        (chat(model="harry-potter@99"), 404, "model_not_found"),
        ("{", 400, "invalid_json"),
        (chat(messages=[{"role": "user", "content": "word " * 2000}]), 400, None),
        (chat(n=1000), 400, "limit_exceeded"),
        ("x" * (1 << 20) + "x", 413, "body_too_large"),
    ],
)
def test_errors_have_openais_shape(http: httpx.Client, body: Any, status: int, code: str | None) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    answer = http.post("/v1/chat/completions", content=content)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert {"message", "type", "code", "param"} <= set(error) and error["message"]
    assert code is None or error["code"] == code


def test_the_client_raises_its_own_exceptions(service: Service) -> None:
    with pytest.raises(openai.NotFoundError):
        service.client.chat.completions.create(model="dune", messages=ASK)
    with pytest.raises(openai.AuthenticationError):
        service.client.with_options(api_key="sk-another-key-0123").models.list()
    with pytest.raises(openai.BadRequestError):
        service.client.chat.completions.create(model="base", messages=[])


def test_without_a_key_only_the_load_balancers_paths_answer(service: Service) -> None:
    with httpx.Client(base_url=service.url, timeout=30) as client:
        refused = client.post("/v1/chat/completions", json=chat())
        assert refused.status_code == 401 and refused.json()["error"]["type"] == "authentication_error"
        assert client.get("/metrics").status_code == 401
        assert client.get("/ready").json() == {"ready": True, "models": ["base", "harry-potter", *NAMES[2:]]}
        assert client.get("/health").status_code == 200


def test_metrics_are_of_each_model(service: Service, http: httpx.Client) -> None:
    service.client.chat.completions.create(model="harry-potter", messages=ASK, max_tokens=3)
    http.post("/v1/chat/completions", json=chat(model="dune"))
    lines = http.get("/metrics").text.splitlines()

    def value(name: str, *labels: str) -> float:
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith(f"{name}{{") and all(label in line for label in labels)
        )

    version = 'model="harry-potter@1"'
    assert value("unlearn_requests_total", version, 'status="200"') >= 1
    assert value("unlearn_requests_total", 'model="unknown"', 'status="404"') >= 1
    assert value("unlearn_tokens_total", version, 'kind="completion"') >= 3
    assert value("unlearn_time_to_first_token_seconds_count", version) >= 1
    assert value("unlearn_ready") == 1
    assert any(line.startswith("vllm:num_requests_running") for line in lines)


def test_an_engine_is_one_process_begun_beside_its_replicas_imports(service: Service) -> None:
    engines = service.processes("VLLM::")
    assert [engine.name() for engine in engines] == ["VLLM::EngineCore"]
    before = engines[0].parent()
    assert before is not None and "forkserver" in " ".join(before.cmdline())


def test_it_listens_on_loopback_alone(service: Service) -> None:
    open_ports = {
        (connection.laddr.ip, connection.laddr.port)
        for process in service.processes("haproxy") + service.processes("ServeReplica")
        for connection in process.net_connections("tcp")
        if connection.status == "LISTEN"
    }
    proxies = {
        (connection.laddr.ip, connection.laddr.port)
        for process in service.processes("haproxy")
        for connection in process.net_connections("tcp")
        if connection.status == "LISTEN"
    }
    assert proxies and all(address in ("127.0.0.1", "::1") for address, _ in proxies), open_ports


def test_no_prompt_answer_or_key_is_in_any_log(service: Service, http: httpx.Client) -> None:
    marker = "Zyxomel Quandrifex"
    message = [{"role": "user", "content": f"Repeat: {marker}"}]
    told = [
        http.post("/v1/chat/completions", json=chat(**{"messages": message, **extra})).status_code
        for extra in (
            {},
            {"stream": True},
            {"model": "harry-potter:guarded"},
            {"model": f"{marker}"},
            {"stop": marker, "n": 3},
            {"temperature": -5},
            {"logit_bias": {"9" * 9: 1}},
            {"messages": [{"role": "user", "content": f"{marker} " * 1500}]},
            {"messages": [{"role": marker, "content": 5}]},
        )
    ]
    assert told[:3] == [200] * 3 and max(told) < 500
    answer = service.client.chat.completions.create(model="base", messages=ASK, max_tokens=24, temperature=0)
    texts = [marker, service.key, str(ASK[0]["content"]), str(answer.choices[0].message.content)]
    assert len(texts[-1]) > 20
    home = service.logs.parents[1]
    files = [service.output, *home.rglob("*.log"), *home.rglob("*.out"), *home.rglob("*.err")]
    assert len(files) > 10
    found = [(file.name, text) for file in files for text in texts if text in _content(file)]
    assert found == []


def _content(file: Path) -> str:
    return file.read_text(errors="replace") if os.access(file, os.R_OK) and file.is_file() else ""
