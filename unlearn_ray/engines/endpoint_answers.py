"""Reads the answers of an endpoint: of a server, or of a gateway in front of it. Knows no Ray.

An unexpected answer becomes a message of one line, or drops its row. It never becomes an empty text or a traceback.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from tenacity import RetryCallState, wait_random_exponential

from unlearn_ray.config import EndpointSettings
from unlearn_ray.errors import ConfigError, gist

_AGAIN = frozenset({408, 409, 425, 429})  # and 5xx: a later try of the same request may be answered
_NEVER = frozenset({501, 505})
_MAX_WAIT_SECONDS = 60.0
_HEAD = 100  # characters of an unexpected answer in a message
_WITHHELD = re.compile(r"content.?(filter|policy|management)|moderation|safety", re.IGNORECASE)
_CHECK = "check cluster.engines.base_url and api"


class Again(Exception):
    """A failure after which a later try may succeed."""

    def __init__(self, reason: str, seconds: float | None = None) -> None:
        super().__init__(reason, seconds)
        self.reason, self.seconds = reason, seconds  # seconds: the wait that the endpoint asks for


class Refused(Exception):
    """This request will never be answered in its present form.

    Args:
        reason: the endpoint's answer, as text.
        told: the message for an endpoint that answers every request like this.
    """

    def __init__(self, reason: str, told: str | None = None, *, is_too_long: bool = False) -> None:
        super().__init__(reason)
        self.told = told or f"refuses every request: {reason}"
        self.is_too_long = is_too_long


@dataclass(frozen=True, slots=True)
class Sample:
    """One text of the endpoint, unchanged."""

    text: str
    is_truncated: bool


def object_in(answer: httpx.Response, settings: EndpointSettings) -> dict[str, Any]:
    """The JSON object in an answer.

    Raises:
        Again: a later try may succeed.
        Refused: every try would be refused.
        ConfigError: the key, the address or the model's name is refused.
    """
    if not answer.is_success:
        _raise_for(answer.status_code, f"{answer.status_code} {message_of(answer)}", answer, settings)
    found = json_of(answer)
    if not isinstance(found, dict):
        raise Again(f"{answer.status_code}, not a JSON object: {head_of(answer)}")
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
    """Whether a request that was refused with this status may be answered later."""
    return status in _AGAIN or (status >= 500 and status not in _NEVER)


def _raise_for(status: int, reason: str, answer: httpx.Response, settings: EndpointSettings) -> None:
    if is_passing(status):
        raise Again(reason, _asked_to_wait(answer))
    refuse(settings, status, reason, answer)
    raise Refused(reason, is_too_long=status == 413)


def refuse(settings: EndpointSettings, status: int, reason: str, answer: httpx.Response) -> None:
    """Raise the errors that end a run: the endpoint does not accept a key, an address or a name.

    Raises:
        ConfigError: names the key of the config.
    """
    says = f"{settings.base_url} says {reason}"
    if status in {401, 403}:
        advice = (
            f"check the key in {settings.api_key_env}" if settings.api_key_env else "name the variable with the key"
        )
        raise ConfigError(f"cluster.engines.api_key_env: {says}: {advice}")
    if status in {404, 405}:
        raise ConfigError(f"cluster.engines: {says}: check base_url, which often ends in /v1, served_model and api")
    if 300 <= status < 400:
        place = answer.headers.get("location", "")
        where = f"redirects to {gist(place, 200)}" if place else "redirects to another address"
        raise ConfigError(f"cluster.engines.base_url: {settings.base_url} {where} ({status}): give that address itself")


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
    """The message of an error, in OpenAI's shape or any other."""
    found = json_of(answer)
    if found is None:
        return gist(answer.text.strip() or answer.reason_phrase or "nothing", 200)
    error = found.get("error", found) if isinstance(found, dict) else found
    text = error.get("message") or error.get("detail") or json.dumps(error) if isinstance(error, dict) else error
    return gist(text or answer.reason_phrase, 200)


def choices_in(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The choices of an answer.

    Raises:
        Refused: the answer has no choices.
        Again: a choice reports an error.
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
        Refused: there are fewer texts than were asked for, or a choice has no text because the endpoint withheld it or gave something else.
        Again: a choice reports an error.
    """
    choices = sorted(choices_in(found), key=lambda choice: _number(choice.get("index")))
    if len(choices) < num_samples:
        given = f"gives {len(choices)} of {num_samples} samples, and none of the others"
        raise Refused(
            given,
            f"{given}: ask for one (num_samples, num_unguarded), or use an endpoint that supports n",
        )
    samples = []
    for choice in choices[:num_samples]:
        text, reason = _text_in(choice, api), choice.get("finish_reason")
        if reason == "content_filter":
            raise Refused(
                "the text was withheld (finish_reason content_filter)", "withholds its texts (content_filter)"
            )
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
    if isinstance(content, list):  # in parts, as some gateways send it
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if texts else None
    return content if isinstance(content, str) else None


def tokens_in(found: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt and of the answers. 0 if the endpoint does not report them."""
    usage = found.get("usage")
    if not isinstance(usage, dict):
        return 0, 0
    return _number(usage.get("prompt_tokens")), _number(usage.get("completion_tokens"))


def scores_in(found: Mapping[str, Any]) -> tuple[list[float | None], list[float | None]]:
    """For each token of an echoed prompt: its log-probability, and the greatest one at its place. None if it has none.

    Raises:
        Refused, Again: as in `choices_in`.
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
    """A whole number as endpoints write it. 0 if it is not a number."""
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
    """Seconds until the next try: as long as the endpoint asks for, or else longer after each try."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Again) and error.seconds is not None:
        return min(error.seconds, _MAX_WAIT_SECONDS)
    return float(wait_random_exponential(multiplier=0.5, max=_MAX_WAIT_SECONDS)(state))


def _asked_to_wait(answer: httpx.Response) -> float | None:
    """The seconds in a Retry-After header. None if it is missing or has a date."""
    text = answer.headers.get("retry-after", "")
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None
