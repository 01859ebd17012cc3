"""Stages' functions without a run around them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.config import DatasetConfig, Topic
from unlearn_ray.engines.scripted import ScriptedGenerator
from unlearn_ray.stages.dataset import build_dataset
from unlearn_ray.stages.general import write_general
from unlearn_ray.stages.mixture import Part, mix
from unlearn_ray.stages.stage import StageRun, finished_manifest, open_stage
from unlearn_ray.synth.prompts import AnswerStyle


def performed(out: Folder, function: Callable[[StageRun], Manifest], *what: object) -> Manifest:
    """A stage's work in a folder, skipped where it is finished for the same `what`."""
    run = open_stage(out, "stage", 1, {"what": repr(what)}, {})
    return finished_manifest(out) if run.is_finished else function(run)


def added(manifests: Sequence[Manifest]) -> Manifest:
    """What the manifests of several topics say together."""
    num_rows, drops = Counter[str](), Counter[str]()
    for each in manifests:
        num_rows.update(each.num_rows)
        drops.update(each.drops)
    return manifests[0].model_copy(update={"num_rows": dict(num_rows), "drops": dict(drops)})


@dataclass(frozen=True)
class Built:
    """The data of some topics, up to the mixture that they meet in."""

    datasets: dict[str, Folder]  # by topic
    general: Folder
    mixture: Folder

    @property
    def manifest(self) -> Manifest:
        return finished_manifest(self.mixture)

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Those of the topics, then those of the pool."""
        return [row for folder in (*self.datasets.values(), self.general) for row in (folder / table).read_rows()]

    def drops(self) -> Counter[str]:
        found = Counter[str]()
        for folder in (*self.datasets.values(), self.general, self.mixture):
            found.update(finished_manifest(folder).drops)
        return found


def built(
    home: Path,
    config: DatasetConfig,
    topics: Sequence[Topic],
    generator: ScriptedGenerator,
    *,
    questions: Callable[[Topic], Folder],
    answers: Callable[[Topic], Folder],
    seed: int = 0,
    style: AnswerStyle = "sentence",
) -> Built:
    """Datasets, pool and mixture of some topics."""
    found = Built(
        {topic.name: Folder(home / topic.slug) for topic in topics}, Folder(home / "general"), Folder(home / "mixture")
    )
    parts = []
    for topic in topics:
        part = Part(topic, questions(topic), answers(topic), found.datasets[topic.name])
        performed(
            part.dataset,
            lambda run, part=part: build_dataset(  # type: ignore[misc]
                run, config, part.topic, part.questions, part.answers, generator, seed=seed, style=style
            ),
            config,
        )
        parts.append(part)
    performed(found.general, lambda run: write_general(run, config, generator, seed=seed, style=style), config)
    performed(found.mixture, lambda run: mix(run, config, parts, found.general, generator), config)
    return found
