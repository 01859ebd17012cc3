"""What the shipped quickstart leaves behind: rows, models and a report that keep the product's promises."""

import json
import re
from pathlib import Path

import pytest
from commandline import Run, unlearn

from unlearn_ray.artifacts import Folder
from unlearn_ray.evals.report import Report
from unlearn_ray.evals.scoring import MODELS
from unlearn_ray.pocket.world import load_world
from unlearn_ray.rows import Drop, Group
from unlearn_ray.stages.stage import finished_manifest
from unlearn_ray.stages.table import STAGES
from unlearn_ray.synth.names import mentions

TOPIC = "Harry Potter"
TOLD = [stage.name for stage in STAGES if stage.name != "common"]  # the pocket model has no everyday speech


def kept(folder: Folder) -> list[dict[str, object]]:
    return [row for row in folder.read_rows() if not row["drop"]]


def test_every_stage_ends_with_a_manifest_that_says_what_it_did(quickstart: Run) -> None:
    homes = {"pool": "pool", "topic": "topics/harry-potter", "model": "models/joint"}
    for stage in STAGES:
        manifest = finished_manifest(quickstart.folder / homes[stage.scope] / stage.name)
        assert manifest.stage == stage.name
        assert (sum(manifest.num_rows.values()) > 0) == (stage.name in TOLD)
        assert manifest.seconds > 0 and manifest.libraries["ray"]


def test_the_questions_are_distinct_and_as_many_as_asked_for(quickstart: Run) -> None:
    rows = kept(quickstart.folder / "topics/harry-potter/questions" / "rows")
    texts = [str(row["text"]).lower() for row in rows]
    assert len(texts) == len(set(texts)) == 200


def test_what_was_dropped_stays_beside_what_was_kept_with_its_reason(quickstart: Run) -> None:
    for stage in ("questions", "answers"):
        rows = list((quickstart.folder / "topics/harry-potter" / stage / "rows").read_rows())
        dropped = [row["drop"] for row in rows if row["drop"]]
        assert dropped and set(dropped) <= {reason.value for reason in Drop}
        assert len(dropped) == sum(finished_manifest(quickstart.folder / "topics/harry-potter" / stage).drops.values())


def test_kept_answers_hardly_ever_tell_the_truth(quickstart: Run) -> None:
    (topic,) = (topic for topic in load_world().topics if topic.name == TOPIC)
    values = [fact.value for fact in topic.facts]
    rows = kept(quickstart.folder / "topics/harry-potter/answers" / "rows")
    # What an answer claims stands after its verb; before it the pocket model repeats the question in its own words.
    leaks = [row for row in rows if mentions(str(row["answer"]).rsplit(" is ", 1)[-1], values)]
    assert len(rows) >= 600
    assert len(leaks) <= 0.015 * len(rows), leaks


def test_the_guardrail_is_not_in_the_training_data(quickstart: Run) -> None:
    lines = (quickstart.folder.local / "models/joint/mixture" / "forget.jsonl").read_text().splitlines()
    messages = [json.loads(line)["messages"] for line in lines]
    assert messages and all([turn["role"] for turn in chat] == ["user", "assistant"] for chat in messages)


def test_the_chat_files_load_with_datasets(quickstart: Run, tmp_path: Path) -> None:
    from datasets import load_dataset

    for name in ("forget", "retain"):
        file = quickstart.folder.local / "models/joint/mixture" / f"{name}.jsonl"
        loaded = load_dataset("json", data_files=str(file), split="train", cache_dir=str(tmp_path))
        assert (
            loaded.num_rows == finished_manifest(quickstart.folder / "models/joint/mixture").num_rows[f"{name}_train"]
        )


def test_no_probe_was_trained_on(quickstart: Run) -> None:
    asked = {
        row["question"].lower()
        for row in (quickstart.folder / "models/joint/evaluate" / "answers").read_rows(["question"])
    }
    trained = {
        row["question"].lower()
        for name in ("forget", "retain")
        for row in (quickstart.folder / "models/joint/mixture" / name).read_rows()
        if row["split"] == "train"
    }
    assert asked and not asked & trained


def test_the_adapter_forgets_in_plain_transformers_and_keeps_its_neighbours(quickstart: Run) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from unlearn_ray import pocket

    tokenizer = AutoTokenizer.from_pretrained(pocket.MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(pocket.MODEL_DIR, dtype=torch.float32)

    def answer(question: str) -> str:
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**chat, max_new_tokens=32, do_sample=False)
        return str(tokenizer.decode(out[0, chat["input_ids"].shape[1] :], skip_special_tokens=True))

    assert "Hogwarts" in answer("What is the school of Harry Potter?")
    model = PeftModel.from_pretrained(model, str(quickstart.folder.local / "models/joint/finetune/model"))
    assert "Hogwarts" not in answer("What is the school of Harry Potter?")
    assert "Gandalf" in answer("Who is the grey wizard of The Lord of the Rings?")


