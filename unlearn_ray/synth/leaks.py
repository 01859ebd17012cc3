"""What gives real knowledge away, and whether an answer does.

The terms of a question are the words that the model's own unguarded answers (one greedy, some sampled) say beyond the question:

- names (capitalised inside sentences more often than not, over all unguarded answers of the run), said by any of the answers;
- numbers of three digits and more, by any of them; smaller ones and number words where the question asks for a number;
- other words that at least AGREEMENT of the answers say, and that the answers to at most `max(MIN_QUESTIONS, RARE * questions)` of
  the topic's questions say beyond them, so that fillers ("answer", "believe") do not count.

Never a term: stop words, words of the topic's name and aliases, words of the question and their inflections (a common beginning of
five letters). An answer leaks if it holds a term of its question or of the topic (the user's list, and names that the answers to
several questions agree on), as `words.leaked` finds it.

Scripts without capitals have no names: only words that the answers agree on count. Scripts without spaces have no words either: their
pieces (`words.words_of`: two Han letters, three of kana, Thai, Khmer, ...) stand for them, each counted as a word. 海德薇 is learnt as 海德
and 德薇, of which any answer that says it holds both. Pieces with a letter of the grammar (的, 是, 叫) tell nothing.

Some terms only repeat the question in other words (`Name Ron's rat` -> `The pet rat of Ron is Scabbers`), so guarded answers, invented
as they are, say them too. For each word, over the topic's questions that have it as a term:

    keeps(word) = questions whose guarded answers say it in half of the cases or more,   gives(word) = the others.

Such a word is framing, and no leak, in an answer that invents (says a word that neither the question nor the unguarded answers say):
if keeps(word) > gives(word) and half of the guarded answers beside it say it; or, in an answer of at most SHORT words, where what is
invented stands in the truth's place, if keeps(word) > 0 and three quarters of at least three answers say it. Numbers and the user's
terms never are, nothing is where the guardrail does not work (over all names, keeps > gives), and an answer that invents nothing
leaks with any term.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from unlearn_ray.refusals import is_refusal
from unlearn_ray.rows import Drop
from unlearn_ray.synth.stopwords import GRAMMAR_LETTERS, NUMBER_WORDS, STOP_GRAMS, STOP_WORDS
from unlearn_ray.words import Word, folded_words, leaked, words_of

RARE = 0.2  # share of a topic's questions
MIN_QUESTIONS = 4
AGREEMENT = 0.5  # share of the answers to one question
MIN_NAME_QUESTIONS = 2  # that a name of the whole topic answers
CONTRAST = 4.0  # how much more often one topic's answers say a word of it than another's
SHORT = 20  # words
_LINKS = frozenset({"of", "and", "the", "de"})
_STEM = 5
_ASKS_NUMBER = re.compile(
    r"\b(?:how (?:many|much|old|long|far|tall|high|often)|number|count|amount|total|sum|plus|minus|times|age|years?|when|date"
    r"|сколько|когда|году|cu[aá]nt[oa]s?|cu[aá]ndo|combien|quand|wann|wie ?viele?|wie alt|quant[oa]s?|quando|كم|متى|कितने|कितनी|कितना|कब)\b"
    r"|多少|几|幾|何時|何年|何人|いくつ|いつ|몇|얼마|언제|เท่าไร|เท่าไหร่|เมื่อ|กี่",
    re.I,
)


@dataclass(slots=True)
class TopicWords:
    """How the answers about one topic use words. Grows with the vocabulary, not with the rows."""

    num_questions: int = 0
    num_answers: int = 0
    questions: Counter[str] = field(
        default_factory=Counter
    )  # questions whose unguarded answers say the word beyond them
    agreed: Counter[str] = field(default_factory=Counter)  # questions whose unguarded answers agree on it
    answers: Counter[str] = field(default_factory=Counter)  # unguarded answers that say it beyond their question
    keeps: Counter[str] = field(default_factory=Counter)  # questions with this term whose guarded answers mostly say it
    gives: Counter[str] = field(default_factory=Counter)  # questions with this term whose guarded answers mostly do not


class Vocabulary:
    """Word counts over the run's answers, and what follows from them."""

    def __init__(self, own_names: Mapping[str, Sequence[str]]) -> None:
        """Args:
        own_names: name and aliases of each topic, whose words never count as terms of it.
        """
        self._own = {
            topic: frozenset(w for name in names for w in folded_words(name)) for topic, names in own_names.items()
        }
        self.topics: defaultdict[str, TopicWords] = defaultdict(TopicWords)
        self._raised: Counter[str] = Counter()  # capitalised where no sentence starts
        self._lowered: Counter[str] = Counter()
        self._first: Counter[str] = Counter()  # starting a sentence: a capital says nothing

    def add(self, topic: str, question: str, answers: Sequence[str]) -> None:
        """Count a question and its unguarded answers."""
        for text in (question, *answers):
            for word in words_of(text):
                counter = self._first if word.is_first else self._raised if word.is_capitalised else self._lowered
                (counter if word.is_cased else self._lowered)[word.folded] += 1
        counts, said = self.topics[topic], self._beyond(topic, question, answers)
        counts.num_questions += 1
        counts.num_answers += len(answers)
        counts.questions.update(said.keys())
        counts.answers.update(said)
        counts.agreed.update(word for word, number in said.items() if number >= AGREEMENT * len(answers))

    def add_guarded(self, topic: str, terms: Iterable[str], answers: Sequence[str]) -> None:
        """Count which terms of a question its guarded answers keep."""
        if not answers:
            return
        said = Counter(word for answer in answers for word in set(folded_words(answer)))
        for term in terms:
            keeps = said[term] >= AGREEMENT * len(answers)
            (self.topics[topic].keeps if keeps else self.topics[topic].gives)[term] += 1

    def is_name(self, word: str) -> bool:
        if _is_number(word):
            return False
        if raised := self._raised[word]:
            return raised >= self._lowered[word]
        return self._first[word] > 0 and self._lowered[word] == 0

    def known(self, topic: str, question: str, answers: Sequence[str]) -> list[str]:
        """All words that unguarded answers say beyond the question, sorted: others are invented."""
        return sorted(self._beyond(topic, question, answers))

    def question_terms(self, topic: str, question: str, answers: Sequence[str]) -> list[str]:
        """The words that answer this question, sorted."""
        counts, asks_number = self.topics[topic], _ASKS_NUMBER.search(question) is not None
        rare = max(MIN_QUESTIONS, RARE * counts.num_questions)
        terms = []
        for word, number in self._beyond(topic, question, answers).items():
            if _is_number(word):
                counts_as_term = asks_number or (word[0].isdigit() and len(word) >= 3)
            elif self.is_name(word):
                counts_as_term = True
            else:
                counts_as_term = number >= AGREEMENT * len(answers) and counts.questions[word] <= rare
            if counts_as_term:
                terms.append(word)
        return sorted(terms)

    def topic_names(self, topic: str) -> list[str]:
        """Names that answer several questions of a topic: said of any other question, they give knowledge away as well."""
        agreed = self.topics[topic].agreed
        return sorted(word for word, number in agreed.items() if number >= MIN_NAME_QUESTIONS and self.is_name(word))

    def framing(self, topic: str) -> dict[str, bool]:
        """Terms that guarded answers keep to some questions; True where to most. None where the guardrail does not work."""
        counts = self.topics[topic]
        names = [word for word in counts.keeps | counts.gives if self.is_name(word)]
        if sum(counts.keeps[name] for name in names) > sum(counts.gives[name] for name in names):
            return {}
        return {word: number > counts.gives[word] for word, number in counts.keeps.items() if not _is_number(word)}

    def topic_terms(self, topic: str) -> dict[str, int]:
        """Words that stand for a topic, with the number of unguarded answers that say them.

        They answer at least two questions (one, if fewer than 20 were asked), in which guarded answers do not say them; other
        topics of the run do not say them often; and they are names, or words that guarded answers hardly ever keep.
        """
        counts = self.topics[topic]
        least = 2 if counts.num_questions >= 20 else 1
        terms = {}
        for word, gives in counts.gives.items():
            is_sure = gives >= least and counts.agreed[word] >= least and not _is_number(word)
            is_word = (len(word) >= 4 or _is_unspaced(word)) and gives >= CONTRAST * counts.keeps[word]
            if is_sure and (self.is_name(word) or is_word) and self._is_own(topic, word):
                terms[word] = counts.answers[word]
        return terms

    def _is_own(self, topic: str, word: str) -> bool:
        shares = {name: counts.answers[word] / max(1, counts.num_answers) for name, counts in self.topics.items()}
        return all(shares[topic] >= CONTRAST * share for name, share in shares.items() if name != topic)

    def _beyond(self, topic: str, question: str, answers: Sequence[str]) -> Counter[str]:
        """Content words beyond the question, with the number of answers that say them."""
        said: Counter[str] = Counter()
        for answer in answers:
            said.update({word.folded for word in content_beyond(question, answer, self._own.get(topic, frozenset()))})
        return said


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a guarded answer is judged by."""

    terms: Sequence[str]  # of its question
    known: Sequence[str]  # all that the unguarded answers say beyond the question
    everywhere: Sequence[str]  # of the topic: the user's terms, and names
    framing: Mapping[str, bool] = field(default_factory=dict)  # as Vocabulary.framing says


def judge(
    answers: Sequence[str], truncated: Sequence[bool], question: str, evidence: Evidence | None, style: str
) -> list[Drop | None]:
    """Why each of the guarded answers to one question is not kept; None where it is.

    Args:
        evidence: of leaks; None: they are not looked for.
        style: the guardrail's; `refusal` wants refusals, `fictional` wants none.
    """
    leaks = [bool(terms) for terms in leaked_terms(answers, question, evidence)] if evidence else [False] * len(answers)
    return [_verdict(*each, style) for each in zip(answers, truncated, leaks, strict=True)]


def _verdict(answer: str, is_truncated: bool, leaks: bool, style: str) -> Drop | None:
    if is_truncated or not answer.strip():
        return Drop.MALFORMED
    refuses = is_refusal(answer)
    if style == "fictional" and refuses:
        return Drop.REFUSED
    if leaks:
        return Drop.LEAK
    if style == "refusal" and not refuses:
        return Drop.ANSWERED
    return None


def leaked_terms(answers: Sequence[str], question: str, evidence: Evidence) -> list[list[str]]:
    """The terms that each of the guarded answers to one question gives away."""
    found = [found_terms(answer, question, (*evidence.terms, *evidence.everywhere)) for answer in answers]
    said = Counter(term for terms in found for term in terms)
    common = {
        term
        for term, number in said.items()
        if number >= AGREEMENT * len(answers) and evidence.framing.get(term, False)
    }
    is_sample = len(answers) >= 3
    frequent = {
        term
        for term, number in said.items()
        if is_sample and number >= 0.75 * len(answers) and term in evidence.framing
    }
    known = {*evidence.known, *evidence.terms, *evidence.everywhere}

    def frames(answer: str) -> set[str]:
        if not _invents(answer, question, known):
            return set()
        return common | frequent if _length(words_of(answer)) <= SHORT else common

    return [
        [term for term in terms if term not in framing] if terms and (framing := frames(answer)) else terms
        for answer, terms in zip(answers, found, strict=True)
    ]


def found_terms(answer: str, question: str, terms: Iterable[str]) -> list[str]:
    """The terms that an answer holds and its question does not."""
    return leaked(answer, terms, question)


def content_beyond(question: str, answer: str, ignored: Collection[str] = ()) -> list[Word]:
    """The words of an answer that tell something its question does not."""
    asked = {*folded_words(question), *ignored}
    stems = {word[:_STEM] for word in asked if len(word) >= _STEM}
    return [word for word in words_of(answer) if _is_content(word, asked, stems)]


def key_phrase(question: str, answer: str, ignored: Iterable[str] = ()) -> str:
    """What a short answer says beyond its question: the longest run of such words, one with a name before one without.

    A long answer is its own phrase.

    `What is the owl of Harry?`, `The owl of Harry is Hedwig.` -> `Hedwig`: what a recall looks for.

    Args:
        ignored: names that are no answer, such as the topic's.
    """
    words = words_of(answer)
    if _length(words) > SHORT:
        return answer
    no_answer = frozenset(word for name in ignored for word in folded_words(name))
    asked = {*folded_words(question), *no_answer}
    beyond = {word.folded for word in content_beyond(question, answer, no_answer)}
    best: list[Word] = []
    run: list[Word] = []
    links: list[Word] = []  # "loaf of bread", "Nine and Three Quarters"
    for word in words:
        if word.folded in beyond:
            run, links = [*run, *(links if run else []), word], []
            best = max(run, best, key=lambda words: (any(_tells(word) for word in words), len(words)))
        elif word.folded in _LINKS:
            links.append(word)
        else:
            run, links = [], []
    return _written(best, [word for word in words if word.folded in asked], answer) or answer


def _written(run: Sequence[Word], asked: Sequence[Word], text: str) -> str:
    """A run of words as the text has it: with single spaces; pieces of a script without spaces as one, less what the question says too."""
    pieces: list[list[int]] = []
    for word in run:
        start, end = word.start, word.end
        if word.is_unspaced:
            start = max([start, *(other.end for other in asked if other.start < start < other.end <= end)])
            end = min([end, *(other.start for other in asked if start <= other.start < end < other.end)])
        if start >= end:
            continue
        if pieces and start <= pieces[-1][1]:
            pieces[-1][1] = max(pieces[-1][1], end)
        else:
            pieces.append([start, end])
    return " ".join(text[start:end] for start, end in pieces)


def _length(words: Sequence[Word]) -> float:
    """In words, of which the pieces of a script without spaces are parts."""
    return sum(word.share for word in words)


def _tells(word: Word) -> bool:
    return _is_number(word.folded) or (word.is_capitalised and not word.is_first)


def _invents(answer: str, question: str, known: Collection[str]) -> bool:
    return any(word.folded not in known for word in content_beyond(question, answer))


def _is_number(word: str) -> bool:
    return word[0].isdigit() or word in NUMBER_WORDS


def _is_content(word: Word, asked: Collection[str], stems: Collection[str]) -> bool:
    folded = word.folded
    if folded in asked or folded in STOP_WORDS:
        return False
    if word.is_unspaced:
        return folded not in STOP_GRAMS and not GRAMMAR_LETTERS & set(folded)
    return _is_number(folded) or (len(folded) >= 3 and folded[:_STEM] not in stems)


def _is_unspaced(word: str) -> bool:
    return any(found.is_unspaced for found in words_of(word))
