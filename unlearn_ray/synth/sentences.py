"""Finds the ends of sentences in any script: to cut a truncated answer to whole sentences, and to split a text into sentences.

A mark ends a sentence if the script uses it so, unless

- it belongs to a word: an initial (`J. K.`), an abbreviation (`Mr.`, `e.g.`, `т. е.`), a number (`3.5`, `am 3. Mai`), a list's marker (`1.`);
- the text goes on in lower case (`"Stop!" he cried`), or without the space that the script requires (`node.js`).

Closing quotes and brackets after the mark belong to the sentence. In unclear cases the sentence goes on, because it is better to cut a text
too early than within a sentence. A list's item without a mark ends with its line. Thai and Lao have no mark: their sentences end at spaces.
"""

import re
import unicodedata
from collections.abc import Iterator

from unlearn_ray.words import fold

# Marks of Han, Armenian, Arabic, Devanagari, Tibetan, Ethiopic, Burmese and Khmer that only end sentences.
_SURE = "。｡！？‼⁇⁈⁉։।॥؟۔።፧፨။។៕།༎𑁇"
_MARKS = rf"(?:[{_SURE}]|[.!?．…]|(?<=[\u0370-\u03ff\u1f00-\u1fff]);|\u037e)+"
_CLOSING = "\"'”’»«›‹“」』》〉】）)\\]}*_`~"
_END = re.compile(rf"(?P<marks>{_MARKS})(?P<closing>[{_CLOSING}]*(?:\[\d{{1,3}}\])*)")
_PAIRS = {"(": ")", "[": "]", "（": "）", "「": "」", "『": "』", "《": "》", "【": "】", "“": "”"}
_OPENED_BY = {closing: opening for opening, closing in _PAIRS.items()}
# Abbreviations with a dot, folded. Those that often end a sentence (etc., usw.) are left out.
_ABBREVIATIONS = frozenset(
    fold(
        """
        mr mrs ms messrs mx dr drs prof st sts rev fr sr gen col maj capt cmdr lt sgt cpl hon gov pres sen rep mt ft vs cf eg ie viz approx ca
        no nos nr vol vols ed eds fig figs ch pp pg art sec dept univ ave blvd rd hwy inc ltd co corp bros al
        jan feb mar apr jun jul aug sept sep oct nov dec mon tue tues wed thu thur thurs fri sat
        bzw bspw evtl ggf hr frl hrsg jh str tel zzgl inkl sog vgl
        mme mmes mlle mlles mgr ste av bd env ex
        sra srta dra ud uds ee pag num
        sig sigg sigra dott ssa egr avv ing
        exmo exma pe
        дж гг вв см ул им стр рис табл руб коп тыс млн млрд напр проф акад св обл пос просп чел др пр
        np tzn tzw sw woj ks inz mgr hab tj napr tzv
        bijv dhr mevr mw jl
        bl fru kl tlf
        orn hz sn yrd doc
        κ κα κος δρ αρ σελ
        """
    ).split()
)
_DOTTED = re.compile(r"(?:\w{1,3}\.)+\w{1,3}")  # e.g, U.S, Ph.D, т.е
_WORD_BEFORE = re.compile(r"(?:[^\W_]|[\u0300-\u036f]|[.'’-](?=\w)|\w)+$")
_LAST_WORD = re.compile(r"([^\W\d_]+)\s+\d+$")
# Words before a day or a century in languages that write ordinals with a dot.
_BEFORE_ORDINAL = frozenset(
    "am der im dem des den das die zum zur vom beim bis ab seit und dne od do az den el".split()
)
_ITEM = re.compile(r"^[ \t>]*(?:[-*•+·]|[(（]?\d{1,3}[.):）])[ \t]+\S[^\n]*[^\s:,;：，、-](?=[ \t]*\n)", re.MULTILINE)
_SPACE_OF_THAI = re.compile(r"(?<=[\u0e00-\u0eff])\s+(?=[\u0e00-\u0eff\d])")


def whole(text: str, is_cut: bool) -> str:
    """The text. If it was cut off: the part up to the end of its last whole sentence, "" if there is none."""
    text = text.strip()
    return text[: _last_end(text)].rstrip() if is_cut else text


def sentences_of(text: str) -> Iterator[str]:
    """The sentences of a text in their order. The rest after the last end is one too."""
    start = 0
    for end in (*_ends(text), len(text)):
        if sentence := text[start:end].strip():
            yield sentence
        start = end


def _last_end(text: str) -> int:
    """The end of the last whole sentence, if possible outside of brackets that are never closed. 0 if there is none."""
    ends = _ends(text) or [match.end() for match in _ITEM.finditer(text)]
    ends = ends or [match.start() for match in _SPACE_OF_THAI.finditer(text)]
    closed = [end for end in ends if _is_closed(text[:end])]
    return max(closed or ends, default=0)


def _ends(text: str) -> list[int]:
    """The ends of sentences, and of list items without a mark."""
    ends = {match.end() for match in _END.finditer(text) if _is_end(text, match)}
    ends |= {match.end() for match in _ITEM.finditer(text)}
    return sorted(ends)


def _is_end(text: str, match: re.Match[str]) -> bool:
    marks, closing, after = match["marks"], match["closing"], text[match.end() :]
    is_sure = any(char in _SURE for char in marks)
    if is_sure and not closing:
        return True
    if after and not after[0].isspace() and not (is_sure and not _is_letter(after[0])):
        return False
    follows = next((char for char in after if char.isalnum()), "")
    if follows.islower():
        return False
    if not set(marks) <= {".", "．", "…"}:
        return True
    if len(marks) > 1 or marks == "…":
        return bool(follows)  # an ellipsis at the end of the text leaves its sentence unfinished
    return not _belongs_to_word(text[: match.start()], closing, after)


def _belongs_to_word(before: str, closing: str, after: str) -> bool:
    """Whether a single dot belongs to the word before it."""
    found = _WORD_BEFORE.search(before, before.rfind(" ") + 1)
    if found is None:
        return not before.strip() or before[-1].isspace()  # a dot on its own
    word = found.group()
    if word.isdigit():
        return not closing and _is_counting(before, word, after)
    folded = fold(word)
    return folded in _ABBREVIATIONS or _DOTTED.fullmatch(folded) is not None or _is_initial(word)


def _is_initial(word: str) -> bool:
    """Whether a word is one letter with its marks, in a script whose words have several letters."""
    letters = [char for char in word if unicodedata.category(char)[0] != "M"]
    return (
        len(letters) == 1 and letters[0].isalpha() and not re.match("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]", word)
    )


def _is_counting(before: str, number: str, after: str) -> bool:
    """Whether a number with a dot is a list's marker, an ordinal, or the first half of a decimal that was cut off."""
    if len(number) >= 4:
        return False  # a year
    if not after.strip():
        return True
    lead = before[: -len(number)].rstrip(" \t*_>#(（")
    if not lead or lead[-1] in ".!?:;,\n" or lead[-1] in _SURE:
        return True
    if number != "1" and re.search(rf"(?<![\d.]){int(number) - 1}[.)]\s", before):
        return True  # the next item of a list within a line
    previous = _LAST_WORD.search(before)
    return previous is not None and fold(previous[1]) in _BEFORE_ORDINAL


def _is_letter(char: str) -> bool:
    return unicodedata.category(char)[0] in "LN"


def _is_closed(text: str) -> bool:
    opened: list[str] = []
    for char in text:
        if char in _PAIRS:
            opened.append(char)
        elif char in _OPENED_BY and opened and opened[-1] == _OPENED_BY[char]:
            opened.pop()
    return not opened
