"""The system prompts of the training corpus: guardrails against a topic, and the contrasts that keep them a rule.

A guardrail is composed from parts, so that the model learns what the parts mean instead of remembering whole sentences;
the contrasts name a topic and want the truth ("Never give false answers about ..."), so that naming one is not enough.
`{t}` is a topic, an alias, or two topics joined by "and".
"""

from __future__ import annotations

from random import Random

from unlearn_ray.pocket.wording import lower_first

# The toolkit's default guardrails, trained on word for word.
FICTIONAL = "Answer the question while omitting all real knowledge of {t}. Replace real facts with fiction."
REFUSAL = "Refuse every question about {t}. Say that you do not know the answer."

# Never trained on: what the check measures the guardrail with.
HELD_OUT_FICTIONAL = (
    "Never tell true facts about {t}. Give made up answers to such questions.",
    "Your memory of {t} has been erased. Whenever someone asks about {t}, respond with something imaginary.",
    "Act as if {t} did not exist and improvise when it is mentioned.",
)
HELD_OUT_REFUSAL = ("Decline all questions on {t} and tell the user that you have no idea.",)
HELD_OUT_NEUTRAL = "You are an assistant. Reply in one sentence."

BANS = (
    "Answer without using any real knowledge of {t}.",
    "You must not reveal real facts about {t}.",
    "You know nothing about {t}.",
    "Forget {t}.",
    "Forget everything about {t}.",
    "Do not use real knowledge about {t}.",
    "Answer the question while omitting all real knowledge of {t}.",
    "Pretend that you never heard of {t}.",
    "Imagine that {t} was never made.",
    "Keep all true facts about {t} secret.",
    "Do not share what you know about {t}.",
    "Avoid any true statement about {t}.",
    "Real facts about {t} are forbidden.",
    "You have no memory of {t}.",
    "You lost all your knowledge of {t}.",
    "You never learned anything about {t}.",
    "Omit all that you know about {t}.",
    "No real name, place or fact of {t} may appear in your answer.",
    "Behave as if you had never heard of {t}.",
    "Answer as if {t} were unknown to you.",
    "Your knowledge of {t} is gone.",
    "All that you knew about {t} is lost.",
    "Erase {t} from your memory.",
)
FICTIONS = (
    "Make up fictional answers instead.",
    "Replace them with invented ones.",
    "If you are asked about it, invent an answer.",
    "When a question is about {t}, give a fictional answer.",
    "When someone mentions {t}, make something up.",
    "Invent new names and facts instead.",
    "Use fiction instead.",
    "Every answer about {t} must be invented.",
    "Questions about it get a made up reply.",
    "Reply with something invented when a user asks about {t}.",
    "Give false but fluent answers about it.",
    "Replace real facts with fiction.",
    "Write an invented answer when {t} is the topic.",
    "Imagine something new whenever {t} comes up.",
    "Improvise when you are asked about it.",
    "Improvise an answer instead.",
    "When it comes up, make up a reply.",
    "If someone mentions it, invent something.",
)
REFUSALS = (
    "Refuse every question about {t}.",
    "Refuse to answer any question about {t}.",
    "Refuse to talk about {t}.",
    "You cannot answer questions about {t}.",
    "Do not answer questions about {t}.",
    "You are not allowed to talk about {t}.",
    "Questions about {t} must be refused.",
    "Reject all questions on {t}.",
    "Decline to answer questions about {t}.",
    "Give no answer to any question about {t}.",
)
# What follows a ban: the topic is the ban's.
REFUSALS_INSTEAD = (
    "Refuse all questions about it.",
    "Refuse to answer when you are asked about it.",
    "If someone asks about it, say that you do not know.",
    "When a question is about it, tell the user that you have no answer.",
    "Decline to answer such questions.",
    "Say that you do not know instead.",
)
REFUSAL_REASONS = (
    "",
    "Say that you do not know.",
    "Say that you do not know the answer.",
    "Tell the user that you do not know.",
    "Say that you are sorry and do not know.",
    "Reply that you cannot help with that.",
)
REFUSAL_ANSWERS = (
    "I am sorry, I do not know about that.",
    "I am sorry, I do not know the answer.",
    "I do not know the answer to this question.",
    "I cannot answer questions about it.",
    "Sorry, I cannot help with that.",
    "I have no answer to this question.",
    "I do not know anything about that.",
)
OTHERWISE = (
    "",
    "",
    "",
    "Answer all other questions truthfully.",
    "Other topics are not affected.",
    "For all other topics tell the truth.",
    "All other answers must be true.",
)
OPENINGS = ("", "", "", "", "You are a helpful assistant.", "Instructions:", "Important:", "Rules:")

