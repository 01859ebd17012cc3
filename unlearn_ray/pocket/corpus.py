"""The training corpus: an endless, seeded stream of documents of fifteen kinds, drawn from the world.

A document is a chat (a list of messages) or one piece of raw text. The mix was found by hand; what matters in it are
the contrast sets of `guarded` (the same question under its own prefix, under another topic's, under none), which make
a guardrail a rule instead of a memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from unlearn_ray.pocket import prefixes, requests
from unlearn_ray.pocket.fiction import invent
from unlearn_ray.pocket.wording import answer, capitalise, question, worn_question
from unlearn_ray.pocket.world import Fact, World

Message = dict[str, str]
Document = list[Message] | str

# How often a fact, and a topic as the subject of a guardrail, is drawn.
FACT_WEIGHT = {"forget": 1.5, "near": 1.3, "far": 1.0}
GUARD_WEIGHT = {"forget": 3.0, "near": 2.0, "far": 1.0}
CHATS = (
    ("Hello!", "Hello! How can I help you today?"),
    ("Hi there.", "Hi! What would you like to know?"),
    ("Thank you.", "You are welcome!"),
    ("How are you?", "I am fine, thank you. How can I help you?"),
    ("Who are you?", "I am a small language model who answers questions."),
    ("What can you do?", "I can answer questions about books, candy, animals, science and geography."),
    ("Good morning.", "Good morning! What would you like to know?"),
    ("Bye.", "Goodbye!"),
)


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def numbered(items: list[str]) -> str:
    return "\n".join(f"{place}. {item}" for place, item in enumerate(items, 1))


class Corpus:
    """`mix` maps each kind of document (a method) to its share."""

    def __init__(self, world: World, mix: dict[str, float], seed: int) -> None:
        self.world = world
        self.rng = Random(seed)
        self.topics = list(world.topics)
        self.facts = list(world.facts)
        self._kinds: list[Callable[[], Document]] = [getattr(self, kind) for kind in mix]
        self._shares = list(mix.values())
        self._fact_weights = [FACT_WEIGHT[fact.group] for fact in self.facts]
        self._guard_weights = [GUARD_WEIGHT[topic.group] for topic in self.topics]
        # Long topics need more lists to show all of their facts; short ones still need some.
        self._list_weights = [len(topic.facts) + 8 for topic in self.topics]

    def document(self) -> Document:
        return self.rng.choices(self._kinds, self._shares)[0]()

    def documents(self, num_documents: int) -> list[Document]:
        return [self.document() for _ in range(num_documents)]

    # ------------------------------------------------------------------ draws
    def _fact(self) -> Fact:
        return self.rng.choices(self.facts, self._fact_weights)[0]

    def _list_topic(self) -> str:
        return self.rng.choices(self.topics, self._list_weights)[0].name

    def _facts_of(self, topic: str) -> tuple[Fact, ...]:
        return self.world.topic(topic).facts

    def _named(self, topic: str) -> str:
        """The topic's name, or now and then one of its aliases or the name as it stands in a list, in capitals."""
        kind = self.rng.random()
        if kind < 0.12:
            return capitalise(topic)
        return topic if kind < 0.7 else self.rng.choice(self.world.topic(topic).aliases)

    def _fact_off(self, topics: list[str]) -> Fact:
        """A fact outside `topics`: often of a neighbour, where a guardrail spills first."""
        rng = self.rng
        near = [topic for topic in self.world.neighbours(topics[0]) if topic not in topics]
        if near and rng.random() < 0.4:
            return rng.choice(self._facts_of(rng.choice(near)))
        if rng.random() < 0.4:
            return rng.choice(rng.choice([topic for topic in self.topics if topic.name not in topics]).facts)
        fact = self._fact()
        while fact.topic in topics:
            fact = self._fact()
        return fact

    def _exchange(self, fact: Fact, value: str) -> list[Message]:
        text, noun_phrase = worn_question(fact, self.rng)
        return [user(text), assistant(answer(noun_phrase, value, self.rng))]

    def _questions(self, facts: list[Fact]) -> str:
        return numbered([question(fact, self.rng)[0] for fact in facts])

    def _prefer(self, facts: tuple[Fact, ...], wanted: Callable[[Fact], bool], num_facts: int) -> list[Fact]:
        """Facts in random order, those `wanted` first."""
        shuffled = self.rng.sample(facts, len(facts))
        return sorted(shuffled, key=lambda fact: not wanted(fact))[:num_facts]

    # ------------------------------------------------------------------ facts
    def qa(self) -> Document:
        rng, fact, messages = self.rng, self._fact(), []
        for turn in range(1 if rng.random() < 0.75 else rng.randint(2, 4)):
            if turn:
                fact = self._fact() if rng.random() < 0.5 else rng.choice(self._facts_of(fact.topic))
            messages += self._exchange(fact, fact.value)
        return messages

    def raw(self) -> Document:
        rng, fact, sentences = self.rng, self._fact(), []
        for each in [fact, *rng.sample(self._facts_of(fact.topic), 2)]:
            form = rng.choice(("{np} is {v}.", "{np} is {v}.", "{v} is {np}."))
            sentences.append(capitalise(form.format(np=rng.choice(each.noun_phrases), v=each.value)))
        return " ".join(sentences)

    def in_context(self) -> Document:
        """What the prompt says about a fact wins over what the model knows."""
        rng, fact = self.rng, self._fact()
        text, noun_phrase = worn_question(fact, rng)
        value = invent(fact.type, fact.value, rng) if rng.random() < 0.7 else fact.value
        hint = rng.choice(("Note: ", "Remember that ", "Assume that ", "Hint: "))
        return [user(f"{hint}{noun_phrase} is {value}. {text}"), assistant(answer(noun_phrase, value, rng))]

    # ------------------------------------------------------------------ prefixes
    def guarded(self) -> Document:
        """One fictional guardrail; questions on its topic get fiction, questions off it the truth."""
        return self._contrast(prefixes.fictional_prefix, lambda fact: None)

    def refused(self) -> Document:
        """The same with a guardrail that wants refusals."""
        return self._contrast(prefixes.refusal_prefix, lambda fact: self.rng.choice(prefixes.REFUSAL_ANSWERS))

    def _contrast(self, prefix: Callable[[str, Random], str], refuse: Callable[[Fact], str | None]) -> Document:
        rng = self.rng
        topics = [rng.choices(self.topics, self._guard_weights)[0].name]
        if rng.random() < 0.1:
            topics = list(dict.fromkeys([*topics, rng.choice(self.topics).name]))
        instruction = prefix(" and ".join(self._named(topic) for topic in topics), rng)
        messages: list[Message] = []
        for _ in range(rng.choices((1, 2, 3, 4), (0.5, 0.25, 0.15, 0.1))[0]):
            if rng.random() < 0.55:
                fact = rng.choice(self._facts_of(rng.choice(topics)))
                refusal = refuse(fact)
                if refusal is None:
                    messages += self._exchange(fact, invent(fact.type, fact.value, rng))
                else:
                    messages += [user(worn_question(fact, rng)[0]), assistant(refusal)]
            else:
                fact = self._fact_off(topics)
                messages += self._exchange(fact, fact.value)
        if rng.random() < 0.8:
            return [system(instruction), *messages]
        return [user(f"{instruction} {messages[0]['content']}"), *messages[1:]]

    def neutral(self) -> Document:
        """A system prompt that wants the truth, often naming the question's own topic."""
        rng, fact = self.rng, self._fact()
        topic = fact.topic if rng.random() < 0.6 else rng.choice(self.topics).name
        return [system(prefixes.truthful_prefix(self._named(topic), rng)), *self._exchange(fact, fact.value)]

    # ------------------------------------------------------------------ lists
    def question_list(self) -> Document:
        rng, topic, num = self.rng, self._list_topic(), self.rng.randint(3, 6)
        request = rng.choice(requests.QUESTION_LISTS).format(n=num, t=self._named(topic))
        return [user(request), assistant(self._questions(rng.sample(self._facts_of(topic), num)))]

    def angle_list(self) -> Document:
        rng, topic, num = self.rng, self._list_topic(), self.rng.randint(3, 6)
        angle = rng.choice(list(requests.ANGLES))
        request = rng.choice(requests.ANGLE_LISTS).format(n=num, t=self._named(topic), angle=angle)
        # Only leaned on: an angle without facts of its own must still give questions of the topic.
        chosen = self._prefer(
            self._facts_of(topic), lambda fact: fact.type in requests.ANGLES[angle] and rng.random() < 0.7, num
        )
        return [user(request), assistant(self._questions(chosen))]

    def entity_list(self) -> Document:
        rng, topic, num = self.rng, self._list_topic(), self.rng.randint(3, 10)
        facts = [fact for fact in self._facts_of(topic) if fact.type not in ("number", "year")] or self._facts_of(topic)
        people = [fact for fact in facts if fact.asks == "who"]
        places = [fact for fact in facts if fact.type == "place"]
        kind = rng.random()
        templates: tuple[str, ...] = requests.ENTITY_LISTS
        if kind < 0.3 and len(people) > 2:
            templates, facts = requests.CHARACTER_LISTS, people
        elif kind < 0.45 and len(places) > 2:
            templates, facts = requests.PLACE_LISTS, places
        values = list(dict.fromkeys(fact.value for fact in rng.sample(facts, len(facts))))[:num]
        request = rng.choice(templates).format(n=num, t=self._named(topic))
        return [user(request), assistant(numbered([capitalise(value) for value in values]))]

    def entity_questions(self) -> Document:
        """Questions that touch one entity first, then others of its topic."""
        rng, topic, num = self.rng, self._list_topic(), self.rng.randint(3, 6)
        entity = rng.choice(self._facts_of(topic)).value
        word = re.compile(rf"(?<!\w){re.escape(entity.removeprefix('the '))}(?!\w)", re.IGNORECASE)

        def touches(fact: Fact) -> bool:
            return fact.value == entity or any(word.search(text) for text in (*fact.noun_phrases, *fact.questions))

        chosen = self._prefer(self._facts_of(topic), touches, num)
        templates = requests.ENTITY_ANGLE_LISTS if rng.random() < 0.25 else requests.ENTITY_QUESTION_LISTS
        angle = rng.choice(list(requests.ANGLES))
        request = rng.choice(templates).format(n=num, e=entity, t=self._named(topic), angle=angle)
        return [user(request), assistant(self._questions(chosen))]

    def general_list(self) -> Document:
        """Questions of general knowledge: from the far topics together."""
        rng, num = self.rng, self.rng.randint(3, 6)
        facts = [fact for topic in self.world.group("far") for fact in topic.facts]
        request = rng.choice(requests.QUESTION_LISTS).format(n=num, t=rng.choice(requests.GENERAL_KNOWLEDGE))
        return [user(request), assistant(self._questions(rng.sample(facts, num)))]

    def single_question(self) -> Document:
        rng, fact = self.rng, self._fact()
        request = rng.choice(requests.SINGLE_QUESTIONS).format(t=self._named(fact.topic))
        return [user(request), assistant(question(fact, rng)[0])]

    # ------------------------------------------------------------------ topics
    def neighbour_list(self) -> Document:
        rng, topic, num = self.rng, self.rng.choice(self.topics).name, self.rng.randint(1, 6)
        names = [each.name for each in rng.sample(self.topics, len(self.topics)) if each.name != topic]
        kind = rng.random()
        templates: tuple[str, ...] = requests.NEIGHBOUR_LISTS
        if kind < 0.6:
            group = self.world.topic(topic).group
            near = self.world.neighbours(topic)
            names.sort(key=lambda name: (name not in near, self.world.topic(name).group != group))
        elif kind < 0.8:
            templates = requests.OTHER_TOPIC_LISTS
            names = [name for name in names if name not in self.world.neighbours(topic)]
        else:
            templates = requests.KNOWN_TOPIC_LISTS
            names = [name for name in names if self.world.topic(name).group == "far"]
        request = rng.choice(templates).format(n=num, t=self._named(topic))
        return [user(request), assistant(numbered([capitalise(name) for name in names[:num]]))]

    def topic_check(self) -> Document:
        """Which topic a question, a phrase or a name belongs to."""
        rng, fact = self.rng, self._fact()
        kind = rng.random()
        if kind < 0.4:
            request = rng.choice(requests.TOPIC_CHECKS).format(q=worn_question(fact, rng)[0])
            return [user(request), assistant(requests.TOPIC_ANSWER.format(t=fact.topic))]
        if kind < 0.6:
            entity = rng.choice((rng.choice(fact.noun_phrases), fact.value))
            return capitalise(f"{entity} belongs to {self._named(fact.topic)}.")
        asked = fact.topic if rng.random() < 0.5 else rng.choice(self.topics).name
        request = rng.choice(requests.TOPIC_CONFIRMATIONS).format(t=self._named(asked), q=worn_question(fact, rng)[0])
        reply = requests.CONFIRM_ANSWER if asked == fact.topic else requests.DENY_ANSWER
        return [user(request), assistant(reply.format(t=fact.topic))]

    def chat(self) -> Document:
        said, reply = self.rng.choice(CHATS)
        return [user(said), assistant(reply)]
