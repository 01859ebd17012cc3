"""Forms of questions besides plain ones: turns a model's text into lines of a form, and finds questions that don't stand alone."""

import re
from collections.abc import Iterable

from unlearn_ray.rows import Drop, Form
from unlearn_ray.synth.names import mentions
from unlearn_ray.synth.parsing import (
    MAX_LETTERS,
    MAX_WORDS,
    MIN_WORDS,
    Line,
    is_marked,
    list_items,
    question_lines,
    sizes_of,
)
from unlearn_ray.synth.stopwords import REFERRING, REFERRING_UNSPACED, STOP_WORDS
from unlearn_ray.words import folded_words, words_of

BLANK = "_____"
MAX_BLANKS = 2
# How models write a gap: "____", "\\_\\_\\_", "[blank]", "(...)", "（　）". Underscores beside a letter on both sides of a word are italics.
_GAP = re.compile(
    r"(?:\\?_){3,}|(?<![\w_])_{2}(?![\w_])|[\[(（]\s*(?:blank|\.{3}|…|_+)?\s*[\])）]|…{2,}|\.{4,}|＿+|-{3,}(?=[\s.,;:?!])",
    re.IGNORECASE,
)
_HELD = "[blank]"  # stands for a gap while a list is parsed, because underscores are markup there
_REMARK = re.compile(r"\s*[(（\[](?!blank)[^()（）\[\]]*[)）\]]\s*[.。]?\s*$", re.IGNORECASE)  # "(Hedwig)", "(True)"
_JUDGED = re.compile(
    r"^(?:true or false|true|false|t/f|правда или ложь|верно или неверно|vrai ou faux|richtig oder falsch|verdadero o falso)\s*[:?.–—-]+\s*"
    r"|\s*[-–—:]?\s*(?:true or false|true|false)\s*[.?!]*$",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"^[\"“«„「『]([^\"”»“」』]{8,})[\"”»“」』]\s*[-–—(,:].*$")

_SPECIFIC = re.compile(r"[\"“«„「『《].{2,}[\"”»“」』》]|\d{2}")  # a quotation, a year
_EARLY = 3  # words


def lines_of(form: Form, reply: str, topic: str, is_truncated: bool = False) -> list[Line]:
    """The lines of a reply that can become questions of a form. A line that can't has the reason."""
    if form == "blank":
        items = [item.replace(_HELD, BLANK) for item in list_items(_GAP.sub(_HELD, reply))]
        lines = [_blank(item, topic) for item in items]
    elif form == "true_false":
        lines = [_statement(item, topic) for item in list_items(reply)]
    elif form == "quotation":
        lines = [_passage(item, topic) for item in list_items(reply)]
    else:
        return question_lines(reply, is_truncated)
    if is_truncated and lines:
        lines[-1] = Line(lines[-1].text, Drop.MALFORMED)
    return lines


def _blank(item: str, topic: str) -> Line:
    text = _REMARK.sub("", item)
    if BLANK not in text:
        stated = _statement(item, topic)
        text = stated.text if stated.drop else with_gap(stated.text, topic)
    has_gap = 0 < text.count(BLANK) <= MAX_BLANKS
    return Line(text, None if has_gap and _has_room(text.replace(BLANK, "x")) else Drop.MALFORMED)


def with_gap(statement: str, topic: str) -> str:
    """The statement with a gap for its fact about the topic: its last number, else its last name, else its last telling word."""
    own = set(folded_words(topic))
    words = [word for word in words_of(statement)[1:] if word.folded not in own and word.folded not in STOP_WORDS]
    numbers = [word for word in words if word.folded.isdigit()]
    names = [word for word in words if word.is_cased and word.is_capitalised]
    gap = next((found[-1] for found in (numbers, names, words) if found), None)
    return statement if gap is None else statement[: gap.start] + BLANK + statement[gap.end :]


def _statement(item: str, topic: str) -> Line:
    text = _JUDGED.sub("", _JUDGED.sub("", _REMARK.sub("", item))).strip()
    if text and text[-1].isalnum():
        text += "."
    is_one = _says_something(text, topic) and not is_marked(text)
    return Line(text, None if is_one else Drop.MALFORMED)


def _passage(item: str, topic: str) -> Line:
    quoted = _QUOTED.match(item)
    text = quoted.group(1).strip() if quoted else item
    return Line(text, None if _says_something(text, topic) else Drop.MALFORMED)


def _says_something(text: str, topic: str) -> bool:
    """Whether a sentence has the right length, and two telling words besides the topic's name. `Gum is gum.` has none."""
    telling = set(folded_words(text)) - set(folded_words(topic)) - STOP_WORDS
    return _has_room(text) and len(telling) > 1 and not text.endswith((":", "："))


def _has_room(text: str) -> bool:
    """Whether a text has a length that is allowed for a question."""
    num_words, num_letters = sizes_of(text)
    return num_words + num_letters >= MIN_WORDS and num_words <= MAX_WORDS and num_letters <= MAX_LETTERS


def line_in(question: str, wordings: Iterable[str], topic: str) -> str:
    """The line from which a question of a form was made: `Continue this text about Dune: The sand rose.` -> `The sand rose.`

    Args:
        wordings: templates with {line}. A question that matches none of them is returned as its own line.
    """
    for wording in wordings:
        before, _, after = wording.replace("{topic}", topic).partition("{line}")
        if (before or after) and question.startswith(before) and question.endswith(after):
            return question[len(before) : len(question) - len(after)]
    return question


def is_vague(question: str, names: Iterable[str]) -> bool:
    """Whether a question is about something that it does not name: `What is his name?`

    Two conditions must hold:

    - It has a third-person pronoun before anything that the pronoun could mean: among the first words, or after stop words only.
    - It names nothing: no name of its topic, no capitalised word inside the sentence, nothing in quotes. In scripts without capitals only
      the topic's names count.
    """
    words = folded_words(question)
    place = next((place for place, word in enumerate(words) if word in REFERRING), None)
    is_early = place is not None and (place < _EARLY or all(word in STOP_WORDS for word in words[:place]))
    if not (is_early or REFERRING_UNSPACED.search(question)) or mentions(question, names):
        return False
    has_name = any(word.is_cased and word.is_capitalised and not word.is_first for word in words_of(question))
    return not has_name and not _SPECIFIC.search(question)
