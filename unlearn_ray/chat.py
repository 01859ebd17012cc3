"""How a chat model is talked to: one record, found once in the model's files, that data, training, evaluation and service all read.

Pure: `train/inspection.py` finds it, engines and the service's gate apply it, and nobody decides any of it a second time.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, Literal, TypedDict, cast

from pydantic import BaseModel, ConfigDict

from unlearn_ray.config import Sampling
from unlearn_ray.words import closes_thought

# What a model may recommend in its generation_config.json: the least and the most that a sampler takes, and what changes nothing.
SAMPLING: Mapping[str, tuple[float, float, tuple[float, ...]]] = {
    "temperature": (0.0, 100.0, ()),
    "top_p": (1e-6, 1.0, ()),
    "top_k": (1, 2**31, (0, -1)),
    "min_p": (0.0, 1.0, (0,)),
    "repetition_penalty": (0.01, 100.0, (1,)),
}


class ChatFormat(BaseModel):
    """What a model's template, tokenizer and generation config say about a chat."""

    model_config = ConfigDict(frozen=True)

    prefix_role: Literal["system", "user"] = "system"  # whose turn a guardrail prefix leads
    template_arguments: Mapping[str, Any] = {}  # handed to the chat template, such as {"enable_thinking": False}
    answer_lead: str = ""  # what the template writes between a prompt and its answer, such as a space
    opens_thought: bool = False  # whether a prompt ends with a `<think>` that nothing switches off
    end_of_turn: str = ""  # what ends an answer, and is learnt with it: a token's text
    stop_token_ids: tuple[int, ...] = ()  # each ends an answer
    pad_token_id: int = 0
    sampling: Mapping[str, int | float] = {}  # the model's own defaults, of SAMPLING's keys


PLAIN = ChatFormat()  # a template that shows system messages, and nothing else to say
# Where neither the config nor the model says how to sample: a small chat model writes word salad at temperature 1.
SILENT: Mapping[str, float] = {"temperature": 0.7, "top_p": 0.95}


class Drawn(TypedDict, total=False):
    """How texts are drawn: keys of SAMPLING."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float


def sampling_of(section: Sampling, chat: ChatFormat) -> Drawn:
    """How a stage samples: what its section says, then the model's generation config, then SILENT."""
    said = {name: value for name in SAMPLING if (value := getattr(section, name)) is not None}
    return cast(Drawn, {**SILENT, **chat.sampling, **said})


def placed(messages: Sequence[Any], chat: ChatFormat) -> list[Any]:
    """The messages as the model's template takes them: where it takes no system message, what leads the chat leads the user's turn.

    Args:
        messages: in OpenAI's shape; a content is a text, or a list of parts.
    """
    if chat.prefix_role == "system" or not _is(messages[0] if messages else None, "system"):
        return list(messages)
    first, *rest = with_one_lead(messages)
    if rest and _is(rest[0], "user"):
        return [{**rest[0], "content": led_by(first.get("content"), rest[0].get("content"))}, *rest[1:]]
    return [{**first, "role": "user"}, *rest]


def with_one_lead(messages: Sequence[Any]) -> list[Any]:
    """The messages with the system messages that lead them as one."""
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
    """Where an answer begins in the token ids of a prompt with it: what both have is shown, the rest is learnt, and scored.

    Both are tokenised as they stand: a tokenizer may join the prompt's last letter to the answer's first, or begin a text otherwise than
    it goes on.
    """
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))


def led_by(prefix: Any, content: Any) -> Any:
    """The content of a message with another content before it. Two texts are a paragraph each; what is empty adds nothing."""
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
    """A sampled answer, thoughts and all; nothing where the prompt opened a thought that the answer never closes."""
    return "" if chat.opens_thought and not closes_thought(text) else text
