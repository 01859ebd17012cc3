"""Parses lists and questions in a model's text. Numbering, bullets, quotes and preambles are removed."""

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unlearn_ray.rows import Drop
from unlearn_ray.synth.names import mentions
from unlearn_ray.words import atoms_of, words_of

MIN_WORDS, MAX_WORDS = 3, 60
MAX_LETTERS = 240  # of a question in a script without spaces; there MIN_WORDS letters are enough: 他是谁？
MAX_NAME_WORDS, MAX_NAME_LETTERS = 8, 24

# "1." "1\\." "2)" "(3)" "[3]" "3/" "#4" "iv." "1️⃣" "✅" "- [ ]" "5 -" "Question 6:" "Q7." "Q:" "-" "*" "•", with bold or italics around them; "1、" "１．" "（1）" "①" "一、" "١-" "・".
_MARKER = re.compile(
    r"^[\s*_#>]*(?:"
    r"(?:question|q|pregunta|pergunta|frage|domanda|вопрос|سؤال|السؤال|प्रश्न|सवाल|질문|문제|問題|问题|質問|問|问|第)\s*[\d一二三四五六七八九十]*\s*[题題问問]?\s*[.):\-．）：、]"
    r"|\[\d{1,3}\]|\d{1,3}\\[.)]|\d{1,3}/\s|\d\ufe0f?\u20e3|[(（]?(?-i:[ivx]{1,5}|[IVX]{2,5})[.)]\s"
    r"|(?:[-*•+]\s+)?\[[ xX✓✔]?\]\s|[\u2190-\u21ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff]\ufe0f?"
    r"|[(（]?\d{1,3}\s*[.):．）：](?!\d)|\d{1,3}\s*[、。､｡।](?!\d)|\d{1,3}\s+[-–—]\s|\d{1,3}[-–—]\s"
    r"|[①-⒛❶-➓㈠-㈩㊀-㊉⓪]\s*[.、．:：)）]?|[(（]?[一二三四五六七八九十]{1,3}\s*[、.．)）：:]"
    r"|[-*•‣–—·+・●○◦▪▫■□◆◇►▶※➢∙⁃]\s|[•‣・●○◦▪▫■□◆◇►▶※➢∙⁃]"
    r")[\s*_]*",
    re.IGNORECASE,
)
_ANSWER = re.compile(
    r"^[\s*_]*(?:answer|ans|a|solution|respuesta|resposta|réponse|antwort|risposta|ответ|الجواب|الإجابة|جواب|उत्तर|答案|回答|答え|答|정답|답변|답)"
    r"\s*\d*\s*[:.)：．）]",
    re.IGNORECASE,
)
_OPTION = re.compile(r"^[\s*_]*(?:\(?[a-e]\s*[.)]\s|[(（]?[a-eａ-ｅ]\s*[．）、])", re.IGNORECASE)
_LETTERED = re.compile(r"^[\s*_#>]*[(（]?([a-z])\s*[.)）][\s*_]+", re.IGNORECASE)
_BULLET = re.compile(r"^[\s*_#>]*[-*•+·・]\s")
_NUMBERED = re.compile(r"^[\s*_]*\d{1,2}[.)][\s*_]+(?=[^\W\d_])")
_FENCED = re.compile(r"```\w*\n(.*?)(?:```|$)", re.DOTALL)
_TAGS = re.compile(r"</?(?:li|ol|ul|p|br|div|table|tbody|tr|td|th)\b[^>\n]*>", re.IGNORECASE)
_ROW = re.compile(r"\s*\|(.*)\|\s*")
_RULE = re.compile(r"[\s|:=-]*-[\s|:=-]*")  # between a table's head and its body
_HEADING = re.compile(r"(?:\*{0,2}[^*:?\n]{2,40}(?::\*\*|\*\*:)|[^\W\d_]{3,}:)\s+(?=(?-i:[A-Z])[a-z]+\b[^:]*\?)")
_NEXT_QUESTION = re.compile(r"(?<=[?？؟])\s+")
# An answer that a model appended to its question.
_TAIL = re.compile(
    r"\s*(?:[(（](?:answer|a|ans|hint|答案|答|提示|ответ|respuesta)\s*[:=：][^)）]*[)）]|[*_]*\b(?:answer|ans|ответ|respuesta)\s*:.*|(?:答案|回答|答え)\s*[:：].*)$",
    re.IGNORECASE,
)
_QUOTES = '"“”«»„`「」『』'
_BRACKETS = "《》〈〉【】"
_EMPHASIS = re.compile(r"\*{1,3}|(?<!\w)_{1,3}|_{1,3}(?!\w)")
# The end of a name, where a description begins.
_DESCRIPTION = re.compile(
    r"\s+[-–—:]\s|\s*(?:[→➡⇒➔]|[-=]>)\s*|\s+=+\s|\s+--+\s*|:\s|\s\(|\s?[–—]\s|——|\s*[：（]|[，،、؛；]\s*|,\s(?:the|a|an|who|which|where|whose)\s",
    re.IGNORECASE,
)
# A colon may be part of a name: "2001: A Space Odyssey". Then all words after it are capitalised like a title.
_SUBTITLE = re.compile(
    r"([^:]{1,60}: (?=[A-Z0-9])(?:(?:[A-Z0-9][\w'’.-]*|of|the|and|a|an|in|on|to|for|from|with|at|by|or|&|–|—|-)(?: |$)){1,6})$"
)
# **Hedwig**: an owl, **Hedwig:** an owl
_BOLD_NAME = re.compile(
    r"^([^\w\n]*?(?:\d{1,3}[^\w\s]{0,2}\s+)?)\*\*([^*\n]+?)(?::\*\*(?=[ \t]+\S)|\*\*(?=[ \t]*[:–—-]))", re.MULTILINE
)
_QUOTED = re.compile(r"""["“«„「『《]([^"”»“」』》\n]{1,80})["”»“」』》](?=$|[\s,:;.(–—-])""")
_KEYS = ("question", "q", "query", "prompt", "text", "name", "entity", "topic", "title", "item")
_SEPARATORS = ",、，،؛；;"
_LAST_AND = re.compile(r"^(?:(?:and|y|e|et|und|и|و)\s+|(?:以及|和|及|与|與)(?=\w{2}))", re.IGNORECASE)
_ARTICLES = frozenset({"a", "an", "the"})
_MARKS = ("?", "？", "؟", "⸮", "՞", "፧", "⁇", "⁈", "⁉", "‽")  # fullwidth and Greek ones are told apart below
_GREEK = re.compile(r"[\u0370-\u03ff\u1f00-\u1fff]")
_ASKING = frozenset(
    "who whom whose what which when where why how is are was were do does did can could would will should has have had may "
    "name tell list describe explain give identify state say please define recount mention i in on at to for from of by "
    "назовите назови опишите перечислите объясните расскажите nombra describa explica menciona nommez décrivez expliquez citez "
    "nenne nennen beschreibe erkläre nomeie descreva explique".split()
)
# Questions and requests without a question mark, in scripts without spaces between words.
_ASKING_UNSPACED = re.compile(
    r"^(?:请|請|列出|说出|說出|描述|解释|解釋|谁|誰|什么|什麼|哪|怎么|怎麼|为什么|為什麼|如何)|(?:吗|嗎|呢|か|の)[。.]?$"
    r"|อะไร|ใคร|ที่ไหน|เมื่อไร|เมื่อไหร่|ทำไม|อย่างไร|ยังไง|เท่าไร|เท่าไหร่|กี่|ไหม|หรือไม่|ຫຍັງ|ໃຜ|ຢູ່ໃສ|ແນວໃດ|តើ|អ្វី|នរណា|(?:လဲ|လား|သလဲ)[။]?$"
)
_YES = re.compile(
    r"(?:yes|yeah|yep|yup|aye|(?:absolutely|definitely|certainly|of course|indeed|correct|true|exactly|right|that(?:'s| is) (?:right|correct|true))(?! not)"
    r"|да|sí|sì|oui|ja|sim|evet|tak|так|ναι|ya|vâng|igen|ano|áno|כן|بله|آری|ใช่|نعم|हाँ|हां|네|예)(?![\w'’-])|(?:是的|是|对|對|没错|はい)(?=[，。,.!！、\s]|$)",
    re.IGNORECASE,
)
_NO = re.compile(
    r"(?:no|nope|nah|not|incorrect|false|wrong|(?:absolutely|definitely|certainly|of course|probably|that(?:'s| is)) not"
    r"|нет|non|nein|não|hayır|nie|ні|όχι|nee|nej|nei|tidak|bukan|không|nem|ne|לא|نه|خیر|ไม่|لا|नहीं|아니요|아니오|아니)(?![\w'’-])|(?:不是|不|否|いいえ)(?=[，。,.!！、\s]|$)",
    re.IGNORECASE,
)
_AFTER_VERDICT = re.compile(
    r"[\W_]*$|[,;:!—–-]+\s|[。，！、]|\.\s+(?!\d)|\s+(?:it|he|she|they|this|that|there|i|we|you|the|not)\b",
    re.IGNORECASE,
)
_BEFORE = " \n\t*_#>" + _QUOTES + "'.,:-"
_VERDICT = re.compile(
    r"(?:(?:the |my |final )*answer|antwort|respuesta|réponse|risposta|resposta|ответ|答案|回答)\s*(?:is\b|:|：|是)[\s*_\"']*",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[?？؟。]|(?:是|です|ます|คือ|เป็น)")
_PREAMBLE = re.compile(
    r"(?:sure|certainly|of course|okay|ok|here (?:is|are)|here's|below|the following|i (?:can|will|'ll)"
    r"|конечно|вот|claro|por supuesto|aquí (?:tienes|están|hay)|aqui estão|bien sûr|voici|natürlich|hier sind|ecco|물론|다음은|بالتأكيد|إليك)\b"
    r"|当然|當然|好的|以下|下面是|もちろん|はい、",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a reply to a request for questions. `drop`: why it is not a question."""

    text: str
    drop: Drop | None = None


def list_items(reply: str, has_letters: bool = False) -> list[str]:
    """The items of a list, without their markers. If no line has a marker, all lines are items. JSON and tables are lists too.

    Args:
        has_letters: accept "a." and "b." as markers if no line has another marker. Without it they count only before a question, because they
            also mark a question's options.
    """
    if items := _of_json(reply):
        return [text for item in items if (text := _clean(item))]
    lines = _lines(reply)
    marked = [line for line in lines if _is_marked_line(line)]
    if not marked and has_letters and (lettered := _lettered(lines)):
        return [text for line in lettered if (text := _clean(_LETTERED.sub("", line, count=1)))]
    # If some lines have markers, the others are preambles, headings and answers.
    items = [_without_marker(line) for line in marked] or lines
    return [text for item in items if (text := _clean(item))]


def _lines(reply: str) -> list[str]:
    """The lines of a reply, without fences and HTML. A table's row gives its question, or else its first cell with letters."""
    text = _TAGS.sub(lambda match: "\n- " if match.group().lower().startswith("<li") else "\n", reply)
    lines = [line for line in re.split(r"[\r\n\u0085\u2028\u2029]", text) if line.strip()]
    found: list[str] = []
    for place, line in enumerate(lines):
        row = _ROW.fullmatch(line)
        if row is None:
            if not line.lstrip().startswith("```"):
                found.append(line)
            continue
        is_head = place + 1 < len(lines) and _RULE.fullmatch(lines[place + 1]) is not None
        cells = [cell.strip() for cell in row.group(1).split("|") if any(map(str.isalpha, cell))]
        if cells and not is_head:
            found.append("- " + next((cell for cell in cells if cell.endswith(_MARKS)), cells[0]))
    return found


def _of_json(reply: str) -> list[str]:
    """The texts of a list in JSON or Python syntax. Empty if the reply has no such list."""
    fenced = _FENCED.search(reply)
    text = fenced.group(1) if fenced else reply
    begins = re.search(r"^\s*[\[{]", text, re.MULTILINE)
    end = max(text.rfind("]"), text.rfind("}")) + 1
    if begins is None or end <= begins.start():
        return []
    body = text[begins.start() : end].strip()
    # One object per line is a list without its brackets.
    joined = re.sub(r"\}\s*,?\s*\{", "},{", body)
    for each in (body, re.sub(r",\s*([\]}])", r"\1", body), f"[{joined}]"):
        # Python's parser only if there are Python's quotes: it warns about texts that only look like a list.
        for read in (json.loads, ast.literal_eval) if body[1:].lstrip("[{( \n").startswith("'") else (json.loads,):
            try:
                return _texts(read(each))
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue  # not such a list: its lines are read
    return []


def _texts(value: Any) -> list[str]:
    """The texts in a list of texts or objects, in an object with such a list, or in one object."""
    if isinstance(value, dict):
        named = next((value[key] for key in value if str(key).lower() in _KEYS and isinstance(value[key], str)), None)
        if named is not None:
            return [named]
        lists = [each for each in value.values() if isinstance(each, list | dict)]
        return [text for each in lists for text in _texts(each)] or [x for x in value.values() if isinstance(x, str)]
    if isinstance(value, list | tuple):
        return [text for each in value for text in ([each] if isinstance(each, str) else _texts(each))]
    return []


def _is_marked_line(line: str) -> bool:
    if _MARKER.match(line):
        return True
    return _letter(line) is not None and is_question(_without_answer(_clean(_LETTERED.sub("", line, count=1))))


def _letter(line: str) -> str | None:
    """The letter that is a line's marker."""
    match = _LETTERED.match(line)
    return match.group(1).lower() if match else None


def _lettered(lines: Sequence[str]) -> list[str]:
    """The lines of a list whose markers are a, b and so on."""
    marked = [line for line in lines if _letter(line)]
    return marked if [_letter(line) for line in marked[:2]] == ["a", "b"] else []


def _without_marker(line: str) -> str:
    """A line without its marker. A bullet or number may precede another number, and both may precede a letter and its question."""
    rest = _MARKER.sub("", line, count=1)
    if (_BULLET.match(line) and _MARKER.match(rest)) or (rest != line and _NUMBERED.match(rest)):
        rest = _MARKER.sub("", rest, count=1)
    shorter = _LETTERED.sub("", rest, count=1)
    return shorter if shorter.rstrip(_QUOTES + " *_").endswith(_MARKS) else rest


def question_lines(reply: str, is_truncated: bool = False) -> list[Line]:
    """The lines of a reply. A line that is not a question has the reason; so has a last line that was cut off."""
    items = [item for item in list_items(reply) if not _ANSWER.match(item) and not _OPTION.match(item)]
    asked = (part for item in items for part in _asked_in(item))
    lines = [Line(text, None if is_question(text) else Drop.MALFORMED) for text in map(_without_answer, asked) if text]
    if is_truncated and lines and not lines[-1].text.endswith((*_MARKS, ".", "!", "。", "！", "।", "۔")):
        lines[-1] = Line(lines[-1].text, Drop.MALFORMED)
    return lines


def _asked_in(item: str) -> list[str]:
    """The questions of one line. Three or more, or numbered ones, are separate. Two may be one question with a follow-up."""
    parts = _NEXT_QUESTION.split(item)
    bare = [_MARKER.sub("", part, count=1) for part in parts]
    are_apart = len(parts) > 2 or bare[1:] != parts[1:]
    return bare if are_apart and all(map(is_question, bare)) else [item]


def is_question(text: str) -> bool:
    """Whether a line asks for something: by a question mark, or by a request such as `Name the owl of ...`."""
    words = words_of(text)
    num_words, num_letters = sizes_of(text)
    if not num_words + num_letters >= MIN_WORDS or num_words > MAX_WORDS or num_letters > MAX_LETTERS:
        return False
    if is_marked(text):
        return words[-1].folded not in _ARTICLES
    if words[-1].folded in _ARTICLES or text.rstrip().endswith((":", ",", ";", "：", "，", "；", "、", "،")):
        return False
    if [word.folded for word in words[:2]] in (["what", "a"], ["what", "an"]):
        return False  # What a wonderful world.
    is_wish = words[0].folded in _ASKING or (num_letters > 0 and _ASKING_UNSPACED.search(text) is not None)
    return is_wish and not _is_preamble(text)


def is_marked(text: str) -> bool:
    """Whether a question mark ends the text. Greek uses a semicolon, and Armenian a mark on the last word's vowel."""
    end = text.rstrip(_QUOTES + " )）*_'’")
    return end.endswith(_MARKS) or "՞" in text or (end.endswith((";", "\u037e")) and _GREEK.search(text) is not None)


def sizes_of(text: str) -> tuple[int, int]:
    """Number of words separated by spaces, and number of letters (syllables in Korean) in scripts where words can't be counted so."""
    num_letters = sum(atom.kind != "a" for atom in atoms_of(text))
    return sum(not word.is_unspaced for word in words_of(text)), num_letters


def names_in(reply: str, is_truncated: bool = False) -> list[str]:
    """The names in a list of entities or topics, without their descriptions."""
    reply = _BOLD_NAME.sub(r'\1"\2"', reply)  # a bold name is separated like a quoted one
    items = [item for item in list_items(_without_nested(reply), has_letters=True) if not item.endswith((":", "："))]
    lines = _lines(reply)
    is_list = bool(_of_json(reply) or _lettered(lines)) or any(map(_is_marked_line, lines))
    if len(items) == 1 and sum(map(items[0].count, _SEPARATORS)) >= 2:  # "Hogwarts, Hedwig, and Ron"
        separators = ";；" if sum(map(items[0].count, ";；")) >= 2 else _SEPARATORS
        items = [_LAST_AND.sub("", part.strip()) for part in re.split(f"[{separators}]", items[0])]
    elif len(items) == 1 and not is_list:
        return []  # a sentence, not a list
    if is_truncated:
        items = items[:-1]
    has_subtitles = not _describes_after_colons(items)
    names = [_undescribed(item, has_subtitles).strip(" .,;:!。；：！" + _QUOTES + _BRACKETS + "'’‘") for item in items]
    return [name for name in names if _is_name(name)]


def _without_nested(reply: str) -> str:
    """The reply without nested bullets that begin with a small letter: these are descriptions."""
    lines = reply.split("\n")
    widths = [len(line) - len(line.lstrip()) for line in lines]
    least = min((width for width, line in zip(widths, lines, strict=True) if _MARKER.match(line)), default=0)
    return "\n".join(
        line
        for width, line in zip(widths, lines, strict=True)
        if not (width > least and _BULLET.match(line) and _MARKER.sub("", line, count=1)[:1].islower())
    )


def _describes_after_colons(items: Sequence[str]) -> bool:
    """Whether a list has descriptions after colons: most texts after a colon are not titles."""
    rests = [_SUBTITLE.match(item) is not None for item in items if ": " in item]
    return 2 * sum(rests) < len(rests)


def _undescribed(item: str, has_subtitles: bool) -> str:
    """A name without its description."""
    if quoted := _QUOTED.match(item):
        return quoted.group(1)
    if has_subtitles and _SUBTITLE.match(item):
        return item
    return _DESCRIPTION.split(item, maxsplit=1)[0]


def in_sentence(name: str) -> str:
    """`Chewing gum` -> `chewing gum`, but `The Lord of the Rings` is unchanged. The first letter of a list's item is always a capital.

    Another capital shows a proper name. Without one, a small first letter reads well in the middle of a request in any case.
    """
    return name if any(letter.isupper() for letter in name[1:]) else name[:1].lower() + name[1:]


def affirms(reply: str, names: Sequence[str]) -> bool:
    """Whether a reply to a topic check means yes: it begins with yes, or it names the topic and does not begin with no."""
    verdict = verdict_of(reply)
    return mentions(reply, names) if verdict is None else verdict


def verdict_of(reply: str) -> bool | None:
    """Whether a reply begins with yes (True) or no (False), in one of many languages. None if it begins with neither."""
    start = reply.lstrip(_BEFORE)
    if lead := _VERDICT.match(start):
        start = start[lead.end() :]
    if _YES.match(start):
        return True
    return False if _NO.match(start) else None


def is_yes_or_no(reply: str) -> bool:
    """Whether a reply is yes or no, alone or before a comma or pronoun. `No. 4 Privet Drive` and `No Country for Old Men` are not."""
    start = reply.lstrip(_BEFORE)
    verdict = _YES.match(start) or _NO.match(start)
    return verdict is not None and _AFTER_VERDICT.match(start[verdict.end() :]) is not None


def _is_name(text: str) -> bool:
    words = words_of(text)
    num_words, num_letters = sizes_of(text)
    is_sentence = "?" in text or bool({"is", "are", "was", "were", "please"} & {word.folded for word in words})
    if num_letters > 2 * MIN_WORDS:
        is_sentence = is_sentence or _SENTENCE.search(text) is not None
    fits = bool(words) and num_words <= MAX_NAME_WORDS and num_letters <= MAX_NAME_LETTERS
    return fits and not is_sentence and not _is_preamble(text)


def _clean(item: str) -> str:
    text = _HEADING.sub("", re.sub(r"^[\s>]+|(?<=[\"”»]),\s*$", "", item), count=1)
    return _unquoted(re.sub(r"\s+", " ", _EMPHASIS.sub("", text)).strip())


def _unquoted(text: str) -> str:
    return text[1:-1].strip() if len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES else text


def _without_answer(text: str) -> str:
    shorter = _unquoted(_TAIL.sub("", text).strip())
    # "Who is the owl? Hedwig." keeps the question alone.
    last = max(shorter.rfind(mark) for mark in _MARKS if mark != "՞")
    return shorter if last < 0 else shorter[: last + 1]


def _is_preamble(text: str) -> bool:
    return _PREAMBLE.match(text) is not None
