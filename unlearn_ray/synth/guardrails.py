"""What is put to the model around a question: the guardrail, a system message that keeps it from what it knows, and the wish for a length."""

from collections.abc import Sequence

from unlearn_ray.config import AnswersConfig, RunConfig, Topic
from unlearn_ray.errors import ConfigError
from unlearn_ray.synth.instructions import Instruction, instruction_of
from unlearn_ray.synth.prompts import check_template, load_prompts


def guardrail_prefixes(config: AnswersConfig, topics: Sequence[Topic]) -> dict[str, str]:
    """The system message of each topic, by the topic's name.

    Raises:
        ConfigError: the custom prefix has a placeholder other than {topic}.
        InputError: the prompts file can't be used.
    """
    template = _template(config)
    return {topic.name: template.format(topic=topic.name) for topic in topics}


def guardrails_of(config: RunConfig, topics: Sequence[Topic]) -> dict[str, str]:
    """The same for a run's topics, each with keys of its own."""
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
    """The template that a question is put into while the data are made: what an answer should be like.

    Raises:
        InputError: the prompts file can't be used.
    """
    return load_prompts(config.prompts).styles[config.style]


def instruction_of_answers(config: AnswersConfig) -> Instruction:
    """What a guarded answer must not talk about. A prefix that asks for refusals, or one of the user's, may hold words that it wants said."""
    prefix = [_template(config)] if config.guardrail in ("fictional", "discourage") else []
    return instruction_of([*prefix, style_of(config)])
