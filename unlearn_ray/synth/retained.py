"""Chooses the general subjects that a run retains, and finds own answers that teach nothing or give a forgotten topic away."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from unlearn_ray.rows import digest, seed_of
from unlearn_ray.synth.dedup import question_key
from unlearn_ray.synth.leaks import content_beyond
from unlearn_ray.synth.names import mentions, needs_case
from unlearn_ray.words import leaked

FEW = 6  # questions that may share an answer without their words: `Paris.` answers several
MANY = 20  # questions that may share an answer with their words: wordings of one question have one answer
LEAST_SUBJECTS, SHARE_OF_SUBJECTS = 2, 0.2  # a word is ordinary if the rows of so many far subjects say it
_STEM = 5


def spread(subjects: Sequence[str], number: int, seed: int) -> list[str]:
    """`number` of the subjects. The list is cut into that many parts, and each part gives one. If there are fewer subjects, all of them.

    Neighbours in the list are similar, so any other choice would teach more of one thing than of another. The choice within a part depends on
    the seed and the subjects' names: the same part in another list gives the same subject.
    """
    number = min(number, len(subjects))
    bounds = [len(subjects) * index // number for index in range(number + 1)] if number else [0]
    return [min(subjects[a:b], key=lambda name: seed_of(seed, "subject", name)) for a, b in pairwise(bounds)]


def is_close(subject: str, names: Iterable[str]) -> bool:
    """Whether a subject contains one of the names, is contained in one, or shares a word with one: `rivers and lakes`, `The Lady of the Lake`."""
    stems = _stems(subject)
    return any(mentions(subject, [name]) or mentions(name, [subject]) or bool(stems & _stems(name)) for name in names)


def takes_up(question: str, answer: str, subject: str) -> bool:
    """Whether an answer repeats a word of its question besides the subject, as `The gas that plants take in is carbon dioxide` does."""
    about = _stems(subject)
    return bool((_stems(question) & _stems(answer)) - about)


def answer_key(answer: str) -> str:
    """A key that is equal for answers with the same words."""
    return digest(question_key(answer))


def ordinary_words(said: Iterable[tuple[str, str]], num_subjects: int) -> frozenset[str]:
    """The terms of a forgotten topic that are ordinary words, because rows on several far subjects say them too.

    Args:
        said: pairs of a far subject and a term in one of its rows, one pair per row.
        num_subjects: number of far subjects.
    """
    least = max(LEAST_SUBJECTS, math.ceil(SHARE_OF_SUBJECTS * num_subjects))
    subjects: defaultdict[str, set[str]] = defaultdict(set)
    for subject, term in said:
        if len(subjects[term]) < least:
            subjects[term].add(subject)
    return frozenset(term for term, found in subjects.items() if len(found) >= least)


def forgotten_in(text: str, names: Sequence[str], words: Sequence[str], subject: str = "") -> list[str]:
    """The names and words of forgotten topics in a text about a subject, without those in the subject's own name.

    Args:
        names: in their written form.
        words: folded. Frequent words (`black`, from Sirius Black) count only with a capital, and numbers only in quotes: otherwise they
            show nothing in a text about another subject.
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
    """The beginnings of the telling words."""
    return {word.folded if word.is_unspaced else word.folded[:_STEM] for word in content_beyond("", text)}
