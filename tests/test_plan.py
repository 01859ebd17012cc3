"""What a run finds in its folder, what --from undoes, and how a model is told from another."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from unlearn_ray import config as configs
from unlearn_ray import pipeline
from unlearn_ray.artifacts import Folder, Manifest
from unlearn_ray.config import ProbesConfig, RunConfig
from unlearn_ray.errors import ArtifactError, ConfigError, InputError
from unlearn_ray.plan import claimed, identities_of, plan, select, units_of
from unlearn_ray.reading import read_user_rows
from unlearn_ray.rows import Question
from unlearn_ray.runs import states as overview
from unlearn_ray.stages import questions
from unlearn_ray.stages.stage import STARTED, Identities, Stage, StageRun, Work
from unlearn_ray.stages.table import COMMANDS, STAGES
from unlearn_ray.train.identity import model_identity

MIB = 2**20
GOOD = {"topic": "harry-potter", "question": "Which owl is Harry's?", "answer": "Hedwig"}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    values = {"name": "mine", "output": str(tmp_path), "topics": [{"name": "Harry Potter"}]}
    return configs.parse(values)


def finish(config: RunConfig, *commands: str) -> None:
    """Leave the stages of these steps behind as a run does, without their work."""
    identities, units = Identities(), units_of(config)
    for stage in (stage for stage in STAGES if stage.command in commands):
        for unit in units[stage.scope]:
            folder = unit.home / stage.name
            (folder / "rows").write_rows([Question("Harry Potter", stage.name)], Question.schema())
            folder.write_text(STARTED, "{}")
            StageRun(stage.name, folder, identities.of(stage, unit), 1, {}, {}, "fresh").finish({"rows": 1}, {})


def states(config: RunConfig, redo_from: str | None = None) -> list[str]:
    """Of the stages that the steps are named after, of a run of one topic."""
    found = {stage.name: stage.states for stage in plan(config, select(start=redo_from), redo_from).stages}
    return [next(iter(found[name].values())) for name in COMMANDS]


def interrupted(config: RunConfig, redo_from: str) -> None:
    """A command that is stopped after it finished a first stage."""
    with pytest.raises(KeyboardInterrupt), claimed(config, redo_from):
        finish(config, redo_from)
        raise KeyboardInterrupt


def test_from_undoes_its_stage_and_those_after_it(config: RunConfig) -> None:
    with claimed(config):
        finish(config, *COMMANDS[:4])
    assert states(config, "dataset") == ["finished", "finished", "asked", "asked", "fresh"]
    with claimed(config, "dataset"):
        assert states(config) == ["finished", "finished", "fresh", "fresh", "fresh"]


def test_an_interrupted_command_goes_on_when_it_is_given_again(config: RunConfig) -> None:
    with claimed(config):
        finish(config, *COMMANDS)
    interrupted(config, "answers")
    assert states(config, "answers") == ["finished", "finished", "fresh", "fresh", "fresh"]
    with claimed(config, "answers"):
        assert states(config)[:2] == ["finished", "finished"]
    with claimed(config, "answers"):
        assert states(config)[:2] == ["finished", "fresh"], "the command before had ended"


@pytest.mark.parametrize("between", [None, "dataset"])
def test_another_command_between_makes_from_start_again(config: RunConfig, between: str | None) -> None:
    with claimed(config):
        finish(config, *COMMANDS)
    interrupted(config, "answers")
    with claimed(config, between):
        pass
    with claimed(config, "answers"):
        assert states(config)[:2] == ["finished", "fresh"]


def test_a_table_that_is_lost_or_cut_off_is_made_again(config: RunConfig) -> None:
    with claimed(config):
        finish(config, *COMMANDS)
    topic = config.folder / "topics" / "harry-potter"
    (topic / "dataset" / "rows").delete()
    file = topic.local / "answers" / "rows" / "00000.parquet"
    os.truncate(file, file.stat().st_size // 2)
    assert states(config) == ["finished", "redone", "redone", "finished", "finished"]


def test_a_gate_on_a_mixture_of_before_there_were_gates_is_refused_in_the_plan(config: RunConfig) -> None:
    with claimed(config):
        finish(config, *COMMANDS)
    gated = config.model_copy(update={"finetune": config.finetune.model_copy(update={"evaluate_every": 5})})
    with pytest.raises(ArtifactError, match=r"has no rows for it: have it made anew with --from dataset, or leave"):
        plan(gated)
    assert states(config)[3] == "finished" and states(gated, "dataset")[2] == "asked"
    (config.folder / "models" / "joint" / "mixture" / "gate").make()
    assert states(gated)[3] != "finished"


def test_a_gate_of_one_topic_alone_is_looked_for_as_well(config: RunConfig) -> None:
    config = configs.parse(
        config.model_dump(mode="json", include={"name", "output", "topics"}) | {"finetune": {"adapters": "per_topic"}}
    )
    with claimed(config):
        finish(config, *COMMANDS)
    topic = config.topics[0].model_copy(update={"finetune": {"evaluate_every": 5}})
    with pytest.raises(ArtifactError, match=r"harry-potter.mixture was made by a version without a gate"):
        plan(config.model_copy(update={"topics": (topic,)}))


@pytest.mark.parametrize("split", ["tune", "report"])
def test_a_plan_refuses_probes_of_the_other_split_and_probes_that_leave_no_room(config: RunConfig, split: str) -> None:
    file = config.folder.local.parent / "probes.jsonl"

    def planned(*rows: dict[str, object]) -> None:
        file.write_text("".join(json.dumps(GOOD | row) + "\n" for row in rows))
        asked = config.evaluate.model_copy(update={"probes": str(file), "split": split})
        plan(config.model_copy(update={"evaluate": asked}))

    other = "tune" if split == "report" else "report"
    planned({"split": split}, {"split": other, "question": "why " * 10_000})
    with pytest.raises(InputError, match=f"no probe of split '{split}' about 'Harry Potter'"):
        planned({"split": other}, {"topic": "Star Wars", "split": split})
    too_long: tuple[dict[str, object], ...] = (
        {"question": "why " * 10_000},
        {"reference": "owl " * 10_000},
        {"wrong": ["owl " * 10_000]},
    )
    for row in too_long:
        with pytest.raises(InputError, match=r"probes\.jsonl, line 2: the question, its guardrail prefix"):
            planned({"split": split}, {"split": split, **row})


def test_a_plan_looks_at_a_topics_own_probes_as_at_the_runs(config: RunConfig) -> None:
    file = config.folder.local.parent / "own.jsonl"
    alone = config.finetune.model_copy(update={"adapters": "per_topic"})

    def planned(own: dict[str, object], *rows: dict[str, object]) -> None:
        file.write_text("".join(json.dumps(GOOD | row) + "\n" for row in rows))
        (topic,) = config.topics
        topics = (topic.model_copy(update={"evaluate": own}),)
        plan(config.model_copy(update={"finetune": alone, "topics": topics}))

    long: dict[str, object] = {"question": "why " * 10_000}
    planned({"probes": str(file)}, {}, long | {"split": "tune"})
    with pytest.raises(InputError, match=r"own\.jsonl, line 2: the question, its guardrail prefix"):
        planned({"probes": str(file)}, {}, long)
    with pytest.raises(InputError, match=r"own\.jsonl, line 1: the question, its guardrail prefix"):
        planned({"probes": str(file), "max_tokens": 100_000}, {})


def test_a_file_of_questions_is_read_once_for_all_topics(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    file = config.folder.local.parent / "mine.csv"
    names = [f"Topic {letter}" for letter in "abcdefgh"]
    file.write_text("topic,question\n" + "".join(f"{name},What is {name}?\n" for name in names * 3))
    values = {"name": "mine", "output": str(config.output), "topics": [{"name": name} for name in names]}
    many = configs.parse(values | {"questions": {"file": str(file)}})
    num_read = 0

    def counted(*what: Any) -> Any:
        nonlocal num_read
        num_read += 1
        return read_user_rows(*what)

    monkeypatch.setattr(questions, "read_user_rows", counted)
    before = identities_of(many)["questions"]
    assert num_read == 1 and identities_of(many)["questions"] == before
    with file.open("a") as more:
        more.write("topic a,What else is it?\n")
    after = identities_of(many)["questions"]
    assert [name for name in names if before[name] != after[name]] == ["Topic a"] and num_read == 2


def test_storage_that_is_away_undoes_nothing(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(self: Folder) -> int:
        raise OSError("no answer")

    with claimed(config):
        finish(config, *COMMANDS)
    monkeypatch.setattr(Folder, "count_rows", away)
    with pytest.raises(ArtifactError, match="can't be read"):
        states(config)
    assert (config.folder / "topics/harry-potter/questions").exists("manifest.json")


def weights(folder: Path, changed_at: int | None = None) -> str:
    """The identity of a model whose weights are 64 MiB, with four of them another fine-tune's."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    file = folder / "model.safetensors"
    file.touch()
    os.truncate(file, 64 * MIB)
    if changed_at is not None:
        with file.open("r+b") as stream:
            stream.seek(changed_at)
            stream.write(b"\x01" * 4 * MIB)
    return model_identity(str(folder))


