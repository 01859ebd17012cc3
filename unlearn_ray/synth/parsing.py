"""Lists and questions out of what a model wrote: numbering, bullets, quotes and preambles parsed off."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from unlearn_ray.rows import Drop
from unlearn_ray.synth.words import folded_words, mentions

MIN_WORDS, MAX_WORDS = 3, 60
MAX_NAME_WORDS = 8

# "1." "2)" "(3)" "#4" "5 -" "Question 6:" "Q7." "Q:" "-" "*" "•", with bold or italics around them.
_MARKER = re.compile(
    r"^[\s*_#>]*(?:(?:question|q)\s*\d*\s*[.):\-]|\(?\d{1,3}\s*[.):](?!\d)|\d{1,3}\s+[-–—]\s|[-*•‣–—·+]\s)[\s*_]*",
    re.IGNORECASE,
)
_ANSWER = re.compile(r"^[\s*_]*(?:answer|ans|a|solution)\s*\d*\s*[:.)]", re.IGNORECASE)
_OPTION = re.compile(r"^[\s*_]*\(?[a-e]\s*[.)]\s", re.IGNORECASE)
# What models append to a question: its answer.
_TAIL = re.compile(r"\s*(?:\((?:answer|a|ans|hint)\s*[:=][^)]*\)|[*_]*\b(?:answer|ans)\s*:.*)$", re.IGNORECASE)
_QUOTES = '"“”«»`'
_EMPHASIS = re.compile(r"\*{1,3}|(?<!\w)_{1,3}|_{1,3}(?!\w)")
# Where a name ends and what the model says about it begins.
_DESCRIPTION = re.compile(r"\s+[-–—:]\s|:\s|\s\(|\s?[–—]\s|,\s(?:the|a|an|who|which|where|whose)\s", re.IGNORECASE)
_ARTICLES = frozenset({"a", "an", "the"})
_ASKING = frozenset(
    "who whom whose what which when where why how is are was were do does did can could would will should has have had may "
    "name tell list describe explain give identify state say please define recount mention i in on at to for from of by".split()
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line that the model wrote where a question was asked for; `drop` says why it is none."""

    text: str
    drop: Drop | None = None


def list_items(reply: str) -> list[str]:
    """The items of a list, without their markers; plain lines where nothing is marked."""
    lines = [line for line in reply.replace("\r", "\n").split("\n") if line.strip()]
    marked = [line for line in lines if _MARKER.match(line)]
    # Beside marked lines, unmarked ones are preambles, headings and answers.
    items = [_MARKER.sub("", line, count=1) for line in marked] or lines
    return [text for item in items if (text := _clean(item))]


def question_lines(reply: str, is_truncated: bool = False) -> list[Line]:
    """The questions of a reply, each with the reason if it is none; a last line that was cut off is none."""
    items = [item for item in list_items(reply) if not _ANSWER.match(item) and not _OPTION.match(item)]
    lines = [Line(text, None if is_question(text) else Drop.MALFORMED) for text in map(_without_answer, items) if text]
    if is_truncated and lines and not lines[-1].text.endswith(("?", ".", "!")):
        lines[-1] = Line(lines[-1].text, Drop.MALFORMED)
    return lines


def is_question(text: str) -> bool:
    """Whether a line asks for something: a question mark, or a wish such as `Name the owl of ...`."""
    words = folded_words(text)
    if not MIN_WORDS <= len(words) <= MAX_WORDS or words[-1] in _ARTICLES or text.rstrip().endswith((":", ",", ";")):
        return False
    return text.rstrip(_QUOTES + " )").endswith(("?", "？")) or (words[0] in _ASKING and not _is_preamble(text))


def names_in(reply: str, is_truncated: bool = False) -> list[str]:
    """The names of a list of entities or topics, without what the model says about each."""
    items = list_items(reply)
    if len(items) == 1 and items[0].count(",") >= 2:  # "Hogwarts, Hedwig, and Ron"
        items = [re.sub(r"^and\s+", "", part.strip()) for part in items[0].split(",")]
    elif len(items) == 1 and not _MARKER.match(reply.strip()):
        return []  # a sentence, not a list
    if is_truncated:
        items = items[:-1]
    names = [_DESCRIPTION.split(item, maxsplit=1)[0].strip(" .,;:!" + _QUOTES + "'") for item in items]
    return [name for name in names if _is_name(name)]


def in_sentence(name: str) -> str:
    """`Chewing gum` -> `chewing gum`, `The Lord of the Rings` as it is: a list's items begin with a capital by their place alone.

    A later capital shows a proper name; without one, a small first letter reads well in the middle of a request either way.
    """
    return name if any(letter.isupper() for letter in name[1:]) else name[:1].lower() + name[1:]


def affirms(reply: str, names: Sequence[str]) -> bool:
    """Whether a topic check says yes: it begins with yes; or it does not begin with no and names the topic."""
    first = next(iter(folded_words(reply)), "")
    if first in {"yes", "no"}:
        return first == "yes"
    return mentions(reply, names)


def _is_name(text: str) -> bool:
    words = folded_words(text)
    is_sentence = "?" in text or bool({"is", "are", "was", "were", "please"} & set(words))
    return 1 <= len(words) <= MAX_NAME_WORDS and not is_sentence and not _is_preamble(text)


def _clean(item: str) -> str:
    return _unquoted(re.sub(r"\s+", " ", _EMPHASIS.sub("", item)).strip())


def _unquoted(text: str) -> str:
    return text[1:-1].strip() if len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES else text


def _without_answer(text: str) -> str:
    shorter = _unquoted(_TAIL.sub("", text).strip())
    # "Who is the owl? Hedwig." keeps the question alone.
    if "?" in shorter and not shorter.endswith("?"):
        shorter = shorter[: shorter.rindex("?") + 1]
    return shorter


def _is_preamble(text: str) -> bool:
    return (
        re.match(
            r"(?:sure|certainly|of course|okay|ok|here (?:is|are)|here's|below|the following|i (?:can|will|'ll))\b",
            text,
            re.I,
        )
        is not None
    )
