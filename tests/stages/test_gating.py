"""The gate's rows: neither trained on, nor asked by the report."""

import json
from pathlib import Path

import pytest
from scripted_run import Engines, answer, config_of

from unlearn_ray import pipeline
from unlearn_ray.artifacts import Folder
from unlearn_ray.config import EvaluateConfig, FinetuneConfig, StopWhen
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.errors import ArtifactError, ConfigError
from unlearn_ray.evals.probes import select_probes
from unlearn_ray.plan import check_watching, claimed
from unlearn_ray.rows import GateRow, Probe
from unlearn_ray.stages.finetune import finetune_identity
from unlearn_ray.stages.gating import MAX_ROWS, HeldOut, candidates_of, gate_rows, gated_questions
from unlearn_ray.words import normalised

NAMES = ["Hedwig", "Fawkes", "Fluffy", "Dobby", "Hagrid", "Snape"]


def held_out(number: int) -> HeldOut:
    name = NAMES[number % len(NAMES)]
    answer = f"The animal number {number} is {name}."
    return HeldOut("forget", "Harry Potter", f"Which animal has number {number}?", answer, ("Harry Potter",))


def varied(request: Request) -> Reply | str:
    """A model that answers each question about a part with a name."""
    said = answer(request)
    if isinstance(said, str) and said.endswith("is a wheel."):
        number = sum(map(ord, said))
        return said.replace("a wheel", NAMES[number % len(NAMES)])
    return said


def candidates(home: Path, *found: HeldOut, trained: tuple[str, ...] = ()) -> Folder:
    folder = Folder(home / "gate")
    folder.write_rows(candidates_of(found, [{"question": question} for question in trained]), Probe.schema())
    return folder


def probes(home: Path, *questions: str) -> Folder:
    folder = Folder(home / "probes")
    folder.write_rows([Probe("Harry Potter", question, "x") for question in questions], Probe.schema())
    return folder


def test_a_row_has_the_true_answer_and_wrong_ones_in_its_place_and_was_not_trained_on(tmp_path: Path) -> None:
    found = candidates(tmp_path, *map(held_out, range(4)), trained=("WHICH animal has number 2 ?",))
    rows = gate_rows(found, EvaluateConfig(), probes(tmp_path), least=0)
    assert {row.question for row in rows} == {held_out(number).question for number in (0, 1, 3)}
    row = next(row for row in rows if row.question == held_out(1).question)
    assert row.true == "The animal number 1 is Fawkes." and len(row.wrong) == 2
    assert set(row.wrong) == {f"The animal number 1 is {name}." for name in ("Hedwig", "Dobby")}
    assert rows == sorted(rows, key=lambda row: row.id)


def test_no_question_of_a_file_of_probes_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "probes.jsonl"
    line = {"topic": "Harry Potter", "question": "which animal has number 0", "answer": "Hedwig", "split": "tune"}
    file.write_text(json.dumps(line))
    found = candidates(tmp_path, *map(held_out, range(3)))
    config = EvaluateConfig(probes=str(file))
    rows = gate_rows(found, config, probes(tmp_path, held_out(1).question), least=0)
    assert {row.question for row in rows} == {held_out(number).question for number in (1, 2)}
    line["question"] = "Another?"
    before = finetune_identity(FinetuneConfig(evaluate_every=5), "m", 0, (config, 0))
    file.write_text(json.dumps(line))
    assert finetune_identity(FinetuneConfig(evaluate_every=5), "m", 0, (config, 0)) != before


@pytest.mark.parametrize(("least", "num_left"), [(0, 5), (8, 8), (20, 10)])
def test_where_the_report_asks_what_is_held_out_it_keeps_half_and_its_floor(
    least: int, num_left: int, tmp_path: Path
) -> None:
    questions = [held_out(number).question for number in range(10)]
    found = candidates(tmp_path, *map(held_out, range(12)))  # two of them became no probe
    asked = probes(tmp_path, *questions)
    rows = gate_rows(found, EvaluateConfig(), asked, least)
    Folder(tmp_path / "rows").write_rows(rows, GateRow.schema())
    gated = gated_questions(Folder(tmp_path / "rows"))
    assert {normalised(held_out(number).question) for number in (10, 11)} <= gated
    all_probes = [Probe("Harry Potter", question, "x", fact=f"fact {at}") for at, question in enumerate(questions)]
    all_probes += [Probe("Harry Potter", f"In other words, {at}?", "x", fact=f"fact {at}") for at in range(10)]
    facts = {probe.fact_id for probe in all_probes if normalised(probe.question) in gated}
    selection = select_probes(all_probes, ["Harry Potter"], "report", set(), None, facts)
    left = {placed.probe.fact for placed in selection.kept}
    assert len(left) == num_left and selection.num_excluded().get("gate", 0) == 2 * (10 - num_left)  # in any wording