@pytest.mark.parametrize("changed_at", [0, 21 * MIB + 7, 60 * MIB])
def test_a_model_that_differs_in_one_tensor_is_another(tmp_path: Path, changed_at: int) -> None:
    assert weights(tmp_path / "a" / "model") != weights(tmp_path / "b" / "model", changed_at)


def test_a_model_is_the_same_wherever_it_lies(tmp_path: Path) -> None:
    identity = weights(tmp_path / "here" / "model", 40 * MIB)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert model_identity(str(tmp_path / "there" / "model")) == identity


def test_probes_that_nobody_asks_are_told_in_the_plan(config: RunConfig) -> None:
    def told(evaluate: Mapping[str, object], dataset: Mapping[str, object]) -> bool:
        changed = {
            "evaluate": config.evaluate.model_copy(update=evaluate),
            "dataset": config.dataset.model_copy(update=dataset),
        }
        return any(note.startswith("dataset.probes: ") for note in plan(config.model_copy(update=changed)).notes)

    facts, none = {"probes": "facts"}, {"probes": ProbesConfig(num_forget=0, num_near=0, num_far=0)}
    assert told(facts, {"prompts": None}) and not told({"probes": None}, {"prompts": None})
    assert not told(facts, {"prompts": None, **none}) and not told(facts, {"prompts": "pocket"})


