"""Numbers and dates in short answers: reads all their written forms, and writes the other forms. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unlearn_ray.words import fold, letters_of

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_ORDINALS = {
    "first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10,
    "eleventh": 11, "twelfth": 12, "thirteenth": 13, "fourteenth": 14, "fifteenth": 15, "sixteenth": 16, "seventeenth": 17,
    "eighteenth": 18, "nineteenth": 19, "twentieth": 20,
}  # fmt: skip
# The numbers from one, only as a whole answer. Spanish `once` is left out, because it is an English word too.
_FOREIGN = (
    "eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf",
    "un deux trois quatre cinq six sept huit neuf dix onze douze",
    "uno dos tres cuatro cinco seis siete ocho nueve diez _ doce",
    "uno due tre quattro cinque sei sette otto nove dieci undici dodici",
    "um dois três quatro cinco seis sete oito nove dez onze doze",
    "een twee drie vier vijf zes zeven acht negen tien elf twaalf",
    "один два три четыре пять шесть семь восемь девять десять одиннадцать двенадцать",
)
_ALONE = {fold(word): value for words in _FOREIGN for value, word in enumerate(words.split(), start=1) if word != "_"}
_HAN_DIGITS = {char: value for value, chars in enumerate(["零〇", "一壹", "二两兩贰", "三叁", "四肆", "五伍", "六陆", "七柒", "八捌", "九玖"]) for char in chars}  # fmt: skip
_HAN_TENS = {"十": 10, "百": 100, "千": 1000}
_HAN_MYRIADS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_HAN_NUMBER = re.compile(f"[{''.join([*_HAN_DIGITS, *_HAN_TENS, *_HAN_MYRIADS])}]+")
_DIGITS = re.compile(r"\d{1,3}(?:[,٬'’\u00a0\u202f ]\d{3})+|\d+")
_SCALED = re.compile(rf"(\d+(?:\.\d+)?)[ -]({'|'.join(_SCALES)})")
_ORDINAL = re.compile(r"(\d+)(?:st|nd|rd|th)")
_FIRST_YEAR = 100  # an earlier year looks like a day
MAX_WORDED = 100  # larger numbers are written only in digits

_MONTHS: Mapping[str, Sequence[str]] = {
    "en": "January February March April May June July August September October November December".split(),
    "de": "Januar Februar März April Mai Juni Juli August September Oktober November Dezember".split(),
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre".split(),
    "es": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre".split(),
    "it": "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre".split(),
    "pt": "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro".split(),
    "nl": "januari februari maart april mei juni juli augustus september oktober november december".split(),
    "ru": "января февраля марта апреля мая июня июля августа сентября октября ноября декабря".split(),
}
_MONTH_OF: dict[str, tuple[int, str]] = {}
for _language, _names in reversed(list(_MONTHS.items())):  # English last: it gets the names that languages share
    for _place, _name in enumerate(_names, start=1):
        _MONTH_OF[fold(_name)] = (_place, _language)
        if _language == "en" and len(_name) > 3:
            _MONTH_OF.setdefault(fold(_name)[:3], (_place, _language))
_MONTH_OF["sept"] = (9, "en")
_ISO = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})")
_NUMERIC = re.compile(r"(\d{1,2})[./-](\d{1,2})[./-](\d{4})")
_HAN_DATE = re.compile(r"(?:(\d{4})\s*年\s*)?(\d{1,2})\s*月\s*(?:(\d{1,2})\s*[日号號])?")
_DATE_FILLERS = frozenset("the of on in a de del den der le el il em do o г года год ao".split())


@dataclass(frozen=True, slots=True)
class Date:
    """A day or a month, with or without a year."""

    month: int
    day: int | None = None
    year: int | None = None
    language: str = "en"  # of the month's name

    def __str__(self) -> str:
        return "-".join(str(part or "?") for part in (self.year, self.month, self.day))


def number_of(text: str) -> int | None:
    """The whole number that a text consists of: `7`, `seven`, `7th`, `twenty-one`, `1,000`, `七`, `семь`. None if it is anything else."""
    folded = fold(text).strip(" .!?。！？")
    if _DIGITS.fullmatch(folded):
        return int(re.sub(r"\D", "", folded))
    if match := _ORDINAL.fullmatch(folded):
        return int(match.group(1))
    if match := _SCALED.fullmatch(folded):
        return round(float(match.group(1)) * _SCALES[match.group(2)])
    if _HAN_NUMBER.fullmatch(folded):
        return _han_number(folded)
    words = [word for word in letters_of(text) if word != "and"]
    number = _english(words)
    return _ALONE.get(words[0]) if number is None and len(words) == 1 else number


def is_ordinal(text: str) -> bool:
    """Whether a number is written as an ordinal: `7th`, `seventh`."""
    words = letters_of(text)
    return bool(words) and (words[-1] in _ORDINALS or _ORDINAL.fullmatch(words[-1]) is not None)


def number_forms(number: int, *, ordinal: bool) -> list[str]:
    """The forms of a number: in digits, and in words if these are not common speech (`one` in `one of them` is not a number)."""
    if ordinal:
        names = [name for name, value in _ORDINALS.items() if value == number and number > 2]
        return [_with_ending(number), *names]
    forms = [str(number)]
    if 2 <= number <= MAX_WORDED:
        forms.append(_in_words(number))
    return forms


def date_of(text: str) -> Date | None:
    """The date that a text consists of: `July 31, 1980`, `31st of July`, `1980-07-31`, `31.07.1980`, `1980年7月31日`. None if ambiguous."""
    folded = fold(text).strip(" .。")
    if match := _ISO.fullmatch(folded):
        return _date(int(match.group(2)), int(match.group(3)), int(match.group(1)))
    if match := _NUMERIC.fullmatch(folded):
        first, second, year = (int(part) for part in match.groups())
        if first == second or first > 12:
            return _date(second, first, year)
        return _date(first, second, year) if second > 12 else None  # 03/04/1980 is ambiguous
    if match := _HAN_DATE.fullmatch(folded):
        year_, month_, day_ = (int(part) if part else None for part in match.groups())
        return _date(month_ or 0, day_, year_, "zh")
    return _named_date([word for word in letters_of(text) if word not in _DATE_FILLERS])


def date_forms(date: Date) -> list[str]:
    """The forms of a date, in the same order for every date, so that two dates can be written in the same form."""
    if date.language == "zh":
        year = f"{date.year}年" if date.year else ""
        forms = [f"{year}{date.month}月" + (f"{date.day}日" if date.day else "")]
        names: Sequence[str] = ()
    else:
        names, forms = _MONTHS[date.language], []
    year = f" {date.year}" if date.year else ""
    if names and date.day is None:
        forms = [f"{names[date.month - 1]}{year}"]
    elif names:
        month = names[date.month - 1]
        comma = f", {date.year}" if date.year else ""
        if date.language == "en":
            nth = _with_ending(date.day or 0)
            forms = [f"{month} {date.day}{comma}", f"{date.day} {month}{year}", f"{month} {nth}{comma}", f"{nth} {month}{year}", f"{nth} of {month}{year}"]  # fmt: skip
            forms += [f"{month[:3]} {date.day}{comma}", f"{date.day} {month[:3]}{year}"]
        elif date.language in ("es", "pt"):
            forms = [f"{date.day} de {month}" + (f" de {date.year}" if date.year else "")]
        else:
            forms = [f"{date.day}{'.' if date.language == 'de' else ''} {month}{year}"]
    if date.year and date.day:
        forms.append(f"{date.year}-{date.month:02d}-{date.day:02d}")
    return forms


def _date(month: int, day: int | None, year: int | None, language: str = "en") -> Date | None:
    return Date(month, day, year, language) if 1 <= month <= 12 and (day is None or 1 <= day <= 31) else None


def _named_date(words: Sequence[str]) -> Date | None:
    """The date in a month's name with a day, a year or both. None if there are other words."""
    months = [word for word in words if word in _MONTH_OF]
    rest = [int(match.group(1)) for word in words if (match := re.fullmatch(r"(\d+)(?:st|nd|rd|th|er)?", word))]
    if len(months) != 1 or not rest or len(rest) + 1 != len(words) or len(rest) > 2:
        return None
    days, years = [number for number in rest if number <= 31], [number for number in rest if number > 31]
    if len(days) > 1 or len(years) > 1 or any(not _FIRST_YEAR <= year <= 9999 for year in years):
        return None
    month, language = _MONTH_OF[months[0]]
    return _date(month, days[0] if days else None, years[0] if years else None, language)


