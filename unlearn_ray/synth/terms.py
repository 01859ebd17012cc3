"""Learns the words that give away real knowledge of a topic (terms) from the model's own answers about it.

The terms of a question come from the model's unguarded answers (one greedy, some sampled). A word that the question does not say is a term if
it is one of these:

    kind                     condition
    ----------------------   ----------------------------------------------------------------------------------------------------------
    name                     any of the answers says it. Over all unguarded answers of the run it is more often capitalised inside
                             sentences than not.
    number, 3 digits         any of the answers says it.
      or more
    smaller number, or       the question asks for a number, and the greedy answer, or a share of AGREEMENT of the answers, says it.
      number word
    plain word               at least AGREEMENT of the answers say it, and at most `max(MIN_QUESTIONS, RARE * questions)` of the topic's
                             questions have it in their answers. This excludes fillers ("answer", "believe").

Never a term:

- stop words, and contractions of them ("I'm");
- words of the topic's name and aliases, and of the question, with inflections (the same first five letters);
- the model's words when it refuses or speaks of itself;
- common speech: words that the answers to general questions (the pool) say about as often. At least MIN_POOL pool questions (for a name:
  MIN_POOL_NAME) must have the word in their answers, and

      COMMON * share of the pool's questions whose answers say it  >=  share of the topic's questions whose answers say it.

A name of several words is a term as a whole: `Hogwarts School`. Its single words are terms too (`Weasley`, `Snape`), except ordinary ones
(`School`, `Drive`). A word is ordinary if the pool writes it without a capital, or many names contain it, unless a share of ALONE of its
capitalised uses is outside of such names.

Scripts without capitals have no names: only words on which the answers agree count. In scripts without spaces, pieces replace words
(`words.words_of`: two letters of Han, three of kana, Thai, Khmer, ...). 海德薇 is learnt as 海德 and 德薇, and any answer with the name has
both. Pieces with a grammatical letter (的, 是, 叫) do not count.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from unlearn_ray.refusals import is_refusal
from unlearn_ray.synth.content import content_beyond, is_number, is_unspaced, key_of, names_beyond, names_in
from unlearn_ray.synth.sentences import sentences_of
from unlearn_ray.synth.stopwords import FREQUENT_WORDS, NAME_WORDS
from unlearn_ray.words import folded_words, words_of

RARE = 0.1  # share of a topic's questions
MIN_QUESTIONS = 4
AGREEMENT = 0.5  # share of the answers to one question
MIN_NAME_QUESTIONS = 2  # questions with the name in their answers, for a name of the whole topic
CONTRAST = 4.0  # how much more often a topic's answers must say its word than another topic's
COMMON = 2.0
MIN_POOL, MIN_POOL_NAME = 2, 3
ALONE = 0.25
_ASKS_NUMBER = re.compile(
    r"\b(?:how (?:many|much|old|long|far|tall|high|often)|number|count|amount|total|sum|plus|minus|times|age|years?|when|date"
    r"|сколько|когда|году|cu[aá]nt[oa]s?|cu[aá]ndo|combien|quand|wann|wie ?viele?|wie alt|quant[oa]s?|quando|كم|متى|कितने|कितनी|कितना|कब)\b"
    r"|多少|几|幾|何時|何年|何人|いくつ|いつ|몇|얼마|언제|เท่าไร|เท่าไหร่|เมื่อ|กี่",
    re.I,
)
# Texts in which the model speaks of itself: "As an AI language model, ...".
_OF_ITSELF = re.compile(
    r"\b(?:as )?(?:an?|your) (?:large |virtual |digital |helpful )*(?:ai|artificial intelligence|language model|assistant|chatbot)\b[^.,;:!?\n]*",
    re.I,
)


@dataclass(slots=True)
class TopicWords:
    """Counts of the words and names in the answers about one topic. Its size depends on the vocabulary, not on the rows."""

    num_questions: int = 0
    num_answers: int = 0
    # Per word: questions with it in their unguarded answers but not in the question, and questions whose answers agree on it.
    questions: Counter[str] = field(default_factory=Counter)
    agreed: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)  # unguarded answers with the word
    keeps: Counter[str] = field(default_factory=Counter)  # questions with this term whose guarded answers mostly say it
    gives: Counter[str] = field(default_factory=Counter)  # questions with this term whose guarded answers mostly do not

    def merge(self, other: "TopicWords") -> None:
        """Add the counts of other questions."""
        self.num_questions += other.num_questions
        self.num_answers += other.num_answers
        for mine, more in (
            (self.questions, other.questions),
            (self.agreed, other.agreed),
            (self.answers, other.answers),
            (self.keeps, other.keeps),
            (self.gives, other.gives),
        ):
            mine.update(more)


@dataclass(frozen=True, slots=True)
class Said:
    """The words in the answers to one question that the question does not say, with the number of answers."""

    anywhere: Counter[str]  # words, and names of several words
    outside: Counter[str]  # words outside of such names


class Vocabulary:
    """Word counts over the run's answers, and the terms that follow from them."""

    def __init__(self, own_names: Mapping[str, Sequence[str]]) -> None:
        """Args:
        own_names: per topic, its name and aliases, whose words are never its terms.
        """
        self._own = {
            topic: frozenset(w for name in names for w in folded_words(name)) for topic, names in own_names.items()
        }
        self.topics: defaultdict[str, TopicWords] = defaultdict(TopicWords)
        self._pool = TopicWords()
        self._raised: Counter[str] = Counter()  # capitalised inside a sentence
        self._lowered: Counter[str] = Counter()
        self._first: Counter[str] = Counter()  # at the start of a sentence, where a capital shows nothing
        self._joined: Counter[str] = Counter()  # within a name of several words
        self._ordinary: Counter[str] = Counter()  # without a capital in the pool

    def add(self, topic: str, question: str, answers: Sequence[str]) -> None:
        """Count a question and its unguarded answers."""
        self._count(self.topics[topic], topic, question, answers)

    def add_pool(self, question: str, answers: Sequence[str]) -> None:
        """Count a general question and the model's own answers, which show common speech."""
        self._count(self._pool, "", question, answers)
        self._ordinary.update(word.folded for text in answers for word in words_of(text) if not word.is_capitalised)

    def merge(self, other: "Vocabulary") -> None:
        """Add the counts of other questions. So the spans of a table can be counted separately and merged."""
        for topic, words in other.topics.items():
            self.topics[topic].merge(words)
        self._pool.merge(other._pool)
        for mine, more in (
            (self._raised, other._raised),
            (self._lowered, other._lowered),
            (self._first, other._first),
            (self._joined, other._joined),
            (self._ordinary, other._ordinary),
        ):
            mine.update(more)

    @property
    def num_pool(self) -> int:
        """Number of general questions counted."""
        return self._pool.num_questions

    def _count(self, counts: TopicWords, topic: str, question: str, answers: Sequence[str]) -> None:
        texts = _telling(answers)
        for text in (question, *texts):
            for word in words_of(text):
                counter = self._first if word.is_first else self._raised if word.is_capitalised else self._lowered
                (counter if word.is_cased else self._lowered)[word.folded] += 1
            for name in names_in(text, self._own.get(topic, ())):
                self._joined.update(word.folded for word in name if word.is_capitalised and not word.is_first)
        said = self._beyond(topic, question, texts).anywhere
        counts.num_questions += 1
        counts.num_answers += len(texts)
        counts.questions.update(said.keys())
        counts.answers.update(said)
        counts.agreed.update(word for word, number in said.items() if number >= AGREEMENT * len(texts))

    def add_guarded(self, topic: str, terms: Iterable[str], answers: Sequence[str]) -> None:
        """Count which terms of a question its guarded answers keep."""
        if not answers:
            return
        said: Counter[str] = Counter()
        for answer in answers:
            said.update({*folded_words(answer), *map(key_of, names_in(answer))})
        for term in terms:
            keeps = said[term] >= AGREEMENT * len(answers)
            (self.topics[topic].keeps if keeps else self.topics[topic].gives)[term] += 1

    def is_name(self, word: str) -> bool:
        """Whether a word is mostly written as a name, or is a name of several words."""
        if " " in word:
            return True
        if is_number(word):
            return False
        if raised := self._raised[word]:
            return raised >= self._lowered[word]
        return self._first[word] > 0 and self._lowered[word] == 0

    def known(self, topic: str, question: str, answers: Sequence[str]) -> list[str]:
        """All words in the unguarded answers that the question does not say, sorted. Any other word is invented."""
        return sorted(self._beyond(topic, question, _telling(answers)).anywhere)

    def question_terms(self, topic: str, question: str, answers: Sequence[str]) -> list[str]:
        """The terms of this question, sorted.

        Args:
            answers: the model's own, the greedy one first.
        """
        counts, asks_number = self.topics[topic], _ASKS_NUMBER.search(question) is not None
        rare = max(MIN_QUESTIONS, RARE * counts.num_questions)
        texts = _telling(answers)
        said, greedy = self._beyond(topic, question, texts), self._beyond(topic, question, texts[:1])
        terms = []
        for word, number in said.anywhere.items():
            if is_number(word):
                is_sure = word in greedy.anywhere or number >= AGREEMENT * len(texts)
                counts_as_term = (asks_number and is_sure) or (word[0].isdigit() and len(word) >= 3)
            elif self._is_common(topic, word):
                counts_as_term = False
            elif self.is_name(word) and not self._is_mere_part(word):
                counts_as_term = True
            else:
                counts_as_term = said.outside[word] >= AGREEMENT * len(texts) and counts.questions[word] <= rare
            if counts_as_term:
                terms.append(word)
        return sorted(terms)

    def is_plain(self, word: str) -> bool:
        """Whether a term is a plain word: neither a number nor a name."""
        return not is_number(word) and (not self.is_name(word) or self._is_mere_part(word))

    def topic_names(self, topic: str) -> list[str]:
        """Names in the answers to several questions of a topic. In an answer to any other question they give knowledge away too."""
        agreed = self.topics[topic].agreed
        return sorted(
            word
            for word, number in agreed.items()
            if number >= MIN_NAME_QUESTIONS
            and self.is_name(word)
            and not self._is_mere_part(word)
            and not self._is_common(topic, word)
        )

    def framing(self, topic: str) -> dict[str, bool]:
        """Terms that guarded answers keep for some questions; True: for most. Empty if the guardrail does not work."""
        counts = self.topics[topic]
        names = [word for word in counts.keeps | counts.gives if self.is_name(word)]
        if sum(counts.keeps[name] for name in names) > sum(counts.gives[name] for name in names):
            return {}
        return {word: number > counts.gives[word] for word, number in counts.keeps.items() if not is_number(word)}

    def topic_terms(self, topic: str) -> dict[str, int]:
        """The terms of a whole topic, with the number of unguarded answers that say them.

        - They answer at least two questions (one, if fewer than 20 were asked) whose guarded answers do not say them.
        - Other topics of the run rarely say them, and so does the pool.
        - They are names, or words that guarded answers hardly ever keep.
        """
        counts = self.topics[topic]
        least = 2 if counts.num_questions >= 20 else 1
        terms = {}
        for word, gives in counts.gives.items():
            is_sure = gives >= least and counts.agreed[word] >= least and not is_number(word)
            is_word = (len(word) >= 4 or is_unspaced(word)) and gives >= CONTRAST * counts.keeps[word]
            tells = (self.is_name(word) or is_word) and not self._is_mere_part(word)
            if is_sure and tells and self._is_own(topic, word) and not self._is_common(topic, word):
                terms[word] = counts.answers[word]
        return terms

    def _is_own(self, topic: str, word: str) -> bool:
        shares = {name: counts.answers[word] / max(1, counts.num_answers) for name, counts in self.topics.items()}
        return all(shares[topic] >= CONTRAST * share for name, share in shares.items() if name != topic)

    def _is_common(self, topic: str, word: str) -> bool:
        """Whether the pool says a word as often as the topic's answers do."""
        in_pool, counts = self._pool.questions[word], self.topics[topic]
        if in_pool < (MIN_POOL_NAME if self.is_name(word) else MIN_POOL):
            return False
        share = counts.questions[word] / max(1, counts.num_questions)
        return COMMON * in_pool / self._pool.num_questions >= share

    def _is_mere_part(self, word: str) -> bool:
        """Whether a word shows nothing without the rest of its name."""
        joined = self._joined[word]
        if not joined or self._raised[word] - joined >= ALONE * self._raised[word]:
            return False
        return self._ordinary[word] > 0 or word in NAME_WORDS or word in FREQUENT_WORDS

    def _beyond(self, topic: str, question: str, texts: Sequence[str]) -> Said:
        return _said_beyond(question, tuple(texts), self._own.get(topic, frozenset()))


@lru_cache(maxsize=64)  # a question's terms and known words are computed in a row
def _said_beyond(question: str, texts: tuple[str, ...], own: frozenset[str]) -> Said:
    said = Said(Counter(), Counter())
    for text in texts:
        names = names_beyond(question, text, own)
        inside = {word.start for name in names for word in name}
        words = content_beyond(question, text, own)
        said.anywhere.update({*(word.folded for word in words), *map(key_of, names)})
        said.outside.update({word.folded for word in words if word.start not in inside})
    return said


def _telling(answers: Sequence[str]) -> list[str]:
    """The answers to learn words from, also cut-off ones, without refusing sentences and the model's words about itself."""
    told = (_told(answer) for answer in answers)
    return [text for text in told if text.strip()]


@lru_cache(maxsize=1024)
def _told(answer: str) -> str:
    sentences = list(sentences_of(_OF_ITSELF.sub("", answer)))
    kept = [sentence for sentence in sentences if not is_refusal(sentence)]
    return answer if kept == sentences and _OF_ITSELF.search(answer) is None else " ".join(kept)
