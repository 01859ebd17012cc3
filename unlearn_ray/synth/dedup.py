"""Decides whether two questions are the same question."""

from unlearn_ray.words import comparable

# Polite words that do not change a question.
_FILLERS = frozenset({"please"})  # in scripts without spaces such words can't be told apart


def question_key(question: str) -> str:
    """The question without case, accents, punctuation, spacing and polite words. Questions with equal keys are the same.

    Articles and word order are kept, because other wordings of a question are wanted, and only copies are not.
    """
    words = comparable(question)
    return " ".join(word for word in words if word not in _FILLERS) or " ".join(words)