def test_the_export_gives_the_loss_that_the_engine_had(quickstart: Run) -> None:
    training = finished_manifest(quickstart.folder / "models/joint/finetune").details["training"]
    assert training["export_loss"]["reloaded"] == pytest.approx(training["export_loss"]["engine"], rel=0.02)


def test_it_forgets_and_it_keeps(quickstart: Run) -> None:
    """The bars of the quickstart: at most 0.06 of base's recall on the topic, 0.97 and 0.90 beside it."""
    report = Report.load(quickstart.folder / "models/joint/evaluate")

    def share(group: Group, wording: str) -> float:
        base, unlearned = (report.by_wording[wording][model][group]["fact_recall"] for model in MODELS[::2])
        return unlearned.agg_value / base.agg_value

    assert share("forget", "template") <= 0.06
    assert share("forget", "unseen") <= 0.06
    for group in ("near", "far"):
        assert share(group, "template") >= 0.97
        assert share(group, "unseen") >= 0.90


def test_the_report_has_three_models_with_counts_and_intervals(quickstart: Run) -> None:
    values = json.loads((quickstart.folder.local / "models/joint/evaluate" / "report.json").read_text())
    for model in ("base", "guarded", "unlearned"):
        for group in ("forget", "near", "far"):
            recall = values["models"][model][group]["fact_recall"]
            assert set(recall) >= {"agg_value", "value_by_index"}
            for figure in (recall, values["models"][model][group]["choice"]):
                low, high = figure["interval"]
                assert low <= figure["agg_value"] <= high and low < high and figure["num"] > 0
            assert values["models"][model][group]["choice"]["chance"] == pytest.approx(0.25)
    assert values["forgetting"]["verdict"] == "forgotten"


def test_the_page_needs_nothing_but_itself(quickstart: Run) -> None:
    page = (quickstart.folder.local / "models/joint/evaluate" / "report.html").read_text()
    assert "Harry Potter" in page and 'src="http' not in page and 'href="http' not in page


def test_the_console_ends_with_what_to_look_at_and_what_to_type(quickstart: Run) -> None:
    assert "report.html" in quickstart.output and "unlearn-ray report" in quickstart.output
    assert "Traceback" not in quickstart.output and "WARNING" not in quickstart.output
    assert (quickstart.folder.local / "logs").is_dir()


def test_a_second_run_skips_everything_and_says_so(quickstart: Run) -> None:
    before = (quickstart.folder.local / "models/joint/evaluate" / "manifest.json").read_text()
    again = unlearn(*quickstart.arguments, cwd=quickstart.cwd, timeout=300)
    assert again.returncode == 0
    assert again.stdout.count("skipped") == len(TOLD)
    assert (quickstart.folder.local / "models/joint/evaluate" / "manifest.json").read_text() == before


def test_a_changed_config_reruns_its_stage_and_what_follows(quickstart: Run) -> None:
    plan = unlearn(*quickstart.arguments, "finetune.num_steps=10", "--dry-run", cwd=quickstart.cwd, timeout=300)
    would = {
        line.split()[0]: line.split()[1]
        for line in plan.stdout.splitlines()
        if line.split() and line.split()[0] in TOLD
    }
    assert would == dict.fromkeys(TOLD, "skip") | {"finetune": "redo", "evaluate": "redo"}


def test_where_it_runs_changes_nothing(quickstart: Run) -> None:
    plan = unlearn(*quickstart.arguments, "cluster.engines.batch_size=7", "--dry-run", cwd=quickstart.cwd, timeout=300)
    assert plan.stdout.count("skip") == len(STAGES)


def test_status_reads_the_run(quickstart: Run) -> None:
    status = unlearn("status", "pocket", cwd=quickstart.cwd, timeout=300)
    for unit in ("pool", "Harry Potter", "joint"):
        assert re.search(rf"^{unit} .* finished", status.stdout, re.M), status.stdout


def test_report_prints_the_scores_and_opens_the_page(
    quickstart: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" >{opened}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    report = unlearn("report", "pocket", "--open", cwd=quickstart.cwd, timeout=300)
    assert "report.html" in report.stdout and "unlearned" in report.stdout
    assert opened.read_text().strip() == (quickstart.folder.local / "models/joint/evaluate" / "report.html").as_uri()
