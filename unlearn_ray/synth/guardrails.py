"""The guardrail: the system message that keeps the model from what it knows about a topic."""

from collections.abc import Sequence

from unlearn_ray.config import AnswersConfig, Topic
from unlearn_ray.errors import ConfigError
from unlearn_ray.synth.prompts import check_template, load_prompts


def guardrail_prefixes(config: AnswersConfig, topics: Sequence[Topic]) -> dict[str, str]:
    """The system message of each topic, by the topic's name.

    Raises:
        ConfigError: the custom prefix has a placeholder other than {topic}.
        InputError: the prompts file can't be used.
    """
    if config.prefix is not None:
        try:
            check_template(config.prefix, ("topic",), {"topic"})
        except ValueError as error:
            raise ConfigError(f"answers.prefix: {error}") from error
        template = config.prefix
    else:
        assert config.guardrail != "custom", "a custom guardrail has a prefix: the config checks it"
        template = load_prompts(config.prompts).guardrails[config.guardrail]
    return {topic.name: template.format(topic=topic.name) for topic in topics}
