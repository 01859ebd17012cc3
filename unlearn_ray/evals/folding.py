"""Words as a reader compares them: without case and accents, whole, and with their place in the text."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

# Scripts written without spaces between words: each character stands for itself.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+")


@dataclass(frozen=True, slots=True)
class Word:
    """A folded word and where it stands."""

    text: str
    start: int
    end: int


def composed(text: str) -> str:
    """The text with every accent joined to its letter, so that one letter is one place."""
    return unicodedata.normalize("NFC", text)


def located_words(text: str) -> list[Word]:
    """The folded words of an already `composed` text."""
    return [Word(_fold(match.group()), match.start(), match.end()) for match in _WORD.finditer(text)]


@lru_cache(maxsize=4096)
def words(text: str) -> tuple[str, ...]:
    """`"Les Misérables!"` -> `("les", "miserables")`."""
    return tuple(word.text for word in located_words(composed(text)))


def contains(text: str, phrase: str) -> bool:
    """Whether the phrase stands in the text, as whole words; a phrase without words stands nowhere."""
    wanted = words(phrase)
    return bool(wanted) and _find(words(text), wanted) is not None


def normalised(question: str) -> str:
    """Equal for questions that differ in case, accents, punctuation or spacing alone."""
    return " ".join(words(question))


class Phrases:
    """Many phrases, looked up at once."""

    def __init__(self, phrases: Iterable[str]) -> None:
        self._by_words: dict[tuple[str, ...], str] = {}
        for phrase in phrases:
            if wanted := words(phrase):
                self._by_words.setdefault(wanted, phrase)
        self._lengths = sorted({len(wanted) for wanted in self._by_words})

    def __len__(self) -> int:
        return len(self._by_words)

    def found_in(self, text: str) -> dict[tuple[str, ...], str]:
        """The phrases that stand in the text, by their folded words."""
        have = words(text)
        grams = (have[i : i + n] for n in self._lengths for i in range(len(have) - n + 1))
        return {gram: self._by_words[gram] for gram in grams if gram in self._by_words}


def marked(text: str, phrases: Sequence[str]) -> list[tuple[str, bool]]:
    """The text in pieces, True for those that are one of the phrases: what the report highlights."""
    text = composed(text)
    located = located_words(text)
    have = tuple(word.text for word in located)
    pieces: list[tuple[str, bool]] = []
    position = index = 0
    longest_first = sorted({words(phrase) for phrase in phrases} - {()}, key=len, reverse=True)
    while index < len(have):
        hit = next((wanted for wanted in longest_first if have[index : index + len(wanted)] == wanted), None)
        if hit is None:
            index += 1
            continue
        start, end = located[index].start, located[index + len(hit) - 1].end
        pieces += [(text[position:start], False), (text[start:end], True)]
        position, index = end, index + len(hit)
    pieces.append((text[position:], False))
    return [piece for piece in pieces if piece[0]]


def _fold(word: str) -> str:
    decomposed = unicodedata.normalize("NFKD", word)
    return "".join(char for char in decomposed if not unicodedata.combining(char)).casefold()


def _find(have: tuple[str, ...], wanted: tuple[str, ...]) -> int | None:
    return next((i for i in range(len(have) - len(wanted) + 1) if have[i : i + len(wanted)] == wanted), None)
