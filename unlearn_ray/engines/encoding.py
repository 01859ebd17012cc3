"""Encodes a request for a model: token ids and sampling. Our own vLLM engines and endpoints of others get the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unlearn_ray.chat import ChatFormat, num_shown, placed
from unlearn_ray.engines.protocols import Request
from unlearn_ray.errors import ModelError, gist
from unlearn_ray.rows import Message


class Encoder:
    """Turns requests into token ids in the same way as training. Not thread-safe, because its tokenizer is not."""

    def __init__(self, tokenizer: Any, chat: ChatFormat) -> None:
        self._tokenizer, self._chat = tokenizer, chat
        end = chat.end_of_turn
        self._end_ids: list[int] = list(tokenizer(end, add_special_tokens=False).input_ids) if end else []

    def num_ending(self, tokens: Sequence[int]) -> int:
        """Number of a scored answer's last tokens that end its turn."""
        return len(self._end_ids) if self._end_ids and list(tokens[-len(self._end_ids) :]) == self._end_ids else 0

    def encode(self, requests: Sequence[Request]) -> list[tuple[list[int], list[int]]]:
        """Token ids of each prompt, and of the answer to score with the end of its turn. Training learns the same tokens."""
        keys = [tuple((message["role"], message["content"]) for message in request.messages) for request in requests]
        prompts = {
            key: self._render(request.messages) for key, request in zip(keys, requests, strict=True)
        }  # each prompt once
        lead, end = self._chat.answer_lead, self._chat.end_of_turn
        wholes = [
            f"{prompts[key]}{lead}{request.score}{end}"
            for key, request in zip(keys, requests, strict=True)
            if request.score is not None
        ]
        texts = list(dict.fromkeys([*prompts.values(), *wholes]))
        ids = dict(zip(texts, self._tokenizer(texts, add_special_tokens=False).input_ids, strict=True)) if texts else {}
        encoded = []
        for key, request in zip(keys, requests, strict=True):
            prompt = ids[prompts[key]]
            if request.score is not None:
                whole = ids[f"{prompts[key]}{lead}{request.score}{end}"]
                start = num_shown(prompt, whole)
                encoded.append((whole[:start], whole[start:]))
            else:
                encoded.append((prompt, []))
        return encoded

    def _render(self, messages: Sequence[Message]) -> str:
        """The prompt up to the answer; where the last turn is the assistant's, up to the end of what it has said."""
        turns, begun = placed(messages, self._chat), ""
        if continues(messages):
            begun = f"{self._chat.answer_lead}{turns.pop()['content']}"
        text = self._tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, **dict(self._chat.template_arguments)
        )
        return f"{text}{begun}"


def continues(messages: Sequence[Message]) -> bool:
    """Whether an answer goes on with what stands in the assistant's turn, as if the model had begun so itself."""
    return bool(messages) and messages[-1]["role"] == "assistant"


def sampling_values(request: Request, chat: ChatFormat) -> dict[str, Any]:
    """A request's sampling parameters, with vLLM's names."""
    is_greedy = request.temperature == 0.0
    # The model's own defaults fill in what a request leaves open, as in the service: a penalty changes greedy answers too.
    own = {key: value for key, value in chat.sampling.items() if key not in ("temperature", "top_p")}
    own |= {
        key: value for key in ("top_k", "min_p", "repetition_penalty") if (value := getattr(request, key)) is not None
    }
    return {
        **own,
        "stop_token_ids": list(chat.stop_token_ids),
        "n": 1 if is_greedy else request.num_samples,
        "temperature": request.temperature,
        "top_p": 1.0 if is_greedy else request.top_p,
        "max_tokens": request.max_tokens,
        "seed": None if is_greedy else request.seed,
    }


def tokenizer_of(model: str) -> Any:
    """The model's tokenizer. A second one beside vLLM's, which another thread uses. Loaded first, because most faults of a model show here."""
    if Path(model).is_absolute() and not Path(model).is_dir():  # checked before the import, which takes seconds
        raise ModelError(f"{model} is not on this machine: give a folder that every node has, or a name on the hub")
    from transformers import AutoConfig

    from unlearn_ray.train.chat import read_tokenizer

    try:
        AutoConfig.from_pretrained(model)
        tokenizer = read_tokenizer(model)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{model} can't be loaded as a language model: {gist(error)}") from error
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(f"{model} has no chat template: use an instruction-tuned model")
    return tokenizer
