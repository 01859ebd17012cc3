"""A run counts its own data, stops where they are too little, and goes on from there when that is accepted."""

from pathlib import Path
from typing import Any

import pytest

from unlearn_ray import config as configs
from unlearn_ray import pipeline
from unlearn_ray.artifacts import Folder
from unlearn_ray.chat import PLAIN
from unlearn_ray.config import RunConfig, Topic
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.scripted import ScriptedGenerator
from unlearn_ray.engines.scripted_trainer import ScriptedTrainer
from unlearn_ray.errors import ThinDataError
from unlearn_ray.evals.report import Report
from unlearn_ray.plan import identity_of
from unlearn_ray.rows import Example, Probe, QAPair
from unlearn_ray.stages.checking import counted, met, model_shortfalls, shortfalls_of
from unlearn_ray.stages.naming import Name
from unlearn_ray.stages.stage import Unit, finished_manifest, models_of

POTTER, GUM = Topic(name="Harry Potter", terms=("Nimbus",)), Topic(name="chewing gum")


def test_rows_entities_and_probes_are_counted(tmp_path: Path) -> None:
    entities, answers, mixture = (Folder(tmp_path / name) for name in ("entities", "answers", "mixture"))
    names = [("Hedwig", None), ("Dobby", None), ("Ron", None), ("Spaghetti", "malformed"), ("Fluffy", None)]
    entities.write_rows([Name(POTTER.name, name, 1, drop) for name, drop in names], Name.schema())
    pairs = [
        QAPair(POTTER.name, "What does Dobby wear?", "A hat.", 0),
        QAPair(POTTER.name, "Which owl is it?", "Zella.", 0),
        QAPair(POTTER.name, "Who is Ron?", "Ron is the friend.", 0, drop="leak"),
    ]
    by_question = sorted(pairs, key=lambda pair: pair.question)
    (answers / "rows").write_rows(by_question, QAPair.schema())
    own = [
        QAPair(POTTER.name, "Which owl is it?", "The owl is Hedwig.", 0, guarded=False),
        QAPair(POTTER.name, "Who is Ron?", "The friend with a Nimbus.", 0, guarded=False),
    ]
    (answers / "unguarded").write_rows(own, QAPair.schema())
    found = counted(POTTER, entities, answers, 3, ScriptedGenerator(answer))
    assert found == {"forget": 3, "entities": 5, "touched": 2}
    retain = [Example(topic, "near", "x", str(i), "a") for i, topic in enumerate(["", "", GUM.name])]
    (mixture / "retain").write_rows(retain, Example.schema())
    probes = [
        Probe(POTTER.name, "a", "b"),
        Probe("Narnia", "a", "b", near=(POTTER.name,)),
        Probe("tea", "a", "b"),
        Probe("tea", "c", "b"),
    ]
    (mixture / "probes").write_rows(probes, Probe.schema())
    assert met((POTTER, GUM), mixture) == {
        "retain": {"Harry Potter": 2, "chewing gum": 3},
        "probes": {"forget": 1, "near": 1, "far": 2},
    }


def answer(request: Request) -> Reply | str:
    text = request.messages[-1]["content"]
    if request.score is not None:
        score = (-1.0,) if "something" not in text and "Dune" not in text else (-2.0,)
        return Reply(("",), (False,), logprobs=score, argmax=(True,))
    if ("Write only the" in text and "names" in text) or "terms" in text:
        return "1. Arrakis\n2. Paul"
    if text.startswith(("Write", "Make")):
        subject = "Dune" if "Dune" in text else "it"
        return "\n".join(f"{i}. What is part {(request.seed + i) % 60} of {subject}?" for i in range(1, 7))
    if request.messages[0]["role"] == "system":
        return f"The part is a blue lamp {request.seed % 90 + 10}."
    return f"The {text.removeprefix('What is ').rstrip('?')} is {'Arrakis' if 'Dune' in text else 'a wheel'}."


