"""Judges guarded answers: by the rules of `synth.leaks`, and, on request, by asking the model about the answers that they keep."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unlearn_ray.config import AnswersConfig, Topic
from unlearn_ray.engines.protocols import Reply, Request, RowDict
from unlearn_ray.errors import ConfigError
from unlearn_ray.rows import Drop
from unlearn_ray.stages.answering import Replied
from unlearn_ray.synth.guardrails import instruction_of_answers
from unlearn_ray.synth.leaks import Evidence, Rules, judge
from unlearn_ray.synth.parsing import verdict_of
from unlearn_ray.synth.prompts import Prompts
from unlearn_ray.synth.terms import Vocabulary
from unlearn_ray.words import fold

VERDICT_TOKENS = 16


class Judge:
    """Gives the reason to drop a guarded answer. Needs all answers of the first attempt, because a term that guarded answers keep is not a leak."""

    def __init__(self, config: AnswersConfig, topics: Sequence[Topic], vocabulary: Vocabulary) -> None:
        self._config = config
        max_overlap = config.max_overlap if config.filter_leaks else None
        self._rules = Rules(config.guardrail, max_overlap, instruction_of_answers(config))
        self._everywhere = {topic.name: (*topic.terms, *vocabulary.topic_names(topic.name)) for topic in topics}
        self._framing = {
            topic.name: {
                word: mostly
                for word, mostly in vocabulary.framing(topic.name).items()
                if word not in map(fold, topic.terms)
            }
            for topic in topics
        }

    def __call__(self, row: Replied) -> list[Drop | None]:
        evidence = None
        if self._config.filter_leaks:
            everywhere, framing = self._everywhere[row.topic], self._framing[row.topic]
            evidence = Evidence(row.terms, row.known, everywhere, framing, row.plain)
        return judge(row.whole, row.question, row.told, evidence, self._rules)


@dataclass(frozen=True, slots=True)
class LeakJudge:
    """Asks the model, for each answer that the rules keep, whether it gives away the content of the model's own answer."""

    template: str

    def __call__(self, row: RowDict) -> list[Request]:
        replied = Replied.of(row)
        return [
            Request([{"role": "user", "content": self._asked(replied, answer)}], max_tokens=VERDICT_TOKENS)
            for answer, drop in zip(replied.whole, replied.drops, strict=True)
            if drop is None
        ]

    def parse(self, row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
        replied, verdicts = Replied.of(row), iter(replies)
        drops = tuple(drop or verdict_on(next(verdicts)) for drop in replied.drops)
        return [replace(replied, drops=drops).to_dict()]

    def _asked(self, row: Replied, answer: str) -> str:
        truth = row.told[0] if row.told else ""
        return self.template.format(topic=row.topic, question=row.question, truth=truth, answer=answer)


def verdict_on(reply: Reply) -> str | None:
    """The reason to drop an answer after the judge's reply. Every reply except no is one."""
    if reply.error:
        return reply.error
    says_yes = verdict_of("".join(reply.texts))
    return None if says_yes is False else Drop.JUDGED.value


def leak_judge_of(config: AnswersConfig, prompts: Prompts) -> LeakJudge | None:
    """The judge, if the config requests it.

    Raises:
        ConfigError: the prompts have no template for it.
    """
    if not config.judge_leaks:
        return None
    if prompts.leak_judge is None:
        raise ConfigError(
            "answers.judge_leaks: the prompts' leak_judge is null, this model can't judge: set it to false, or give a leak_judge"
        )
    return LeakJudge(prompts.leak_judge)
