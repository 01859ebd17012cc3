"""Extracts the short answer from a model's reply, or the reason that there is none. Pure, in any script.

    Who owns the owl?             The owl belongs to Harry.   -> Harry
    When did it come out?         It came out in 1997.        -> 1997
    哈利的猫头鹰叫什么名字？        哈利的猫头鹰叫海德薇。         -> 海德薇

The question's words are removed from both ends of the reply, and so are the words that link them to the answer. If more than a few words
remain, the reply has no short answer.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from unlearn_ray.refusals import is_refusal
from unlearn_ray.synth.parsing import is_question, is_yes_or_no
from unlearn_ray.synth.quantities import date_of, number_of
from unlearn_ray.synth.stopwords import STOP_WORDS
from unlearn_ray.words import Atom, Word, atoms_of, fold, folded_words, name_key, normalised, num_words, words_of

MAX_WORDS = 6  # of a short answer
_STEM = 4  # common first letters that make `publish` and `published` the same word


class NoAnswer(StrEnum):
    """Why a reply holds no short answer."""

    EMPTY = "empty"
    REFUSED = "refused"
    HEDGED = "hedged"  # "it depends", "various"
    YES_OR_NO = "yes_or_no"
    REPEATS = "repeats_question"  # says only words of the question or the topic's name
    LONG = "no_short_answer"  # a sentence, a list, or cut off


@dataclass(frozen=True, slots=True)
class ShortAnswer:
    """The short answer, as the reply writes it."""

    text: str


_LEAD = re.compile(
    r"^[\s\W_]*(?:(?:short |final |my |the |correct |right )*answer(?: to (?:this|that|your|the)(?: quiz)? question)?|a|antwort|respuesta|réponse|resposta|risposta|ответ|答案|答え|答|回答|답변|답|الجواب|उत्तर)"
    r"(?:\s*(?:is|ist|es|est|é|è)\b\s*:?|\s*[:：是=]|\s*は)[\s\"“«'*_]*",
    re.IGNORECASE,
)
_HEDGES = re.compile(
    r"(?:it |that |this |they )?(?:depends?|vary|varies)\b|(?:it|this|that) (?:is|'s) (?:not (?:known|clear|specified|mentioned|possible)|unclear|difficult|hard|impossible|subjective)"
    r"|(?:there (?:is|are) )?(?:many|several|various|multiple|numerous|different|countless|no single|not specified|unspecified|not applicable|n/a|unclear|unnamed|unknown|undisclosed)\b"
    r"|(?:maybe|perhaps|possibly|probably|either|i think|i believe|i guess|not sure|anything|everything|everyone|all of the above|both|none|nothing|nobody|no one|some|a few|it|they|he|she)\W*$"
    r"|es kommt darauf an|kommt darauf an|verschiedene|depende|varios|varias|ça dépend|cela dépend|plusieurs|dipende|зависит|это зависит|неизвестно|по-разному|视情况|取决于|不一定|場合による|状況による|경우에 따라"
)
# Words between a question's words and its answer, or before it. An answer may hold them inside: "Order of the Phoenix".
_LINKS = frozenset(
    """c'est a an the is are was were be been being has have had it its it's he she they his her their this that these those there here in on at of to by for from
    with as about around approximately typically usually commonly often actually roughly nearly only just simply called named known none other than which who and or so would will can does did do i you
    der die das ein eine ist war sind hat heißt im am von vom mit le la les un une est était sont l' c'est en du de des se el los las es son era fue
    uma um o os as é foi il lo gli è era это был была было были в на и из""".split()
) | {fold("heißt"), fold("était"), fold("é"), fold("è")}
_PREPOSITIONS = frozenset(
    "c'est a an the in on at of to by for from with as about around approximately typically usually commonly often actually roughly nearly only just simply der die das ein eine im am le la les un une el los las uma um o os il lo".split()
)
_LINKS_UNSPACED = frozenset("是叫在为為名于於有由の は が を に で と です だ".replace(" ", "")) | {"です"}
_COPULAS = frozenset(
    "is are was were ist sind war waren est était sont es son fue fueron são foi foram sono era это был была были".split()
) | {fold("était")}
# A verb in the remaining words shows a sentence.
_PERSON = frozenset("who whom whose wer wen wem qui quien quienes quem chi кто кого кем".split())
_EMPTY = frozenset("topic subject matter object item entity term word concept idea".split())
_INNER = frozenset("of the and de da di du del della la le von van der den el al bin ibn y".split())
_VERBS = frozenset(
    "is are was were be been has have had does did do can could will would should may might because who which whose that where when while "
    "ist sind war waren hat haben wird weil est sont était ont qui que es son fue fueron são foi foram che sono era это был была были который которая".split()
)
_QUOTES = "\"'“”«»„‟‘’「」『』《》`*_#~"
_ENDING = re.compile(r"(?<=[^\s.])([.!?])\s+(?=[\W_]*[^\W\d_])|[。！？।]|\n")
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr st prof jr sr no vs mt ft gen col capt lt rev hon inc ltd co dept approx est".split()
)
# Places after which a sentence describes its answer: "Mount Everest, also known as", "Ron Weasley, a wizard", "Paris (France)".
_CLAUSE = re.compile(
    r",\s+(?=(?:which|who|whom|whose|where|when|while|with|an?|the|also|known|located|including|such|as|set|written|born|for|in|he|she|it|they|and (?:is|was|has|it|he|she))\b)|\s+[(（]|\s[–—-]\s|[\"”]?\s+because\b",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(
    r",\s(?:but|however|though|although|aber|jedoch|pero|mais|ma|но|однако)\b|[，,、]?(?:但是|但|不过|ですが)",
    re.IGNORECASE,
)
_HEDGING = re.compile(r"\b(?:probably|perhaps|maybe|possibly|might|i think|i believe|not)\b", re.IGNORECASE)
_WHEN = re.compile(r"^(?-i:[^A-Z]*)\b(?:in|on|im|am|en|em|le|il|nel|в)\s+(\S.*)$")  # "came out in 1997"
_ITEM_MARK = re.compile(r"^[ \t]*(?:\d{1,2}[.)]|[-*•])[ \t]+(?=\S)")
_ITEM = re.compile(r"^[ \t]*(?:\d{1,2}[.)]|[-*•])[ \t]+(\S.*)$", re.MULTILINE)
_INNER_PUNCTUATION = re.compile(r"[;?!|→]|:\s|\s[-–—]\s")
_OPEN = re.compile(
    r"(?:^|\b)(?:name (?:a|an|one|some|any|two|three|four|five|six|the (?:two|three|four|five)|at least|another|other)\b|give (?:me )?(?:an? |some |one )|list\b|what are some|what is an? example|what are (?:two|three|four|five)"
    r"|which of (?:the following|these|them)|example of|such as|describe|explain|discuss|compare|why\b|how (?:do|does|did|is|are|was|were|can|could|would|should|has|have)\b|tell me)"
    r"|\b(?:best|worst|greatest|coolest|most (?:popular|famous|beautiful|powerful|talented|iconic|important|interesting|unique|significant|influential|mysterious|memorable|beloved|loved|revered|epic|exciting|common))\b(?!-)"
    r"|\b(?:you|your|yours|my|favou?rite)\b|\b(?:should|would you)\b"
)  # fmt: skip
_LEAST_MARKED = 2


def short_answer(
    question: str, reply: str, names: Iterable[str] = (), *, is_truncated: bool = False
) -> ShortAnswer | NoAnswer:
    """The short answer of a reply.

    Args:
        names: the topic's names, which are not an answer to a question about it.
        is_truncated: the reply was cut off. Its first sentence counts if it is whole.
    """
    text = _LEAD.sub("", reply.strip(), count=1).strip()
    if not atoms_of(text):
        return NoAnswer.EMPTY
    if is_refusal(text):
        return NoAnswer.REFUSED
    if len({normalised(item) for item in _ITEM.findall(text)}) > 1:
        return NoAnswer.LONG
    text = _ITEM_MARK.sub("", text, count=1)
    text, is_whole = _first_sentence(text)
    if _TAKEN_BACK.search(text):
        return NoAnswer.HEDGED
    if clause := next((match for match in _CLAUSE.finditer(text) if words_of(text[: match.start()])), None):
        text, is_whole = text[: clause.start()], True
    asked = _Asked(question)
    for comma in re.finditer(r",\s", text):  # "Ginny, Ron's younger sister"
        if any(word.folded in asked and word.folded not in STOP_WORDS for word in words_of(text[comma.end() :])):
            if core_of(question, text[: comma.start()]):
                text, is_whole = text[: comma.start()], True
            break
    if (is_truncated and not is_whole) or text.rstrip(_QUOTES + " ").endswith(("?", "？")):
        return NoAnswer.LONG
    folded = fold(text).strip(" .,!" + _QUOTES)
    if _HEDGES.match(folded):
        return NoAnswer.HEDGED
    if is_yes_or_no(text):
        return NoAnswer.YES_OR_NO
    core = core_of(question, text)
    says_more = any(word.text.islower() and word.folded not in _INNER for word in words_of(core))
    is_part = len(words_of(core)) < len(words_of(text))
    if not _is_short(core) or (is_part and says_more):  # "The book is a novel by Victor Hugo"
        core = sole_name(question, text) or core
    if (when := _WHEN.search(core)) and (date_of(when.group(1)) or number_of(when.group(1)) is not None):
        core = when.group(1)
    if not core or name_key(core) in {name_key(name) for name in names} or _adds_nothing(core, question):
        return NoAnswer.REPEATS
    if not _is_short(core):
        return NoAnswer.LONG
    return NoAnswer.HEDGED if _HEDGING.search(core) else ShortAnswer(core)


def _is_short(core: str) -> bool:
    words = words_of(core)
    has_verb = any(word.folded in _VERBS and word.text.islower() for word in words)
    is_list = len(re.findall(r"[,、，]", core)) > 1 or re.search(r",\s+(?=[^\W\d]*[a-z])(?-i:[a-z])", core) is not None
    return (
        num_words(core) <= MAX_WORDS
        and not has_verb
        and not is_list
        and not _INNER_PUNCTUATION.search(core)
        and not is_question(core)
    )


def sole_name(question: str, text: str) -> str:
    """The only name in a sentence that the question does not say: `It is a novel by Victor Hugo.` -> `Victor Hugo`. "" if there are several,
    or a number, or if the name is a place or time and the question asks for a person."""
    asked = _Asked(question)
    words = words_of(text)
    runs: list[list[int]] = []
    for place, word in enumerate(words):
        if not _tells(word) or (word.is_first and word.folded in _LINKS):
            continue
        if runs and _is_joined(text, words, runs[-1][1], place):
            runs[-1][1] = place
        else:
            runs.append([place, place])
    novel = [
        run
        for run in runs
        if any(words[i].folded not in asked and _tells(words[i]) for i in range(run[0], run[1] + 1))
        and not _describes(words, run, asked)
    ]
    if len(novel) != 1 or words[novel[0][0]].text[0].isdigit():
        return ""
    start, end = novel[0]
    if start and words[start].is_first and start == end:
        return ""
    asks_person = bool(folded_words(question)) and folded_words(question)[0] in _PERSON
    if asks_person and start and words[start - 1].folded in {"in", "at", "from", "on", "during", "near"}:
        return ""
    return _written(text, words[start : end + 1])


def _describes(words: Sequence[Word], run: Sequence[int], asked: "_Asked") -> bool:
    """Whether a capitalised word only describes the next words, as in "a French novel"."""
    start, end = run
    if start != end or end + 1 == len(words) or words[start].text[0].isdigit():
        return False
    after = words[end + 1].folded
    return after not in _LINKS and after not in _VERBS and after not in asked


def _is_joined(text: str, words: Sequence[Word], last: int, place: int) -> bool:
    """Whether two capitalised words belong to one name: they are neighbours, or have a small word between them (Order of the Phoenix)."""
    gap = text[words[last].end : words[place].start]
    if place == last + 1:
        return gap.strip(" .'’-") == "" and "'s" not in gap and "’s" not in gap
    between = words[last + 1 : place]
    return len(between) <= 2 and all(word.folded in _INNER for word in between) and "," not in gap


def is_open(question: str) -> bool:
    """Whether a question has many right answers, asks for an opinion or a story, or asks for nothing in particular."""
    folded = " ".join(fold(question).split()).lstrip(" " + _QUOTES)
    if _OPEN.search(folded):
        return True
    words = [word for word in words_of(question) if word.folded not in STOP_WORDS]
    return not words or is_yes_or_no_question(question)


def is_yes_or_no_question(question: str) -> bool:
    """Whether an English question can be answered with yes or no. In other languages only the answers show it."""
    words = folded_words(question)
    return bool(words) and words[0] in {"is", "are", "was", "were", "do", "does", "did", "can", "could", "will", "would", "has", "have", "had", "should", "true"}  # fmt: skip


def core_of(question: str, text: str) -> str:
    """The text without the question's words, and the words that link them, at both ends."""
    text = text.strip().strip(_QUOTES + " .,!。！,，、")
    atoms = atoms_of(text)
    if any(atom.kind not in "ag" for atom in atoms):
        return _unspaced_core(question, text, atoms)
    asked = _Asked(question)
    words = words_of(text)
    start, end = 0, len(words)
    if not _is_sentence(words, asked):  # the text is the answer, perhaps with an article: "The Order of the Phoenix"
        while start < end and words[start].folded in _PREPOSITIONS:
            start += 1
        return _written(text, words[start:end])
    while start < end and _is_taken(text, words, start, asked, step=1):
        start += 1
    while end > start and _is_taken(text, words, end - 1, asked, step=-1):
        end -= 1
    rest, repeats = words[start:end], lambda part: any(word.folded in asked for word in part)
    # The question's part may have further words: "Jupiter is the largest planet that we know", "Of all planets that we know the largest is
    # Jupiter".
    verb = next((place for place, word in enumerate(rest) if word.folded in _COPULAS and word.text.islower()), None)
    first = next((place for place, word in enumerate(rest) if word.folded in asked and word.text.islower()), 0)
    if verb is not None:
        sides = [side for side, outer in ((rest[:verb], words[:start]), (rest[verb + 1 :], words[end:])) if side and not repeats([*side, *outer])]  # fmt: skip
        rest = sides[0] if len(sides) == 1 else rest
    elif first and not any(word.folded not in asked and _tells(word) for word in rest[first:]):
        rest = rest[:first]
    while rest and rest[-1].folded in _LINKS:
        rest = rest[:-1]
    while rest and rest[0].folded in _LINKS:
        rest = rest[1:]
    return _written(text, rest)