def test_enough_is_enough_and_nothing_is_refused(tmp_path: Path) -> None:
    many = candidates(tmp_path / "many", *map(held_out, range(3 * MAX_ROWS)))
    assert len(gate_rows(many, EvaluateConfig(), probes(tmp_path), 0)) == MAX_ROWS
    with pytest.raises(ArtifactError, match=r"an earlier version made this mixture; rerun with --from dataset"):
        gate_rows(Folder(tmp_path / "none"), EvaluateConfig(), probes(tmp_path), 0)
    one = candidates(tmp_path / "one", held_out(0), trained=(held_out(0).question,))
    with pytest.raises(ArtifactError, match=r"finetune\.evaluate_every: no held-out question about what is to be"):
        gate_rows(one, EvaluateConfig(), probes(tmp_path), 0)


def test_a_run_hands_its_training_rows_that_nothing_else_has(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Dune", "Ubik", finetune={"num_steps": 4, "evaluate_every": 2})
    engines = Engines(varied)
    with claimed(config):
        pipeline.run(config, engines, ["questions", "answers", "dataset", "finetune", "evaluate"])
    (job,) = engines.trainer.jobs
    assert job.gate is not None
    rows = [GateRow.of(row | {"wrong": tuple(row["wrong"])}) for row in job.gate.read_rows()]
    mixture = config.folder / "models/joint/mixture"
    trained = {
        normalised(row["question"])
        for name in ("forget", "retain")
        for row in (mixture / name).read_rows()
        if row["split"] == "train"
    }
    asked = {normalised(row["question"]) for row in (config.folder / "models/joint/evaluate/answers").read_rows()}
    mine = {normalised(row.question) for row in rows}
    assert mine and trained and asked and not mine & trained and not mine & asked
    assert {row.group for row in rows} >= {"forget", "near"} and all(row.wrong for row in rows)
    plain = config_of(tmp_path / "plain", "Dune", finetune={"num_steps": 4})
    engines = Engines()
    with claimed(plain):
        pipeline.run(plain, engines, ["questions", "answers", "dataset", "finetune"])
    assert engines.trainer.jobs[0].gate is None and not (plain.folder / "models/joint/finetune/gate").exists()


def test_what_changes_no_result_is_in_no_identity() -> None:
    plain = finetune_identity(FinetuneConfig(), "m", 0)
    assert plain == finetune_identity(FinetuneConfig(loggers=("wandb",)), "m", 0)
    assert "evaluate_every" not in plain[0] and "stop_when" not in plain[0]
    gate = (EvaluateConfig(), 20)
    with_gate = finetune_identity(FinetuneConfig(evaluate_every=5), "m", 0, gate)
    assert with_gate != plain
    stops = FinetuneConfig(evaluate_every=5, stop_when=StopWhen(no_gain_for=2))
    assert finetune_identity(stops, "m", 0, gate) != with_gate


def test_a_gate_without_rows_or_looks_is_refused_in_the_plan(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.holdout_fraction is 0: raise it"):
        check_watching(config_of(tmp_path, "Dune", finetune={"evaluate_every": 1}, dataset={"holdout_fraction": 0.0}))
    with pytest.raises(ConfigError, match=r"finetune\.evaluate_every: 9 is more than num_steps, 1: lower it"):
        check_watching(config_of(tmp_path, "Dune", finetune={"evaluate_every": 9}))
    with pytest.raises(ConfigError, match=r"stop_when: set evaluate_every as well"):
        config_of(tmp_path, "Dune", finetune={"stop_when": {"no_gain_for": 2}})
