"""Finds the telling words of an answer that its question does not say, and names of several words."""

import re
from collections.abc import Collection, Iterator, Sequence

from unlearn_ray.synth.stopwords import GRAMMAR_LETTERS, NUMBER_WORDS, PRONOUNS, STOP_GRAMS, STOP_WORDS
from unlearn_ray.words import Word, folded_words, words_of

STEM = 5  # common first letters of a word's inflections
_CONTRACTED = frozenset({"m", "re", "ve", "ll", "d", "t", "s"})  # I'm, we're, they've, she'll, he'd, don't
_NAME_LINKS = frozenset("of the de la le du des di da do dos das del della von van der den al el bin ibn ben".split())
_TITLES = frozenset("mr mrs ms dr st prof".split())
_MAX_NAME = 6  # words: a longer run of capitals is a heading


def content_beyond(question: str, answer: str, ignored: Collection[str] = ()) -> list[Word]:
    """The telling words of an answer that its question does not say."""
    asked = {*folded_words(question), *ignored}
    stems = {word[:STEM] for word in asked if len(word) >= STEM}
    return [word for word in words_of(answer) if _is_content(word, asked, stems)]


def names_beyond(question: str, answer: str, ignored: Collection[str] = ()) -> list[list[Word]]:
    """The names of several words in an answer, with at least one telling word that its question does not say."""
    beyond = {word.start for word in content_beyond(question, answer, ignored)}
    return [name for name in names_in(answer, ignored) if any(word.start in beyond for word in name)]


def names_in(text: str, ignored: Collection[str] = ()) -> Iterator[list[Word]]:
    """Names of several words: neighbouring capitalised words, with links such as `of` between them: `Privet Drive`, `Goblet of Fire`,
    `J. K. Rowling`.

    Args:
        ignored: folded words that, like stop words, neither begin nor end a name.
    """
    run: list[Word] = []
    for word in words_of(text):
        is_link = word.folded in _NAME_LINKS and not word.is_capitalised
        is_part = is_link or (word.is_capitalised and not word.is_unspaced)
        if run and not (is_part and _are_beside(text, run[-1], word)):
            yield from _trimmed(run, ignored)
            run = []
        if is_part and (run or not is_link):
            run.append(word)
    yield from _trimmed(run, ignored)


def key_of(name: Sequence[Word]) -> str:
    """A name of several words as a term: `privet drive`."""
    return " ".join(word.folded for word in name)


def is_number(word: str) -> bool:
    return word[0].isdigit() or word in NUMBER_WORDS


def is_unspaced(word: str) -> bool:
    """Whether a word is a piece of a script without spaces."""
    return any(found.is_unspaced for found in words_of(word))


def _are_beside(text: str, word: Word, after: Word) -> bool:
    between = text[word.end : after.start]
    is_short = len(word.folded) == 1 or word.folded in _TITLES
    return between == " " or (is_short and re.fullmatch(r"\. ?", between) is not None)


def _trimmed(run: list[Word], ignored: Collection[str]) -> Iterator[list[Word]]:
    while run and not _may_end_name(run[0], ignored):
        run = run[1:]
    while run and not _may_end_name(run[-1], ignored):
        run = run[:-1]
    if len(run) > 1 and sum(word.is_capitalised for word in run) <= _MAX_NAME:
        yield run


def _may_end_name(word: Word, ignored: Collection[str]) -> bool:
    return (
        word.is_capitalised
        and word.folded not in STOP_WORDS
        and word.folded not in ignored
        and not is_contraction(word.folded)
    )


def is_contraction(word: str) -> bool:
    """Whether a folded word is a contraction of two common words: `i'm`, `don't`, `they've`."""
    head, mark, tail = word.rpartition("'")
    return mark != "" and tail in _CONTRACTED and (tail != "s" or head in STOP_WORDS | PRONOUNS)


def _is_content(word: Word, asked: Collection[str], stems: Collection[str]) -> bool:
    folded = word.folded
    if folded in asked or folded in STOP_WORDS or is_contraction(folded):
        return False
    if word.is_unspaced:
        return folded not in STOP_GRAMS and not GRAMMAR_LETTERS & set(folded)
    return is_number(folded) or (len(folded) >= 3 and folded[:STEM] not in stems)
