"""When two questions are the same question."""

from unlearn_ray.words import folded_words

# What politeness adds to a question without asking for anything else.
_FILLERS = frozenset({"please"})


def question_key(question: str) -> str:
    """The question without case, accents, punctuation, spacing and politeness; equal keys are one question.

    Articles and word order stay: other wordings of a question are wanted, copies of one are not.
    """
    words = folded_words(question)
    return " ".join(word for word in words if word not in _FILLERS) or " ".join(words)