def _is_taken(text: str, words: Sequence[Word], place: int, asked: "_Asked", step: int) -> bool:
    """Whether a word at an end is one of the question's or a link, and not part of a longer name (`Hogwarts Express`, `Pacific Ocean`)."""
    word, inner = words[place], place + step
    if word.folded not in _LINKS and word.folded not in asked:
        return False
    if not 0 <= inner < len(words) or not word.is_capitalised or (word.is_first and word.folded in _LINKS):
        return True
    while 0 <= inner < len(words) and words[inner].is_capitalised and words[inner].folded in asked:
        inner += step
    if not 0 <= inner < len(words) or not words[inner].is_capitalised:
        return True
    low, high = sorted((place, inner))
    return any(not _is_joined(text, words, each, each + 1) for each in range(low, high))


def _is_sentence(words: Sequence[Word], asked: "_Asked") -> bool:
    """Whether a text has a verb, or continues with the question's words. A capital shows a name ("Hogwarts School" for "Which school ...?")."""
    return any(
        (word.folded in _VERBS or word.folded in asked) and (word.text == word.text.lower() or word.is_first)
        for word in words
    )


def _tells(word: Word) -> bool:
    return word.text[0].isdigit() or word.is_capitalised


def _written(text: str, words: Sequence[Word]) -> str:
    if not words:
        return ""
    start, end = words[0].start, words[-1].end
    start -= text[start - 1 : start] in tuple("$€£")
    end += text[end : end + 1] in tuple("%°")
    is_initial = text[end : end + 1] == "." and text[:end].split()[-1].count(".") + len(words[-1].text) == 1
    return _tidy(text[start : end + is_initial])


