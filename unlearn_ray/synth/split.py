"""Chooses the questions that are held out of training."""

from typing import Literal

from unlearn_ray.rows import digest
from unlearn_ray.synth.dedup import question_key

Split = Literal["train", "holdout"]


def split_of(topic: str, question: str, holdout_fraction: float) -> Split:
    """The split of a question. It is the same for all wordings with the same normal form.

    By a hash of the question, not by a shuffle: a new question must not move old ones across.
    """
    position = int(digest("split", topic, question_key(question)), 16) / 16**16
    return "holdout" if position < holdout_fraction else "train"
