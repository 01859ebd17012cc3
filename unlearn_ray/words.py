"""Text as words, in any script: the one place that folds, tokenises, finds phrases and marks them. Standard library alone.

Data making, evaluation and demo all use it, so that a leak is the same to the three of them.

Folding. `Les MISÉRABLES` -> `les miserables`. NFKD, case folding, then the marks that write accents in Latin, Greek and Cyrillic
letters and the vowels of Arabic and Hebrew are dropped, and so is what nobody sees (soft hyphens, zero-width characters). Cyrillic `й`
becomes `и` and `ё` becomes `е`, everywhere alike. Marks of other scripts stay: they are letters there (Hindi vowel signs, Thai tones,
the voicing marks of kana). Digits of any script become ASCII ones. A text gives the same words in NFC, NFD, NFKC and NFKD, but for two
kinds of sign that NFKC would join to the word before them: ™ and ℠ end it, and so do fractions (`9¾` is 9 3/4, not 93/4).

Atoms are the smallest pieces that a phrase can begin or end at: a run of letters and digits in scripts with spaces, one letter with its
marks in scripts without them, one syllable in Korean. The gap before an atom is one of

    NONE   the letters touch: 海|德
    SOFT   a joiner between letters, which other writers leave out or replace by a space: O'Brien, Spider-Man, 哈利·波特, J.K., *Hed*wig
    HARD   all else: spaces, commas, and any joiner between digits, but for what parts thousands (1,000) and a name from its number (Apollo 11)

A phrase stands in a text where the letters are the same, and no HARD gap of one meets NONE in the other. So `Spider-Man` is found in
`Spider Man` and `Spiderman`, but `the rapist` is not found in `therapist`. The ending 's is taken with and without. In katakana and
Korean a phrase of one or two letters must fill its run of letters (`ロン` is not in `ロンドン`), Korean particles aside (`론은`).
"""

import html
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

NONE, SOFT, HARD = 0, 1, 2
MAX_FACT_WORDS = 8  # a longer answer is a sentence: containing it word for word says nothing, ROUGE and probability do
_LEAST_INNER = 3  # letters of a katakana or Korean phrase that may stand inside a longer run
# Words of scripts without spaces, for counting: overlapping pieces of so many letters. A Han letter tells as much as a syllable elsewhere.
_GRAM = {"h": 2, "k": 3, "i": 3, "t": 3}
_LETTERS_PER_WORD = {"h": 2.0, "k": 3.0, "i": 3.0, "t": 4.0, "g": 3.0}

