"""Facts: the answer that the short answers to one question agree on, its other written forms, and wrong answers of the same kind. Pure.

Two short answers agree if they are

- the same number or date in any written form,
- the same words, or one within the other (`Rowling` and `Joanne Rowling`, `Hogwarts` and `Hogwarts School`),
- one person, with and without initials (`J. K. Rowling`, `Joanne Rowling`).
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from unlearn_ray.rows import Group, digest
from unlearn_ray.synth.quantities import date_forms, date_of, is_ordinal, number_forms, number_of
from unlearn_ray.synth.stopwords import STOP_WORDS
from unlearn_ray.words import atoms_of, contains, fold, folded_words, letters_of, name_key

Kind = Literal["date", "year", "number", "quantity", "name", "words"]
NUM_WRONG = 3
_FIRST_YEAR, _LAST_YEAR = 1000, 2100
_PARTICLES = frozenset("van von de da di du del della la le el al bin ibn".split())  # words with which names may begin
_JOINED = re.compile(r"\b(?:and|or|und|oder|et|ou|y|o|e|и|или)\b|[,;/&、，；]")  # marks a list of several answers
_UNITS = (
    ("kilometers kilometer kilometres kilometre km"), ("meters meter metres metre m"), ("centimeters centimeter centimetres centimetre cm"),
    ("miles mile mi"), ("feet foot ft"), ("inches inch in"), ("kilograms kilogram kg kilos kilo"), ("grams gram g"), ("pounds pound lb lbs"),
    ("percent per\u00a0cent %"), ("years year"), ("days day"), ("hours hour h"), ("minutes minute min"), ("seconds second s"),
    ("dollars dollar $"), ("euros euro €"), ("degrees degree °"),
)  # fmt: skip
_UNIT_OF = {
    fold(word): place
    for place, words in enumerate(_UNITS)
    for word in words.replace("\u00a0", " ").split(" ")
    if word != "per"
}
_QUANTITY = re.compile(r"([$€£])?\s*(.*?\S)(?:\s*([%°])|(?<=\d)([^\W\d_]+)|[\s-]+([^\W\d_]+)\.?)?")


@dataclass(frozen=True, slots=True)
class Fact:
    """The answer that the short answers agree on."""

    answer: str  # in its most frequent form
    aliases: tuple[str, ...]  # its other forms, written by the model or made here
    num_agreed: int  # short answers that agree
    kind: Kind

    @property
    def forms(self) -> tuple[str, ...]:
        return (self.answer, *self.aliases)


def agreed(question: str, answers: Sequence[str], num_asked: int, share: float, sentence: str = "") -> Fact | None:
    """The fact on which more than `share` of all askings agree. None if there is none.

    Args:
        answers: the short answers. Askings without one count against every fact.
        sentence: an answer in a sentence, which shows names by their capitals.
    """
    groups = _groups(answers)
    if not groups:
        return None
    best = max(groups, key=lambda group: (len(group), [-answers.index(text) for text in group[:1]]))
    if len(best) <= share * num_asked:
        return None
    written = _most_common(best)
    aliases = [
        form
        for form in _forms(written, best, question)
        if form != written and not _holds(form, written) and not contains(question, form)
    ]
    return Fact(written, tuple(dict.fromkeys(aliases)), len(best), kind_of(written, sentence))


def same(one: str, other: str) -> bool:
    """Whether two short answers agree."""
    key, other_key = _key(one), _key(other)
    if key == other_key:
        return True
    if key[0] == other_key[0] == "words":
        return _is_within(one, other) or _is_within(other, one) or _is_person(one, other)
    if "date" in (key[0], other_key[0]) and "number" in (key[0], other_key[0]):
        (date, number) = (one, other) if key[0] == "date" else (other, one)
        found = date_of(date)
        return found is not None and found.year is not None and found.year == number_of(number)
    if "number" in (key[0], other_key[0]):
        (number, text) = (one, other) if key[0] == "number" else (other, one)
        return _holds_number(text, number_of(number))
    return False


def kind_of(answer: str, sentence: str = "") -> Kind:
    """The kind of an answer, so that wrong answers can be of the same kind.

    Args:
        sentence: a sentence in which the answer may follow other words. A capital letter there shows a name.
    """
    if date_of(answer):
        return "date"
    number = number_of(answer)
    if number is not None:
        is_year = _FIRST_YEAR <= number <= _LAST_YEAR and re.fullmatch(r"\W*\d{4}\W*", answer) is not None
        return "year" if is_year else "number"
    if _quantity(answer):
        return "quantity"
    words = answer.split()
    inner = re.search(rf"(?<=[\w,] ){re.escape(answer)}(?!\w)", sentence, re.IGNORECASE) if sentence else None
    if inner is not None:
        return "name" if inner.group()[:1].isupper() else "words"
    begins_small = answer[:1].islower() and fold(words[0]) not in _PARTICLES
    has_capitals = any(word[:1].isupper() for word in words[1:]) or (len(words) == 1 and answer[:1].isupper())
    if begins_small:
        return "words"
    return "name" if has_capitals or answer.lower() == answer.upper() else "words"


def subject_words(question: str, ignored: Iterable[str] = ()) -> frozenset[str]:
    """The words that a question asks about: its uncommon words, without the topic's names."""
    given = {word for name in ignored for word in folded_words(name)}
    return frozenset(word for word in folded_words(question) if word not in STOP_WORDS and word not in given)


