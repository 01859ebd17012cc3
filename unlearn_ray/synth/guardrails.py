"""The texts around a question: the guardrail, a system message that keeps the model from its knowledge, and the request for a length."""

from collections.abc import Sequence

from unlearn_ray.config import AnswersConfig, RunConfig, Topic
from unlearn_ray.errors import ConfigError
from unlearn_ray.synth.instructions import Instruction, instruction_of
from unlearn_ray.synth.prompts import check_template, load_prompts


def guardrail_prefixes(config: AnswersConfig, topics: Sequence[Topic]) -> dict[str, str]:
    """The system message per topic, by the topic's name.

    Raises:
        ConfigError: the custom prefix has a placeholder other than {topic}.
        InputError: the prompts file can't be used.
    """
    template = _template(config)
    return {topic.name: template.format(topic=topic.name) for topic in topics}


def guardrails_of(config: RunConfig, topics: Sequence[Topic]) -> dict[str, str]:
    """The same for a run's topics, each with its own config."""
    prefixes = (guardrail_prefixes(config.of_topic(topic).answers, [topic]) for topic in topics)
    return {name: text for found in prefixes for name, text in found.items()}


def _template(config: AnswersConfig) -> str:
    if config.prefix is not None:
        try:
            check_template(config.prefix, ("topic",), {"topic"})
        except ValueError as error:
            raise ConfigError(f"answers.prefix: {error}") from error
        return config.prefix
    assert config.guardrail != "custom", "a custom guardrail has a prefix: the config checks it"
    return load_prompts(config.prompts).guardrails[config.guardrail]


def style_of(config: AnswersConfig) -> str:
    """The template around a question while the data are made. It requests the style of an answer.

    Raises:
        InputError: the prompts file can't be used.
    """
    return load_prompts(config.prompts).styles[config.style]


def instruction_of_answers(config: AnswersConfig) -> Instruction:
    """The instruction that a guarded answer must not talk about. Without a prefix for refusals or a user's prefix: these may contain words
    that the answers should say."""
    prefix = [_template(config)] if config.guardrail in ("fictional", "discourage") else []
    return instruction_of([*prefix, style_of(config)])
