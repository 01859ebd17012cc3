"""Finds answers that talk about their instruction: `As requested, I will omit all real knowledge of Harry Potter.`

The instruction is the text around the question: the guardrail's prefix and the request for a length. A sentence of an answer echoes it, in
any language, if it has

- WORDS of the instruction's content words, or
- RUN of its words in a row, two of them content words (`in one short sentence`).

Words of the question, of the model's own answers and of the topic's name do not count. A list of common phrases finds sentences that
announce an invented answer in other words (`As requested, ...`).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from unlearn_ray.synth.content import STEM, content_beyond
from unlearn_ray.synth.sentences import sentences_of
from unlearn_ray.words import fold, folded_words

WORDS = 3
RUN = 3
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ", "'"))
_ANNOUNCES = re.compile(
    r"\b(?:as|like) (?:you )?(?:(?:have |had )?(?:requested|instructed|asked for)|(?:was|were) (?:asked|told|instructed))(?=\s*[,.:;]|$)|\b(?:as )?per (?:your|the) (?:request|instructions?|prompt|guidelines?)\b"
    r"|\b(?:following|according to) (?:your|the|these) (?:instructions?|prompt|guidelines?)\b"
    r"|\b(?:i(?:'ll| will| shall| have to| must|'m going to| am going to)|let me) (?:\w+ ){0,2}(?:omit|leave out|avoid|replace|invent|make up|rephrase|fictionali[sz]e|refrain)\b"
    r"|\bi(?:'ve| have)? (?:just |simply |also )?(?:rephrased|omitted|made up|fictionali[sz]ed)\b(?! my mind)|\b(?:has|have|had) been (?:made up(?! of)|rephrased|fictionali[sz]ed)\b"
    r"|\b(?:fictional|fictitious|fictionali[sz]ed|made[- ]up|invented|imaginary) (?:answer|response|reply|version of (?:the|an) answer)\b"
    r"|\breal(?:[- ]world)? (?:knowledge|facts|information)\b"
    r"|\bwie (?:gewunscht|verlangt|gefordert)\b|\bcomme (?:demande|vous l'avez demande)\b|\b(?:como|tal como) (?:se solicito|solicitado|(?:lo )?pediste|(?:lo )?pidio|pedido)\b"
    r"|\bcome richiesto\b|(?:как (?:вы )?просили|по вашеи просьбе|как было указано)|(?:按照|根据|根據|依照)(?:您的|你的)?(?:要求|指示)|ご(?:要望|指示|依頼)(?:の通り|どおり|に従)|요청하신|지시(?:에 따라|하신)"
)


@dataclass(frozen=True, slots=True)
class Instruction:
    """The texts around a question, without the topic's name."""

    pieces: tuple[str, ...]


def instruction_of(templates: Iterable[str]) -> Instruction:
    """The instruction in templates such as `Omit all real knowledge of {topic}.`: the text between their placeholders."""
    marks = ("{topic}", "{question}")
    pieces: list[str] = []
    for template in templates:
        for mark in marks:
            template = template.replace(mark, "\0")
        pieces += [piece.strip() for piece in template.split("\0") if piece.strip()]
    return Instruction(tuple(pieces))


def echoes(answer: str, instruction: Instruction, given: Sequence[str]) -> bool:
    """Whether a sentence of the answer talks about the instruction.

    Args:
        given: the question and the model's own answers, whose words do not count.
    """
    known = " ".join(given)
    if any(match.group() not in fold(known) for match in _ANNOUNCES.finditer(fold(answer).translate(_APOSTROPHES))):
        return True
    every, runs = _telling(instruction, known)
    for sentence in sentences_of(answer):
        words = [_stem(word) for word in folded_words(sentence)]
        if len(every & set(words)) >= WORDS or any(run in runs for run in _in_a_row(words)):
            return True
    return False


@lru_cache(maxsize=16)  # the answers to one question are checked in a row
def _telling(instruction: Instruction, known: str) -> tuple[frozenset[str], frozenset[tuple[str, ...]]]:
    """The instruction's content words that are not in `known`, and its runs of words that have two of them."""
    contents = [_contents(piece, known) for piece in instruction.pieces]
    runs = (run for piece, content in zip(instruction.pieces, contents, strict=True) for run in _runs(piece, content))
    return frozenset().union(*contents), frozenset(runs)


def _contents(piece: str, known: str) -> set[str]:
    return {_stem(word.folded) for word in content_beyond(known, piece)}


def _runs(piece: str, contents: set[str]) -> set[tuple[str, ...]]:
    words = [_stem(word) for word in folded_words(piece)]
    return {run for run in _in_a_row(words) if sum(word in contents for word in run) >= 2}


def _in_a_row(words: Sequence[str]) -> Iterable[tuple[str, ...]]:
    return (tuple(words[place : place + RUN]) for place in range(len(words) - RUN + 1))


def _stem(word: str) -> str:
    """The common beginning of a word's inflections: `replacing` -> `repla`."""
    return word[:STEM]
