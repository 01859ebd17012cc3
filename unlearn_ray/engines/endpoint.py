"""A client of a model that is served already, behind an endpoint with OpenAI's protocol: its requests, and the meaning of its refusals.

`completions` sends token ids, the same as to an engine of ours, so that the server renders no chat. `chat` sends messages, and the server
renders them. docs/decisions/served-models.md compares both.
"""

import asyncio
import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import httpx
from tenacity import AsyncRetrying, Retrying, retry_if_exception_type, stop_after_attempt

from unlearn_ray.chat import ChatFormat, placed, spoken
from unlearn_ray.config import EndpointSettings
from unlearn_ray.engines.encoding import Encoder, sampling_values, tokenizer_of
from unlearn_ray.engines.endpoint_answers import (
    Again,
    Refused,
    head_of,
    is_passing,
    message_of,
    models_in,
    object_in,
    refuse,
    samples_in,
    scores_in,
    tokens_in,
    wait,
)
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.settings import SCORED
from unlearn_ray.errors import ClusterError, ConfigError, EngineError, gist
from unlearn_ray.rows import Drop, Message

log = logging.getLogger(__name__)

_SECONDS_TO_KNOCK = 10.0
_TOO_LONG = re.compile(
    r"context.{0,20}(length|window)|maximum.{0,20}length|too (long|many tokens)|max_model_len", re.IGNORECASE
)
_MAX_NAMES = 8  # of served models, in a message
_GREETING = "Hello!"  # a text that no working endpoint refuses


@dataclass(frozen=True, slots=True)
class Served:
    """The model that an endpoint serves, as found at the start of the run."""

    name: str
    max_model_len: int | None = None  # tokens; None: the endpoint does not report it


class NeedsScores(EngineError):
    """Raised in a task whose requests must be scored by other engines."""


