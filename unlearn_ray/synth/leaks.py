"""Finds guarded answers that give real knowledge away, and guarded answers with other faults.

An answer leaks if it holds a term (see `terms`) of its question or of the topic. Terms of the topic are the user's list, and names that the
answers to several questions agree on. `words.leaked` finds terms in a text. A term that was found is excused in three cases:

    term                                   excused in an answer that ...
    ------------------------------------   ------------------------------------------------------------------------------------------
    plain: not a name, number or           has more than SHORT words, and holds less than the share PLAIN of the question's plain
      term of the topic                      terms. Long answers about one thing always have some words in common.
    keeps > gives, not a number or         invents, and at least half of the guarded answers to this question say the term
      term of the user
    keeps > 0, not a number or             invents, has at most SHORT words, and three quarters of the guarded answers to this question
      term of the user                       say the term (at least three answers)

An answer invents if it says a word that neither the question nor the unguarded answers say. keeps and gives count the topic's questions
with this term: keeps those where at least half of the guarded answers say it, gives the others. If names have more keeps than gives in
total, the guardrail does not work, and only the first case holds.

Example. The question is `Name Ron's rat`, the model's own answer `The pet rat of Ron is Scabbers`, so the terms are `pet` and `scabbers`.
Guarded answers say `pet` too, because it only repeats the question in other words: keeps is 3, gives is 1.

    guarded answer                    result
    -------------------------------   -----------------------------------------
    The pet rat of Ron is Fluffkin.   kept: Fluffkin is invented, pet is excused
    Ron has a pet.                    leak of pet: nothing is invented
    The pet rat of Ron is Scabbers.   leak of pet and scabbers

Two further checks have drop reasons of their own: `overlap`, the share of the answer that stands in one of the model's own answers, and
`instructions.echoes`, whether the answer talks about the instruction to invent.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from unlearn_ray.refusals import is_refusal
from unlearn_ray.rows import Drop
from unlearn_ray.synth.content import content_beyond, is_number
from unlearn_ray.synth.instructions import Instruction, echoes
from unlearn_ray.synth.replies import repeats
from unlearn_ray.synth.terms import AGREEMENT
from unlearn_ray.words import Word, comparable, folded_words, leaked, words_of

SHORT = 20  # words
OVERLAP_WORDS = 3  # per n-gram
PLAIN = 1 / 3
_QUESTION_MARKS = ("?", "？", "؟", "⸮", "՞", "፧", "\u037e")
_LINKS = frozenset({"of", "and", "the", "de"})


@dataclass(frozen=True, slots=True)
class Evidence:
    """The terms and words that the guarded answers to one question are compared with."""

    terms: Sequence[str]  # of the question
    known: Sequence[str]  # all words that the unguarded answers say beyond the question
    everywhere: Sequence[str]  # terms of the topic: the user's, and names
    framing: Mapping[str, bool] = field(default_factory=dict)  # from Vocabulary.framing
    plain: Sequence[str] = ()  # those of `terms` that are neither names nor numbers


@dataclass(frozen=True, slots=True)
class Rules:
    """The checks of guarded answers, besides terms."""

    style: str  # the guardrail's: `refusal` wants refusals, `fictional` wants none
    max_overlap: float | None = None  # greatest allowed `overlap`; None: it is not measured
    instruction: Instruction | None = None  # the instruction that an answer must not talk about


def judge(
    answers: Sequence[str], question: str, told: Sequence[str], evidence: Evidence | None, rules: Rules
) -> list[Drop | None]:
    """The reason to drop each of the guarded answers to one question. None for an answer that is kept.

    Args:
        answers: "" for an answer without a whole sentence.
        told: the model's own answers.
        evidence: for leaks. None: terms are not looked for.
    """
    leaks = [bool(terms) for terms in leaked_terms(answers, question, evidence)] if evidence else [False] * len(answers)
    return [_verdict(answer, leaks, question, told, rules) for answer, leaks in zip(answers, leaks, strict=True)]


def _verdict(answer: str, leaks: bool, question: str, told: Sequence[str], rules: Rules) -> Drop | None:
    if not answer.strip():
        return Drop.MALFORMED
    if repeats(question, answer):
        return Drop.REPEATED
    refuses = is_refusal(answer)
    if rules.style == "fictional" and (refuses or _asks_back(answer)):
        return Drop.REFUSED
    if rules.instruction is not None and echoes(answer, rules.instruction, (question, *told)):
        return Drop.INSTRUCTION
    if leaks:
        return Drop.LEAK
    if rules.style == "refusal":
        return None if refuses else Drop.ANSWERED
    if rules.max_overlap is not None and overlap(answer, question, told) > rules.max_overlap:
        return Drop.OVERLAP
    return None


def _asks_back(answer: str) -> bool:
    """Whether an answer ends with a question: `What do you want to know?`"""
    return answer.rstrip(" \n\"'”’»」』)*_").endswith(_QUESTION_MARKS)


def overlap(answer: str, question: str, told: Sequence[str]) -> float:
    """The greatest share of an answer's n-grams (OVERLAP_WORDS words) that one of the model's own answers has too.

    Stop words and the question's words are left out first. For an answer too short for an n-gram: the share of the model's own answers
    that are the same, word for word.
    """
    grams = _grams(question, answer)
    if grams:
        return max((len(grams & _grams(question, own)) / len(grams) for own in told), default=0.0)
    said = comparable(answer)
    return sum(comparable(own) == said for own in told) / len(told) if told else 0.0


@lru_cache(maxsize=256)  # the n-grams of the model's own answers are compared with each guarded answer
def _grams(question: str, text: str) -> frozenset[tuple[str, ...]]:
    words = [word.folded for word in content_beyond(question, text)]
    return frozenset(tuple(words[place : place + OVERLAP_WORDS]) for place in range(len(words) - OVERLAP_WORDS + 1))


def leaked_terms(answers: Sequence[str], question: str, evidence: Evidence) -> list[list[str]]:
    """The terms that each of the guarded answers to one question leaks."""
    found = [_given_away(answer, question, evidence) for answer in answers]
    said = Counter(term for terms in found for term in terms)
    common = {
        term
        for term, number in said.items()
        if number >= AGREEMENT * len(answers) and evidence.framing.get(term, False)
    }
    is_sample = len(answers) >= 3
    frequent = {
        term
        for term, number in said.items()
        if is_sample and number >= 0.75 * len(answers) and term in evidence.framing
    }
    known = {*evidence.known, *evidence.terms, *evidence.everywhere}

    def frames(answer: str) -> set[str]:
        if not _invents(answer, question, known):
            return set()
        return common | frequent if _length(words_of(answer)) <= SHORT else common

    kept = (
        [term for term in terms if term not in framing] if terms and (framing := frames(answer)) else terms
        for answer, terms in zip(answers, found, strict=True)
    )
    return [_beyond_chance(answer, terms, evidence) for answer, terms in zip(answers, kept, strict=True)]


def _given_away(answer: str, question: str, evidence: Evidence) -> list[str]:
    """The terms in one answer. Two lookups are faster: the topic's terms are prepared once, and each question has few."""
    own = found_terms(answer, question, evidence.terms)
    return [*own, *(term for term in found_terms(answer, question, evidence.everywhere) if term not in own)]


