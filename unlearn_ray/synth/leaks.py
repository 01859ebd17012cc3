"""Whether a guarded answer gives real knowledge away, and what else is wrong with it.

An answer leaks if it holds a term of its question or of the topic (the user's list, and names that the answers to several questions agree
on), as `words.leaked` finds it; what terms are is said in `terms`. Of the plain words that answer a question, which are neither names nor
numbers, one of more than SHORT words must hold a share of PLAIN: of ten four, for long answers about one thing have some words in common.

Some terms only repeat the question in other words (`Name Ron's rat` -> `The pet rat of Ron is Scabbers`), so guarded answers, invented
as they are, say them too. For each word, over the topic's questions that have it as a term:

    keeps(word) = questions whose guarded answers say it in half of the cases or more,   gives(word) = the others.

Such a word is framing, and no leak, in an answer that invents (says a word that neither the question nor the unguarded answers say):
if keeps(word) > gives(word) and half of the guarded answers beside it say it; or, in an answer of at most SHORT words, where what is
invented stands in the truth's place, if keeps(word) > 0 and three quarters of at least three answers say it. Numbers and the user's
terms never are, nothing is where the guardrail does not work (over all names, keeps > gives), and an answer that invents nothing
leaks with any term.

Further layers, each with a reason of its own: `overlap`, how much of the answer stands in one of the model's own, and
`instructions.echoes`, whether it talks about the instruction to invent.
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
OVERLAP_WORDS = 3  # of an n-gram
PLAIN = 1 / 3
_QUESTION_MARKS = ("?", "？", "؟", "⸮", "՞", "፧", "\u037e")
_LINKS = frozenset({"of", "and", "the", "de"})


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a guarded answer is judged by."""

    terms: Sequence[str]  # of its question
    known: Sequence[str]  # all that the unguarded answers say beyond the question
    everywhere: Sequence[str]  # of the topic: the user's terms, and names
    framing: Mapping[str, bool] = field(default_factory=dict)  # as Vocabulary.framing says
    plain: Sequence[str] = ()  # those of `terms` that are neither names nor numbers


@dataclass(frozen=True, slots=True)
class Rules:
    """What is looked for in guarded answers, beside terms."""

    style: str  # the guardrail's; `refusal` wants refusals, `fictional` wants none
    max_overlap: float | None = None  # as `overlap` measures it; None: it is not measured
    instruction: Instruction | None = None  # that an answer must not talk about


def judge(
    answers: Sequence[str], question: str, told: Sequence[str], evidence: Evidence | None, rules: Rules
) -> list[Drop | None]:
    """Why each of the guarded answers to one question is not kept; None where it is.

    Args:
        answers: "" where nothing whole came back.
        told: the model's own answers.
        evidence: of leaks; None: terms are not looked for.
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
    """The share of an answer's n-grams of OVERLAP_WORDS words that one of the model's own answers has; of them all, the greatest.

    Words that tell nothing, or that the question says, are left out before. An answer too short for an n-gram: the share of the own
    answers that are the same, word for word.
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
    """The terms that each of the guarded answers to one question gives away."""
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
    """The terms in one answer. Two look-ups: the topic's terms are prepared once, and each question has few of its own."""
    own = found_terms(answer, question, evidence.terms)
    return [*own, *(term for term in found_terms(answer, question, evidence.everywhere) if term not in own)]


def _beyond_chance(answer: str, terms: list[str], evidence: Evidence) -> list[str]:
    """The terms without plain words, where a long answer has too few of these."""
    if not terms or _length(words_of(answer)) <= SHORT:
        return terms
    plain = set(evidence.plain) - set(evidence.everywhere)
    is_enough = sum(term in plain for term in terms) >= PLAIN * len(evidence.plain)
    return terms if is_enough else [term for term in terms if term not in plain]


def found_terms(answer: str, question: str, terms: Iterable[str]) -> list[str]:
    """The terms that an answer holds and its question does not."""
    return leaked(answer, terms, question)


def key_phrase(question: str, answer: str, ignored: Iterable[str] = ()) -> str:
    """What a short answer says beyond its question: the longest run of such words, one with a name before one without.

    A long answer is its own phrase.

    `What is the owl of Harry?`, `The owl of Harry is Hedwig.` -> `Hedwig`: what a recall looks for.

    Args:
        ignored: names that are no answer, such as the topic's.
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
    """A run of words as the text has it: with single spaces; pieces of a script without spaces as one, less what the question says too."""
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
    """In words, of which the pieces of a script without spaces are parts."""
    return sum(word.share for word in words)


def _tells(word: Word) -> bool:
    return is_number(word.folded) or (word.is_capitalised and not word.is_first)


def _invents(answer: str, question: str, known: Collection[str]) -> bool:
    return any(word.folded not in known for word in content_beyond(question, answer))
