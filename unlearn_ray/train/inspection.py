"""One look at a model's files before anything is spent: how it is talked to, what it holds, what LoRA reaches.

Seconds, no engine and no weights: files are read as they are, and transformers' model classes (torch, six seconds) are imported
only for a model out of the ordinary. What can be adapted to is, and a note says so; the rest is one line.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearn_ray.chat import SAMPLING, ChatFormat, placed
from unlearn_ray.config import ChatConfig
from unlearn_ray.errors import ConfigError, ModelError, gist
from unlearn_ray.rows import Message
from unlearn_ray.train.modelfiles import ModelFiles, open_model
from unlearn_ray.train.tokens import Tokens, tokens_of
from unlearn_ray.words import closing_of_thought

# Texts that no template has: where they come out again, and where not, tells what it does with a chat.
_PREFIX, _QUESTION, _ANSWER = "Prefix mark 7c1e.", "Question mark 4f2a?", "Answer mark 9e3b."
# Switches of thinking, by the names that templates give them (Qwen3, SmolLM3, GLM: the first; DeepSeek V3.1, Granite: the second).
_THINKING_SWITCHES = ("enable_thinking", "thinking")
# The date that Llama 3's template writes where none is given; later ones write today's, which would make each day another model.
# What transformers' `apply_chat_template` takes itself.
_OURS = frozenset(
    "conversation messages tools documents chat_template tokenize add_generation_prompt continue_final_message padding truncation "
    "max_length return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs".split()
)
_DATE = {"date_string": "26 Jul 2024"}


@dataclass(frozen=True, slots=True)
class Inspected:
    """What the files of a model that can be unlearned tell."""

    name: str  # of the model, for messages
    chat: ChatFormat
    tokens: Tokens
    max_length: int  # tokens of prompt and answer
    linear_layers: tuple[str, ...]  # full names of what LoRA can reach: every linear layer but the output's
    notes: tuple[str, ...] = ()  # what was adapted to, for the plan

    def count_tokens(self, text: str) -> int:
        return len(self.tokens.encode(text))

    def num_asked(self, messages: Sequence[Message]) -> int:
        """Tokens of messages as they are asked.

        Raises:
            ModelError: the chat template refuses them.
        """
        try:
            text = self.tokens.render(placed(messages, self.chat), True, self.chat.template_arguments)
        except Exception as error:  # a template raises what it likes
            said = " ".join(messages[-1]["content"].split())[:60]
            raise ModelError(
                f"model {self.name}: its chat template refuses {said!r} behind a guardrail ({gist(error)})"
            ) from error
        return self.count_tokens(text)

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """The last parts of the linear layers' names, such as `q_proj`, each once."""
        return tuple(dict.fromkeys(name.rpartition(".")[2] for name in self.linear_layers))


def inspect_model(model: str, config: ChatConfig | None = None) -> Inspected:
    """Look at a model in a folder, or at a name on the hub.

    Args:
        config: what the user says of its chat format, over what the files say.

    Raises:
        ModelError: it isn't there, is no causal language model, or no chat can be put to it.
        ConfigError: what the user says of its chat format can't be.
    """
    config = config or ChatConfig()
    if ours := sorted(_OURS.intersection(config.template_arguments)):
        raise ConfigError(f"chat.template_arguments: {ours[0]} is not for a template: take it out")
    try:
        files = open_model(model)
        tokens = tokens_of(files)
        chat, notes = _chat_format(files, tokens, config)
        length = max_length_of(files.config, tokens.max_length)
        return Inspected(model, chat, tokens, length, files.linear_layers(), tuple(notes))
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        # Values of another kind than such a file ever has: which one it is, the error says.
        raise ModelError(
            f"model {model} can't be used: its files hold what none of them should ({type(error).__name__}: {gist(error)})"
        ) from error


