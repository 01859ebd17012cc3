"""Checks requests and writes the engine's version of them. Pure: bytes in, bytes out, errors in OpenAI's shape.

Fields that are not listed are refused. The engine gets only fields that were tried with it, so that no request can crash it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlearn_ray.chat import PLAIN, ChatFormat, placed, with_one_lead
from unlearn_ray.serving.names import ModelName, parse_name
from unlearn_ray.serving.settings import Limits

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
_SHARED = frozenset(
    "model stream stream_options n temperature top_p max_tokens stop seed logprobs presence_penalty frequency_penalty logit_bias user "
    # vLLM's own
    "top_k min_p repetition_penalty min_tokens ignore_eos stop_token_ids include_stop_str_in_output skip_special_tokens "
    "spaces_between_special_tokens add_special_tokens request_id priority".split()
)
FIELDS: Mapping[str, frozenset[str]] = {
    CHAT: _SHARED
    | frozenset(
        "messages max_completion_tokens top_logprobs add_generation_prompt continue_final_message metadata store "
        "service_tier".split()
    ),
    COMPLETIONS: _SHARED | frozenset("prompt echo suffix best_of".split()),
}
_UNSUPPORTED = {
    "tools": "this service calls no tools",
    "tool_choice": "this service calls no tools",
    "functions": "this service calls no functions",
    "response_format": "this service gives plain text only",
    "audio": "this service gives plain text only",
    "prompt_logprobs": "use `echo` with `logprobs` on /v1/completions",
}
# Values beyond the limits of vLLM's GPU sampler crash its engine. It holds 1,024 biases, 128 stop tokens including the model's own, and
# seeds of 64 bits. It computes in float32, where a smaller `top_p` is 0 and a more extreme penalty makes a logit infinite.
_MAX_BIASES = 1024
_MAX_STOPS = 64  # the engine searches for each of them at every token
_BOUNDS = {"top_p": (1e-6, 1.0), "repetition_penalty": (0.01, 100.0)}
_NEUTRAL = {"suffix": (None, ""), "best_of": (None, 1), "priority": (None, 0), "store": (None, False)}
# Values that OpenAI's clients and proxies send as defaults. They are accepted and not passed on. The same holds for null, false, and
# empty text, lists and objects in any field.
_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto", {"type": "none"}, {"type": "auto"}),  # without tools
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True,),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "length_penalty": (1, 1.0),
    "include_reasoning": (True,),
    "best_of": (1,),
    "thinking": ({"type": "disabled"},),
    "reasoning": ({"effort": "none"}, {"enabled": False}),
    "chat_template_kwargs": ({"enable_thinking": False}, {"thinking": False}),  # as it is anyway
    "typical_p": (1, 1.0),
    "tfs_z": (1, 1.0),
    "top_a": (0, 0.0),
    "mirostat": (0,),
}
# Fields of a client's own bookkeeping: accepted and not passed on.
_LABELS = frozenset(
    "safety_identifier prompt_cache_key prompt_cache_retention id session_id chat_id user_id keep_alive".split()
)
_WHOLE = ("n", "max_tokens", "max_completion_tokens", "min_tokens", "seed", "top_k", "top_logprobs")


class Refusal(Exception):
    """The reason that a request is refused: an HTTP status and OpenAI's error object."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    @property
    def body(self) -> dict[str, Any]:
        return error_body(self.status, self.message, self.code, self.param)


def error_body(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "code": code, "param": param}}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that passed the first checks."""

    path: str
    values: dict[str, Any]
    name: ModelName

    @property
    def is_stream(self) -> bool:
        return bool(self.values.get("stream"))

    @property
    def wants_usage(self) -> bool:
        return bool((self.values.get("stream_options") or {}).get("include_usage"))


def read_request(path: str, body: bytes, limits: Limits) -> Asked:
    """Parse a body, and check everything that needs no engine.

    Raises:
        Refusal: 400 for bad JSON, an unknown field or a value out of bounds; 404 for a name that no model can have.
    """
    try:
        values = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not valid JSON: {error}", "invalid_json") from error
    if not isinstance(values, dict):
        raise Refusal(400, "the body must be a JSON object", "invalid_json")
    values = _plainly(values)
    for field in values:
        if field not in FIELDS[path]:
            reason = _UNSUPPORTED.get(field, "unknown to this service")
            if _asks_nothing(field, values[field]):
                continue
            raise Refusal(400, f"`{field}` is not supported: {reason}", "unsupported_parameter", field)
    for field, neutral in _NEUTRAL.items():
        if values.get(field) not in neutral:
            raise Refusal(400, f"`{field}` is not supported", "unsupported_parameter", field)
    model = values.get("model")
    if not isinstance(model, str) or not model:
        raise Refusal(400, "`model` is missing: GET /v1/models lists the models", "missing_model", "model")
    name = parse_name(model)
    if name is None:
        raise unknown_model(model)
    _check_numbers(values, limits)
    options = values.get("stream_options")
    if options not in (None, {}, {"include_usage": False}) and (
        not isinstance(options, dict) or not values.get("stream")
    ):
        raise Refusal(
            400, "`stream_options` is an object that goes with `stream`: true", "invalid_value", "stream_options"
        )
    kept = {key: value for key, value in values.items() if key in FIELDS[path] and value is not None}
    for field in ("stop", "stream_options"):
        if not kept.get(field) or (field == "stream_options" and not kept.get("stream")):
            kept.pop(field, None)
    if isinstance(kept.get("messages"), list):
        kept["messages"] = [_said(message) for message in kept["messages"]]
    return Asked(path, kept, name)


def _plainly(values: dict[str, Any]) -> dict[str, Any]:
    """The same request as OpenAI's own clients would write it."""
    found = dict(values)
    for field in _WHOLE:
        value = found.get(field)
        if isinstance(value, float) and value.is_integer():
            found[field] = int(value)
    for field in ("max_tokens", "max_completion_tokens"):
        if found.get(field) == -1:  # means no limit, so only the service's limit holds
            del found[field]
    if found.get("top_p") == 0 and not isinstance(found["top_p"], bool):
        found["top_p"] = _BOUNDS["top_p"][0]
    if any(found.get("tool_choice") == each for each in ("none", {"type": "none"})):
        found.pop("tools", None)
    form = found.get("response_format")
    if isinstance(form, dict):
        found["response_format"] = {key: value for key, value in form.items() if value is not None}
    return found