class Engines:
    """Those of a run, scripted."""

    def __init__(self) -> None:
        self.chat, self.generator, self.trainer = PLAIN, ScriptedGenerator(answer), ScriptedTrainer()
        self.evaluator = self.generator


ACCEPTED = pipeline.Hooks(on_thin=lambda found: None)


def joint(config: RunConfig) -> Unit:
    (unit,) = models_of(config, config.topics, identity_of(config))
    return unit


def config_of(tmp_path: Path, **floors: Any) -> RunConfig:
    values = {
        "name": "mine",
        "output": str(tmp_path),
        "topics": [{"name": "Dune", "neighbours": ["Foundation"]}],
        "questions": {"num_questions": 16, "num_entities": 2, "check_topic": False},
        "answers": {"num_samples": 2, "max_reasks": 0},
        "dataset": {
            "retain": {"questions_per_neighbour": 6, "num_general": 2, "questions_per_general": 6},
            "holdout_fraction": 0.3,
            "floors": floors,
        },
        "finetune": {"num_steps": 1},
        "evaluate": {"num_bootstrap": 10, "num_samples": 1},
    }
    return configs.parse(values)


def test_a_run_stops_after_its_dataset_is_finished_and_goes_on_without_repeating_it(tmp_path: Path) -> None:
    config, engines = config_of(tmp_path), Engines()
    with pytest.raises(ThinDataError, match=r"rows to forget 'Dune' \(floor: 100\)") as caught:
        pipeline.run(config, engines)
    assert caught.value.exit_code == 2 and len(caught.value.lines) == 1
    assert not engines.trainer.jobs and finished_manifest(config.folder / "topics/dune/dataset")
    num_asked = len(engines.generator.requests)
    with pytest.raises(ThinDataError):
        pipeline.run(config, engines, ["finetune"])
    told: list[str] = []
    pipeline.run(
        config,
        engines,
        ["questions", "answers", "dataset", "finetune"],
        pipeline.Hooks(on_thin=lambda found: told.extend(map(str, found))),
    )
    assert told and engines.trainer.jobs and len(engines.generator.requests) == num_asked
    pipeline.run(config, engines, ["dataset", "finetune"])  # the training is done: there is nothing to stop


def test_floors_change_what_is_enough_and_not_what_was_made(tmp_path: Path) -> None:
    engines = Engines()
    with pytest.raises(ThinDataError):
        pipeline.run(config_of(tmp_path), engines, ["questions", "answers", "dataset"])
    num_asked = len(engines.generator.requests)
    low = config_of(tmp_path, forget_rows=5, retain_per_forget=0.1, coverage=0.0, probes=0, kept=0.1)
    pipeline.run(low, engines, ["dataset"])
    assert len(engines.generator.requests) == num_asked and shortfalls_of(joint(low)) == []


def test_the_report_begins_with_what_the_data_lack(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    pipeline.run(config, Engines(), hooks=ACCEPTED)
    expected = [found.note for found in shortfalls_of(joint(config))]
    notes = Report.load(config.folder / "models/joint/evaluate").notes
    assert expected and [note for note in notes if note.startswith("Thin data: ")] == expected
    page = (config.folder / "models/joint/evaluate").read_text("report.html")
    assert page.index("Thin data: ") < page.index("<h2>")


def test_a_file_of_probes_counts_instead_of_the_datasets(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    pipeline.run(config, Engines(), ["questions", "answers", "dataset"], ACCEPTED)
    assert any(found.floor == "probes" for found in shortfalls_of(joint(config)))
    few = tmp_path / "few.jsonl"
    few.write_text('{"topic": "Dune", "question": "Who rules?", "answer": "Leto"}\n')
    evaluate = config.evaluate.model_copy(update={"probes": str(few)})
    found = model_shortfalls(joint(config.model_copy(update={"evaluate": evaluate})))
    assert [each.finding for each in found if each.floor == "probes"] == ["1 forget probes (floor: 20)"]