@dataclass(frozen=True, slots=True)
class EndpointClient:
    """A task's access to an endpoint. Small and picklable."""

    settings: EndpointSettings
    served: Served
    model: str  # folder or hub name of the same model, for its tokenizer
    chat: ChatFormat
    concurrency: int  # requests in flight per call
    key: str = field(default="", repr=False)
    scorer: Any = None  # a client of the engines that score, with `scoring: local`

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in order. A refused request is marked if the endpoint answers others.

        Raises:
            NeedsScores: answers must be scored by other engines, and no client for these was given.
            ConfigError: the key is refused, the model is gone, the endpoint can't score answers, or it refuses every request of this kind.
            EngineError: no try was answered.
        """
        scored = [index for index, request in enumerate(requests) if request.score is not None]
        if self.settings.scoring == "local" and scored:
            if self.scorer is None:
                raise NeedsScores
            replies = dict(zip(scored, self.scorer.generate([requests[index] for index in scored]), strict=True))
            others = [index for index in range(len(requests)) if index not in replies]
            replies |= zip(others, self.generate([requests[index] for index in others]), strict=True)
            return [replies[index] for index in range(len(requests))]
        if scored and self.settings.api == "chat":
            raise ConfigError(f"cluster.engines.api: chat can't score a given answer, {SCORED}")
        return asyncio.run(self._generate(requests)) if requests else []

    async def _generate(self, requests: Sequence[Request]) -> list[Reply]:
        encoder = _encoder_of(self.model, self.chat) if self.settings.api == "completions" else None
        room = asyncio.Semaphore(self.concurrency)
        limits = httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        async with httpx.AsyncClient(
            headers=headers_of(self.key), timeout=self.settings.timeout_seconds, limits=limits
        ) as client:

            async def asked(request: Request, prompt: list[int], answer: list[int]) -> Reply | Refused:
                num_tokens = len(prompt) + len(answer)
                if self.served.max_model_len is not None and num_tokens >= self.served.max_model_len:
                    return Reply(error=Drop.TOO_LONG, num_prompt_tokens=num_tokens)

                def read(found: dict[str, Any]) -> Reply:
                    if request.score is None:
                        return self._sampled(found, request)
                    assert encoder is not None
                    return self._scored(found, len(prompt), answer, encoder)

                async with room:
                    try:
                        return await self._post(client, self._body(request, prompt, answer), read)
                    except Refused as error:
                        if error.is_too_long or _TOO_LONG.search(str(error)):
                            return Reply(error=Drop.TOO_LONG, num_prompt_tokens=num_tokens)
                        return error

            async def told(requests: Sequence[Request]) -> list[Reply | Refused]:
                encoded = encoder.encode(requests) if encoder else [([], [])] * len(requests)
                tasks = [
                    asyncio.ensure_future(asked(request, *each))
                    for request, each in zip(requests, encoded, strict=True)
                ]
                try:
                    return await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        task.cancel()

            found = await told(requests)
            refused = [each for each in found if isinstance(each, Refused)]
            if refused and not any(isinstance(each, Reply) and each.error is None for each in found):
                await self._check(requests, found, told)
        if refused:
            log.warning(
                "%s: %d of %d requests were refused: %s", self.settings.base_url, len(refused), len(found), refused[0]
            )
        return [Reply(error=Drop.ENGINE) if isinstance(each, Refused) else each for each in found]

    async def _check(
        self,
        requests: Sequence[Request],
        found: Sequence[Reply | Refused],
        told: Callable[[Sequence[Request]], Awaitable[list[Reply | Refused]]],
    ) -> None:
        """Find out why no request was answered: because of their texts, or because of their settings. A greeting with the same settings tells.

        Raises:
            ConfigError: the greeting is refused as well.
        """
        kinds: dict[bool, Request] = {}
        for request, each in zip(requests, found, strict=True):
            if isinstance(each, Refused):
                kinds.setdefault(request.score is not None, request)
        greetings = [
            replace(
                request,
                messages=[Message(role=each["role"], content=_GREETING) for each in request.messages],
                score=_GREETING if is_scored else None,
            )
            for is_scored, request in kinds.items()
        ]
        for request, each in zip(greetings, await told(greetings), strict=True):
            if not isinstance(each, Refused):
                continue
            if request.score is not None:
                raise ConfigError(f"{self.settings.base_url} does not score a given answer ({each}), {SCORED}")
            raise ConfigError(f"{self.settings.base_url} {each.told}")

    def _body(self, request: Request, prompt: list[int], answer: list[int]) -> dict[str, Any]:
        if request.adapter is not None:
            raise EngineError("an endpoint serves no adapters of a run: the run's own engines do")
        if request.score is not None:
            # An echoed prompt has log-probabilities of its tokens. The endpoint must sample one token more for that.
            asked = {"prompt": prompt + answer, "max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}
            return {"model": self.served.name, **asked}
        values = {name: value for name, value in sampling_values(request, self.chat).items() if value is not None}
        if self.settings.api == "chat":
            del values[
                "stop_token_ids"
            ]  # a field of vLLM's; a server that renders the chat knows the tokens that end an answer
            if self.chat.template_arguments:
                values["chat_template_kwargs"] = dict(self.chat.template_arguments)
            return {"model": self.served.name, "messages": placed(request.messages, self.chat), **values}
        if not values["stop_token_ids"]:
            del values["stop_token_ids"]
        if self.served.max_model_len is not None:  # an engine of ours stops there; a server refuses
            values["max_tokens"] = min(values["max_tokens"], self.served.max_model_len - len(prompt))
        return {"model": self.served.name, "prompt": prompt, **values}

    async def _post(
        self, client: httpx.AsyncClient, body: Mapping[str, Any], read: Callable[[dict[str, Any]], Reply]
    ) -> Reply:
        """The answer to one request, after as many tries as needed.

        Raises:
            Refused: another try would be refused too.
            ConfigError: the key, the address or the model's name is refused, or the endpoint can't score given answers.
            EngineError: no try was answered.
        """
        path = "/completions" if self.settings.api == "completions" else "/chat/completions"
        try:
            async for attempt in AsyncRetrying(**_tries(self.settings)):
                with attempt:
                    return read(await _posted(client, self.settings, path, body))
        except Again as error:
            raise EngineError(_after_tries(self.settings, error)) from None
        raise AssertionError("at least one try")

    def _sampled(self, found: dict[str, Any], request: Request) -> Reply:
        samples = samples_in(found, self.settings.api, request.num_samples)
        num_prompt, num_output = tokens_in(found)
        return Reply(
            texts=tuple(spoken(sample.text, self.chat) for sample in samples),
            truncated=tuple(sample.is_truncated for sample in samples),
            num_prompt_tokens=num_prompt,
            num_output_tokens=num_output,
        )

    def _scored(self, found: dict[str, Any], num_prompt: int, answer: list[int], encoder: Encoder) -> Reply:
        own, best = scores_in(found)
        end = num_prompt + len(answer)
        if len(own) > end + 1:  # the token that was sampled after them
            raise ConfigError(
                f"{self.settings.base_url} scores other tokens than it was sent ({len(own)} for {end}), {SCORED}"
            )
        scores = [value for value in own[num_prompt:end] if value is not None]
        if len(own) < end or len(best) < end or len(scores) < len(answer):
            raise ConfigError(f"{self.settings.base_url} does not score a given answer (it echoes none), {SCORED}")
        num_answer = len(answer) - encoder.num_ending(answer)
        tops = [scores[i] if (top := best[num_prompt + i]) is None else top for i in range(num_answer)]
        return Reply(
            logprobs=tuple(scores[:num_answer]),
            ending=tuple(scores[num_answer:]),
            argmax=tuple(score >= top for score, top in zip(scores[:num_answer], tops, strict=True)),
            num_prompt_tokens=end,
        )


def _tries(settings: EndpointSettings) -> dict[str, Any]:
    """The retry settings of a call."""
    return {
        "stop": stop_after_attempt(settings.max_retries + 1),
        "wait": wait,
        "retry": retry_if_exception_type(Again),
        "reraise": True,
    }


def _after_tries(settings: EndpointSettings, error: Again) -> str:
    tries = f"{settings.max_retries + 1} tries" if settings.max_retries else "1 try"
    return f"{settings.base_url} does not answer after {tries}: {error.reason}"


async def _posted(
    client: httpx.AsyncClient, settings: EndpointSettings, path: str, body: Mapping[str, Any]
) -> dict[str, Any]:
    """One try."""
    try:
        answer = await client.post(f"{settings.base_url}{path}", json=body)
    except httpx.TimeoutException as error:
        raise Again(f"no answer in {settings.timeout_seconds:g} s ({type(error).__name__})") from error
    except httpx.RequestError as error:  # a broken connection, or an answer that can't be decoded
        raise Again(_told(error)) from error
    return object_in(answer, settings)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {gist(error, 200)}"


def headers_of(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def key_of(settings: EndpointSettings) -> str:
    """The key, or "" if the config names none.

    Raises:
        ConfigError: the key's variable is not set, or its value can't be a key.
    """
    if settings.api_key_env is None:
        return ""
    if not (key := os.environ.get(settings.api_key_env, "").strip()):
        raise ConfigError(
            f"cluster.engines.api_key_env: {settings.api_key_env} is not set in this environment: export it"
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"cluster.engines.api_key_env: {settings.api_key_env} holds a character that no key can have, such as a line break: export it again"
        )
    return key


def find_served(settings: EndpointSettings, model: str) -> Served:
    """Reach the endpoint and find its model, before anything is written.

    Args:
        model: the run's model, as its config names it.

    Raises:
        ClusterError: nothing answers there.
        ConfigError: the key is refused, or the endpoint does not serve the model.
    """
    try:
        for attempt in Retrying(**_tries(settings)):
            with attempt:
                answer = _knocked(settings)
    except Again as error:
        raise ClusterError(f"cluster.engines.base_url: {_after_tries(settings, error)}") from None
    listing, status = f"{settings.base_url}/models", answer.status_code
    if status in {401, 403} or 300 <= status < 400:
        refuse(settings, status, f"{status} {message_of(answer)}", answer)
    found = models_in(answer)
    if not found:
        if settings.served_model is None:
            raise ConfigError(
                f"cluster.engines.served_model: {listing} lists nothing ({status}): give the model's name there, or check base_url (it says {head_of(answer)})"
            )
        return Served(settings.served_model)
    name = settings.served_model or (model if model in found else next(iter(found)) if len(found) == 1 else None)
    if name is None or name not in found:
        names = ", ".join(list(found)[:_MAX_NAMES]) + (", ..." if len(found) > _MAX_NAMES else "")
        asked = f"no {name!r}" if name else "several models"
        raise ConfigError(f"cluster.engines.served_model: {settings.base_url} serves {asked}: give one of {names}")
    length = found[name].get("max_model_len")  # vLLM reports it
    return Served(name, length if isinstance(length, int) else None)


def _knocked(settings: EndpointSettings) -> httpx.Response:
    """Ask for the list of models once.

    Raises:
        Again: a later try may succeed.
        ClusterError: nothing listens there.
    """
    try:
        answer = httpx.get(
            f"{settings.base_url}/models", headers=headers_of(key_of(settings)), timeout=_SECONDS_TO_KNOCK
        )
    except (httpx.ReadTimeout, httpx.ReadError, httpx.RemoteProtocolError, httpx.DecodingError) as error:
        raise Again(_told(error)) from error
    except (httpx.RequestError, httpx.InvalidURL, UnicodeError) as error:
        raise ClusterError(f"cluster.engines.base_url: {settings.base_url} can't be reached: {_told(error)}") from error
    if is_passing(answer.status_code):
        raise Again(f"{answer.status_code} {message_of(answer)}")
    return answer


@lru_cache(maxsize=1)
def _kept_encoder(model: str, chat: str) -> Encoder:
    return Encoder(tokenizer_of(model), ChatFormat.model_validate_json(chat))


def _encoder_of(model: str, chat: ChatFormat) -> Encoder:
    """The encoder of a model. Cached, because a process handles many chunks."""
    return _kept_encoder(model, chat.model_dump_json())
