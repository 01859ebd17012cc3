"""When two questions are the same question."""

from unlearn_ray.words import comparable

# What politeness adds to a question without asking for anything else.
_FILLERS = frozenset({"please"})  # in scripts without spaces it is no word of its own


def question_key(question: str) -> str:
    """The question without case, accents, punctuation, spacing and politeness; equal keys are one question.

    Articles and word order stay: other wordings of a question are wanted, copies of one are not.
    """
    words = comparable(question)
    return " ".join(word for word in words if word not in _FILLERS) or " ".join(words)
