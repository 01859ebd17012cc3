"""Further questions about the entities and terms that no kept pair touches."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence

from unlearn_ray.artifacts import Folder
from unlearn_ray.engines.protocols import Generator
from unlearn_ray.rows import seed_of
from unlearn_ray.stages.answer_rows import Fresh
from unlearn_ray.stages.asking import Prompted, ask
from unlearn_ray.stages.gathering import Lines, ListedLine, Prompt

PER_REQUEST = 3  # questions per name
SHARE = 0.25  # most further questions per round, as a share of the topic's questions so far; first names first
MAX_TOKENS = 160


def entities_of(questions: Folder, topics: Sequence[str]) -> dict[str, list[str]]:
    """The kept entities per topic, from the folder of the questions stage."""
    found: dict[str, list[str]] = {topic: [] for topic in topics}
    if (questions / "entities").exists():
        for row in (questions / "entities").read_rows():
            if not row["drop"] and row["topic"] in found:
                found[row["topic"]].append(row["name"])
    return found


def further_questions(
    folder: Folder,
    names: Mapping[str, Sequence[str]],
    asked: Sequence[Folder],
    wordings: Sequence[str],
    generator: Generator,
    sampling: Prompted,
    label: str,
) -> Folder:
    """A folder with rows of Question in `rows`, about the names of each topic. Questions that name neither the name nor the topic are left
    out.

    Args:
        names: per topic, the names that no kept pair touches.
        asked: the questions so far, about one topic (rows of Told). Copies of them are left out.
        wordings: the wordings of the request for questions about a name.
    """

    num_asked = sum(told.count_rows() for told in asked)

    def requests() -> Iterator[Prompt]:
        for topic, listed in names.items():
            num_names = math.ceil(SHARE * num_asked / PER_REQUEST)
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

    generator.each(Fresh(replies, tuple(asked), folder / "rows"), [None], label=label)
    return folder