def max_length_of(config: Mapping[str, Any], tokenizer_length: int) -> int:
    """Tokens of prompt and answer that an engine takes, as vLLM works it out.

    Args:
        config: of the model.
        tokenizer_length: what its tokenizer says, often more than the model holds.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type")
    length = config.get("max_position_embeddings") or tokenizer_length
    if rope.get("factor") and kind not in {"llama3", "longrope", "su"}:
        length = int(
            (rope.get("original_max_position_embeddings") or length) * rope["factor"]
        )  # positions are stretched
    return min(tokenizer_length, length)


def lora_targets(wanted: Sequence[str] | str, found: Inspected, model: str) -> tuple[str, ...]:
    """The layers that an adapter changes, by name, as PEFT and vLLM match them; `all-linear` is every kind there is.

    Raises:
        ConfigError: the model has none of such a name.
    """
    if isinstance(wanted, str):
        return found.layer_kinds
    missing = [name for name in wanted if not any(_is_named(layer, name) for layer in found.linear_layers)]
    if missing:
        raise ConfigError(
            f"finetune.weights.target_modules: {model} has no {', '.join(missing)}: "
            f"its linear layers are {', '.join(found.layer_kinds)}; or write all-linear"
        )
    return tuple(wanted)


def unreached(targets: Sequence[str], found: Inspected) -> tuple[str, ...]:
    """The kinds of linear layers that an adapter on these targets leaves as they are."""
    reached = {
        layer.rpartition(".")[2] for layer in found.linear_layers if any(_is_named(layer, name) for name in targets)
    }
    return tuple(kind for kind in found.layer_kinds if kind not in reached)


def _is_named(layer: str, name: str) -> bool:
    return layer == name or layer.endswith(f".{name}")


def _chat_format(files: ModelFiles, tokens: Tokens, config: ChatConfig) -> tuple[ChatFormat, list[str]]:
    arguments, notes = _template_arguments(tokens.template, config)

    def render(messages: Sequence[Message], is_asked: bool) -> str:
        return tokens.render(messages, is_asked, arguments)

    question: Message = {"role": "user", "content": _QUESTION}
    try:
        asked = render([question], True)
    except Exception as error:  # a template raises what it likes
        raise ModelError(f"model {files.name} can't be asked: its chat template fails ({gist(error)})") from error
    if _QUESTION not in asked:
        raise ModelError(f"model {files.name} can't be asked: its chat template leaves the question out")
    role, note = _prefix_role(render, config, files.name)
    lead, end, more = _answer_frame(render, question, asked, tokens)
    notes += [*note, *more]
    num_embeddings = int(files.config.get("vocab_size") or 0)
    shown = [*tokens.encode(f"{asked}{lead}{_ANSWER}{end}"), tokens.eos_id]
    if num_embeddings and max(shown) >= num_embeddings:
        raise ModelError(
            f"model {files.name}: its chats hold token {max(shown)}, its embeddings end at {num_embeddings - 1}: resize them to the tokenizer"
        )
    if num_embeddings and (token := tokens.beyond(num_embeddings)) is not None:
        raise ModelError(
            f"model {files.name}: its tokenizer has {token!r}, token {tokens.ids()[token]}, its embeddings end at {num_embeddings - 1}: resize them to the tokenizer"
        )
    pad_id = tokens.eos_id if tokens.pad_id is None else tokens.pad_id
    if num_embeddings and pad_id >= num_embeddings:
        notes.append(f"pads with the end of sequence: its padding token {pad_id} has no embedding")
        pad_id = tokens.eos_id
    stops = dict.fromkeys([*tokens.encode(end)[-1:], tokens.eos_id, *_ids(files)])
    sampling = _sampling(files)
    if beyond := {key: value for key, value in sampling.items() if key not in ("temperature", "top_p")}:
        told = ", ".join(f"{key} {value:g}" for key, value in beyond.items())
        notes.append(f"samples with the model's own {told}, as the service does")
    chat = ChatFormat(
        prefix_role=role,
        template_arguments=arguments,
        answer_lead=lead,
        opens_thought=closing_of_thought(asked) is not None,
        end_of_turn=end,
        stop_token_ids=tuple(number for number in stops if not num_embeddings or number < num_embeddings),
        pad_token_id=pad_id,
        sampling=sampling,
    )
    return chat, notes


def _template_arguments(template: str, config: ChatConfig) -> tuple[dict[str, Any], list[str]]:
    """Thinking is switched off where the template can, and the date stands still; the user's own arguments win."""
    arguments: dict[str, Any] = {name: False for name in _THINKING_SWITCHES if _uses(template, name)}
    notes = [f"thinking is switched off ({name}: false)" for name in arguments]
    if _uses(template, "strftime_now"):
        if _uses(template, "date_string"):
            arguments |= _DATE
            notes.append(
                f"its template would write today's date: {_DATE['date_string']} stands there in run and service"
            )
        else:
            notes.append("its template writes today's date: rows made on another day are asked otherwise")
    return arguments | dict(config.template_arguments), notes


