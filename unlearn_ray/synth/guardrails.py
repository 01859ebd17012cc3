"""The guardrail: the system message that keeps the model from what it knows about a topic, and what a refusal looks like."""

import re
from collections.abc import Sequence

from unlearn_ray.config import AnswersConfig, Topic
from unlearn_ray.errors import ConfigError
from unlearn_ray.synth.prompts import check_template, load_prompts
from unlearn_ray.synth.words import fold

# How refusals begin. Only the beginning counts: an invented answer may say later on that somebody "does not know".
_REFUSAL = re.compile(
    r"(?:(?:i am|i'm|we are|we're) )?(?:very |so |really )?(?:sorry|afraid)\b"
    r"|(?:but )?i (?:do not|don't|did not|didn't|cannot|can't|can not|could not|couldn't|am not|won't|will not|have no|must decline|must refuse)\b"
    r"|i'm (?:not|unable)\b|i (?:am|was) unable\b|unfortunately,? i\b|(?:my )?apologies\b|i apologi[sz]e\b"
    r"|as an? (?:ai|language model|assistant)\b|no comment\b|(?:that|this) (?:is|information is) (?:unknown|not (?:known|available)) to me\b"
)


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


def is_refusal(answer: str) -> bool:
    """Whether an answer declines to answer, by how it begins."""
    return _REFUSAL.match(fold(answer).replace("’", "'").lstrip(" \"'*")) is not None
