"""A run may ask the project's own service, as it asks any endpoint: for answers of the base model, of an unlearned one, and for scores."""

from typing import Any

import pytest
from commandline import Service

from unlearn_ray import pocket
from unlearn_ray.config import EndpointSettings
from unlearn_ray.engines.endpoint import EndpointClient, find_served, key_of
from unlearn_ray.engines.protocols import Request
from unlearn_ray.train.inspection import inspect_model

MODEL = str(pocket.MODEL_DIR)
QUESTIONS = ["Who created Harry Potter?", "What is chewing gum made of?", "Tell me about Hogwarts."]


def asking(question: str, **options: Any) -> Request:
    return Request([{"role": "user", "content": question}], **options)


@pytest.fixture(params=["completions", "chat"])
def client(request: pytest.FixtureRequest, service: Service, monkeypatch: pytest.MonkeyPatch) -> EndpointClient:
    monkeypatch.setenv("SERVED_KEY", service.key)
    settings = EndpointSettings(
        base_url=f"{service.url}/v1", api=request.param, served_model="base", api_key_env="SERVED_KEY"
    )
    chat = inspect_model(MODEL).chat
    return EndpointClient(settings, find_served(settings, "pocket"), MODEL, chat, 8, key_of(settings))


def test_our_service_answers_a_run_and_samples_by_the_rows_seed(client: EndpointClient) -> None:
    asked = [asking(q, seed=i, num_samples=2, temperature=1.0, max_tokens=12) for i, q in enumerate(QUESTIONS)]
    greedy = [asking(question, max_tokens=8) for question in QUESTIONS]
    forth, back = client.generate([*asked, *greedy]), client.generate([*greedy, *asked][::-1])[::-1]
    assert forth == [*back[3:], *back[:3]]
    assert all(
        reply.error is None and len(reply.texts) == request.num_samples
        for reply, request in zip(forth, [*asked, *greedy], strict=True)
    )
    assert all(text.strip() for reply in forth for text in reply.texts)