def _uses(template: str, name: str) -> bool:
    """Whether a Jinja template has this name in one of its tags."""
    return re.search(rf"\{{[{{%](?:(?![%}}]\}}).)*(?<![\w.'\"]){name}(?![\w'\"])", template, re.DOTALL) is not None


def _prefix_role(
    render: Callable[[Sequence[Message], bool], str], config: ChatConfig, model: str
) -> tuple[Any, list[str]]:
    """Whose turn a guardrail leads: the system's where the template shows it, else the user's."""
    messages: list[Message] = [{"role": "system", "content": _PREFIX}, {"role": "user", "content": _QUESTION}]
    reasons = {}
    for role in ("system", "user") if config.prefix == "auto" else (config.prefix,):
        try:
            text = render(placed(messages, ChatFormat(prefix_role=role)), True)
        except Exception as error:  # a template raises what it likes
            reasons[role] = f"refuses it: {gist(error)}"
            continue
        if 0 <= text.find(_PREFIX) < text.find(_QUESTION):
            why = f"the guardrail leads the user's turn: its template takes no system message ({reasons.get('system')})"
            return role, [why] if reasons else []
        reasons[role] = "leaves it out"
    if config.prefix != "auto":
        raise ConfigError(
            f"chat.prefix: the template of {model} takes no {config.prefix} message ({reasons[config.prefix]})"
        )
    raise ModelError(f"model {model} shows no guardrail: its chat template {reasons['user']}")


def _answer_frame(
    render: Callable[[Sequence[Message], bool], str], question: Message, asked: str, tokens: Tokens
) -> tuple[str, str, list[str]]:
    """What stands before and after an answer that is learnt: a row is the prompt as it is asked, then these around the answer."""
    try:
        whole = render([question, {"role": "assistant", "content": _ANSWER}], False)
    except Exception as error:  # a template raises what it likes
        return "", tokens.eos, [f"rows end with {tokens.eos}: its template renders no answer ({gist(error)})"]
    before, found, after = whole.rpartition(_ANSWER)
    if not found:
        return "", tokens.eos, [f"rows end with {tokens.eos}: its template renders no answer"]
    end = tokens.first_of(after) or tokens.eos
    if before.startswith(asked):
        return before.removeprefix(asked), end, []
    if closing := closing_of_thought(asked):
        return (
            closing if closing.endswith("<|message|>") else f"\n{closing}\n\n",
            end,
            [
                "its template opens a thought with each answer: rows close it at once, and what the base model thinks counts against max_tokens"
            ],
        )
    if before.rstrip() == asked.rstrip():
        return "", end, []  # a space more or less
    return (
        "",
        end,
        ["its template renders a finished answer otherwise than it asks for one: rows are learnt as they are asked"],
    )


def _ids(files: ModelFiles) -> list[int]:
    """The ends of a sequence that the model names.

    Raises:
        ModelError: one is no token.
    """
    value = files.generation.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for each in ids:
        if not isinstance(each, int) or isinstance(each, bool) or each < 0:
            raise ModelError(
                f"model {files.name}: its eos_token_id is {value!r}: it must be the number of a token, or a list of them"
            )
    return ids


def _sampling(files: ModelFiles) -> dict[str, int | float]:
    """What the model recommends, without what changes nothing.

    Raises:
        ModelError: a value that no sampler takes.
    """
    found = {}
    for key, (least, most, neutral) in SAMPLING.items():
        value = files.generation.get(key)
        if value is None or value in neutral:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ModelError(
                f"model {files.name}: its generation_config.json has {key} {value!r}, which no sampler takes: correct it there"
            )
        found[key] = int(value) if key == "top_k" else value
    return found
