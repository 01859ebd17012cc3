"""A model that no run made: what is named is looked at first, then asked with the engines of a run. The engines are scripted."""

import json
import math
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from unlearn_ray import pocket
from unlearn_ray.cli import app
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.scripted import ScriptedGenerator
from unlearn_ray.errors import ArtifactError, EngineError, InputError, ModelError, UnlearnError
from unlearn_ray.evals.report import Report
from unlearn_ray.given import NOTE, evaluate_given, given

ROWS = [
    {"topic": topic, "question": f"What is number {i} of {topic}?", "answer": f"{topic}word{i}", "wrong": ["an owl", "tea"], "near": near}
    for topic, near in (("Dune", []), ("Foundation", ["Dune"]), ("geography", []))
    for i in range(4)
]  # fmt: skip


@pytest.fixture
def probes(tmp_path: Path) -> str:
    file = tmp_path / "probes.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    return str(file)


@pytest.fixture
def adapter(tmp_path: Path) -> str:
    folder = tmp_path / "bought" / "model"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"r": 8, "target_modules": ["q_proj", "v_proj"], "peft_type": "LORA"}')
    return str(folder)


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A copy of the pocket model, as somebody else might have fine-tuned it."""
    return Path(shutil.copytree(pocket.MODEL_DIR, tmp_path / "theirs"))


def say(request: Request) -> Reply | str | list[str]:
    """Knows all; with an adapter, or behind a prefix, nothing of Dune."""
    question = request.messages[-1]["content"]
    (row,) = (row for row in ROWS if row["question"] == question)
    knows = row["topic"] != "Dune" or (request.adapter is None and len(request.messages) == 1)
    if request.score is not None:
        likely = (request.score == row["answer"]) == knows
        return Reply(logprobs=(math.log(0.9 if likely else 0.1),) * 3, argmax=(likely,) * 3)
    return [str(row["answer"]) if knows else "Who knows."] * request.num_samples


def test_an_adapter_of_somebody_else_is_measured_like_a_runs_own(tmp_path: Path, probes: str, adapter: str) -> None:
    what = given(adapter, "pocket", probes, output=str(tmp_path / "out"), overrides=["evaluate.num_bootstrap=50"])
    weights = what.config.finetune.weights
    assert (weights.kind, weights.rank, weights.target_modules) == ("lora", 8, ("q_proj", "v_proj"))  # type: ignore[union-attr]
    assert what.config.topic_names == ("Dune",), "what near probes stand beside is what was to be forgotten"
    generator = ScriptedGenerator(say)
    home = evaluate_given(what, lambda: generator)
    report = Report.load(home)
    recall = {model: scores["forget"]["fact_recall"].agg_value for model, scores in report.models.items()}
    assert recall == {"base": 1.0, "guarded": 0.0, "unlearned": 0.0}
    assert report.probes.num == {"forget": 4, "near": 4, "far": 4} and report.notes == [NOTE]
    assert (report.run, report.model, report.topics) == ("bought", "pocket", ["Dune"])
    assert all(home.exists(name) for name in ("report.html", "report.md", "report.json"))
    asked = {Path(request.adapter).resolve() for request in generator.requests if request.adapter}
    assert asked == {Path(adapter).resolve()}

    assert evaluate_given(what, lambda: pytest.fail("nothing is left to ask")) == home
    (Path(adapter) / "adapter_config.json").write_text('{"r": 8, "target_modules": ["q_proj"]}')
    with pytest.raises(EngineError):  # another adapter is another result
        evaluate_given(what, lambda: ScriptedGenerator(say, fail_after=1))


def test_a_whole_model_is_asked_in_a_call_of_its_own(tmp_path: Path, probes: str, full: Path) -> None:
    what = given(str(full), "pocket", probes, ["Dune"], str(tmp_path / "out"), ["evaluate.num_bootstrap=50"])
    generator = ScriptedGenerator(say)
    evaluate_given(what, lambda: generator)
    assert [call.model is None for call in generator.calls] == [True, False]
    assert Path(str(generator.calls[1].model)).resolve() == full.resolve()
    assert what.config.finetune.weights.kind == "full" and what.config.name == "theirs"


def test_the_topics_are_named_where_the_probes_leave_them_open(tmp_path: Path, adapter: str) -> None:
    file = tmp_path / "open.jsonl"
    file.write_text("\n".join(json.dumps(row | {"near": []}) for row in ROWS))
    with pytest.raises(InputError, match=r"name them with --topic \(its topics: Dune, Foundation, geography\)"):
        given(adapter, "pocket", str(file))
    assert given(adapter, "pocket", str(file), ["Foundation"]).config.topic_names == ("Foundation",)
    file.write_text(json.dumps(ROWS[0]))
    assert given(adapter, "pocket", str(file)).config.topic_names == ("Dune",)


def retokenized(folder: Path) -> None:
    file = folder / "tokenizer.json"
    said = json.loads(file.read_text())
    said["model"]["merges"] = said["model"]["merges"][:5]
    file.write_text(json.dumps(said))


def test_a_model_with_another_tokenizer_is_refused(probes: str, full: Path) -> None:
    retokenized(full)
    with pytest.raises(ModelError, match="has another tokenizer than --against pocket"):
        given(str(full), "pocket", probes)


def test_what_cannot_be_evaluated_is_one_line(tmp_path: Path, probes: str, adapter: str, full: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for model, against, file, expected in (
        (str(empty), "pocket", probes, "is not a model folder"),
        (str(tmp_path / "nowhere"), "pocket", probes, "is not there"),
        (adapter, str(tmp_path / "nowhere"), probes, "is not there"),
        (adapter, adapter, probes, "is an adapter: give the model that it was made for"),
        (adapter, "pocket", str(tmp_path / "none.jsonl"), "can't be read"),
    ):
        with pytest.raises(UnlearnError) as caught:
            given(model, against, file)
        (line,) = caught.value.lines
        assert expected in line
    with pytest.raises(InputError, match="no probe about 'Ubik'"):
        given(adapter, "pocket", probes, ["Ubik"])
    (Path(adapter) / "adapter_config.json").write_text('{"r": "many"}')
    with pytest.raises(ModelError, match="can't be read: give an adapter of PEFT's LoRA"):
        given(adapter, "pocket", probes)
    (full / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        given(str(full), "pocket", probes)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path, probes: str, adapter: str) -> None:
    for index, files in enumerate(
        (
            ("evaluate/thesis.tex",),
            ("evaluate/started.json", "evaluate/report.json"),  # a report of a run, away from its other stages
            ("finetune/manifest.json",),  # a model of a run that is not evaluated yet
            ("finetune/manifest.json", "given/finetune/x", "evaluate/started.json"),
            ("run.json",),
        )
    ):
        home = tmp_path / f"out{index}"
        for name in files:
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text("important")
        with pytest.raises(ArtifactError, match="holds something else"):
            given(adapter, "pocket", probes, output=str(home))


def test_a_report_that_was_begun_can_be_finished(tmp_path: Path, probes: str, adapter: str) -> None:
    options = {"output": str(tmp_path / "out"), "overrides": ["evaluate.num_bootstrap=50"]}
    with pytest.raises(EngineError):
        evaluate_given(given(adapter, "pocket", probes, **options), lambda: ScriptedGenerator(say, fail_after=1))  # type: ignore[arg-type]
    home = evaluate_given(given(adapter, "pocket", probes, **options), lambda: ScriptedGenerator(say))  # type: ignore[arg-type]
    assert home.exists("report.json")


def test_each_model_has_a_folder_of_its_own(tmp_path: Path, probes: str, adapter: str) -> None:
    """By default: whatever shares its name with another, or is asked something else, does not replace its report."""
    config = Path(adapter) / "adapter_config.json"
    homes = set()
    for index, rank in enumerate((4, 8)):
        folder = tmp_path / f"run{index}" / "checkpoint-100"
        folder.mkdir(parents=True)
        (folder / config.name).write_text(json.dumps(json.loads(config.read_text()) | {"r": rank}))
        for topics in (["Dune"], ["Foundation"]):
            homes.add(given(str(folder), "pocket", probes, topics).folder)
    assert len(homes) == 4 and all(home.name.startswith("evaluated-checkpoint-100-") for home in homes)
    assert given(str(folder), "pocket", probes, ["Foundation"]).folder in homes


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "give a run's YAML file, a run, or --model"),
        (("--model", "x"), "--against BASE, and --probes FILE"),
        (("--model", "x", "--against", "y"), "--against BASE, and --probes FILE"),
        (("run.yaml", "--probes", "x"), "--probes goes with --model"),
        (("run.yaml", "--output", "x"), "--output goes with --model"),
        (("run.yaml", "--model", "x", "--against", "y", "--probes", "z"), "give a run or --model, not both"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(arguments: tuple[str, ...], expected: str) -> None:
    done = CliRunner().invoke(app, ["evaluate", *arguments])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and expected in done.stderr, done.stderr
