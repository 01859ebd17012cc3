"""Further questions about the entities and terms that no kept pair touches."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence

from unlearn_ray.artifacts import Folder
from unlearn_ray.engines.protocols import Generator
from unlearn_ray.rows import Question, seed_of
from unlearn_ray.stages.asking import Prompted, ask, in_order
from unlearn_ray.stages.gathering import Lines, ListedLine, Prompt
from unlearn_ray.synth.dedup import question_key
from unlearn_ray.synth.names import mentions

PER_REQUEST = 3  # questions about each name
SHARE = 0.25  # of a topic's questions so far: at most so many more are asked for in a round, the first names first
MAX_TOKENS = 160


def entities_of(questions: Folder, topics: Sequence[str]) -> dict[str, list[str]]:
    """The kept entities of each topic in the questions stage's folder."""
    found: dict[str, list[str]] = {topic: [] for topic in topics}
    if (questions / "entities").exists():
        for row in (questions / "entities").read_rows():
            if not row["drop"] and row["topic"] in found:
                found[row["topic"]].append(row["name"])
    return found


def further_questions(
    folder: Folder,
    names: Mapping[str, Sequence[str]],
    asked: Mapping[str, set[str]],
    wordings: Sequence[str],
    generator: Generator,
    sampling: Prompted,
    label: str,
) -> Folder:
    """A folder with rows of Question in `rows`, about the names of each topic; those that name neither the thing nor the topic are left out.

    Args:
        names: of each topic, what no kept pair touches.
        asked: `dedup.question_key` of each topic's questions so far: copies are left out.
        wordings: of the request for questions about a name.
    """

    def requests() -> Iterator[Prompt]:
        for topic, listed in names.items():
            num_names = math.ceil(SHARE * len(asked.get(topic, ())) / PER_REQUEST)
            for number, name in enumerate(listed[:num_names]):
                wording = random.Random(seed_of(sampling.seed, topic, name, "coverage")).choice(wordings)
                text = wording.format(topic=topic, entity=name, count=PER_REQUEST)
                yield Prompt(topic, text, f"coverage:{name}", 0, number)

    replies = ask(
        generator,
        folder,
        requests,
        Prompt.schema(),
        sampling,
        Lines({}, sampling.seed),
        ListedLine.schema(),
        label=label,
    )

    def fresh() -> Iterator[Question]:
        seen = {topic: set(keys) for topic, keys in asked.items()}
        for row in in_order(replies.read_rows(), lambda row: (row["topic"], row["number"], row["place"])):
            topic, text, key = row["topic"], row["text"], question_key(row["text"])
            if row["drop"] or key in seen.setdefault(topic, set()):
                continue
            if mentions(text, (topic, row["source"].removeprefix("coverage:"))):
                seen[topic].add(key)
                yield Question(topic, text, row["source"])

    (folder / "rows").write_rows(fresh(), Question.schema())
    return folder
