"""What the answer of an endpoint says, whoever gave it: a server, or a gateway before it. An odd one is a line, or its row's drop, never an
empty text and never an error of ours. Knows no Ray."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from tenacity import RetryCallState, wait_random_exponential

from unlearn_ray.config import EndpointSettings
from unlearn_ray.errors import ConfigError, gist

_AGAIN = frozenset({408, 409, 425, 429})  # and 5xx: the same request may be answered later
_NEVER = frozenset({501, 505})
_MAX_WAIT_SECONDS = 60.0
_HEAD = 100  # characters of an odd answer that a message shows
_WITHHELD = re.compile(r"content.?(filter|policy|management)|moderation|safety", re.IGNORECASE)
_CHECK = "check cluster.engines.base_url and api"


class Again(Exception):
    """An answer that a later try may better."""

    def __init__(self, reason: str, seconds: float | None = None) -> None:
        super().__init__(reason, seconds)
        self.reason, self.seconds = reason, seconds  # the second: how long the endpoint asks to wait


class Refused(Exception):
    """This request will never be answered as it is.

    Args:
        reason: what came back.
        told: what to say of an endpoint that answers nothing else.
    """

    def __init__(self, reason: str, told: str | None = None, *, is_too_long: bool = False) -> None:
        super().__init__(reason)
        self.told = told or f"refuses what it is asked: {reason}"
        self.is_too_long = is_too_long


@dataclass(frozen=True, slots=True)
class Sample:
    """One text, as the endpoint gave it."""

    text: str
    is_truncated: bool


def object_in(answer: httpx.Response, settings: EndpointSettings) -> dict[str, Any]:
    """The JSON object that answers a request.

    Raises:
        Again: a later try may better it.
        Refused: no try will.
        ConfigError: the key, the address or the model's name is refused.
    """
    if not answer.is_success:
        _raise_for(answer.status_code, f"{answer.status_code} {message_of(answer)}", answer, settings)
    found = json_of(answer)
    if not isinstance(found, dict):
        raise Again(f"{answer.status_code}, and no JSON object: {head_of(answer)}")
    if (error := found.get("error")) and not found.get("choices"):
        reason = f"{answer.status_code} with an error: {message_of(answer)}"
        code = _number(error.get("code")) if isinstance(error, dict) else 0
        if 400 <= code < 600:
            _raise_for(code, reason, answer, settings)
        if _WITHHELD.search(json.dumps(error)):
            raise Refused(reason)
        raise Again(reason)
    return found


def is_passing(status: int) -> bool:
    """Whether what was refused with this status may be answered later."""
    return status in _AGAIN or (status >= 500 and status not in _NEVER)


def _raise_for(status: int, reason: str, answer: httpx.Response, settings: EndpointSettings) -> None:
    if is_passing(status):
        raise Again(reason, _asked_to_wait(answer))
    refuse(settings, status, reason, answer)
    raise Refused(reason, is_too_long=status == 413)


def refuse(settings: EndpointSettings, status: int, reason: str, answer: httpx.Response) -> None:
    """Raise what ends a run: a key, an address or a name that the endpoint does not take.

    Raises:
        ConfigError: names the key of the config.
    """
    says = f"{settings.base_url} says {reason}"
    if status in {401, 403}:
        advice = (
            f"check the key in {settings.api_key_env}" if settings.api_key_env else "name the variable that holds a key"
        )
        raise ConfigError(f"cluster.engines.api_key_env: {says}: {advice}")
    if status in {404, 405}:
        raise ConfigError(f"cluster.engines: {says}: check base_url, which often ends in /v1, served_model and api")
    if 300 <= status < 400:
        place = answer.headers.get("location", "")
        where = f"sends on to {gist(place, 200)}" if place else "sends on to another address"
        raise ConfigError(f"cluster.engines.base_url: {settings.base_url} {where} ({status}): give the address itself")


def json_of(answer: httpx.Response) -> Any:
    """The values of an answer. None if it is not JSON."""
    try:
        return answer.json()
    except (ValueError, RecursionError):
        return None


def head_of(answer: httpx.Response) -> str:
    """The first characters of an answer."""
    return gist(answer.text, _HEAD) if answer.text.strip() else "nothing"


def message_of(answer: httpx.Response) -> str:
    """What an error says, in OpenAI's shape or any other."""
    found = json_of(answer)
    if found is None:
        return gist(answer.text.strip() or answer.reason_phrase or "nothing", 200)
    error = found.get("error", found) if isinstance(found, dict) else found
    text = error.get("message") or error.get("detail") or json.dumps(error) if isinstance(error, dict) else error
    return gist(text or answer.reason_phrase, 200)


