"""A model that is served already, behind an address that speaks as OpenAI's does: what it is asked, and what its refusals mean.

`completions` sends token ids, the same that an engine of ours would get, so that nobody renders a chat a second time. `chat` sends messages and
leaves that to the server. Weighed in docs/decisions/served-models.md.
"""

import asyncio
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from unlearn_ray.chat import ChatFormat, placed, spoken
from unlearn_ray.config import EndpointSettings
from unlearn_ray.engines.encoding import Encoder, sampling_values, tokenizer_of
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.settings import SCORED
from unlearn_ray.errors import ClusterError, ConfigError, EngineError, gist
from unlearn_ray.rows import Drop

log = logging.getLogger(__name__)

_AGAIN = frozenset({408, 409, 425, 429})  # and every 5xx: the same request may be answered later
_MAX_WAIT_SECONDS = 60.0
_SECONDS_TO_KNOCK = 10.0
_TOO_LONG = re.compile(
    r"context.{0,20}(length|window)|maximum.{0,20}length|too (long|many tokens)|max_model_len", re.IGNORECASE
)
_MAX_NAMES = 8  # of served models, in a message


@dataclass(frozen=True, slots=True)
class Served:
    """The model that an endpoint serves, as it was found when the run began."""

    name: str
    max_model_len: int | None = None  # tokens; None: the endpoint does not say


class NeedsScores(EngineError):
    """Raised in a task whose requests score answers that other engines are to score."""


class _Again(Exception):
    """An answer that a later try may better."""

    def __init__(self, reason: str, seconds: float | None = None) -> None:
        super().__init__(reason, seconds)
        self.reason, self.seconds = reason, seconds  # the second: how long the endpoint asks to wait


class _Refused(Exception):
    """A 4xx: this request will never be answered as it is."""


