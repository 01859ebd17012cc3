"""Asks the candidates for probes: first for greedy short answers in several wordings, then for sampled ones and one in a sentence."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unlearn_ray.chat import Drawn
from unlearn_ray.engines.protocols import Reply, Request, RowDict
from unlearn_ray.rows import Message, seed_of
from unlearn_ray.stages.asking import texts_of
from unlearn_ray.synth.known import Replied

SHORT_TOKENS, SENTENCE_TOKENS = 24, 60


@dataclass(frozen=True, slots=True)
class ShortAsking:
    """Asks a row of Candidate for a short answer in each wording, greedy."""

    wordings: tuple[str, ...]

    def __call__(self, row: RowDict) -> list[Request]:
        return [Request(_asked(wording, row), max_tokens=SHORT_TOKENS) for wording in self.wordings]

    def parse(self, row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
        """A row of Replied."""
        return [_replied(row, replies).to_dict()]


@dataclass(frozen=True, slots=True)
class FurtherAsking:
    """Asks a row of Replied again if its greedy answers agree: for sampled answers to each wording, and a greedy one in a sentence."""

    wordings: tuple[str, ...]
    sentence: str
    num_samples: int
    sampling: Drawn
    seed: int

    def __call__(self, row: RowDict) -> list[Request]:
        requests = [Request(_asked(self.sentence, row), max_tokens=SENTENCE_TOKENS)]
        if not self.num_samples:
            return requests
        return requests + [
            Request(
                _asked(wording, row),
                seed_of(self.seed, row["id"], "short", place),
                self.num_samples,
                max_tokens=SHORT_TOKENS,
                **self.sampling,
            )
            for place, wording in enumerate(self.wordings)
        ]

    def parse(self, row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
        sentence, *drawn = replies
        text, _ = next(iter(texts_of(sentence)), ("", True))
        replied = _replied(row, drawn)
        return [replace(replied, sentence=text, error=replied.error or sentence.error).to_dict()]


def _asked(wording: str, row: RowDict) -> list[Message]:
    return [{"role": "user", "content": wording.format(question=row["question"])}]


def _replied(row: RowDict, replies: Sequence[Reply]) -> Replied:
    """The row with these replies added."""
    texts = [sample for reply in replies for sample in texts_of(reply)]
    said = (*(row.get("replies") or ()), *(text for text, _ in texts))
    truncated = (*(row.get("truncated") or ()), *(is_truncated for _, is_truncated in texts))
    error = next((reply.error for reply in replies if reply.error), None)
    return Replied.of(row | {"near": tuple(row["near"] or ()), "replies": said, "truncated": truncated, "error": error})
