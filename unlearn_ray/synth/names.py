"""Finds names in a text. A name that consists of common words counts only if its capitals show that it is a name."""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from unlearn_ray.synth.stopwords import FREQUENT_WORDS, NUMBER_WORDS, PRONOUNS, STOP_WORDS
from unlearn_ray.words import Span, atoms_of, folded_words, letters_of, phrases_of, words_of

_ARTICLE = re.compile(r"\s*the\s+(?=\S)", re.IGNORECASE)
_SHORT = 2  # letters; short names such as "X", "Go", "ET" have too many other meanings
_MARKS = "\"'“”„‟‘’«»‹›「」『』《》〈〉*_`"  # around a title: quotes, and the stars and underscores of italics
# Places where a sentence may begin, so that a capital shows nothing: after a sentence's end, an opening mark, a dash, a bullet.
_BEGINS = re.compile(r"(?:^|[.!?:;…\n。！？।؟¿¡(（\[\"“”„«「『《]|\s[-–—*•·])[\W_]*$")


def mentions(text: str, names: Iterable[str]) -> bool:
    """Whether the text has one of the names, case- and accent-folded, with or without a leading article.

    Names for which `needs_case` holds must have their capitals. If such a name has no capitals, it must be in quotes or italics.
    """
    plain, cased = _sorted_out(tuple(names))
    if plain and next(phrases_of(plain).spans(text), None) is not None:
        return True
    return any(_is_named(text, name, span) for name in cased for span in phrases_of((name,)).spans(text))


def mentions_entity(text: str, entities: Iterable[str]) -> bool:
    """Whether the text has one of the names that belong to a topic.

    A capitalised name of one word may be a common word (`Friendship`, `Order`) from the start of a list's item. It counts only with its capital.
    """
    words: list[str] = []
    others: list[str] = []
    for name in entities:
        is_common = len(folded_words(_bare(name))) == 1 and _bare(name).lower() != _bare(name)
        (words if is_common and not needs_case(name) else others).append(name)
    if others and mentions(text, others):
        return True
    found = phrases_of(tuple(map(_bare, words))).spans(text) if words else ()
    return any(written != written.lower() for written in (text[span.start : span.end] for span in found))


def parts_of(name: str, own_names: Iterable[str]) -> list[str]:
    """The capitalised words in a name of several words, without stop words and words of the topic's own names: `Hogwarts Castle` ->
    `Hogwarts`, `Castle`. If a model writes a name in a different way each time, its lists agree only on these words."""
    words = words_of(name)
    ignored = STOP_WORDS.union(*(folded_words(own) for own in own_names))
    told = [word for word in words if word.is_cased and word.is_capitalised and word.folded not in ignored]
    return [name[word.start : word.end] for word in told if len(word.folded) > _SHORT] if len(words) > 1 else []


@lru_cache(maxsize=4096)
def needs_case(name: str) -> bool:
    """Whether a name has only common words (`It`, `The Who`, `Она`), is one word after an article (`The Office`), has at most two letters
    (`X`, `Go`), is a frequent word with a capital (`Lost`), or needs marks around it."""
    bare = _bare(name)
    words = folded_words(bare)
    if not words or bare.lower() == bare.upper():  # a script without capitals, or digits
        return _needs_marks(bare)
    if all(word in STOP_WORDS or word in NUMBER_WORDS or word in PRONOUNS for word in words):
        return True
    if len(words) == 1 and words[0] in FREQUENT_WORDS and bare[0].isupper():
        return True
    return len(words) == 1 and words[0].isalpha() and (bare != name.strip() or len(words[0]) <= _SHORT)


def _needs_marks(bare: str) -> bool:
    """Whether a name has no capitals, and too many other meanings: a number (`1984`), a pronoun (`彼女`)."""
    letters = letters_of(bare)
    has_capitals = bare.lower() != bare.upper()
    return not has_capitals and len(letters) > 0 and (all(map(str.isdigit, letters)) or "".join(letters) in PRONOUNS)


def case_note(name: str) -> str | None:
    """The plan's note on a topic's name that is matched with its capitals. None for all other names."""
    if not needs_case(name):
        return None
    if _needs_marks(_bare(name)):
        return (
            f"topics: {name!r} is a number or a common word without capitals: it counts as named only in quotes or in italics; "
            "unambiguous aliases, such as its author, find more"
        )
    return (
        f"topics: {name!r} is a common word: it counts as named only with its capitals inside a sentence, in quotes or in italics; "
        "unambiguous aliases, such as its author or year, find more"
    )


@lru_cache(maxsize=1024)
def _sorted_out(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names without their article: those matched without case, and those matched with it."""
    cased = tuple(_bare(name) for name in names if needs_case(name))
    return tuple(_bare(name) for name in names if not needs_case(name)), cased


def _bare(name: str) -> str:
    """The name without a leading article, unless nothing else would be left (`The The`)."""
    rest = _ARTICLE.sub("", name.strip(), count=1)
    return rest if letters_of(rest) != ("the",) else name.strip()


def _is_named(text: str, name: str, span: Span) -> bool:
    """Whether a common word in the text is the name at that place."""
    written, before, after = text[span.start : span.end], text[: span.start], text[span.end :]
    is_bare = _needs_marks(name)
    patterns = (_capitals(name), _capitals(name[:1].upper() + name[1:]))
    if (not is_bare and written == written.lower()) or _capitals(written) not in patterns:
        return False
    if letters_of(text) in (letters_of(name), ("the", *letters_of(name))):  # the text is only the name
        return True
    closing = after.lstrip(",.!?")
    if before and closing and before[-1] in _MARKS and closing[0] in _MARKS:
        return True
    if is_bare:  # a topic check's "This question is about 1984."
        return before.endswith("about ") and not after.strip(".! ")
    inside = range(span.start, span.end)
    others = [word for word in words_of(text) if word.is_cased and not word.is_first and word.start not in inside]
    is_upper = before + after == (before + after).upper() and bool(others)
    if is_upper or (len(others) > 1 and all(word.is_capitalised for word in others)):
        return False  # ALL OF IT, or As Titles Are
    places = [atom.start for atom in atoms_of(text) if atom.start in inside and text[atom.start].isupper()]
    return any(place and not _BEGINS.search(text[:place][-12:]) for place in places)


def _capitals(text: str) -> tuple[bool, ...]:
    return tuple(char.isupper() for char in unicodedata.normalize("NFKC", text) if char.isalnum())