def choices_in(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """
    Raises:
        Refused: there is none.
        Again: one says that it failed on its way.
    """
    listed = found.get("choices")
    choices = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    if not choices:
        shown = gist(json.dumps(found), _HEAD)
        raise Refused(f"no choices: {shown}", f"answers without choices ({shown}): {_CHECK}")
    failed = next((each for each in choices if each.get("error") or each.get("finish_reason") == "error"), None)
    if failed is not None:
        raise Again(f"a choice with an error: {gist(json.dumps(failed), _HEAD)}")
    return choices


def samples_in(found: Mapping[str, Any], api: str, num_samples: int) -> list[Sample]:
    """The texts of an answer, in order.

    Raises:
        Refused: there are fewer than were asked for, or one has no text: the endpoint withheld it, or gave something else.
        Again: one failed on its way.
    """
    choices = sorted(choices_in(found), key=lambda choice: _number(choice.get("index")))
    if len(choices) < num_samples:
        given = f"gives {len(choices)} of {num_samples} samples, and none of the others"
        raise Refused(
            given,
            f"{given}: ask for one (num_samples, num_unguarded), or take an endpoint that knows n",
        )
    samples = []
    for choice in choices[:num_samples]:
        text, reason = _text_in(choice, api), choice.get("finish_reason")
        if reason == "content_filter":
            raise Refused("a text withheld (finish_reason content_filter)", "withholds its texts (content_filter)")
        if text is None:
            shown = gist(json.dumps(choice), _HEAD)
            raise Refused(f"no text: {shown}", f"answers without a text ({shown}): {_CHECK}")
        samples.append(Sample(text, reason == "length"))
    return samples


def _text_in(choice: Mapping[str, Any], api: str) -> str | None:
    if api != "chat":
        text = choice.get("text")
        return text if isinstance(text, str) else None
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):  # in parts, as some gateways pass it on
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if texts else None
    return content if isinstance(content, str) else None


def tokens_in(found: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt and of the answers; 0 where the endpoint does not say."""
    usage = found.get("usage")
    if not isinstance(usage, dict):
        return 0, 0
    return _number(usage.get("prompt_tokens")), _number(usage.get("completion_tokens"))


def scores_in(found: Mapping[str, Any]) -> tuple[list[float | None], list[float | None]]:
    """Of each token of an echoed prompt its log-probability and the greatest one there; None where it has none.

    Raises:
        Refused, Again: as `choices_in`.
    """
    logprobs = choices_in(found)[0].get("logprobs")
    if not isinstance(logprobs, dict):
        return [], []
    own, best = logprobs.get("token_logprobs"), logprobs.get("top_logprobs")
    return (
        [_logprob(value) for value in own] if isinstance(own, list) else [],
        [_greatest(values) for values in best] if isinstance(best, list) else [],
    )


def _greatest(values: Any) -> float | None:
    found = (
        [number for each in values.values() if (number := _logprob(each)) is not None]
        if isinstance(values, dict)
        else []
    )
    return max(found, default=None)


def _logprob(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _number(value: Any) -> int:
    """A whole number as endpoints write it; 0 where it is none."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return int(value) if isinstance(value, int) else 0


def models_in(answer: httpx.Response) -> dict[str, dict[str, Any]] | None:
    """The names of the models that an endpoint lists. None if the answer is not a list."""
    found = json_of(answer)
    cards = found.get("data") if answer.is_success and isinstance(found, dict) else None
    if not isinstance(cards, Sequence) or isinstance(cards, str):
        return None
    return {str(card["id"]): card for card in cards if isinstance(card, dict) and card.get("id")}


def wait(state: RetryCallState) -> float:
    """Seconds until the next try: what the endpoint asks for, else longer from try to try."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Again) and error.seconds is not None:
        return min(error.seconds, _MAX_WAIT_SECONDS)
    return float(wait_random_exponential(multiplier=0.5, max=_MAX_WAIT_SECONDS)(state))


def _asked_to_wait(answer: httpx.Response) -> float | None:
    """Seconds of a Retry-After; None where it has a date, or is not there."""
    text = answer.headers.get("retry-after", "")
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None