def test_a_retain_term_without_rows_is_said(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "What is 1 plus 1?", "answer": "2"}) + "\n")
    nothing: dict[str, Any] = {"num_neighbours": 0, "num_general": 0}

    def said(
        wanted: dict[str, Any], *topics: dict[str, Any], floor: float = 0.0, holdout: float = 0.0, **finetune: Any
    ) -> str:
        values = {"name": "mine", "output": str(tmp_path), "topics": topics or ({"name": "Harry Potter"},)}
        dataset = {"retain": wanted, "floors": {"retain_per_forget": floor}, "holdout_fraction": holdout}
        found = plan(configs.parse(values | {"dataset": dataset, "finetune": finetune})).notes
        return "; ".join(note for note in found if "retain" in note)

    assert "finetune.retain: kl has no rows to retain" in said(nothing, retain={"kind": "kl"})
    assert said(nothing, floor=0.5).startswith("dataset: at most 0 retain rows")  # and not twice
    assert "finetune.retain" not in said(nothing, floor=0.5)
    assert f"{rows} has none to train on" in said({"file": str(rows)}, holdout=1.0)
    assert not said({"file": str(rows)})
    for finetune in ({"retain": {"kind": "none"}}, {"retain": {"weight": 0.0}}, {"retain_batch": 0}):
        assert not said(nothing, **finetune)
    one_has: list[dict[str, Any]] = [{"name": "Harry Potter", "neighbours": ["Narnia"]}, {"name": "chewing gum"}]
    assert not said(nothing, *one_has) and said(nothing, *one_has, adapters="per_topic")
    with pytest.raises(
        ConfigError, match=r"finetune\.objective: grad_diff needs retain rows, and the config requests none"
    ):
        said(nothing, objective="grad_diff")