def asks_same(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether two questions with the same answer ask for the same fact: half of the shorter one's `subject_words` occur in the other.

    If there are none (`Who wrote it?`), the answer alone decides.
    """
    shorter = min(len(one), len(other))
    return not shorter or 2 * len(one & other) >= shorter


@dataclass(frozen=True, slots=True)
class Alternative:
    """A short answer to another question, used as a wrong answer to this one."""

    text: str
    kind: Kind
    group: Group
    opening: str  # the question's first word: who, when, кто
    is_fact: bool  # whether it was agreed on; else it is a guess


def opening_of(question: str) -> str:
    """The first word of a question. In any language it distinguishes persons from places."""
    return next(iter(folded_words(question)), "")


def wrong_answers(
    question: str, fact: Fact, group: Group, pool: Iterable[Alternative], number: int = NUM_WRONG
) -> list[str]:
    """Wrong answers of the fact's kind and in its form, chosen by a hash of the question. There may be fewer if the pool has no more.

    Answers to questions with the same first word come first, then those of the same group, then facts before guesses. Numbers and years may
    be made up. No wrong answer is a form of the truth, or occurs in the question.
    """
    opening = opening_of(question)

    def rank(other: Alternative) -> tuple[bool, bool, bool, str]:
        return other.opening != opening, other.group != group, not other.is_fact, digest("wrong", question, other.text)

    chosen: list[str] = []
    taken = list(fact.forms)

    def take(text: str) -> None:
        if len(chosen) < number and not any(same(text, form) for form in taken) and not contains(question, text):
            taken.append(text)
            chosen.append(text)

    alike = sorted((other for other in pool if other.kind == fact.kind), key=rank)
    asked = subject_words(question)
    for other in alike:
        # A question for Ron's sister already names Ron Weasley.
        if fact.kind != "name" or not asked & set(folded_words(other.text)):
            take(_written_like(fact.answer, other.text))
    for text in _made(question, fact):
        take(text)
    return chosen


def _groups(answers: Sequence[str]) -> list[list[str]]:
    """The answers in groups that agree. An answer that agrees with two that do not agree (`Potter` of James and Lily) is its own group."""
    distinct = list(dict.fromkeys(answers))
    counts = Counter(answers)
    groups: list[list[str]] = []
    for text in sorted(distinct, key=lambda text: (-len(text), distinct.index(text))):  # longer answers first
        fitting = [group for group in groups if all(same(text, other) for other in group)]
        if len(fitting) == 1:
            fitting[0].append(text)
        else:
            groups.append([text])
    return [[text for text in answers if text in group] for group in groups if sum(counts[text] for text in group)]


def _holds(form: str, written: str) -> bool:
    """Whether a form contains the written one and more. A search for the shorter one then finds both."""
    return sum(map(len, letters_of(form))) > sum(map(len, letters_of(written))) and contains(form, written)


def _most_common(answers: Sequence[str]) -> str:
    """The most frequent form. Of equally frequent ones, the shortest."""
    counts = Counter(answers)
    return min(counts, key=lambda text: (-counts[text], len(text), text))


def _key(text: str) -> tuple[str, str]:
    if (date := date_of(text)) is not None:
        return "date", str(date)
    if (number := number_of(text)) is not None:
        return "number", str(number)
    if (quantity := _quantity(text)) is not None:
        return "quantity", f"{quantity[0]} {quantity[1]}"
    return "words", name_key(text)


def _quantity(text: str) -> tuple[int, int | str] | None:
    """A number with its unit: `7 feet`, `seven ft`, `$5`, `50 %`."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        return None
    before, written, *after = match.groups()
    unit = fold(before or next(filter(None, after), ""))
    number = number_of(written)
    # A capital shows a name: neither `7 Horcruxes` nor `Apollo 11` is a quantity.
    if number is None or not unit or (unit not in _UNIT_OF and any(each and each[0].isupper() for each in after)):
        return None
    return number, _UNIT_OF.get(unit, unit)


def _holds_number(text: str, number: int | None) -> bool:
    """Whether a few words hold this number and no other, and no name: `1997 году`, `seven books`; not `Apollo 11`."""
    if (quantity := _quantity(text)) is not None:
        return quantity[0] == number
    words = text.split()
    numbers = [found for word in words if (found := number_of(word)) is not None]
    return numbers == [number] and not any(word[:1].isupper() for word in words)


def _is_within(part: str, whole: str) -> bool:
    """Whether one answer is the beginning or the end of another, by whole words, and the other is not a list of several."""
    if _JOINED.search(whole[len(part) :] if fold(whole).startswith(fold(part)) else whole[: -len(part)]):
        return False
    inner, outer = letters_of(part), letters_of(whole)
    if not inner or len(inner) >= len(outer) or number_of(part) is not None:
        return False
    if all(word in STOP_WORDS for word in folded_words(part)):
        return False
    is_unspaced = any(atom.kind != "a" for atom in atoms_of(part))
    if is_unspaced and len(inner) < 2:
        return False
    return outer[: len(inner)] == inner or outer[-len(inner) :] == inner


def _is_person(one: str, other: str) -> bool:
    """Whether two names have the same surname, and the given names of one are initials of the other's: `J. K. Rowling`, `Joanne Rowling`."""
    names, others = letters_of(one), letters_of(other)
    if len(names) < 2 or len(others) < 2 or names[-1] != others[-1] or len(names[-1]) < 2:
        return False
    given, other_given = _spread(names[:-1]), _spread(others[:-1])
    pairs = list(zip(given, other_given, strict=False))
    has_initials = any(1 in (len(a), len(b)) for a, b in pairs)
    return has_initials and all(a == b or (1 in (len(a), len(b)) and a[0] == b[0]) for a, b in pairs)


def _spread(given: Sequence[str]) -> list[str]:
    """Given names, with joined initials separated: `JK` -> J, K."""
    return [part for name in given for part in (name if len(name) == 2 and not set(name) & set("aeiouy") else [name])]


def _forms(written: str, answers: Sequence[str], question: str) -> list[str]:
    """Other forms of a fact: written ones, and other forms of the same number, date or initials."""
    forms = [text for text, _ in Counter(answers).most_common()]
    for text in list(forms):
        if (date := date_of(text)) is not None:
            forms += date_forms(date)
        elif (number := number_of(text)) is not None:
            forms += number_forms(number, ordinal=is_ordinal(text))
        elif (quantity := _quantity(text)) is not None and isinstance(quantity[1], int):
            forms += _quantity_forms(quantity[0], quantity[1])
        elif initials := re.match(r"((?:[^\W\d_]\.\s*|[^\W\d_]\s+){1,3})([^\W\d_]{2,}.*)$", text):
            letters = [char for char in initials.group(1) if char.isalpha()]
            if all(char.isupper() for char in letters):
                forms.append("".join(f"{char}." for char in letters) + f" {initials.group(2)}")
    # A year is not a form of a day, though the two agree: it does not answer a question for the day.
    if date_of(written) is not None:
        forms = [form for form in forms if date_of(form) is not None]
    return forms


def _quantity_forms(number: int, unit: int) -> list[str]:
    words = _UNITS[unit].split()
    numbers = number_forms(number, ordinal=False)
    plain = [word for word in words if word.isalpha() and len(word) > 1]
    return [f"{each} {word}" for each in numbers for word in plain]


def _written_like(answer: str, other: str) -> str:
    """Another answer of the same kind in the form of this one: digits or words, the same order of a date, the same first letter's case."""
    if (date := date_of(answer)) is not None and (wrong := date_of(other)) is not None:
        forms, wrong_forms = date_forms(date), date_forms(wrong)
        place = next((place for place, form in enumerate(forms) if letters_of(form) == letters_of(answer)), 0)
        return wrong_forms[place] if len(forms) == len(wrong_forms) else other
    if number_of(answer) is not None and (number := number_of(other)) is not None:
        ordinal = is_ordinal(answer)
        forms = number_forms(number, ordinal=ordinal)
        return _cased(answer, forms[-1] if answer[:1].isalpha() else forms[0])
    return _cased(answer, other) if kind_of(answer) == kind_of(other) == "words" else other


def _cased(answer: str, other: str) -> str:
    if not answer[:1].isalpha():
        return other
    return other[:1].upper() + other[1:] if answer[0].isupper() else other[:1].lower() + other[1:]


def _made(question: str, fact: Fact) -> list[str]:
    """Numbers near the true one, if the pool has too few: years within a generation, numbers within a factor of two."""
    number = number_of(fact.answer)
    if number is None:
        return []
    reach = 20 if fact.kind == "year" else max(4, number // 2)
    near = [number + step for step in range(-reach, reach + 1) if step and number + step > 0]
    near.sort(key=lambda each: digest("made", question, each))
    return [_written_like(fact.answer, str(each)) for each in near[: 4 * NUM_WRONG]]