def _english(words: Sequence[str]) -> int | None:
    """`two hundred five` -> 205. None if a word is not a number."""
    if not words:
        return None
    total = group = 0
    last = ""
    for word in words:
        if word in _SMALL and (not last or last in _SCALES or (last in _TENS and 0 < _SMALL.index(word) < 10)):
            group += _SMALL.index(word)
        elif word in _TENS and word != "_" and (not last or last in _SCALES):
            group += 10 * _TENS.index(word)
        elif word in _ORDINALS and word == words[-1] and (not last or last in _SCALES or last in _TENS):
            group += _ORDINALS[word]
        elif word in _SCALES and (group or (word == words[0] and len(words) == 1) or last == "a"):
            factor = _SCALES[word]
            if factor == 100:
                group = max(1, group) * 100
            else:
                total, group = total + max(1, group) * factor, 0
        elif word == "a" and word == words[0] and len(words) > 1:
            pass  # a hundred
        else:
            return None
        last = word
    return total + group


def _han_number(text: str) -> int:
    """`二百零五` -> 205, `一九九七` -> 1997."""
    if not any(char in _HAN_TENS or char in _HAN_MYRIADS for char in text):
        return int("".join(str(_HAN_DIGITS[char]) for char in text))
    total = group = digit = 0
    for char in text:
        if char in _HAN_DIGITS:
            digit = _HAN_DIGITS[char]
        elif char in _HAN_TENS:
            group, digit = group + max(1, digit) * _HAN_TENS[char], 0
        else:
            total, group, digit = total + max(1, group + digit) * _HAN_MYRIADS[char], 0, 0
    return total + group + digit


def _in_words(number: int) -> str:
    if number < 20:
        return _SMALL[number]
    if number == 100:
        return "one hundred"
    tens, ones = divmod(number, 10)
    return _TENS[tens] + (f"-{_SMALL[ones]}" if ones else "")


def _with_ending(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
