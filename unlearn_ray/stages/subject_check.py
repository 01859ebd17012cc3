"""Which subject a question is about: that of the request in reply to which the model would likeliest have written it.

For a question q and a request r(s) for a question about a subject s,

    score(s) = log P(q | r(s)) / number of tokens of q,

q is about s where score(s) is larger than that of every rival, and than that of a request for a question about nothing in particular.
Small models say no (or yes) to every yes-or-no question, and tell subjects apart so; a score costs a prompt and no text.
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
    rival: float  # the largest of the rivals'; -inf without any
    anything: float

    @property
    def is_own(self) -> bool:
        return self.own > max(self.rival, self.anything)

    @property
    def is_rivals(self) -> bool:
        return self.rival >= max(self.own, self.anything)


@dataclass(frozen=True, slots=True)
class SubjectCheck:
    """The requests that a question is scored in reply to."""

    about: str  # a request for a question about {topic}
    about_anything: str

    @classmethod
    def of(cls, prompts: Prompts) -> "SubjectCheck | None":
        """As the prompts word it; None where they don't."""
        if prompts.question_about is None or prompts.question_about_anything is None:
            return None
        return cls(prompts.question_about, prompts.question_about_anything)

    def requests(self, question: str, subject: str, rivals: Sequence[str]) -> list[Request]:
        """What the engine is asked; `compare` reads the replies."""
        asked = [self.about_anything, *(self.about.format(topic=name) for name in (subject, *rivals))]
        return [Request([{"role": "user", "content": each}], score=question) for each in asked]

    def compare(self, replies: Sequence[Reply]) -> Compared:
        """Of replies without an error, in the order of `requests`."""
        anything, own, *rivals = (
            sum(reply.logprobs) / len(reply.logprobs) if reply.logprobs else -math.inf for reply in replies
        )
        return Compared(own, max(rivals, default=-math.inf), anything)
