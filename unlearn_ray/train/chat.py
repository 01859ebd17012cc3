"""A model's own chat format: what it is asked, and which tokens of the answer are learnt."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from unlearn_ray.chat import ChatFormat, num_shown
from unlearn_ray.errors import ModelError, gist
from unlearn_ray.rows import Example
from unlearn_ray.train.modelfiles import is_offline


@dataclass(frozen=True, slots=True)
class Encoded:
    """A chat as token ids. Learnt are those from `start` on: the answer and the end of its turn."""

    ids: list[int]
    start: int
    is_cut: bool = False  # the answer was longer than max_tokens allows

    @property
    def num_answer_tokens(self) -> int:
        return len(self.ids) - self.start


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a chat model, from a folder or the hub.

    Raises:
        ModelError: the model isn't there, is no causal language model, or has no chat template.
    """
    check_architecture(model)
    try:
        tokenizer = read_tokenizer(model, trust_remote_code=False, local_files_only=is_offline(model))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"model {model} has no tokenizer that can be loaded: {gist(error)}") from error
    if not tokenizer.chat_template:
        raise ModelError(f"model {model} has no chat template: use its instruct or chat variant")
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model {model} has no end-of-sequence token, so no answer could ever end")
    return tokenizer


def read_tokenizer(model: str, **options: Any) -> PreTrainedTokenizerBase:
    """A model's tokenizer as its tokenizer.json and chat template say, whatever lies beside them.

    Where there is a tekken.json, transformers would hand chats to mistral-common: it knows no template, and in a text that it renders
    `[INST]` is six letters, no token.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model, mistral_format=False, **options)
    return tokenizer


class ChatEncoder:
    """Encodes examples as a model is asked and answers.

    The chat is rendered up to where an answer is asked for; the answer and the end of its turn follow. So what is learnt follows
    exactly the tokens that the model is shown when it is asked, whatever its template makes of a finished answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, max_tokens: int) -> None:
        self._tokenizer, self._chat = tokenizer, chat
        self._max_tokens = max_tokens

    def encode(self, examples: Sequence[Example]) -> list[Encoded | None]:
        """Token ids of each example; None where the question alone takes all of max_tokens."""
        if not examples:
            return []
        asked = [self._render(list(example.messages[:-1])) for example in examples]
        lead, end = self._chat.answer_lead, self._chat.end_of_turn
        prompts = self._ids(asked)
        wholes = self._ids([f"{a}{lead}{e.answer.strip()}{end}" for a, e in zip(asked, examples, strict=True)])
        return [self._encoded(prompt, whole) for prompt, whole in zip(prompts, wholes, strict=True)]

    def _render(self, messages: list[Any]) -> str:
        text = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **dict(self._chat.template_arguments)
        )
        return str(text)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        # The template has written the special tokens already.
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=False).input_ids
        return ids

    def _encoded(self, prompt: list[int], whole: list[int]) -> Encoded | None:
        start = num_shown(prompt, whole)
        is_cut = len(whole) > self._max_tokens
        ids = whole[: self._max_tokens]
        return Encoded(ids, start, is_cut) if 0 < start < len(ids) else None


def check_architecture(model: str) -> None:
    is_path = model.startswith(("/", ".", "~")) or model.count("/") > 1
    if is_path and not Path(model).is_dir():
        raise ModelError(f"model {model} is not there: give a model folder, or a name on the Hugging Face hub")
    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise ModelError(f"model {model} is not a model folder: it has no config.json")
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False, local_files_only=is_offline(model))
    except Exception as error:  # transformers and the hub's library have classes of their own
        raise ModelError(f"model {model} can't be loaded: {gist(error)}") from error
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, ())
    known = (known,) if isinstance(known, str) else tuple(known)
    # A type such as BERT's has a causal class too: what counts is the class whose weights are there.
    if any(name not in known and not name.endswith("ForCausalLM") for name in config.architectures or ()) or not known:
        found = ", ".join(config.architectures or ()) or config.model_type
        raise ModelError(f"model {model} is no causal language model ({found}): only those can be unlearned")
