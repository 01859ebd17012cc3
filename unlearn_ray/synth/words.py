"""Text as words: folded (case, accents), tokenised, matched whole."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

_TOKEN = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?:;\n\"“”(]\W*$")
_POSSESSIVE = re.compile(r"['’]s$|['’]$")


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a text: as written, folded, and whether a sentence starts with it (where a capital says nothing)."""

    text: str
    folded: str
    is_first: bool

    @property
    def is_capitalised(self) -> bool:
        return self.text[0].isupper()


def fold(text: str) -> str:
    """Without case and accents: `Misérables` -> `miserables`."""
    return "".join(char for char in unicodedata.normalize("NFKD", text).casefold() if not unicodedata.combining(char))


def words_of(text: str) -> list[Word]:
    """The words of a text in their order; possessive endings are cut off."""
    found: list[Word] = []
    for match in _TOKEN.finditer(text):
        written = _POSSESSIVE.sub("", match.group()) or match.group()
        before = text[max(0, match.start() - 8) : match.start()]
        is_first = not found or _SENTENCE_END.search(before) is not None
        found.append(Word(written, fold(written).replace("’", "'"), is_first))
    return found


def folded_words(text: str) -> list[str]:
    """The words alone, where capitals do not matter."""
    words = (match.group().replace("’", "'") for match in _TOKEN.finditer(fold(text)))
    return [_POSSESSIVE.sub("", word) or word for word in words]


def mentions(text: str, names: Iterable[str]) -> bool:
    """Whether the text holds one of the names, as whole words, case- and accent-folded, with or without a leading article."""
    inside = f" {' '.join(folded_words(text))} "
    keys = (" ".join(folded_words(name)).removeprefix("the ") for name in names)
    return any(f" {key} " in inside for key in keys if key)
