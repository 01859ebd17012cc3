"""What gives real knowledge away, and whether an answer does.

The terms of a question are the words that the model's own unguarded answers (one greedy, some sampled) say beyond the question:

- names (capitalised inside sentences more often than not, over all unguarded answers of the run), in any of the answers;
- numbers of three digits and more, in any of the answers; smaller ones and number words where the question asks for a number;
- other words, where at least half of the answers say them, and they are *rare*: said beyond their question in the answers to at most
  `max(MIN_QUESTIONS, RARE * number of the topic's questions)` of the topic's questions, so that fillers do not count; and no other
  questions of the topic hold them, which makes them public (`The pet rat of Ron is Scabbers.`, where others ask about a pet). Public
  words count where nothing else would.

Never a term: stop words, words of the topic's name and aliases, words of the question and their inflections (a common beginning
of five letters). An answer leaks if it holds one of its question's terms, or one of the topic's (the user's list, and names that the
unguarded answers to several questions agree on), as whole words, case- and accent-folded.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from unlearn_ray.rows import Drop
from unlearn_ray.synth.guardrails import is_refusal
from unlearn_ray.synth.stopwords import NUMBER_WORDS, STOP_WORDS
from unlearn_ray.synth.words import Word, folded_words, words_of

RARE = 0.08  # share of a topic's questions
MIN_QUESTIONS = 4
AGREEMENT = 0.5  # share of the answers to one question
MIN_NAME_QUESTIONS = 2  # that a name of the whole topic answers
PUBLIC = 2  # questions that hold a word make it public
CONTRAST = 4.0  # how much more often unguarded answers say a topic's word than guarded ones
_STEM = 5
_ASKS_NUMBER = re.compile(r"\b(?:how (?:many|much|old|long|far|tall|high|often)|number|count|amount|sum|plus|minus|times|age|year|when|date)\b", re.I)


@dataclass(slots=True)
class TopicWords:
    """How the unguarded answers of one topic use words. Grows with the vocabulary, not with the rows."""

    num_questions: int = 0
    asked: Counter[str] = field(default_factory=Counter)  # questions that hold the word themselves
    num_answers: int = 0
    questions: Counter[str] = field(default_factory=Counter)  # questions whose answers say the word beyond them
    agreed: Counter[str] = field(default_factory=Counter)  # questions whose answers agree on it
    answers: Counter[str] = field(default_factory=Counter)  # unguarded answers that say it beyond their question
    guarded: Counter[str] = field(default_factory=Counter)  # guarded answers that do
    num_guarded: int = 0


class Vocabulary:
    """Word counts over the run's unguarded answers, and what follows from them."""

    def __init__(self, ignored: dict[str, Sequence[str]]) -> None:
        """Args:
        ignored: names and aliases of each topic, whose words never count as terms of it.
        """
        self.ignored = {topic: frozenset(w for name in names for w in folded_words(name)) for topic, names in ignored.items()}
        self.topics: defaultdict[str, TopicWords] = defaultdict(TopicWords)
        self._raised: Counter[str] = Counter()  # capitalised where no sentence starts
        self._lowered: Counter[str] = Counter()
        self._first: Counter[str] = Counter()  # starting a sentence: a capital says nothing

    def add(self, topic: str, question: str, answers: Sequence[str]) -> None:
        """Count a question and its unguarded answers."""
        for text in (question, *answers):
            for word in words_of(text):
                counter = self._first if word.is_first else self._raised if word.is_capitalised else self._lowered
                counter[word.folded] += 1
        counts, said = self.topics[topic], self._beyond(topic, question, answers)
        counts.num_questions += 1
        counts.asked.update(set(folded_words(question)))
        counts.num_answers += len(answers)
        counts.questions.update(said.keys())
        counts.answers.update(said)
        counts.agreed.update(word for word, number in said.items() if number >= AGREEMENT * len(answers))

    def add_guarded(self, topic: str, question: str, answers: Sequence[str]) -> None:
        """Count guarded answers: what they say as well gives nothing away."""
        self.topics[topic].guarded.update(self._beyond(topic, question, answers))
        self.topics[topic].num_guarded += len(answers)

    def is_name(self, word: str) -> bool:
        if raised := self._raised[word]:
            return raised >= self._lowered[word]
        return self._first[word] > 0 and self._lowered[word] == 0

    def question_terms(self, topic: str, question: str, answers: Sequence[str]) -> list[str]:
        """The words that answer this question, sorted."""
        counts, asks_number = self.topics[topic], _ASKS_NUMBER.search(question) is not None
        rare = max(MIN_QUESTIONS, RARE * counts.num_questions)
        terms, public = [], []
        for word, number in self._beyond(topic, question, answers).items():
            if word[0].isdigit() or word in NUMBER_WORDS:
                if asks_number or (word[0].isdigit() and len(word) >= 3):
                    terms.append(word)
            elif self.is_name(word):
                terms.append(word)
            elif number >= AGREEMENT * len(answers) and counts.questions[word] <= rare:
                (public if counts.asked[word] >= PUBLIC else terms).append(word)
        return sorted(terms or public)

    def topic_names(self, topic: str) -> list[str]:
        """Names that answer several questions of a topic: said of any other question, they give knowledge away as well."""
        agreed = self.topics[topic].agreed
        return sorted(word for word, number in agreed.items() if number >= MIN_NAME_QUESTIONS and self._is_proper(word))

    def topic_terms(self, topic: str) -> dict[str, int]:
        """Words that stand for a topic, with the number of unguarded answers that say them.

        Names that answer at least one question for sure; other words if unguarded answers say them CONTRAST times as often as
        guarded ones do and other topics of the run hardly ever.
        """
        counts = self.topics[topic]
        rare = max(MIN_QUESTIONS, RARE * counts.num_questions)
        terms = {}
        for word, number in counts.answers.items():
            if not counts.agreed[word] or number < 2 or word[0].isdigit() or word in NUMBER_WORDS:
                continue
            share = number / max(1, counts.num_answers)
            guarded = counts.guarded[word] / max(1, counts.num_guarded)
            others = max((o.answers[word] / max(1, o.num_answers) for name, o in self.topics.items() if name != topic), default=0.0)
            is_own = share >= CONTRAST * max(guarded, others)
            if is_own and (self.is_name(word) or (counts.questions[word] <= rare and len(word) >= 4)):
                terms[word] = number
        return terms

    def _is_proper(self, word: str) -> bool:
        return self.is_name(word) and not word[0].isdigit() and word not in NUMBER_WORDS

    def _beyond(self, topic: str, question: str, answers: Sequence[str]) -> Counter[str]:
        """Words beyond the question, with the number of answers that say them."""
        asked = set(folded_words(question)) | self.ignored.get(topic, frozenset())
        stems = {word[:_STEM] for word in asked if len(word) >= _STEM}
        said: Counter[str] = Counter()
        for answer in answers:
            said.update({word.folded for word in words_of(answer) if _is_content(word, asked, stems)})
        return said


