"""Whether an answer tells real knowledge, and where: whole words, without case and accents.

The rules are those of the report, so that a word is marked here exactly where the report counts it as a leak: what the prompt
itself says, and the topics' own names, give nothing away.
"""

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

# Scripts written without spaces between words: each character stands for itself.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+")
_MAX_FACT_WORDS = 8  # a longer truth is a sentence: no answer repeats it word for word
Pieces = list[tuple[str, bool]]


@lru_cache(maxsize=65536)
def words(text: str) -> tuple[str, ...]:
    """`"Les Misérables!"` -> `("les", "miserables")`."""
    return tuple(_fold(match.group()) for match in _WORD.finditer(unicodedata.normalize("NFC", text)))


def contains(text: str, phrase: str) -> bool:
    """Whether the phrase stands in the text, as whole words."""
    have, wanted = words(text), words(phrase)
    return bool(wanted) and any(have[i : i + len(wanted)] == wanted for i in range(len(have) - len(wanted) + 1))


def telling(terms: Iterable[str], given: str) -> list[str]:
    """The terms that would give something away: those that `given` does not contain."""
    return [term for term in terms if not contains(given, term)]


def marked(text: str, terms: Sequence[str]) -> Pieces:
    """The text in pieces, True for those that are one of the terms; the longest term wins."""
    text = unicodedata.normalize("NFC", text)
    matches = list(_WORD.finditer(text))
    have = tuple(_fold(match.group()) for match in matches)
    wanted = {words(term) for term in terms} - {()}
    lengths = sorted({len(term) for term in wanted}, reverse=True)
    pieces: Pieces = []
    position = index = 0
    while index < len(have):
        left = len(have) - index
        length = next((n for n in lengths if n <= left and have[index : index + n] in wanted), 0)
        if length:
            start, end = matches[index].start(), matches[index + length - 1].end()
            pieces += [(text[position:start], False), (text[start:end], True)]
            position = end
        index += length or 1
    pieces.append((text[position:], False))
    return [piece for piece in pieces if piece[0]]


def leaks(text: str, terms: Sequence[str]) -> bool:
    return any(is_term for _, is_term in marked(text, terms))


def as_html(pieces: Pieces) -> str:
    """The pieces as HTML with the terms in <mark>. Model output is untrusted: all of it is escaped."""
    return "".join(f"<mark>{html.escape(text)}</mark>" if is_term else html.escape(text) for text, is_term in pieces)


def tells(answer: str, truths: Sequence[str]) -> bool | None:
    """Whether the answer has the true value or an alias; None where the truth is a sentence and not a short fact."""
    if not 0 < len(words(truths[0])) <= _MAX_FACT_WORDS:
        return None
    return any(contains(answer, truth) for truth in truths)


def _fold(word: str) -> str:
    decomposed = unicodedata.normalize("NFKD", word)
    return "".join(char for char in decomposed if not unicodedata.combining(char)).casefold()