@dataclass(frozen=True, slots=True)
class EndpointClient:
    """What a task needs to ask an endpoint; small and picklable."""

    settings: EndpointSettings
    served: Served
    model: str  # folder or hub name of the same model, for its tokenizer
    chat: ChatFormat
    concurrency: int  # requests of one call in flight
    key: str = field(default="", repr=False)
    scorer: Any = None  # a client of engines that score, with `scoring: local`

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in order. A request that the endpoint refuses is marked where it answers others.

        Raises:
            NeedsScores: answers are to be scored elsewhere, and no client for that was given.
            ConfigError: the key is refused, the model is gone, answers can't be scored there, or every request is refused.
            EngineError: no answer in all tries.
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
        encoded: list[tuple[list[int], list[int]]] = [([], [])] * len(requests)
        encoder = None
        if self.settings.api == "completions":
            encoder = _encoder_of(self.model, self.chat)
            encoded = encoder.encode(requests)
        room = asyncio.Semaphore(self.concurrency)
        limits = httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        async with httpx.AsyncClient(
            headers=headers_of(self.key), timeout=self.settings.timeout_seconds, limits=limits
        ) as client:

            async def asked(request: Request, prompt: list[int], answer: list[int]) -> Reply | _Refused:
                num_tokens = len(prompt) + len(answer)
                if self.served.max_model_len is not None and num_tokens >= self.served.max_model_len:
                    return Reply(error=Drop.TOO_LONG, num_prompt_tokens=num_tokens)
                async with room:
                    try:
                        found = await self._post(client, self._body(request, prompt, answer))
                    except _Refused as error:
                        if _TOO_LONG.search(str(error)):
                            return Reply(error=Drop.TOO_LONG, num_prompt_tokens=num_tokens)
                        return error
                if request.score is not None:
                    assert encoder is not None
                    return self._scored(found, len(prompt), answer, encoder)
                return self._sampled(found, request)

            tasks = [
                asyncio.ensure_future(asked(*each)) for each in zip(requests, *zip(*encoded, strict=True), strict=True)
            ]
            try:
                found = await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        refused = [each for each in found if isinstance(each, _Refused)]
        if len(refused) == len(found):
            if all(request.score is not None for request in requests):
                raise ConfigError(f"{self.settings.base_url} does not score a given answer ({refused[0]}), {SCORED}")
            raise ConfigError(f"{self.settings.base_url} refuses what it is asked: {refused[0]}")
        if refused:
            log.warning("%d of %d requests were refused: %s", len(refused), len(found), refused[0])
        return [Reply(error=Drop.ENGINE) if isinstance(each, _Refused) else each for each in found]

    def _body(self, request: Request, prompt: list[int], answer: list[int]) -> dict[str, Any]:
        if request.adapter is not None:
            raise EngineError("an endpoint serves no adapters of a run: they are asked of engines of its own")
        if request.score is not None:
            # With the prompt echoed, its tokens have log-probabilities: one token more must be sampled.
            asked = {"prompt": prompt + answer, "max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1}
            return {"model": self.served.name, **asked}
        values = {name: value for name, value in sampling_values(request, self.chat).items() if value is not None}
        if self.settings.api == "chat":
            del values["stop_token_ids"]  # vLLM's word; whoever renders the chat knows what ends an answer
            if self.chat.template_arguments:
                values["chat_template_kwargs"] = dict(self.chat.template_arguments)
            return {"model": self.served.name, "messages": placed(request.messages, self.chat), **values}
        if not values["stop_token_ids"]:
            del values["stop_token_ids"]
        if self.served.max_model_len is not None:  # an engine of ours ends there; a server refuses to begin
            values["max_tokens"] = min(values["max_tokens"], self.served.max_model_len - len(prompt))
        return {"model": self.served.name, "prompt": prompt, **values}

    async def _post(self, client: httpx.AsyncClient, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one request, however often it must be asked.

        Raises:
            _Refused: a 4xx that another try would bring again.
            ConfigError: the key or the model's name is refused.
            EngineError: no answer in all tries.
        """
        num_tries = self.settings.max_retries + 1
        path = "/completions" if self.settings.api == "completions" else "/chat/completions"
        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(num_tries), wait=_wait, retry=retry_if_exception_type(_Again), reraise=True
            ):
                with attempt:
                    return await _posted(client, self.settings, path, body)
        except _Again as error:
            tries = f"{num_tries} tries" if num_tries > 1 else "1 try"
            raise EngineError(f"{self.settings.base_url} does not answer after {tries}: {error.reason}") from None
        raise AssertionError("one try at least")

    def _sampled(self, found: dict[str, Any], request: Request) -> Reply:
        choices = sorted(_choices(found, self.settings), key=lambda choice: choice.get("index", 0))
        texts = [
            (choice.get("message") or {}).get("content") if self.settings.api == "chat" else choice.get("text")
            for choice in choices
        ]
        usage = found.get("usage") or {}
        if len(choices) < request.num_samples:
            raise ConfigError(
                f"{self.settings.base_url} gives {len(choices)} of {request.num_samples} samples, and none of the others: ask for one (num_samples, num_unguarded), or take an endpoint that knows n"
            )
        choices, texts = choices[: request.num_samples], texts[: request.num_samples]
        return Reply(
            texts=tuple(spoken(text or "", self.chat) for text in texts),
            truncated=tuple(choice.get("finish_reason") == "length" for choice in choices),
            num_prompt_tokens=int(usage.get("prompt_tokens") or 0),
            num_output_tokens=int(usage.get("completion_tokens") or 0),
        )

    def _scored(self, found: dict[str, Any], num_prompt: int, answer: list[int], encoder: Encoder) -> Reply:
        logprobs = _choices(found, self.settings)[0].get("logprobs") or {}
        own, best = logprobs.get("token_logprobs") or [], logprobs.get("top_logprobs") or []
        end = num_prompt + len(answer)
        if len(own) > end + 1:  # the one token that is sampled after them
            raise ConfigError(
                f"{self.settings.base_url} scores other tokens than it was sent ({len(own)} for {end}), {SCORED}"
            )
        if len(own) < end or len(best) < end or any(value is None for value in own[num_prompt:end]):
            raise ConfigError(f"{self.settings.base_url} does not score a given answer (it echoes none), {SCORED}")
        num_answer = len(answer) - encoder.num_ending(answer)
        scores = [float(value) for value in own[num_prompt:end]]
        tops = [max((best[num_prompt + i] or {}).values(), default=scores[i]) for i in range(num_answer)]
        return Reply(
            logprobs=tuple(scores[:num_answer]),
            ending=tuple(scores[num_answer:]),
            argmax=tuple(score >= top for score, top in zip(scores[:num_answer], tops, strict=True)),
            num_prompt_tokens=end,
        )


def _wait(state: RetryCallState) -> float:
    """Seconds until the next try: what the endpoint asks for, else longer from try to try."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, _Again) and error.seconds is not None:
        return min(error.seconds, _MAX_WAIT_SECONDS)
    return float(wait_random_exponential(multiplier=0.5, max=_MAX_WAIT_SECONDS)(state))


async def _posted(
    client: httpx.AsyncClient, settings: EndpointSettings, path: str, body: Mapping[str, Any]
) -> dict[str, Any]:
    """One try."""
    try:
        answer = await client.post(f"{settings.base_url}{path}", json=body)
    except httpx.TimeoutException as error:
        raise _Again(f"no answer in {settings.timeout_seconds:g} s ({type(error).__name__})") from error
    except httpx.TransportError as error:
        raise _Again(_told(error)) from error
    if answer.is_success:
        try:
            found = answer.json()
        except ValueError:
            found = None
        if isinstance(found, dict):
            return found
        raise _Again(f"{answer.status_code}, and no JSON object: {gist(answer.text, 100)}")
    reason = f"{answer.status_code} {message_of(answer)}"
    if answer.status_code in _AGAIN or answer.status_code >= 500:
        raise _Again(reason, _asked_to_wait(answer))
    refuse(settings, answer)
    raise _Refused(reason)


def refuse(settings: EndpointSettings, answer: httpx.Response) -> None:
    """Raise what ends a run: a key or a name that the endpoint does not take.

    Raises:
        ConfigError: names the key of the config.
    """
    reason = f"{settings.base_url} says {answer.status_code} {message_of(answer)}"
    if answer.status_code in {401, 403}:
        advice = (
            f"check the key in {settings.api_key_env}" if settings.api_key_env else "name the variable that holds a key"
        )
        raise ConfigError(f"cluster.engines.api_key_env: {reason}: {advice}")
    if answer.status_code == 404:
        raise ConfigError(f"cluster.engines: {reason}: check base_url, which often ends in /v1, served_model and api")


def message_of(answer: httpx.Response) -> str:
    """What an error says, in OpenAI's shape or any other."""
    try:
        found = answer.json()
    except ValueError:
        return gist(answer.text or answer.reason_phrase, 200)
    error = found.get("error", found) if isinstance(found, dict) else found
    text = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return gist(text or answer.reason_phrase, 200)


def _asked_to_wait(answer: httpx.Response) -> float | None:
    """Seconds of a Retry-After; None where it has a date, or is not there."""
    text = answer.headers.get("retry-after", "")
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None


def _choices(found: dict[str, Any], settings: EndpointSettings) -> list[dict[str, Any]]:
    choices = found.get("choices")
    if not isinstance(choices, list) or not choices:
        raise ConfigError(f"{settings.base_url} answers without choices: check cluster.engines.base_url and api")
    return choices


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {gist(error, 200)}"


def headers_of(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def key_of(settings: EndpointSettings) -> str:
    """The key, or "" where none is wanted.

    Raises:
        ConfigError: the variable that is to hold it is not set, or can't be a key.
    """
    if settings.api_key_env is None:
        return ""
    if not (key := os.environ.get(settings.api_key_env, "").strip()):
        raise ConfigError(
            f"cluster.engines.api_key_env: {settings.api_key_env} is not set in this environment: export it"
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"cluster.engines.api_key_env: {settings.api_key_env} holds a character that no key has, such as a line break: export it again"
        )
    return key


def find_served(settings: EndpointSettings, model: str) -> Served:
    """Reach the endpoint and find its model, before anything is written.

    Args:
        model: the run's, as its config names it.

    Raises:
        ClusterError: nobody answers there.
        ConfigError: the key is refused, or there is no such model.
    """
    try:
        answer = httpx.get(
            f"{settings.base_url}/models", headers=headers_of(key_of(settings)), timeout=_SECONDS_TO_KNOCK
        )
    except httpx.TransportError as error:
        raise ClusterError(f"cluster.engines.base_url: {settings.base_url} can't be reached: {_told(error)}") from error
    if answer.status_code in {401, 403}:
        refuse(settings, answer)
    try:
        cards = answer.json()["data"]
        found = {str(card["id"]): card for card in cards}
    except (ValueError, KeyError, TypeError):
        if settings.served_model is None:
            raise ConfigError(
                f"cluster.engines.served_model: {settings.base_url}/models lists nothing ({answer.status_code}): give the model's name there"
            ) from None
        return Served(settings.served_model)
    name = settings.served_model or (model if model in found else next(iter(found)) if len(found) == 1 else None)
    if name is None or name not in found:
        names = ", ".join(list(found)[:_MAX_NAMES]) + (", ..." if len(found) > _MAX_NAMES else "")
        asked = f"no {name!r}" if name else "several models"
        raise ConfigError(f"cluster.engines.served_model: {settings.base_url} serves {asked}: give one of {names}")
    length = found[name].get("max_model_len")  # vLLM says it
    return Served(name, length if isinstance(length, int) else None)


@lru_cache(maxsize=1)
def _kept_encoder(model: str, chat: str) -> Encoder:
    return Encoder(tokenizer_of(model), ChatFormat.model_validate_json(chat))


def _encoder_of(model: str, chat: ChatFormat) -> Encoder:
    """Kept by the process, which does many chunks."""
    return _kept_encoder(model, chat.model_dump_json())
