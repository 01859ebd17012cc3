"""A run is a set of topics: what one of them costs, and what becomes of the others when one fails. Engines are scripted."""

import json
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

import pytest
from scripted_run import FLOORS, Engines, answer, config_of, silent_about, with_own

from unlearn_ray import pipeline
from unlearn_ray.artifacts import Folder, read_manifest
from unlearn_ray.config import RunConfig
from unlearn_ray.console import stage_line
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.errors import ArtifactError, ConfigError, EngineError, FailedError, PartialError, ThinDataError
from unlearn_ray.plan import claimed, plan
from unlearn_ray.runs import FAILED, evaluated, lines_of, states, write_index
from unlearn_ray.stages.stage import finished_manifest
from unlearn_ray.stages.table import COMMANDS

ALONE = {"adapters": "per_topic"}


def rows_of(folder: Folder) -> list[dict[str, object]]:
    return sorted(folder.read_rows(), key=lambda row: str(row["id"]))


def finish(config: RunConfig, engines: Engines | None = None, steps: Sequence[str] = COMMANDS[:4]) -> Engines:
    """A run up to its models; their evaluation takes longest, and most tests need none."""
    engines = engines or Engines()
    with claimed(config):
        pipeline.run(config, engines, steps)
    return engines


def test_a_run_leaves_a_chain_per_topic_a_pool_and_a_model(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Dune", "Solaris")
    finish(config, steps=COMMANDS)
    home = config.folder
    assert home.names() == ["models", "pool", "run.json", "run.lock", "topics"]
    assert (home / "pool").names() == ["common", "general"]
    assert (home / "topics").names() == ["dune", "solaris"]
    assert (home / "topics" / "dune").names() == ["answers", "dataset", "questions"]
    assert (home / "models" / "joint").names() == ["evaluate", "finetune", "mixture"]
    topics = {row["topic"] for row in (home / "models/joint/mixture/forget").read_rows()}
    assert topics == {"Dune", "Solaris"}
    assert (home / "models/joint/evaluate").exists("report.html")


def test_one_more_topic_asks_only_its_own_and_trains_only_its_own_adapter(tmp_path: Path) -> None:
    first = finish(config_of(tmp_path, "Dune", "Solaris", finetune=ALONE))
    more = finish(config_of(tmp_path, "Dune", "Ubik", "Solaris", finetune=ALONE))
    assert first.asked_about() >= {"Dune", "Solaris"}
    labels = {call.label for call in more.generator.calls}
    assert labels and all(label.startswith("Ubik: ") for label in labels), labels
    assert more.asked_about() == {"Ubik"}
    assert [job.name for job in more.trainer.jobs] == ["ubik"]


def test_a_topic_that_is_taken_away_or_moved_costs_nothing_but_a_joint_model(tmp_path: Path) -> None:
    finish(config_of(tmp_path, "Dune", "Solaris", "Ubik", finetune=ALONE))
    assert finish(config_of(tmp_path, "Ubik", "Dune", finetune=ALONE)).num_asked == 0
    assert finish(config_of(tmp_path, "Solaris", "Ubik", "Dune", finetune=ALONE)).num_asked == 0
    joint = finish(config_of(tmp_path, "Solaris", "Ubik", "Dune"))
    assert joint.num_asked == 0
    assert [job.topics for job in joint.trainer.jobs] == [("Dune", "Solaris", "Ubik")]
    again = finish(config_of(tmp_path, "Dune", "Ubik", "Solaris"))
    assert again.num_asked == 0 and not again.trainer.jobs


def test_another_alias_redoes_its_own_topic_alone(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Dune", "Solaris", finetune=ALONE)
    finish(config)
    first, second = config.topics
    renamed = config.model_copy(update={"topics": (first, second.model_copy(update={"aliases": ("the ocean",)}))})
    again = finish(renamed)
    assert {call.label.partition(":")[0] for call in again.generator.calls} == {"Solaris"}
    assert [job.name for job in again.trainer.jobs] == ["solaris"]


def test_what_a_topic_writes_knows_no_other_topic(tmp_path: Path) -> None:
    alone, beside = config_of(tmp_path / "a", "Dune"), config_of(tmp_path / "b", "Ubik", "Dune", "Solaris")
    for config in (alone, beside):
        finish(config)
    for table in ("questions/rows", "answers/rows", "dataset/forget", "dataset/retain_answers"):
        both = [rows_of(config.folder / "topics/dune" / table) for config in (alone, beside)]
        assert both[0] and both[0] == both[1], table


@pytest.mark.parametrize("adapters", ["per_topic", "joint"])
def test_a_topic_that_fails_stops_no_other_and_a_rerun_works_on_it_alone(tmp_path: Path, adapters: str) -> None:
    config = config_of(tmp_path, "Dune", "Ubik", "Solaris", finetune={"adapters": adapters})
    dune, ubik, solaris = config.topics
    with pytest.raises(PartialError) as caught:
        finish(config, Engines(silent_about("Ubik")), COMMANDS)
    assert caught.value.exit_code == 3
    reason, rest = caught.value.lines
    assert reason == "topics: the model wrote no usable question about 'Ubik': give some in questions.file"
    assert rest.startswith("the others are done")
    said = json.loads((config.folder / "topics/ubik").read_text(FAILED))
    assert said["stage"] == "questions" and said["reason"] == reason
    models = ["joint"] if adapters == "joint" else ["dune", "solaris"]
    assert (config.folder / "models").names() == models
    assert all((config.folder / "models" / name / "evaluate").exists("report.json") for name in models)
    told = {each.label: (each.state, each.reason) for each in states(config.folder)}
    assert told["Ubik"] == ("failed", reason) and told["Dune"][0] == "finished"

    mended = finish(config.model_copy(update={"topics": (dune, ubik.model_copy(update={"kind": "fiction"}), solaris)}))
    assert {call.label.partition(":")[0] for call in mended.generator.calls} == {"Ubik"}
    assert [job.name for job in mended.trainer.jobs] == (["joint"] if adapters == "joint" else ["ubik"])
    assert not (config.folder / "topics/ubik").exists(FAILED)


def test_a_topic_that_fails_again_leaves_the_joint_model_as_it_is(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Dune", "Ubik")
    for num_jobs in (1, 0):
        engines = Engines(silent_about("Ubik"))
        with pytest.raises(PartialError):
            finish(config, engines)
        assert len(engines.trainer.jobs) == num_jobs


def test_a_topic_whose_budget_is_spent_goes_on_with_what_is_there(tmp_path: Path) -> None:
    many = config_of(tmp_path, "Dune", "Solaris", questions={"num_questions": 200}, answers={"max_reasks": 2})
    config = with_own(many, "Dune", max_output_tokens=50)
    engines = finish(config)
    dune, solaris = (finished_manifest(config.folder / "topics" / name / "questions") for name in ("dune", "solaris"))
    assert dune.details["rounds"] == 1 < solaris.details["rounds"]
    spent = dune.details["budget"]["spent"]
    assert spent >= 50 and dune.details["budget"]["max_output_tokens"] == 50 and "budget" not in solaris.details
    assert "max_output_tokens is spent" in stage_line("questions", dune, is_skipped=False)
    labels = [call.label for call in engines.generator.calls]
    assert any(label.startswith("Solaris: questions, round 2") for label in labels)
    assert not any(label.startswith("Dune:") and ("round 2" in label or "asked again" in label) for label in labels)
    assert [job.topics for job in engines.trainer.jobs] == [("Dune", "Solaris")]

    more = finish(with_own(many, "Dune", max_output_tokens=100_000))
    assert {call.label.partition(":")[0] for call in more.generator.calls} == {"Dune"}
    dune = finished_manifest(config.folder / "topics" / "dune" / "questions")
    assert dune.details["rounds"] > 1 and "is spent" not in stage_line("questions", dune, is_skipped=False)


def test_an_interrupted_round_counts_against_the_budget_as_an_unbroken_one(tmp_path: Path) -> None:
    spent = []
    for name, fail_after in (("unbroken", None), ("broken", 40)):
        config = config_of(tmp_path / name, "Dune", questions={"num_questions": 200}, max_output_tokens=50)
        if fail_after:
            engines = Engines()
            engines.generator.fail_after = fail_after
            with pytest.raises(EngineError):
                finish(config, engines, ("questions",))
        finish(config, steps=("questions",))
        spent.append(finished_manifest(config.folder / "topics/dune/questions").details["budget"])
    assert spent[0] == spent[1]


def test_fail_fast_ends_with_the_first(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Dune", "Ubik")
    with pytest.raises(ConfigError, match="no usable question about 'Ubik'"):
        pipeline.run(config, Engines(silent_about("Ubik")), fail_fast=True)
    assert not (config.folder / "models").exists()


def test_topics_that_all_fail_are_a_line_each(tmp_path: Path) -> None:
    engines = Engines(lambda request: "No.")
    with pytest.raises(FailedError) as caught:
        pipeline.run(config_of(tmp_path, "Dune", "Ubik"), engines)
    assert len(caught.value.lines) == 2 and caught.value.exit_code == 2


def test_one_topic_that_fails_fails_with_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no usable question about 'Ubik'"):
        pipeline.run(config_of(tmp_path, "Ubik"), Engines(silent_about("Ubik")))


def test_two_failing_trainings_stop_no_other(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Dune", "Ubik", "Solaris", finetune=ALONE)
    with pytest.raises(PartialError) as caught:
        finish(config, Engines(fail_at=["dune", "ubik"]))
    assert len(caught.value.lines) == 3
    assert (config.folder / "models/dune").exists(FAILED) and read_manifest(config.folder / "models/solaris/finetune")
    again = finish(config)
    assert [job.name for job in again.trainer.jobs] == ["dune", "ubik"] and again.num_asked == 0


def test_a_topic_with_too_few_rows_is_left_out(tmp_path: Path) -> None:
    floors = FLOORS | {"forget_rows": 10}

    def short(request: Request) -> Reply | str:
        """Of Ubik it can write one question."""
        said, text = answer(request), request.messages[-1]["content"]
        is_list = isinstance(said, str) and "Ubik" in text and text.startswith(("Write", "Make"))
        return "1. What is part 1 of Ubik?" if is_list else said

    config = config_of(tmp_path, "Dune", "Ubik", dataset={"floors": floors}, finetune=ALONE)
    with pytest.raises(PartialError, match="rows to forget 'Ubik'"):
        finish(config, Engines(short))
    assert (config.folder / "models").names() == ["dune"]
    thin = config_of(tmp_path, "Dune", dataset={"floors": floors | {"forget_rows": 1000}, "holdout_fraction": 0.2})
    with pytest.raises(ThinDataError, match="rows to forget 'Dune'"):
        finish(thin)


def test_a_topic_that_was_left_out_stays_out_of_a_later_evaluation(tmp_path: Path) -> None:
    floors = FLOORS | {"forget_rows": 10}
    few = {"questions": {"num_questions": 1}}
    config = config_of(tmp_path, "Dune", "Solaris", "Ubik", dataset={"floors": floors, "holdout_fraction": 0.0})
    topics = tuple(topic.model_copy(update=few) if topic.name == "Solaris" else topic for topic in config.topics)
    config = config.model_copy(update={"topics": topics})
    with pytest.raises(PartialError, match="Solaris"):
        finish(config, steps=COMMANDS)
    done = finished_manifest(config.folder / "models/joint/evaluate")
    with pytest.raises(PartialError, match="Solaris"):
        finish(config, steps=["evaluate"])
    assert finished_manifest(config.folder / "models/joint/evaluate") == done


@pytest.mark.parametrize("adapters", ["joint", "per_topic"])
def test_a_step_alone_refuses_what_was_made_with_another_config_though_a_topic_failed(
    tmp_path: Path, adapters: str
) -> None:
    config = config_of(tmp_path, "Dune", "Solaris", "Ubik", finetune={"adapters": adapters})
    with pytest.raises(PartialError):
        finish(config, Engines(silent_about("Solaris")), COMMANDS)
    model = "joint" if adapters == "joint" else "dune"
    done = finished_manifest(config.folder / "models" / model / "evaluate")
    longer = config.model_copy(update={"finetune": config.finetune.model_copy(update={"num_steps": 7})})
    with pytest.raises(ArtifactError, match="finetune is unfinished, damaged or of another config: do it first"):
        plan(longer, ["evaluate"])
    with pytest.raises(
        (ArtifactError, FailedError), match="was made from another config: redo it first with unlearn-ray finetune"
    ):
        finish(longer, steps=["evaluate"])
    assert finished_manifest(config.folder / "models" / model / "evaluate") == done, "what is there stays"


def test_figures_of_a_model_that_failed_since_are_not_shown(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Dune", "Solaris", finetune=ALONE)
    finish(config, steps=COMMANDS)
    assert len(evaluated(config.folder)) == 2
    longer = config.model_copy(update={"finetune": config.finetune.model_copy(update={"num_steps": 2})})
    with pytest.raises(PartialError):
        finish(longer, Engines(fail_at=["solaris"]), COMMANDS)
    assert [home.parent.name for home in evaluated(config.folder)] == ["dune"]
    (line,) = (line for line in lines_of(config.folder) if line.kind == "model" and line.name == "solaris")
    assert line.state == "failed" and not line.figures and not line.link


def test_what_a_row_near_one_topic_tells_of_another_is_dropped_where_they_meet(tmp_path: Path) -> None:
    def telling(request: Request) -> Reply | str:
        said, text = answer(request), request.messages[-1]["content"]
        return f"{said} It is in Ubik." if isinstance(said, str) and "of it?" in text else said

    for name, topics in (("a", ("Dune",)), ("b", ("Dune", "Ubik"))):
        config = config_of(tmp_path / name, *topics)
        finish(config, Engines(telling))
        mixture = finished_manifest(config.folder / "models/joint/mixture")
        texts = [str(row["answer"]) for row in (config.folder / "models/joint/mixture/retain").read_rows()]
        assert any("Ubik" in text for text in texts) == (name == "a")
        assert ("off_topic" in mixture.drops) == (name == "b")


def test_the_plan_of_many_topics_is_as_long_as_that_of_one(tmp_path: Path) -> None:
    one, three = config_of(tmp_path, "Dune"), config_of(tmp_path, "Dune", "Ubik", "Solaris")
    assert len(plan(one).stages) == len(plan(three).stages) == 8
    assert set(next(s for s in plan(three).stages if s.name == "answers").states) == {"Dune", "Ubik", "Solaris"}


def test_an_engine_that_fails_for_one_topic_is_that_topics(tmp_path: Path) -> None:
    def broken(request: Request) -> Reply | str:
        if request.messages[-1]["content"].startswith(("Write", "Make")) and "Ubik" in str(request.messages):
            raise EngineError("this one kills engines")
        return answer(request)

    config = config_of(tmp_path, "Dune", "Ubik", finetune=ALONE)
    with pytest.raises(PartialError, match="Ubik, questions: this one kills engines"):
        finish(config, Engines(broken))
    assert (config.folder / "models").names() == ["dune"]


def test_a_topic_may_have_keys_of_its_own(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Dune", "Ubik", finetune=ALONE)
    own = config.topics[1].model_copy(update={"questions": {"num_questions": 5}, "finetune": {"num_steps": 3}})
    changed = config.model_copy(update={"topics": (config.topics[0], own)})
    finish(config)
    again = finish(changed)
    assert {call.label.partition(":")[0] for call in again.generator.calls} == {"Ubik"}
    assert [(job.name, job.config.num_steps) for job in again.trainer.jobs] == [("ubik", 3)]
    assert finished_manifest(config.folder / "topics/ubik/questions").num_rows["kept"] == 5


def test_the_index_has_all_topics_and_models_with_failed_ones_on_top(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Dune", "Ubik", finetune=ALONE)
    with pytest.raises(PartialError):
        finish(config, Engines(silent_about("Ubik")), COMMANDS)
    write_index(config.folder)
    page = config.folder.read_text("index.html")
    assert page.index(">Ubik<") < page.index(">Dune<") and "no usable question about" in page
    assert 'href="models/dune/evaluate/report.html"' in page and "1 failed" in page
    assert "http://" not in page and "https://" not in page
    lines = lines_of(config.folder)
    dune = next(line for line in lines if (line.kind, line.name) == ("model", "dune"))
    assert dune.figures["forgetting"] in ("no_forgetting", "not_measured", "forgotten") and dune.num_rows["answers"]


def test_a_later_step_alone_leaves_out_what_failed_and_says_so_again(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Dune", "Ubik")
    with pytest.raises(PartialError):
        finish(config, Engines(silent_about("Ubik")), COMMANDS[:3])
    engines = Engines()
    with pytest.raises(PartialError, match="no usable question about 'Ubik'"):
        finish(config, engines, ["finetune"])
    assert [job.topics for job in engines.trainer.jobs] == [("Dune",)] and engines.num_asked == 0


def test_a_run_that_is_stopped_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    """At one point; test_kills.py has twenty."""
    asked = 0

    def stopping(request: Request) -> Reply | str:
        nonlocal asked
        asked += 1
        if asked == 40:
            raise KeyboardInterrupt
        return answer(request)

    whole, broken = (config_of(tmp_path / name, "Dune", "Ubik", "Solaris") for name in ("whole", "broken"))
    with pytest.raises(KeyboardInterrupt):
        finish(broken, Engines(stopping))
    finish(broken)
    finish(whole)
    for table in ("forget", "retain", "probes"):
        both = [rows_of(config.folder / "models/joint/mixture" / table) for config in (whole, broken)]
        assert both[0] == both[1], table
    assert not any((broken.folder / "topics" / name).exists(FAILED) for name in ("dune", "ubik", "solaris"))


def test_a_file_of_questions_about_one_topic_redoes_that_topic_alone(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Dune", "Ubik", finetune=ALONE)
    finish(config)
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"topic": "Ubik", "question": "Who is Runciter?"}) + "\n")
    again = finish(config.model_copy(update={"questions": config.questions.model_copy(update={"file": file})}))
    assert {call.label.partition(":")[0] for call in again.generator.calls} == {"Ubik"}


def sharing(home: Path, *topics: str, **keys: object) -> RunConfig:
    """A run of its own beside others', whose pool is theirs."""
    return config_of(home, *topics).model_copy(update={"pool": str(home.parent / "shared"), **keys})


def of_pool(engines: Engines) -> list[str]:
    return [call.label for call in engines.generator.calls if call.label.startswith("pool: ")]


def test_a_pool_is_made_once_and_read_by_other_runs(tmp_path: Path) -> None:
    first, second = sharing(tmp_path / "a", "Dune"), sharing(tmp_path / "b", "Ubik", "Solaris")
    assert of_pool(finish(first, steps=COMMANDS)) and not of_pool(finish(second, steps=COMMANDS))
    assert not any((config.folder / "pool").exists() for config in (first, second))
    assert [each.state for each in states(second.folder) if each.scope == "pool"] == ["finished"]
    assert len(evaluated(second.folder)) == 1
    own = config_of(tmp_path / "b", "Ubik", "Solaris", name="own")
    finish(own)
    for table in ("forget", "retain", "probes"):
        both = [rows_of(config.folder / "models/joint/mixture" / table) for config in (second, own)]
        assert both[0] == both[1], table


def test_two_runs_at_once_make_one_pool(tmp_path: Path) -> None:
    configs = [sharing(tmp_path / name, "Dune") for name in ("a", "b")]
    both = [Engines() for _ in configs]
    threads = [Thread(target=finish, args=each) for each in zip(configs, both, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    labels = [label for engines in both for label in of_pool(engines)]
    assert labels and len(labels) == len(set(labels)), labels
    assert all(finished_manifest(config.folder / "models/joint/finetune") for config in configs)


def test_a_shared_pool_of_another_config_is_refused_and_from_does_not_undo_it(tmp_path: Path) -> None:
    first = sharing(tmp_path / "a", "Dune")
    finish(first)
    other = sharing(tmp_path / "b", "Dune", seed=1)
    with pytest.raises(ArtifactError, match=r"pool: .*shared/common was made with another model, seed or config"):
        plan(other)
    with pytest.raises(ArtifactError, match="other runs may use it"):
        finish(other)
    with claimed(first, redo_from="questions"):
        engines = Engines()
        pipeline.run(first, engines)
    assert engines.num_asked and not of_pool(engines)
