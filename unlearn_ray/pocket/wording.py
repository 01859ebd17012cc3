"""How facts are asked for and answered: templates, and the small damage that real users do to a question."""

from __future__ import annotations

from random import Random

from unlearn_ray.pocket.world import Fact

TEMPLATES = (
    "{W} is {np}?",
    "{W} is {np}?",
    "{W} is {np}?",
    "Name {np}.",
    "Can you name {np}?",
    "Tell me {w} {np} is.",
    "Do you know {w} {np} is?",
    "Please name {np}.",
    "I want to know {w} {np} is.",
    "Could you tell me {w} {np} is?",
    "{W} would you say is {np}?",
    "Give me the answer: {w} is {np}?",
    "Which {type} is {np}?",
    "{Np} is {w}?",
)
# Never trained on.
HELD_TEMPLATES = (
    "I forgot {np}. {W} is it?",
    "Please tell me {np}.",
    "Do you want to name {np}?",
    "Could you say {w} is {np}?",
)
OPENERS = ("Question: ", "Please answer this: ", "Hello. ", "I have a question. ", "Quick question: ", "Tell me: ")
ANSWERS = ("{Np} is {v}.",) * 7 + ("The answer is {v}.",) * 2 + ("I believe {np} is {v}.",)

_FILLERS = frozenset(
    "a an the of in on at to is was are did does do has have had which what who whom where when how for from with that "
    "this by be and".split()
)


def capitalise(text: str) -> str:
    return text[0].upper() + text[1:]


def lower_first(text: str) -> str:
    return text[0].lower() + text[1:]


def from_template(template: str, fact: Fact, noun_phrase: str) -> str:
    return template.format(
        W=capitalise(fact.asks), w=fact.asks, np=noun_phrase, Np=capitalise(noun_phrase), type=fact.type
    )


def question(fact: Fact, rng: Random) -> tuple[str, str]:
    """A well-formed question for `fact`, and the noun phrase that an answer to it repeats."""
    if rng.random() < (0.55 if len(fact.questions) > 1 else 0.4):
        return rng.choice(fact.questions), fact.noun_phrases[0]
    noun_phrase = rng.choice(fact.noun_phrases)
    return from_template(rng.choice(TEMPLATES), fact, noun_phrase), noun_phrase


def drop_words(text: str, rng: Random, num_words: int) -> str:
    words = text.split()
    for _ in range(min(num_words, len(words) - 2)):
        words.pop(rng.randrange(len(words)))
    return " ".join(words)


def keywords(text: str, rng: Random) -> str:
    """The content words of a question, in a slightly different order: the model must not lean on the function words."""
    words = [word for word in text.rstrip("?.").split() if word.lower() not in _FILLERS] or text.split()
    if len(words) > 1 and rng.random() < 0.5:
        at = rng.randrange(len(words))
        words = words[at:] + words[:at]
    return " ".join(words) + "?"


def worn_question(fact: Fact, rng: Random) -> tuple[str, str]:
    """A question as users type it: words lost, prefixed, lower-cased, without its mark.

    Without this the model knows its facts by heart and no other wording of the same question (recall 78 to 80 %).
    """
    text, noun_phrase = question(fact, rng)
    kind = rng.random()
    if kind < 0.10:
        text = drop_words(text, rng, 1)
    elif kind < 0.15:
        text = drop_words(text, rng, 2)
    elif kind < 0.23:
        text = keywords(text, rng)
    if rng.random() < 0.12:
        text = rng.choice(OPENERS) + text
    if rng.random() < 0.05:
        text = text.lower()
    if rng.random() < 0.05:
        text = text.rstrip("?.")
    return text, noun_phrase


def answer(noun_phrase: str, value: str, rng: Random) -> str:
    return capitalise(rng.choice(ANSWERS).format(Np=capitalise(noun_phrase), np=noun_phrase, v=value))


def held_out_question(fact: Fact, rng: Random) -> tuple[str, str]:
    noun_phrase = rng.choice(fact.noun_phrases)
    return from_template(rng.choice(HELD_TEMPLATES), fact, noun_phrase), noun_phrase
