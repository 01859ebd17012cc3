"""Which general subjects a run retains, and which of the model's own answers teach it nothing or give a forgotten topic away."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from unlearn_ray.rows import digest, seed_of
from unlearn_ray.synth.dedup import question_key
from unlearn_ray.synth.leaks import content_beyond
from unlearn_ray.synth.names import mentions, needs_case
from unlearn_ray.words import leaked

FEW = 6  # questions that may share an answer which takes up none of them: `Paris.` answers several
MANY = 20  # that may share one which does: wordings of one question have one answer
LEAST_SUBJECTS, SHARE_OF_SUBJECTS = 2, 0.2  # far subjects whose rows say a word that is an ordinary one
_STEM = 5


def spread(subjects: Sequence[str], number: int, seed: int) -> list[str]:
    """`number` of the subjects, one from each of as many stretches of the list; all of them where there are no more.

    Neighbours in the list are alike, so that a choice of any other kind would teach more of one thing than of another. Which one of a
    stretch it is follows from the seed and the subjects' own names: a stretch that another list shares gives the same.
    """
    number = min(number, len(subjects))
    bounds = [len(subjects) * index // number for index in range(number + 1)] if number else [0]
    return [min(subjects[a:b], key=lambda name: seed_of(seed, "subject", name)) for a, b in pairwise(bounds)]


def is_close(subject: str, names: Iterable[str]) -> bool:
    """Whether a subject names one of these, or is named by one, or shares a word with it: `rivers and lakes`, `The Lady of the Lake`."""
    stems = _stems(subject)
    return any(mentions(subject, [name]) or mentions(name, [subject]) or bool(stems & _stems(name)) for name in names)


def takes_up(question: str, answer: str, subject: str) -> bool:
    """Whether an answer says a word of its question beyond the subject: `The gas that plants take in is carbon dioxide` does."""
    about = _stems(subject)
    return bool((_stems(question) & _stems(answer)) - about)


def answer_key(answer: str) -> str:
    """Equal for answers that say the same in the same words."""
    return digest(question_key(answer))


def ordinary_words(said: Iterable[tuple[str, str]], num_subjects: int) -> frozenset[str]:
    """The terms of a forgotten topic that are ordinary words: the model's rows on several subjects far from it say them, too.

    Args:
        said: a far subject and a term that its row holds, for each such row.
        num_subjects: far subjects.
    """
    least = max(LEAST_SUBJECTS, math.ceil(SHARE_OF_SUBJECTS * num_subjects))
    subjects: defaultdict[str, set[str]] = defaultdict(set)
    for subject, term in said:
        if len(subjects[term]) < least:
            subjects[term].add(subject)
    return frozenset(term for term, found in subjects.items() if len(found) >= least)


def forgotten_in(text: str, names: Sequence[str], words: Sequence[str], subject: str = "") -> list[str]:
    """The names and words of forgotten topics that a text about a subject holds, and that the subject's own name does not say.

    Args:
        names: as they are written.
        words: folded ones. Frequent words (`black`, of Sirius Black) count with a capital alone, numbers in quotes alone: in a text about
            something else they tell nothing.
    """
    found = leaked(text, tuple(word for word in words if not needs_case(_capitalised(word))), subject)
    frequent = {_capitalised(word): word for word in words if needs_case(_capitalised(word))}
    written = (*names, *frequent)
    if mentions(text, written):
        found += [
            frequent.get(name, name) for name in written if mentions(text, (name,)) and not mentions(subject, (name,))
        ]
    return found


def _capitalised(word: str) -> str:
    return word[:1].upper() + word[1:]


def _stems(text: str) -> set[str]:
    """The beginnings of the words that tell something."""
    return {word.folded if word.is_unspaced else word.folded[:_STEM] for word in content_beyond("", text)}
