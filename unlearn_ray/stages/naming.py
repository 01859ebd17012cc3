"""Lets the model list names: the entities of a topic, its neighbours, topics in general.

Small lists are sampled. The score of a name is the number of lists with it. Names in enough lists are checked by asking about them
(asking_back.py): whether an entity belongs to its topic, and whether a neighbour is a different thing.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from unlearn_ray.artifacts import Folder
from unlearn_ray.engines.protocols import Generator, Reply, RowDict
from unlearn_ray.rows import Drop, Row, digest, seed_of
from unlearn_ray.stages.asking import Prompted, ask, in_order, texts_of
from unlearn_ray.stages.gathering import ListedLine, Prompt
from unlearn_ray.synth.dedup import question_key
from unlearn_ray.synth.parsing import names_in

MAX_TOKENS = 200
PER_REQUEST = 8
NEAR = 0.25  # least score of a neighbour, as a share of the best one's
REPEATS = 4  # requested names per wanted name: names that come repeatedly are the topic's own
CHECKED_REPEATS = 8  # the same if names are asked back, because a weak model's lists rarely agree
# The share of lists that must have a name, and at least two of them: a name in a single list is often not a name.
AGREEMENT = 1 / 12
MIN_AGREEING = 2
NUM_ASKED_BACK = 2  # names asked back per wanted name, the most frequent first


@dataclass(frozen=True, slots=True)
class Name(Row):
    """A name that the model listed, with the number of lists that have it."""

    topic: str
    name: str
    count: int
    drop: str | None = None

    @property
    def id(self) -> str:
        return digest(self.topic, self.name)


AskBack = Callable[
    [Sequence[Name], Folder, str], Mapping[str, str | None]
]  # names, a folder, a label -> id of each dropped name -> reason


Parts = Callable[[str, str], Sequence[str]]


def ask_names(
    generator: Generator,
    folder: Folder,
    wordings: Sequence[str],
    wanted: Mapping[str, int],
    sampling: Prompted,
    reason: Callable[[str, str], str | None],
    label: str,
    *,
    per_request: int = PER_REQUEST,
    nearest_first: bool = False,
    ask_back: AskBack | None = None,
    parts: Parts | None = None,
) -> list[Name]:
    """The names that the model lists for each topic, the most frequent first. Names beyond the wanted number are dropped as surplus.

    Args:
        wanted: number of names per topic.
        reason: for a topic and a name: why the name can't be used, or None.
        nearest_first: the lists are ordered. A name then scores 1 / its position, and a name far below the best is dropped.
        ask_back: the check of the names. None: only agreement decides.
        parts: for a topic and a name: its words that may be names themselves, if more lists have them than any whole name. None: only whole
            names count.
    """
    repeats = REPEATS if ask_back is None else CHECKED_REPEATS
    num_lists = {topic: _num_lists(number, per_request, repeats) for topic, number in wanted.items()}

    def prompts() -> Iterator[Prompt]:
        for topic, number in num_lists.items():
            for index in range(number):
                wording = random.Random(seed_of(sampling.seed, topic, index, "names")).choice(wordings)
                yield Prompt(topic, wording.format(topic=topic, count=per_request), "names", 0, index)

    replies = ask(
        generator,
        folder,
        prompts,
        Prompt.schema(),
        replace(sampling, max_tokens=MAX_TOKENS),
        parse_names,
        ListedLine.schema(),
        label=label,
    )
    counts: dict[str, Counter[str]] = {topic: Counter() for topic in wanted}
    scores: dict[str, Counter[str]] = {topic: Counter() for topic in wanted}
    written: dict[tuple[str, str], str] = {}
    rows = [row for row in in_order(replies.read_rows(), lambda row: (row["number"], row["place"])) if not row["drop"]]
    for row in rows:
        if key := _key(row["text"]):
            counts[row["topic"]][key] += 1
            scores[row["topic"]][key] += 60 // (1 + row["place"]) if nearest_first else 60
            written.setdefault((row["topic"], key), row["text"])
    if parts is not None:
        for (topic, key), (part, number) in _agreed_parts(rows, counts, parts).items():
            counts[topic][key], scores[topic][key], written[topic, key] = number, 60 * number, part
    names = []
    for topic in wanted:
        ranked = scores[topic].most_common()  # stable: equal scores stay in the order of arrival
        for key, score in ranked:
            name, count = written[topic, key], counts[topic][key]
            drop = reason(topic, name)
            if not drop and (count < min_agreeing(num_lists[topic]) or (nearest_first and score < NEAR * ranked[0][1])):
                drop = Drop.RARE.value
            names.append(Name(topic, name, count, drop))
    if ask_back is not None:
        names = _asked_back(names, wanted, ask_back, folder / "check", label)
    return list(_within(names, wanted))


def _key(name: str) -> str:
    return question_key(name).removeprefix("the ")


def _agreed_parts(
    rows: Sequence[RowDict], counts: Mapping[str, Counter[str]], parts: Parts
) -> dict[tuple[str, str], tuple[str, int]]:
    """Per (topic, key): a word of listed names that is in more lists than any of the names with it, and the number of these lists."""
    lists: dict[tuple[str, str], set[int]] = {}
    wholes: Counter[tuple[str, str]] = Counter()  # number of lists with the most frequent name that has the word
    written: dict[tuple[str, str], str] = {}
    for row in rows:
        topic, name = row["topic"], row["text"]
        for part in (name, *parts(topic, name)):
            at = topic, _key(part)
            lists.setdefault(at, set()).add(row["number"])
            wholes[at] = max(wholes[at], counts[topic][_key(name)])
            if part != name:
                written.setdefault(at, part)
    return {at: (part, len(lists[at])) for at, part in written.items() if len(lists[at]) > wholes[at]}


def min_agreeing(num_lists: int) -> int:
    """The number of lists, of so many, that must have a name."""
    return max(MIN_AGREEING, math.ceil(AGREEMENT * num_lists))


def _num_lists(number: int, per_request: int, repeats: int) -> int:
    return max(2 * repeats, math.ceil(repeats * number / per_request)) if number else 0


def _within(names: Sequence[Name], wanted: Mapping[str, int]) -> Iterator[Name]:
    """The names. Those beyond their topic's wanted number are dropped."""
    num_kept: Counter[str] = Counter()
    for name in names:
        is_surplus = not name.drop and num_kept[name.topic] >= wanted[name.topic]
        num_kept[name.topic] += not name.drop
        yield replace(name, drop=Drop.SURPLUS.value) if is_surplus else name


def _asked_back(
    names: Sequence[Name], wanted: Mapping[str, int], ask_back: AskBack, folder: Folder, label: str
) -> list[Name]:
    """The names. Those that fail the check are dropped."""
    asked = list(_within(names, {topic: NUM_ASKED_BACK * number for topic, number in wanted.items()}))
    drops = ask_back([name for name in asked if not name.drop], folder, f"{label}, asked back")
    return [replace(name, drop=name.drop or drops.get(name.id)) for name in asked]


def fates(names: Iterable[Name]) -> dict[str, int]:
    """Number of kept names, and of dropped names by reason."""
    return dict(Counter(name.drop or "kept" for name in names))


def parse_names(row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
    """The names in a reply to a request for a list. A name that is repeated in one list counts once."""
    names = [
        name for reply in replies for text, is_truncated in texts_of(reply) for name in names_in(text, is_truncated)
    ]
    lines = (
        ListedLine(row["topic"], name, row["source"], row["round"], row["number"], place)
        for place, name in enumerate(dict.fromkeys(names))
    )
    return [line.to_dict() for line in lines]