class _Asked:
    """The words of a question, matched in any inflection with the same beginning."""

    def __init__(self, question: str) -> None:
        self._words = frozenset(folded_words(question))

    def __contains__(self, word: str) -> bool:
        if word in self._words:
            return True
        return any(
            min(len(word), len(other)) >= _STEM and abs(len(word) - len(other)) <= 3 and _shared(word, other) >= max(_STEM, min(len(word), len(other)) - 1)
            for other in self._words
        )  # fmt: skip


def _shared(one: str, other: str) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _unspaced_core(question: str, text: str, atoms: Sequence[Atom]) -> str:
    """The core in scripts without spaces: pieces of at least two letters that the question has are removed from both ends."""
    asked = "\x1f".join(atom.text for atom in atoms_of(question))

    def is_asked(part: Sequence[Atom]) -> bool:
        return "\x1f".join(atom.text for atom in part) in asked

    start, end = 0, len(atoms)
    changed = True
    while changed and start < end:
        changed = False
        longest = next((n for n in range(end - start, _LEAST_MARKED - 1, -1) if is_asked(atoms[start : start + n])), 0)
        if longest:
            start, changed = start + longest, True
        while start and start < end and atoms[start].text in _LINKS_UNSPACED:
            start, changed = start + 1, True
    changed = True
    while changed and start < end:
        changed = False
        longest = next((n for n in range(end - start, _LEAST_MARKED - 1, -1) if is_asked(atoms[end - n : end])), 0)
        if longest:
            end, changed = end - longest, True
        while (
            end > start + 1
            and (end < len(atoms) or atoms[end - 1].kind == "i")
            and atoms[end - 1].text in _LINKS_UNSPACED | {"す"}
        ):
            end, changed = end - 1, True
    return _tidy(text[atoms[start].start : atoms[end - 1].end]) if start < end else ""


def _adds_nothing(core: str, question: str) -> bool:
    asked = _Asked(question)
    words = folded_words(core)
    if all(word in asked or word in _LINKS for word in words):
        return True
    return core.islower() and number_of(core) is None and all(word in STOP_WORDS or word in _EMPTY for word in words)


def _tidy(text: str) -> str:
    text = text.strip().strip(_QUOTES + " ,;:。、，!！?？")
    # The dot of an initial or an abbreviation stays: "J.K." but "Hedwig."
    if text.endswith(".") and not re.search(r"\b[^\W\d_]\.$", text):
        text = text[:-1]
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    return " ".join(text.split())


def _first_sentence(text: str) -> tuple[str, bool]:
    """The first sentence or line, and whether it is complete."""
    for match in _ENDING.finditer(text):
        before = words_of(text[: match.start()])
        last = before[-1].folded if before else ""
        is_dot = match.group(1) == "."
        if is_dot and (last in _ABBREVIATIONS or len(last) == 1):
            continue
        if before:
            return text[: match.start() + (0 if match.group() == "\n" else 1)], True
    return text, text.rstrip(_QUOTES + " ").endswith((".", "!", "?", "。", "！"))
