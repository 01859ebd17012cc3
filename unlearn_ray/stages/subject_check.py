"""Decides which subject a question is about: the subject whose request makes the question the most probable reply.

For a question q and a request r(s) for a question about a subject s,

    score(s) = log P(q | r(s)) / number of tokens of q,

q is about s if score(s) is larger than the score of every rival, and of a request for a question about nothing in particular.
Small models answer every yes-or-no question with no (or yes), but these scores distinguish subjects. A score costs a prompt, and no text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.synth.prompts import Prompts


@dataclass(frozen=True, slots=True)
class Compared:
    """Scores of one question, natural logarithms per token."""

    own: float
    rival: float  # the largest score of the rivals; -inf without rivals
    anything: float

    @property
    def is_own(self) -> bool:
        return self.own > max(self.rival, self.anything)

    @property
    def is_rivals(self) -> bool:
        return self.rival >= max(self.own, self.anything)


@dataclass(frozen=True, slots=True)
class SubjectCheck:
    """The requests under which a question is scored as a reply."""

    about: str  # a request for a question about {topic}
    about_anything: str

    @classmethod
    def of(cls, prompts: Prompts) -> "SubjectCheck | None":
        """The check in the prompts' wording. None if they have no wording for it."""
        if prompts.question_about is None or prompts.question_about_anything is None:
            return None
        return cls(prompts.question_about, prompts.question_about_anything)

    def requests(self, question: str, subject: str, rivals: Sequence[str]) -> list[Request]:
        """The requests to the engine. `compare` reads the replies."""
        asked = [self.about_anything, *(self.about.format(topic=name) for name in (subject, *rivals))]
        return [Request([{"role": "user", "content": each}], score=question) for each in asked]

    def compare(self, replies: Sequence[Reply]) -> Compared:
        """The scores in replies without an error, in the order of `requests`."""
        anything, own, *rivals = (
            sum(reply.logprobs) / len(reply.logprobs) if reply.logprobs else -math.inf for reply in replies
        )
        return Compared(own, max(rivals, default=-math.inf), anything)
