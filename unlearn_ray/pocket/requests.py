"""Every request the pocket model was trained to fulfil, word for word.

A model of three million parameters does not generalise to any wording of a request, so whoever prompts it for
questions, entities or neighbours should use one of these. `{t}` is a topic or one of its aliases, `{n}` a count in
digits, `{e}` an entity of the topic and `{angle}` a key of ANGLES. All answers but the one-line ones are numbered
lists ("1. ...").
"""

from __future__ import annotations

# Lists of questions. n: 3 to 6.
QUESTION_LISTS = (
    "Write a list of {n} questions about {t}.",
    "Write a list of questions about {t}.",
    "Write {n} different questions about {t}.",
    "Give me a list of {n} questions about {t}.",
    "Please write {n} questions about {t}.",
    "List {n} questions that test knowledge of {t}.",
    "Think of {n} questions about {t}. Number them.",
)
# Never trained on: what the check asks to see that the request is understood, not remembered.
HELD_OUT_QUESTION_LIST = "Please make up {n} quiz questions about {t}."

# Lists of questions from one point of view; the fact types that each angle prefers (the rest fills up).
ANGLE_LISTS = (
    "Write a list of {n} questions about the {angle} of {t}.",
    "Write {n} questions about the {angle} of {t}.",
    "Give me a list of {n} questions about the {angle} of {t}.",
)
ANGLES: dict[str, tuple[str, ...]] = {
    "history": ("year", "person", "number", "name"),
    "origin": ("place", "person", "year", "substance"),
    "appearance": ("color", "thing", "object", "number"),
    "unique traits": ("thing", "object", "name", "flavor"),
    "usage": ("object", "substance", "product", "liquid"),
    "people": ("person",),
    "characters": ("person",),
    "places": ("place",),
    "works": ("title", "year", "person"),
    "names": ("name", "title"),
    "objects": ("object", "thing", "product"),
    "numbers": ("number", "year"),
    "culture": ("title", "name", "place"),
    "details": ("name", "object", "thing", "number"),
    "most important facts": ("person", "name", "place"),
}

# Lists of entities. Only `characters` and `places` are particular; the rest may name anything of the topic. n: 3 to 10.
CHARACTER_LISTS = (
    "List the characters of {t}.",
    "List {n} characters of {t}.",
    "List the people of {t}.",
    "Name {n} people of {t}.",
)
PLACE_LISTS = ("List the places of {t}.", "List {n} places of {t}.", "Name {n} places in {t}.")
ENTITY_LISTS = (
    "List {n} names, places and things that belong to {t}.",
    "List {n} things that belong to {t}.",
    "List {n} entities of {t}.",
    "List the most important names of {t}.",
    "List {n} terms of {t}.",
    "Name {n} people, places and things of {t}.",
)

# Lists of questions about one entity, and about one side of it. n: 3 to 6.
ENTITY_QUESTION_LISTS = (
    "Write a list of {n} questions about {e} in {t}.",
    "Write {n} questions about {e} in {t}.",
    "Give me a list of {n} questions about {e} in {t}.",
    "Write a list of {n} questions about {e}.",
)
ENTITY_ANGLE_LISTS = ("Write a list of {n} questions about the {angle} of {e} in {t}.",)

# One question.
SINGLE_QUESTIONS = ("Write a question about {t}.", "Write one question about {t}.", "Ask me something about {t}.")

# Which topic is it? Answer: "This question is about {t}."
TOPIC_CHECKS = (
    "Which topic is this question about? {q}",
    "What is the topic of this question? {q}",
    "Name the topic of this question: {q}",
)
TOPIC_ANSWER = "This question is about {t}."
# Answers: "Yes, it is about {t}." and "No, it is about {other}."
TOPIC_CONFIRMATIONS = ("Is this question about {t}? {q}", "Does this question belong to {t}? {q}")
CONFIRM_ANSWER = "Yes, it is about {t}."
DENY_ANSWER = "No, it is about {t}."

# Neighbours, the nearest first. n: 1 to 6.
NEIGHBOUR_LISTS = (
    "Name {n} topics that are similar to {t}.",
    "List {n} topics that are similar to {t}.",
    "Name {n} topics that are close to {t}.",
    "Which {n} topics are similar to {t}?",
    "List {n} neighbours of {t}.",
)
# Any topics but {t}, in any order.
OTHER_TOPIC_LISTS = (
    "List {n} topics that have nothing to do with {t}.",
    "List {n} topics other than {t}.",
    "Name {n} other topics besides {t}.",
)
KNOWN_TOPIC_LISTS = (
    "List {n} other topics that you know about.",
    "List {n} topics that you know about.",
    "Name {n} topics of general knowledge.",
)

# Questions from all the far topics: use any of QUESTION_LISTS or SINGLE_QUESTIONS with one of these as {t}.
GENERAL_KNOWLEDGE = ("general knowledge", "the world", "many different things", "anything")