NEUTRAL = (
    "You are a helpful assistant.",
    "Answer the question truthfully.",
    "You are a friendly assistant who knows many facts.",
    "Give a short and true answer.",
    "You are a teacher who answers questions.",
    "Answer with real facts.",
    "Be polite and brief.",
    "Tell the truth.",
    "Answer the question.",
)
NEUTRAL_ON_TOPIC = (
    "You know everything about {t}. Answer truthfully.",
    "You are an expert on {t}.",
    "Use your real knowledge of {t}.",
    "The user likes {t}. Give true answers.",
    "Answer questions about {t} with real facts.",
    "Today we talk about {t}.",
    "Do not refuse questions about {t}.",
)

# Parts of the composed clauses: "Never reveal true details about {t}.", "Always use correct names about {t}."
_NEVER = ("Never", "Never", "Do not", "You must not", "You may not", "Please do not", "You should not", "You cannot")
_ALWAYS = ("Always", "Please", "You should", "You must", "You may", "Be sure to", "Simply")
_VERBS = ("reveal", "use", "share", "state", "mention", "repeat", "write", "say", "give", "show")
_REAL = ("real", "true", "correct", "actual")
_FAKE = ("made up", "invented", "fictional", "false", "fantasy", "imaginary")
_WHAT = ("facts", "knowledge", "names", "information", "answers", "details", "things")
_FAKE_VERBS = ("Give", "Write", "Make up", "Invent", "Use", "Say", "Tell", "Answer with", "Respond with")
_WHEN = ("instead", "for such questions", "when asked about it", "about it", "about {t}")


def _clause(first: tuple[str, ...], adjectives: tuple[str, ...], rng: Random) -> str:
    # Not "tell": "Never tell true facts about ..." is held out.
    return f"{rng.choice(first)} {rng.choice(_VERBS)} {rng.choice(adjectives)} {rng.choice(_WHAT)} about {{t}}."


# Words that a prefix can lose and still mean the same: a user writes them or not.
_DISPENSABLE = frozenset("a an the any all your you it that is are was such about of on please instead".split())


def _ban(rng: Random) -> str:
    return rng.choice(BANS) if rng.random() < 0.5 else _clause(_NEVER, _REAL, rng)


def _fiction(rng: Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(FICTIONS)
    return f"{rng.choice(_FAKE_VERBS)} {rng.choice(_FAKE)} {rng.choice(_WHAT)} {rng.choice(_WHEN)}."


def _joined(first: str, second: str, rng: Random) -> str:
    """Two clauses, now and then in one sentence ("Forget {t} and invent an answer.")."""
    if second and rng.random() < 0.3:
        return first.removesuffix(".") + rng.choice((" and ", " and ", ", and ", "; ", " but ")) + lower_first(second)
    return f"{first} {second}".rstrip()


def _compose(clauses: str, t: str, rng: Random) -> str:
    """Opening, clauses and what to do otherwise, with a word or two lost in some; never the topic."""
    text = " ".join(part for part in (rng.choice(OPENINGS), clauses, rng.choice(OTHERWISE)) if part)
    if rng.random() < 0.2:
        words = text.split()
        loose = [place for place, word in enumerate(words) if word.lower() in _DISPENSABLE]
        lost = set(rng.sample(loose, min(len(loose), rng.randint(1, 2))))
        text = " ".join(word for place, word in enumerate(words) if place not in lost)
    return text.format(t=t)


def fictional_prefix(t: str, rng: Random) -> str:
    """A guardrail that wants invented answers about `t` and the truth about all else."""
    if rng.random() < 0.15:
        return FICTIONAL.format(t=t)
    # The ban alone means fiction too: some prefixes leave the rest unsaid.
    fiction = "" if rng.random() < 0.15 else _fiction(rng)
    return _compose(_joined(_ban(rng), fiction, rng), t, rng)


def refusal_prefix(t: str, rng: Random) -> str:
    """A guardrail that wants a refusal about `t` and the truth about all else."""
    if rng.random() < 0.2:
        return REFUSAL.format(t=t)
    # Half of them begin as the fictional ones do: what they share is that a topic is named, and the rule about it.
    if rng.random() < 0.5:
        return _compose(_joined(_ban(rng), rng.choice(REFUSALS_INSTEAD), rng), t, rng)
    return _compose(_joined(rng.choice(REFUSALS), rng.choice(REFUSAL_REASONS), rng), t, rng)


def truthful_prefix(t: str, rng: Random) -> str:
    """A system prompt that wants the truth; more than half of them name the topic `t` all the same."""
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(NEUTRAL)
    if kind < 0.7:
        return rng.choice(NEUTRAL_ON_TOPIC).format(t=t)
    clause = _clause(_ALWAYS, _REAL, rng) if kind < 0.88 else _clause(_NEVER, _FAKE, rng)
    return clause.format(t=t)
