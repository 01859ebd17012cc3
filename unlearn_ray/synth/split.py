"""Which questions are held out of training: by their wording, or by the fact that they ask for."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from unlearn_ray.rows import digest
from unlearn_ray.synth.dedup import question_key
from unlearn_ray.synth.leaks import key_phrase
from unlearn_ray.words import MAX_FACT_WORDS, normalised, num_words

Split = Literal["train", "holdout"]
HoldoutBy = Literal["question", "fact"]


def split_of(topic: str, question: str, holdout_fraction: float, fact: str = "") -> Split:
    """The side of a question, the same for all of its wordings that normalise alike, or for all questions about a fact.

    By a hash of the question, or of its fact, not by a shuffle: a new question must not move old ones across.
    """
    parts = ("split by fact", topic, fact) if fact else ("split", topic, question_key(question))
    return "holdout" if int(digest(*parts), 16) / 16**16 < holdout_fraction else "train"


def fact_of(question: str, answer: str, names: Iterable[str] = ()) -> str:
    """What a question asks for, told by the model's own answer to it: the name, number or words that it gives beyond the question.

    Two questions about a topic whose answers give the same are about one fact. Facts that share a value, such as a year, go together, which
    holds out too much rather than too little. "" where the answer is too long to say: then the question stands for itself.

    Args:
        names: what the topic is called: no answer.
    """
    phrase = key_phrase(question, answer, names)
    return normalised(phrase) if 0 < num_words(phrase) <= MAX_FACT_WORDS else ""


@dataclass(frozen=True, slots=True)
class Holdout:
    """What is held out of training: a share of the questions, or of the facts that they ask for."""

    fraction: float
    by: HoldoutBy = "question"

    def side(self, topic: str, question: str, answer: str, names: Iterable[str] = ()) -> Split:
        """The side of a question.

        Args:
            answer: the model's own, greedy; a user's row has the user's.
            names: as in `fact_of`.
        """
        fact = fact_of(question, answer, names) if self.by == "fact" else ""
        return split_of(topic, question, self.fraction, fact)
