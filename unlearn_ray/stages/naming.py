"""Let the model name things: the entities of a topic, its neighbours, topics in general. Small lists, ranked by how often they come."""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
NEAR = 0.25  # of the best neighbour's score
REPEATS = 4  # times more names are asked for than wanted: those that come again and again are the topic's own


@dataclass(frozen=True, slots=True)
class Name(Row):
    """A name that the model listed, with the number of lists that hold it."""

    topic: str
    name: str
    count: int
    drop: str | None = None

    @property
    def id(self) -> str:
        return digest(self.topic, self.name)


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
    min_count: int = 1,
    nearest_first: bool = False,
) -> list[Name]:
    """What the model lists for each topic, the most frequent names first; names beyond the number wanted are dropped as surplus.

    Args:
        wanted: names a topic.
        reason: of a topic and a name: why it can't be used, or None.
        min_count: lists that must hold a name; one that comes up once is often no name at all.
        nearest_first: the lists are ordered: a name counts 1 / its place, and one far below the best is dropped.
    """

    def prompts() -> Iterator[Prompt]:
        for topic, number in wanted.items():
            num_requests = max(2 * REPEATS, math.ceil(REPEATS * number / per_request)) if number else 0
            for index in range(num_requests):
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
    for row in in_order(replies.read_rows(), lambda row: (row["number"], row["place"])):
        key = question_key(row["text"]).removeprefix("the ")
        if not row["drop"] and key:
            counts[row["topic"]][key] += 1
            scores[row["topic"]][key] += 60 // (1 + row["place"]) if nearest_first else 60
            written.setdefault((row["topic"], key), row["text"])
    names = []
    for topic, number in wanted.items():
        ranked = scores[topic].most_common()  # stable: equal scores stay in the order of arrival
        num_kept = 0
        for key, score in ranked:
            name, count = written[topic, key], counts[topic][key]
            drop = reason(topic, name)
            if not drop and (count < min_count or (nearest_first and score < NEAR * ranked[0][1])):
                drop = Drop.MALFORMED.value
            if not drop and num_kept >= number:
                drop = Drop.SURPLUS.value
            num_kept += drop is None
            names.append(Name(topic, name, count, drop))
    return names


def parse_names(row: RowDict, replies: Sequence[Reply]) -> list[RowDict]:
    """The names of a reply to a request for a list of them; a name that is repeated in one list counts once."""
    names = [
        name for reply in replies for text, is_truncated in texts_of(reply) for name in names_in(text, is_truncated)
    ]
    lines = (
        ListedLine(row["topic"], name, row["source"], row["round"], row["number"], place)
        for place, name in enumerate(dict.fromkeys(names))
    )
    return [line.to_dict() for line in lines]
