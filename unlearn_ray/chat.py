"""The chat format of a model: one record, read once from the model's files, and used by data, training, evaluation and service.

Pure. `train/inspection.py` makes the record; engines and the service's gate apply it. No other code decides any of this.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, Literal, TypedDict, cast

from pydantic import BaseModel, ConfigDict

from unlearn_ray.config import Sampling
from unlearn_ray.words import closes_thought

# Values that a model may recommend in its generation_config.json: a sampler's least and greatest, and the neutral value.
SAMPLING: Mapping[str, tuple[float, float, tuple[float, ...]]] = {
    "temperature": (0.0, 100.0, ()),
    "top_p": (1e-6, 1.0, ()),
    "top_k": (1, 2**31, (0, -1)),
    "min_p": (0.0, 1.0, (0,)),
    "repetition_penalty": (0.01, 100.0, (1,)),
}


class ChatFormat(BaseModel):
    """The facts about chats in a model's template, tokenizer and generation config."""

    model_config = ConfigDict(frozen=True)

    prefix_role: Literal["system", "user"] = "system"  # the turn that begins with the guardrail prefix
    template_arguments: Mapping[str, Any] = {}  # for the chat template, such as {"enable_thinking": False}
    answer_lead: str = ""  # text of the template between a prompt and its answer, such as a space
    opens_thought: bool = False  # whether a prompt ends with a `<think>` that can't be switched off
    end_of_turn: str = ""  # text of the token that ends an answer, and is learnt with it
    stop_token_ids: tuple[int, ...] = ()  # each of them ends an answer
    pad_token_id: int = 0
    sampling: Mapping[str, int | float] = {}  # the model's own defaults, with SAMPLING's keys


PLAIN = ChatFormat()  # a template that shows system messages, without any other setting
# The sampling if neither the config nor the model sets it: at temperature 1 a small chat model writes word salad.
SILENT: Mapping[str, float] = {"temperature": 0.7, "top_p": 0.95}


class Drawn(TypedDict, total=False):
    """Sampling parameters, with SAMPLING's keys."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float


def sampling_of(section: Sampling, chat: ChatFormat) -> Drawn:
    """The sampling of a stage: from its section, else from the model's generation config, else from SILENT."""
    said = {name: value for name in SAMPLING if (value := getattr(section, name)) is not None}
    return cast(Drawn, {**SILENT, **chat.sampling, **said})


def placed(messages: Sequence[Any], chat: ChatFormat) -> list[Any]:
    """The messages in the form that the model's template accepts. If it accepts no system message, its text begins the user's turn.

    Args:
        messages: in OpenAI's shape. A content is a text, or a list of parts.
    """
    if chat.prefix_role == "system" or not _is(messages[0] if messages else None, "system"):
        return list(messages)
    first, *rest = with_one_lead(messages)
    if rest and _is(rest[0], "user"):
        return [{**rest[0], "content": led_by(first.get("content"), rest[0].get("content"))}, *rest[1:]]
    return [{**first, "role": "user"}, *rest]


def with_one_lead(messages: Sequence[Any]) -> list[Any]:
    """The messages, with all system messages at their beginning joined into one."""
    leading = list(takewhile(lambda each: _is(each, "system"), messages))
    if len(leading) < 2:
        return list(messages)
    content = leading[0].get("content")
    for each in leading[1:]:
        content = led_by(content, each.get("content"))
    return [{**leading[0], "content": content}, *messages[len(leading) :]]


def _is(message: Any, role: str) -> bool:
    return isinstance(message, Mapping) and message.get("role") == role


def num_shown(prompt: Sequence[int], whole: Sequence[int]) -> int:
    """The index at which an answer begins in the token ids of prompt and answer. The common tokens are shown; the rest is learnt and scored.

    Prompt and whole are tokenised separately. A tokenizer may join the prompt's last letter to the answer's first, or encode the beginning
    of a text differently.
    """
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))


def led_by(prefix: Any, content: Any) -> Any:
    """The content of a message with another content before it. Two texts become two paragraphs. Empty content adds nothing."""
    if not prefix or not content:
        return content or prefix or ""
    if isinstance(prefix, str) and isinstance(content, str):
        return f"{prefix}\n\n{content}"
    return [*_parts(prefix), *_parts(content)]


def _parts(content: Any) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return list(content) if isinstance(content, list | tuple) else []


def spoken(text: str, chat: ChatFormat) -> str:
    """A sampled answer, with its thoughts. Empty if the prompt opened a thought that the answer never closes."""
    return "" if chat.opens_thought and not closes_thought(text) else text