def _asks_nothing(field: str, value: Any) -> bool:
    is_empty = value is None or value is False or (isinstance(value, str | list | dict) and not value)
    return is_empty or field in _LABELS or any(value == each for each in _NOTHING.get(field, ()))


def _said(message: Any) -> Any:
    """A message without its empty fields. Clients send answers back with all their fields, such as `refusal: null`."""
    if not isinstance(message, dict):
        return message
    said = {key: value for key, value in message.items() if key == "content" or value not in (None, [], {})}
    return said | {"role": "system"} if said.get("role") == "developer" else said  # OpenAI's newer name for that role


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")


def unknown_model(name: str) -> Refusal:
    shown = name if len(name) <= 80 else name[:80] + "..."
    return Refusal(
        404, f"the model {shown!r} does not exist: GET /v1/models lists those that do", "model_not_found", "model"
    )


def _check_numbers(values: Mapping[str, Any], limits: Limits) -> None:
    most = {
        "n": limits.max_choices,
        "max_tokens": limits.max_output_tokens,
        "max_completion_tokens": limits.max_output_tokens,
        "min_tokens": limits.max_output_tokens,
    }
    for field, limit in most.items():
        value = values.get(field)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < (0 if field == "min_tokens" else 1):
            raise Refusal(400, f"`{field}` must be a whole number of at least 1", "invalid_value", field)
        if value > limit:
            raise Refusal(400, f"`{field}` is {value}: this service allows at most {limit}", "limit_exceeded", field)
    num_choices = values.get("n") or 1
    for field, end in (("seed", 2**63 - num_choices + 1), ("top_k", 2**63)):  # answer i of a request uses seed + i
        number = values.get(field)
        if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
            raise Refusal(400, f"`{field}` must be a whole number", "invalid_value", field)
        if number is not None and not -(2**63) <= number < end:
            raise Refusal(400, f"`{field}` must be at least -2**63 and below {end}", "invalid_value", field)
    for field, (least, greatest) in _BOUNDS.items():
        value = values.get(field)
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= greatest:
            raise Refusal(400, f"`{field}` must be a number from {least:g} to {greatest:g}", "invalid_value", field)
    prompt = values.get("prompt")
    held = {"stop": _MAX_STOPS, "stop_token_ids": _MAX_STOPS, "logit_bias": _MAX_BIASES}
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):  # a list of ints is one prompt of tokens
        held["prompt"] = limits.max_prompts
    for field, limit in held.items():
        value = values.get(field)
        if isinstance(value, list | dict) and len(value) > limit:
            raise Refusal(
                400, f"`{field}` holds {len(value)}: this service allows at most {limit}", "limit_exceeded", field
            )


def put_to_engine(asked: Asked, model: str, prefix: str = "", chat: ChatFormat = PLAIN) -> bytes:
    """The body for vLLM, with vLLM's name for the model and, in guarded mode, the guardrail.

    Args:
        chat: the model's chat format. It fills in what the client leaves open, as in a run, so that service and run answer alike.

    Raises:
        Refusal: 400 if a guarded request has no messages, or a text is not valid Unicode.
    """
    values = {**chat.sampling, **asked.values, "model": model}
    if chat.stop_token_ids and not values.get("ignore_eos"):
        stops = values.get("stop_token_ids")
        if stops is None or isinstance(stops, list):  # vLLM refuses any other value itself
            values["stop_token_ids"] = [*dict.fromkeys([*(stops or ()), *chat.stop_token_ids])]
    if asked.path == CHAT and chat.template_arguments:
        values["chat_template_kwargs"] = dict(chat.template_arguments)
    if prefix:
        if asked.path != CHAT:
            raise Refusal(
                400, "guarded models answer chats only: POST /v1/chat/completions", "unsupported_endpoint", "model"
            )
        values["messages"] = guarded(values.get("messages"), prefix)
    if asked.path == CHAT and isinstance(values.get("messages"), list):
        values["messages"] = placed(values["messages"], chat)
    if asked.is_stream:
        # The last event then has the token counts for the metrics. The gate removes it if the client did not ask for it.
        values["stream_options"] = {**(values.get("stream_options") or {}), "include_usage": True}
    try:
        return json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Refusal(
            400, "the body holds half of a surrogate pair, which no valid text has", "invalid_json"
        ) from error


def guarded(messages: Any, prefix: str) -> list[Any]:
    """The messages with the guardrail as their system message, or at the start of it.

    Raises:
        Refusal: 400: `messages` is empty or not a list.
    """
    if not isinstance(messages, list) or not messages:
        raise Refusal(400, "`messages` must be a list with at least one message", "invalid_value", "messages")
    return with_one_lead([{"role": "system", "content": prefix}, *messages])
