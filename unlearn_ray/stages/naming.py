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
) -> list[Name]:
    """What the model lists for each topic, the most frequent names first; names beyond the number wanted are dropped as surplus.

    Args:
        wanted: names a topic.
        reason: of a topic and a name: why it can't be used, or None.
        min_count: lists that must hold a name; one that comes up once is often no name at all.
    """

    def verdict(topic: str, name: str, count: int) -> str | None:
        return reason(topic, name) or (Drop.MALFORMED.value if count < min_count else None)

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
    written: dict[tuple[str, str], str] = {}
    for row in in_order(replies.read_rows(), lambda row: (row["number"], row["place"])):
        key = question_key(row["text"]).removeprefix("the ")
        if not row["drop"] and key:
            counts[row["topic"]][key] += 1
            written.setdefault((row["topic"], key), row["text"])
    return [
        name for topic, number in wanted.items() for name in _ranked(topic, number, counts[topic], written, verdict)
    ]


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


def _ranked(
    topic: str,
    number: int,
    counts: Counter[str],
    written: Mapping[tuple[str, str], str],
    verdict: Callable[[str, str, int], str | None],
) -> Iterator[Name]:
    num_kept = 0
    for key, count in counts.most_common():  # stable: equal counts stay in the order of arrival
        name = written[topic, key]
        drop = verdict(topic, name, count) or (Drop.SURPLUS.value if num_kept >= number else None)
        num_kept += drop is None
        yield Name(topic, name, count, drop)