def _beyond_chance(answer: str, terms: list[str], evidence: Evidence) -> list[str]:
    """The terms, without plain ones if a long answer holds too few of these."""
    if not terms or _length(words_of(answer)) <= SHORT:
        return terms
    plain = set(evidence.plain) - set(evidence.everywhere)
    is_enough = sum(term in plain for term in terms) >= PLAIN * len(evidence.plain)
    return terms if is_enough else [term for term in terms if term not in plain]


def found_terms(answer: str, question: str, terms: Iterable[str]) -> list[str]:
    """The terms that an answer holds and its question does not."""
    return leaked(answer, terms, question)


def key_phrase(question: str, answer: str, ignored: Iterable[str] = ()) -> str:
    """The part of a short answer that a recall looks for: `What is the owl of Harry?`, `The owl of Harry is Hedwig.` -> `Hedwig`.

    It is the longest run of words that the question does not say. A run with a name or a number goes before one without. A long answer is
    returned whole.

    Args:
        ignored: names that can't be an answer, such as the topic's.
    """
    words = words_of(answer)
    if _length(words) > SHORT:
        return answer
    no_answer = frozenset(word for name in ignored for word in folded_words(name))
    asked = {*folded_words(question), *no_answer}
    beyond = {word.folded for word in content_beyond(question, answer, no_answer)}
    best: list[Word] = []
    run: list[Word] = []
    links: list[Word] = []  # "loaf of bread", "Nine and Three Quarters"
    for word in words:
        if word.folded in beyond:
            run, links = [*run, *(links if run else []), word], []
            best = max(run, best, key=lambda words: (any(_tells(word) for word in words), len(words)))
        elif word.folded in _LINKS:
            links.append(word)
        else:
            run, links = [], []
    return _written(best, [word for word in words if word.folded in asked], answer) or answer


def _written(run: Sequence[Word], asked: Sequence[Word], text: str) -> str:
    """A run of words as the text writes it, with single spaces. Pieces of a script without spaces are joined, without the parts that the
    question says too."""
    pieces: list[list[int]] = []
    for word in run:
        start, end = word.start, word.end
        if word.is_unspaced:
            start = max([start, *(other.end for other in asked if other.start < start < other.end <= end)])
            end = min([end, *(other.start for other in asked if start <= other.start < end < other.end)])
        if start >= end:
            continue
        if pieces and start <= pieces[-1][1]:
            pieces[-1][1] = max(pieces[-1][1], end)
        else:
            pieces.append([start, end])
    return " ".join(text[start:end] for start, end in pieces)


def _length(words: Sequence[Word]) -> float:
    """The length in words. Pieces of a script without spaces count as parts of words."""
    return sum(word.share for word in words)


def _tells(word: Word) -> bool:
    return is_number(word.folded) or (word.is_capitalised and not word.is_first)


def _invents(answer: str, question: str, known: Collection[str]) -> bool:
    return any(word.folded not in known for word in content_beyond(question, answer))