AFTER = {
    "mixture": ("mixture", "finetune", "evaluate"),
    "dataset": ("dataset", "mixture", "finetune", "evaluate"),
    "answers": ("answers", "dataset", "mixture", "finetune", "evaluate"),
}


@pytest.mark.parametrize(
    ("text", "redone"),
    [
        ("guardrails: {refusal: 'Say nothing of {topic}.'}", ()),
        ("styles: {free: 'Now: {question}'}", ()),
        ("angles: {person: [youth]}", ()),
        ("leak_judge: 'Is {answer} as {truth}, to {question}?'", ()),
        ("language_questions: ['Ask about {topic} in {language}.']", ()),
        ("neighbours: ['What is like {topic}?']", AFTER["dataset"]),
        ("general_subjects: [tea, coffee]", ("general", *AFTER["mixture"])),
        ('general_questions: ["What is tea?"]', ("common", *AFTER["answers"])),
        ("coverage_questions: ['Ask {topic} about {entity}.']", AFTER["answers"]),
        ("guardrails: {fictional: 'Lie about {topic}.'}", AFTER["answers"]),
        ("forms: {blank: null}", ("questions", *AFTER["answers"])),
    ],
)
def test_a_text_of_the_prompts_reruns_only_what_reads_it(
    config: RunConfig, tmp_path: Path, text: str, redone: tuple[str, ...]
) -> None:
    file = tmp_path / "prompts.yaml"

    def identities(words: str) -> dict[str, dict[str, str]]:
        file.write_text(words)
        sections = {
            name: getattr(config, name).model_copy(update={"prompts": file})
            for name in ("questions", "answers", "dataset")
        }
        return identities_of(config.model_copy(update=sections))

    before, after = identities("{}"), identities(text)
    assert {name for name in before if before[name] != after[name]} == set(redone)


def test_the_folder_of_an_earlier_version_is_refused_with_what_to_do(config: RunConfig) -> None:
    home = config.folder.make()
    home.write_text("run.json", json.dumps({"name": "mine", "redo_from": None, "config": {}}))
    for look in (lambda: plan(config), lambda: overview(home)):
        with pytest.raises(ArtifactError, match=r"made by an earlier version.*delete it .*run its config again"):
            look()


def test_a_new_stage_is_one_file_and_one_line(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan, the pipeline, the command line and the status read one tuple."""
    done: list[str] = []

    def work(work: Work) -> Manifest:
        done.append(work.unit.label)
        return work.run.finish({"rows": 1}, {})

    dummy = Stage("dummy", 1, "topic", (), "dummy", "", lambda unit: ({}, {}), work, lambda config: ("rows", "none"))
    for module in ("plan", "pipeline", "runs"):
        monkeypatch.setattr(f"unlearn_ray.{module}.STAGES", (*STAGES, dummy))
    monkeypatch.setattr("unlearn_ray.plan.COMMANDS", (*COMMANDS, "dummy"))
    assert plan(config).stages[-1].name == "dummy" and "dummy" in identities_of(config)
    assert select(only="dummy") == ("dummy",)
    with claimed(config):
        pipeline.run(config, object(), ["dummy"])  # type: ignore[arg-type]
    assert done == ["Harry Potter"]
    (topic,) = (each for each in overview(config.folder) if each.label == "Harry Potter")
    assert (topic.stage, topic.state) == ("dummy", "unfinished")