def _is_content(word: Word, asked: Collection[str], stems: Collection[str]) -> bool:
    folded = word.folded
    if folded in asked or folded in STOP_WORDS:
        return False
    if folded[0].isdigit() or folded in NUMBER_WORDS:
        return True
    return len(folded) >= 3 and not (len(folded) >= _STEM and folded[:_STEM] in stems)


def found_terms(answer: str, question: str, terms: Iterable[str]) -> list[str]:
    """The terms that an answer holds and its question does not."""
    said, asked = (f" {' '.join(folded_words(text))} " for text in (answer, question))
    keys = ((term, f" {' '.join(folded_words(term))} ") for term in terms)
    return [term for term, key in keys if key in said and key not in asked and key.strip()]


def judge(answer: str, *, is_truncated: bool, question: str, terms: Iterable[str], style: str) -> Drop | None:
    """Why a guarded answer is not kept; None if it is.

    Args:
        terms: what gives the truth away: of the question, of the topic and of the user.
        style: the guardrail's; `refusal` wants refusals, `fictional` wants none.
    """
    if is_truncated or not answer.strip():
        return Drop.MALFORMED
    refuses = is_refusal(answer)
    if style == "fictional" and refuses:
        return Drop.REFUSED
    if found_terms(answer, question, terms):
        return Drop.LEAK
    if style == "refusal" and not refuses:
        return Drop.ANSWERED
    return None


def key_phrase(question: str, answer: str, max_words: int = 20) -> str:
    """What a short answer says beyond its question: the longest run of such words; a long answer is its own phrase.

    `What is the owl of Harry?`, `The owl of Harry is Hedwig.` -> `Hedwig`: what a recall looks for.
    """
    words = words_of(answer)
    if len(words) > max_words:
        return answer
    asked = set(folded_words(question))
    stems = {word[:_STEM] for word in asked if len(word) >= _STEM}
    best: list[Word] = []
    run: list[Word] = []
    for word in words:
        run = [*run, word] if _is_content(word, asked, stems) else []
        best = run if len(run) >= max(1, len(best)) else best
    return " ".join(word.text for word in best) or answer