_APOSTROPHES = "'’‘‛ʼʻʽʾʿ′׳´`ꞌ"
_HYPHENS = "-‐‑‒–—―−⁃᠆־"
_DOTS = ".·・‧•∙⋅"
_EMPHASIS = "_*~\\"  # and Markdown's escape
_TRADE_MARKS = "™℠"  # letters to NFKC
_SAME_LETTERS = {
    "ı": "i",
    "ی": "ي",
    "ى": "ي",
    "ک": "ك",
    "ـ": "",
    **{
        "ł": "l",
        "ø": "o",
        "đ": "d",
        "ð": "d",
        "ħ": "h",
        "ŧ": "t",
        "þ": "th",
        "æ": "ae",
        "œ": "oe",
    },  # Unicode takes no stroke off
}  # Turkish dotless i; Persian forms; the Arabic stretch
# Combining marks that write an accent or a vowel that readers leave out; marks of all other scripts are letters.
_ACCENTS = (
    (0x0300, 0x036F), (0x0483, 0x0489), (0x0591, 0x05BD), (0x05BF, 0x05BF), (0x05C1, 0x05C2), (0x05C4, 0x05C5), (0x05C7, 0x05C7),
    (0x0610, 0x061A), (0x064B, 0x065F), (0x0670, 0x0670), (0x06D6, 0x06DC), (0x06DF, 0x06E4), (0x06E7, 0x06E8), (0x06EA, 0x06ED),
    (0x0898, 0x089F), (0x08CA, 0x08FF), (0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF), (0x20D0, 0x20FF), (0x2DE0, 0x2DFF), (0xA66F, 0xA672),
    (0xFE20, 0xFE2F),
)  # fmt: skip
_UNSEEN = ((0x034F, 0x034F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
_SCRIPTS = (
    ("h", ((0x3005, 0x3007), (0x3021, 0x3029), (0x3100, 0x312F), (0x31A0, 0x31BF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))),
    ("i", ((0x3041, 0x3096), (0x309D, 0x309F))),
    ("k", ((0x30A1, 0x30FA), (0x30FC, 0x30FF), (0x31F0, 0x31FF))),
    # Thai, Lao, Burmese, Khmer and their neighbours
    ("t", ((0x0E01, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF), (0x1B00, 0x1B7F), (0xA980, 0xA9FF), (0xAA60, 0xAA7F))),
    ("L", ((0x1100, 0x115F), (0xA960, 0xA97C))),  # a Korean syllable, taken apart by NFKD: its first consonant,
    ("V", ((0x1160, 0x11A7), (0xD7B0, 0xD7C6))),  # its vowel,
    ("T", ((0x11A8, 0x11FF), (0xD7CB, 0xD7FB))),  # its last consonant
)  # fmt: skip
# + and # belong to a name that they end: C++, C#, F#.
_ATOM = re.compile(r"[ad][adm]*(?:p+(?![ad]))?|[hkit]m*|LV*T*m*|V+T*m*|T+m*")
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)  # controls, also of direction, and halves
_JOINED = re.compile(r"[-'._]{1,6}|[/&]")  # AC/DC, AT&T
_ENTITY = re.compile(r"&(?:#\d{2,6}|#[xX][0-9a-fA-F]{2,5}|[A-Za-z]{2,8});")
_JOINED_UNSPACED = re.compile(r"[-'._= ]{1,8}")
_SENTENCE_END = re.compile(r"[.!?:;。！？；：।॥؟۔\n\"“”「『《(（¿¡][\W_]*$")
_PARTICLES = re.compile(
    r"(?:은|는|이|가|을|를|의|에|에서|에게|에게서|께|께서|한테|한테서|와|과|랑|이랑|하고|도|만|부터|까지|으로|로|라고|이라고|라는|이라는|란|이란|"
    r"이다|다|입니다|이었다|였다|이었습니다|였습니다|이에요|예요|이야|야|아|여|이여|처럼|보다|마다|조차|마저|밖에|들|님|씨|군|양|이며|며|이고|고|인|일|나|이나)+"
)


@dataclass(frozen=True, slots=True)
class Atom:
    """The smallest piece of a text that a phrase can begin or end at."""

    text: str  # folded
    start: int
    end: int  # of the text as it was given
    kind: str  # a: script with spaces; h, i, k, t: without (Han, hiragana, katakana, South-East Asian); g: Korean
    gap: int  # before it
    joint: str = ""  # the classes of the characters between
    is_ending: bool = False  # the s of 's


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a text, for counting. In scripts without spaces: a piece of a few letters, overlapping with the next."""

    text: str  # as written
    folded: str
    start: int
    end: int
    is_first: bool  # a sentence starts with it, so that a capital says nothing
    share: float = 1.0  # of a word, where it is a piece of a text without spaces
    is_unspaced: bool = False

    @property
    def is_capitalised(self) -> bool:
        return self.text[0].isupper()

    @property
    def is_cased(self) -> bool:
        """Whether its script has capitals at all."""
        return self.text[0].lower() != self.text[0].upper()


class _Expansions(dict[str, str]):
    """A character -> what folding makes of it, kept once worked out."""

    def __missing__(self, char: str) -> str:
        self[char] = folded = _expanded(char)
        return folded


class _Classes(dict[int, str]):
    """A folded character's code -> its class, one ASCII letter, as `str.translate` takes it."""

    def __missing__(self, code: int) -> str:
        self[code] = found = _class_of(chr(code))
        return found


def _within(code: int, ranges: Sequence[tuple[int, int]]) -> bool:
    return any(low <= code <= high for low, high in ranges)


def _expanded(char: str) -> str:
    if char in _TRADE_MARKS:
        return " "
    if unicodedata.decomposition(char).startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKD", char)
    cased = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
    return "".join(_folded_char(c) for c in cased)


def _folded_char(char: str) -> str:
    code = ord(char)
    if _within(code, _ACCENTS) or _within(code, _UNSEEN) or unicodedata.category(char) == "Cf":
        return ""
    digit = unicodedata.decimal(char, None)
    return _SAME_LETTERS.get(char, char) if digit is None else str(digit)


def _class_of(char: str) -> str:
    for name, chars in (
        ("'", _APOSTROPHES),
        ("-", _HYPHENS),
        (".", _DOTS),
        ("_", _EMPHASIS),
        ("p", "+#"),
        ("=", "=゠"),
        (",", ",٬"),
        ("/", "/"),
        ("&", "&"),
    ):
        if char in chars:
            return name
    if char.isspace():
        return "\n" if char in "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029" else " "
    category = unicodedata.category(char)
    if category[0] == "M":
        return "m"
    if category[0] not in "LN":
        return "x"
    for name, ranges in _SCRIPTS:
        if _within(ord(char), ranges):
            return name
    return "d" if category == "Nd" else "a"


_EXPANSIONS, _CLASSES = _Expansions(), _Classes()


def fold(text: str) -> str:
    """Without case and accents: `Misérables` -> `miserables`. Punctuation and spaces stay."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", _expand(text)[0])


def _expand(text: str) -> tuple[str, Sequence[int]]:
    """The folded characters, not yet composed, each with the place that it comes from."""
    if text.isascii():
        return text.lower(), range(len(text))
    chars: list[str] = []
    places: list[int] = []
    for place, char in enumerate(text):
        expanded = _EXPANSIONS[char]
        chars.extend(expanded)
        places.extend([place] * len(expanded))
    start = 0
    for end in range(1, len(chars) + 1):  # canonical order of the marks that stay (UAX 15, D109)
        if end == len(chars) or not unicodedata.combining(chars[end]):
            if end - start > 2:
                order = sorted(range(start + 1, end), key=lambda i: unicodedata.combining(chars[i]))
                chars[start + 1 : end], places[start + 1 : end] = [chars[i] for i in order], [places[i] for i in order]
            start = end
    return "".join(chars), places


@lru_cache(maxsize=4096)
def atoms_of(text: str) -> tuple[Atom, ...]:
    """The atoms of a text in their order."""
    if "&" in text and (read := _unescaped(text)):
        plain, starts, ends = read
        return tuple(replace(atom, start=starts[atom.start], end=ends[atom.end - 1]) for atom in atoms_of(plain))
    folded, places = _expand(text)
    classes = folded.translate(_CLASSES)
    found: list[Atom] = []
    last = 0
    for match in _ATOM.finditer(classes):
        start, end = match.span()
        letters = folded[start:end]
        if not letters.isascii():
            letters = unicodedata.normalize("NFC", letters)
        first = classes[start]
        kind = "a" if first in "ad" else "g" if first in "LVT" else first
        between = classes[last:start]
        gap, joint, is_ending = HARD, "", False
        if found:
            gap, joint = _gap(found[-1], letters, kind, between), between
            if _parts_thousands(found, letters, between):
                gap = SOFT
            is_ending = _is_ending(found[-1], letters, joint, classes[end : end + 2])
        stop = places[end - 1] + 1
        while stop < len(text) and unicodedata.category(text[stop])[0] == "M":
            stop += 1  # an accent of its own, which folding dropped
        found.append(Atom(letters, places[start], stop, kind, gap, joint, is_ending))
        last = end
    return tuple(found)


def _unescaped(text: str) -> tuple[str, list[int], list[int]] | None:
    """The text without HTML's escapes, and where each of its characters begins and ends in what was given; None where it has none."""
    chars: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    last = 0
    for match in _ENTITY.finditer(text):
        written = html.unescape(match.group())
        if written == match.group():
            continue
        for place in range(last, match.start()):
            chars.append(text[place])
            starts.append(place)
            ends.append(place + 1)
        chars.extend(written)
        starts.extend([match.start()] * len(written))
        ends.extend([match.end()] * len(written))
        last = match.end()
    if not last:
        return None
    rest = range(last, len(text))
    return "".join(chars) + text[last:], [*starts, *rest], [*ends, *(place + 1 for place in rest)]


def _parts_thousands(found: Sequence[Atom], letters: str, between: str) -> bool:
    """Whether three digits go on a number: 1,000, 1 000, 1.000.000."""
    before = found[-1].text
    if len(letters) != 3 or not letters.isdigit() or not before.isdigit() or between not in (",", ".", " ", "'"):
        return False
    goes_on = len(found) > 1 and found[-2].text.isdigit() and found[-1].joint == between
    return len(before) == 3 and found[-1].gap == SOFT if goes_on else len(before) <= 3 and before[0] != "0"


def _gap(before: Atom, letters: str, kind: str, between: str) -> int:
    if between == " " and kind == "a" == before.kind:  # most of them
        # Apollo 11 and Apollo11
        is_glued = before.text[-1].isdigit() != letters[0].isdigit()
        return SOFT if is_glued and (before.text.isdigit() or letters.isdigit()) else HARD
    if not between:
        return NONE
    if kind != "a" or before.kind != "a":
        return SOFT if _JOINED_UNSPACED.fullmatch(between) else HARD
    are_digits = before.text[-1].isdigit() and letters[0].isdigit()
    return SOFT if _JOINED.fullmatch(between) and not are_digits else HARD


def _is_ending(before: Atom, letters: str, joint: str, after: str) -> bool:
    """Whether this is the s of a possessive, the last piece of its word."""
    if letters != "s":
        return False
    is_inner = len(after) == 2 and after[0] in "-'" and after[1] in "ad"
    return joint == "'" and before.kind == "a" and not is_inner


def visible(text: str) -> str:
    """The text on one line, with control characters and halves of characters written as escapes: for terminals and logs."""
    if text.isprintable():
        return text
    return "".join(" " if char.isspace() else _UNSAFE.sub(_escaped, char) for char in text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def letters_of(text: str) -> tuple[str, ...]:
    """The atoms' letters alone: `"Les Misérables!"` -> `("les", "miserables")`. What n-grams and ROUGE count."""
    return tuple(atom.text for atom in atoms_of(text))


def normalised(text: str) -> str:
    """Equal for texts that differ in case, accents, punctuation or spacing alone."""
    return " ".join(letters_of(text))


def num_words(text: str) -> float:
    """How long a text is, in words. In scripts without spaces, letters over the letters that a word has there on average."""
    return sum(1 / _LETTERS_PER_WORD.get(atom.kind, 1.0) for atom in atoms_of(text))


def spaced_out(text: str) -> str:
    """The text with spaces around each letter of scripts without them, for tokenisers that split at spaces."""
    if text.isascii():
        return text
    pieces, position = [], 0
    for atom in atoms_of(text):
        if atom.kind not in "ag":
            pieces += [text[position : atom.start], " ", text[atom.start : atom.end], " "]
            position = atom.end
    return "".join([*pieces, text[position:]])


@lru_cache(maxsize=2048)  # filters ask for the words of the same answer a dozen times
def words_of(text: str) -> tuple[Word, ...]:
    """The words of a text in their order; possessive endings and Korean particles are cut off."""
    found: list[Word] = []
    for run in _runs(text):
        kind = run[0].kind
        start, end = run[0].start, run[-1].end
        if kind in _GRAM:
            found.extend(_gram(text, run[place : place + _GRAM[kind]]) for place in _places(run))
        elif kind == "g":
            found.append(Word(text[start:end], _folded(run), start, end, False, is_unspaced=True))
        else:
            is_first = not found or _SENTENCE_END.search(text[max(0, start - 8) : start]) is not None
            folded = run[0].text if len(run) == 1 else _folded(run)
            found.append(Word(text[start:end], folded, start, end, is_first))
    return tuple(found)


@lru_cache(maxsize=4096)
def folded_words(text: str) -> tuple[str, ...]:
    """The words alone, where capitals do not matter."""
    found: list[str] = []
    for run in _runs(text):
        length = _GRAM.get(run[0].kind)
        if length is None:
            found.append(run[0].text if len(run) == 1 else _folded(run))
        else:
            found.extend(_folded(run[place : place + length]) for place in _places(run))
    return tuple(found)


# Words of Latin letters with single spaces: no numbers, hyphens or apostrophes. Most questions match, and are split ten times as fast.
_PLAIN = re.compile(r"[A-Za-z]+(?: [A-Za-z]+)*[.?!]?")


def comparable(text: str) -> list[str]:
    """The words, and letter by letter what scripts without spaces write: equal for two texts that differ in punctuation and spacing alone."""
    if _PLAIN.fullmatch(text):
        return text.rstrip(".?!").lower().split(" ")
    found: list[str] = []
    for run in _runs(text):
        found.extend([_folded(run)] if run[0].kind == "a" else [atom.text for atom in run])
    return found


def _runs(text: str) -> Iterator[Sequence[Atom]]:
    """The atoms of each word; those that touch, in scripts without spaces."""
    atoms = atoms_of(text)
    start = 0
    for end in range(1, len(atoms) + 1):
        if end == len(atoms) or not _continues(atoms[end - 1], atoms[end]):
            run: Sequence[Atom] = atoms[start:end]
            if len(run) > 1 and run[-1].is_ending:
                run = run[:-1]
            yield _stem(run) if run[0].kind == "g" else run
            start = end


def _continues(atom: Atom, after: Atom) -> bool:
    """Whether two atoms are pieces of one word or run."""
    if after.gap == HARD or atom.kind != after.kind:
        return False
    if atom.kind == "a":
        return len(after.joint) == 1 and after.joint in "-'"
    return after.gap == NONE or " " not in after.joint


def _stem(run: Sequence[Atom]) -> Sequence[Atom]:
    """A Korean word without the particles at its end; two syllables of it stay."""
    for length in range(2, len(run)):
        if _PARTICLES.fullmatch("".join(atom.text for atom in run[length:])):
            return run[:length]
    return run


def _folded(run: Sequence[Atom]) -> str:
    if run[0].kind != "a":
        return "".join(atom.text for atom in run)
    return "".join((atom.joint if place else "") + atom.text for place, atom in enumerate(run))


def _places(run: Sequence[Atom]) -> range:
    """Where the pieces of a run begin."""
    return range(max(1, len(run) - _GRAM[run[0].kind] + 1))


def _gram(text: str, run: Sequence[Atom]) -> Word:
    start, end, share = run[0].start, run[-1].end, 1 / _LETTERS_PER_WORD[run[0].kind]
    return Word(text[start:end], _folded(run), start, end, False, share, is_unspaced=True)


def name_key(name: str) -> str:
    """Equal for two spellings of one name: without case, accents, punctuation and a leading article."""
    return normalised(name).removeprefix("the ") or unicodedata.normalize("NFKC", name).casefold().strip()


@dataclass(frozen=True, slots=True)
class Span:
    """Where a phrase stands in a text."""

    start: int
    end: int
    phrase: str


Gaps = tuple[tuple[int, int], ...]  # how many letters stand before it, and what it is


@dataclass(frozen=True, slots=True)
class _Key:
    """A phrase as it is looked up."""

    letters: str
    gaps: Gaps
    num_atoms: int


class Phrases:
    """Many phrases, looked up at once."""

    def __init__(self, phrases: Iterable[str]) -> None:
        self._by_letters: dict[str, list[tuple[_Key, str]]] = {}
        self._beginnings: set[str] = set()
        self._phrases: dict[str, None] = {}
        self._signs: dict[str, re.Pattern[str]] = {}  # phrases of emoji and other symbols alone, as they are
        for phrase in phrases:
            if phrase in self._phrases:
                continue
            if not _keys_of(phrase) and any(unicodedata.category(char) == "So" for char in phrase):
                self._phrases[phrase] = None
                bare = phrase.replace("\ufe0f", "").strip()
                self._signs[phrase] = re.compile("\ufe0f?".join(map(re.escape, bare)))
            for key in _keys_of(phrase):
                self._phrases[phrase] = None
                self._by_letters.setdefault(key.letters, []).append((key, phrase))
                self._beginnings.update(key.letters[:end] for end in range(1, len(key.letters) + 1))

    def __len__(self) -> int:
        return len(self._phrases)

    def found_in(self, text: str) -> list[str]:
        """The phrases that stand in the text, in the order in which they were given."""
        found = {span.phrase for span in self.spans(text)}
        return [phrase for phrase in self._phrases if phrase in found]

    def spans(self, text: str) -> Iterator[Span]:
        """Everywhere that a phrase stands in the text, by where it begins."""
        for phrase, sign in self._signs.items():
            yield from (Span(*match.span(), phrase) for match in sign.finditer(text))
        if not self._by_letters:
            return
        atoms = atoms_of(text)
        for first, atom in enumerate(atoms):
            if atom.is_ending or atom.text not in self._beginnings:
                continue
            fresh: list[tuple[str, Gaps]] = [(atom.text, ())]  # letters so far, with and without the 's on the way
            past: list[tuple[str, Gaps]] = []
            last = first
            while True:
                for letters, gaps in fresh:
                    for key, phrase in self._by_letters.get(letters, ()):
                        if _agree(key.gaps, gaps) and _has_room(atoms, first, last, key.num_atoms):
                            yield Span(atom.start, atoms[last].end, phrase)
                last += 1
                if last == len(atoms):
                    break
                after, before = atoms[last], fresh + past
                longer = ((letters + after.text, (*gaps, (len(letters), after.gap))) for letters, gaps in before)
                fresh = [way for way in longer if way[0] in self._beginnings]
                past = before if after.is_ending else []
                if not fresh and not past:
                    break


@lru_cache(maxsize=65536)
def _keys_of(phrase: str) -> tuple[_Key, ...]:
    atoms = atoms_of(phrase)
    plain = tuple(atom for atom in atoms if not atom.is_ending)
    return tuple(_key(each) for each in dict.fromkeys((atoms, plain)) if each)


def _key(atoms: Sequence[Atom]) -> _Key:
    letters, gaps = "", []
    for place, atom in enumerate(atoms):
        if place:
            gaps.append((len(letters), atom.gap))
        letters += atom.text
    return _Key(letters, tuple(gaps), len(atoms))


def _agree(wanted: Gaps, found: Gaps) -> bool:
    if wanted == found:
        return True
    here, there = dict(wanted), dict(found)
    return all({here.get(place, NONE), there.get(place, NONE)} != {NONE, HARD} for place in here.keys() | there.keys())


def _has_room(atoms: Sequence[Atom], first: int, last: int, num_atoms: int) -> bool:
    """Whether the phrase may stand within its number, or its run of katakana or Korean letters."""
    if _cuts_number(atoms, first, last):
        return False
    if num_atoms >= _LEAST_INNER:
        return True
    head, tail = atoms[first], atoms[last]
    if head.kind in "kg" and first and _touch(atoms[first - 1], head):
        return False
    if tail.kind not in "kg":
        return True
    rest = ""
    for place in range(last + 1, len(atoms)):
        if not _touch(atoms[place - 1], atoms[place]):
            break
        rest += atoms[place].text
    return not rest or (tail.kind == "g" and _PARTICLES.fullmatch(rest) is not None)


def _cuts_number(atoms: Sequence[Atom], first: int, last: int) -> bool:
    """Whether a phrase takes a part of a number: 3 of 3.5 or of 3,000; 1997 of 12.05.1997 is a whole."""
    is_number = all(atoms[place].text.isdigit() for place in range(first, last + 1))
    return any(
        0 < place < len(atoms) and _is_inside(atoms, place) and (atoms[place].joint != " " or is_number)
        for place in (first, last + 1)
    )


def _is_inside(atoms: Sequence[Atom], place: int) -> bool:
    """Whether the gap before an atom is inside a number."""
    joint = atoms[place].joint
    if joint not in (",", ".", " ", "'") or not (
        atoms[place].text[0].isdigit() and atoms[place - 1].text[-1].isdigit()
    ):
        return False
    if atoms[place].gap == SOFT:
        return True
    start = end = place
    while start > 1 and atoms[start - 1].joint == joint and atoms[start - 2].text[-1].isdigit():
        start -= 1
    while end + 1 < len(atoms) and atoms[end + 1].joint == joint and atoms[end + 1].text[0].isdigit():
        end += 1
    return joint in ",." and start == end  # two parts: a decimal; more are a date or a list


def _touch(atom: Atom, after: Atom) -> bool:
    return after.gap == NONE and atom.kind == after.kind


@lru_cache(maxsize=256)
def phrases_of(phrases: tuple[str, ...]) -> Phrases:
    """The phrases made ready for look-up, kept for the next time."""
    return Phrases(phrases)


def contains(text: str, phrase: str) -> bool:
    """Whether the phrase stands in the text; a phrase without letters stands nowhere."""
    return next(phrases_of((phrase,)).spans(text), None) is not None


def telling(terms: Iterable[str], given: str) -> list[str]:
    """The terms that would give something away: those that do not stand in what was given (the question, the topic's own names)."""
    terms = tuple(terms)
    known = set(phrases_of(terms).found_in(given))
    return [term for term in terms if term not in known]


def leaked(text: str, terms: Iterable[str], given: str) -> list[str]:
    """The terms that a text gives away: those that stand in it and that tell something beyond what was given."""
    found = phrases_of(tuple(terms)).found_in(text)
    return telling(found, given) if found else []


def tells(answer: str, truths: Sequence[str]) -> bool | None:
    """Whether an answer has the true value or an alias; None where the first truth is a sentence, over `MAX_FACT_WORDS`, and no fact."""
    if not 0 < num_words(truths[0]) <= MAX_FACT_WORDS:
        return None
    return any(contains(answer, truth) for truth in truths)


def marked(text: str, phrases: Sequence[str]) -> list[tuple[str, bool]]:
    """The text in pieces, True for those where a phrase stands; phrases that overlap make one piece."""
    pieces: list[tuple[str, bool]] = []
    position = 0
    hits: list[list[int]] = []
    for span in sorted(phrases_of(tuple(phrases)).spans(text), key=lambda span: (span.start, -span.end)):
        if hits and span.start < hits[-1][1]:
            hits[-1][1] = max(hits[-1][1], span.end)
        else:
            hits.append([span.start, span.end])
    for start, end in hits:
        pieces += [(text[position:start], False), (text[start:end], True)]
        position = end
    pieces.append((text[position:], False))
    return [piece for piece in pieces if piece[0]]


# A thought's opening and its closing, as models write them: in tags, gpt-oss in channels, Granite in words.
_TAG = r"(?:seed:)?(?:think|thinking|thoughts?|thought_process|reasoning|reflection|scratchpad)"
_OPENS = rf"<({_TAG})\s*>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|channel\|>\s*(?:analysis|commentary)\b[^<]*<\|message\|>"
_CLOSES = {"[think]": "[/THINK]", "◁think▷": "◁/think▷", "<|begin_of_thought|>": "<|end_of_thought|>"}
_CLOSING = rf"</{_TAG}\s*>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>"
_SPECIAL = r"(?:\s|<\|(?!channel\|>|begin_of_thought\|>)[\w-]{1,40}\|>|<(?:s|bos)>)*"  # tokens that begin a turn
_ENDS_OPEN = re.compile(rf"(?:{_OPENS})\s*$", re.IGNORECASE)
# Where a thought opens the text, and nowhere else: another place may tell of the marker. `<think>` alone is a thought wherever it stands
# but in backticks.
_THOUGHT_FIRST = re.compile(
    rf"^{_SPECIAL}(?:<(?P<tag>{_TAG})\s*>.*?(?:</(?P=tag)\s*>|\Z)|\[THINK\].*?(?:\[/THINK\]|\Z)|◁think▷.*?(?:◁/think▷|\Z)"
    r"|<\|begin_of_thought\|>.*?(?:<\|end_of_thought\|>|\Z)"
    r"|(?-i:analysis(?=[A-Z\W]).*?assistantfinal)"  # channels without their special tokens
    r"|here(?:'s| is) my thought process:.*?(?:here(?:'s| is) my response:|\Z))",
    re.DOTALL | re.IGNORECASE,
)
_THINK_INSIDE = re.compile(r"(?<!`)<think>.*?(?:</think>|\Z)(?!`)", re.DOTALL | re.IGNORECASE)
# The prompt opened it. The marker ends its line, or the rest begins on its own; `</think>` ends a thought wherever backticks don't hold it.
_CLOSED = re.compile(
    rf"^.*(?:(?<!`)</think>(?!`)|(?:{_CLOSING})(?=\s*(?:\n|\Z))|(?:(?<=[.!?。！？\n])|^)(?:{_CLOSING})(?!`))",
    re.DOTALL | re.IGNORECASE,
)
_CHANNEL = re.compile(
    r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>(.*?)(?=<\|(?:end|return|start|channel|call)\|>|\Z)", re.DOTALL
)
_WRAPPED = re.compile(
    r"^\s*(?:<answer>|<\|begin_of_solution\|>|<response>)(.*?)(?:</answer>|<\|end_of_solution\|>|</response>|\Z)\s*$",
    re.DOTALL | re.IGNORECASE,
)


def without_thoughts(text: str) -> str:
    """An answer without what was only thought: whole thoughts, one that the prompt opened, and one that was cut off.

    Of gpt-oss's channels the final one is the answer; an answer in `<answer>` tags loses them.
    """
    channels = _CHANNEL.findall(text)
    if channels:
        return "".join(said for name, said in channels if name == "final").strip()
    if not any(mark in text for mark in "<[◁") and _THOUGHT_FIRST.match(text) is None:
        return text
    spoken = text
    while (shorter := _THOUGHT_FIRST.sub("", spoken, count=1)) != spoken:
        spoken = shorter
    spoken = _CLOSED.sub("", _THINK_INSIDE.sub("", spoken))
    if wrapped := _WRAPPED.match(spoken):
        spoken = wrapped.group(1)
    return text if spoken == text else spoken.strip()


def closes_thought(text: str) -> bool:
    """Whether a thought ends in this text."""
    return _CLOSED.search(text) is not None or "<|channel|>final" in text


def closing_of_thought(prompt: str) -> str | None:
    """What closes the thought that a prompt opens for its answer; None where it opens none."""
    opened = _ENDS_OPEN.search(prompt)
    if opened is None:
        return None
    if opened.group(1):
        return f"</{opened.group(1)}>"
    # A channel closes where the next one begins.
    return _CLOSES.get(opened.group().strip().lower(), "<|end|><|start|>assistant<|channel|>final<|message|>")
