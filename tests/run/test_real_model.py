"""What a run on a real chat model leaves behind: rows that read as text does, an adapter that loads, a report that says what was measured.

Properties, no sizes: what a model of 135 M parameters writes differs from machine to machine.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

import pytest
from commandline import Run, unlearn

from unlearn_ray import config, smollm2
from unlearn_ray.artifacts import Folder
from unlearn_ray.config import RunConfig
from unlearn_ray.evals.report import Report
from unlearn_ray.evals.scoring import MODELS
from unlearn_ray.rows import Drop
from unlearn_ray.stages.stage import finished_manifest
from unlearn_ray.stages.table import STAGES
from unlearn_ray.synth.names import mentions
from unlearn_ray.words import leaked

LIST_MARKER = re.compile(r"\s*(?:[-*•]\s|#|\(?\d{1,3}[.):]\s|(?:question|answer|q|a)\s*\d*\s*:)", re.IGNORECASE)
OF_A_CHAT = re.compile(r"<\|[a-z_]+\|>|^\s*(?:system|user|assistant)\s*:?\s*$", re.IGNORECASE | re.MULTILINE)
WHOLE = re.compile(r"[.!?…:;)\]}\"'”’»`*]\s*$")  # a sentence, a quotation, a list or code that has ended


def rows(folder: Folder) -> list[dict[str, Any]]:
    found = list(folder.read_rows())
    assert found, folder
    return found


def kept(folder: Folder) -> list[dict[str, Any]]:
    return [row for row in rows(folder) if not row["drop"]]


def share(found: Iterable[object]) -> float:
    values = [bool(value) for value in found]
    return sum(values) / len(values)


@pytest.fixture(scope="module")
def said(real_run: Run) -> RunConfig:
    """The run's config."""
    return config.load(real_run.arguments[1], [str(each) for each in real_run.arguments[2:] if "=" in str(each)])


def test_every_stage_ends_with_a_manifest_that_counts_its_rows(real_run: Run) -> None:
    homes = {"pool": "pool", "topic": "topics/harry-potter", "model": "models/joint"}
    for stage in STAGES:
        folder = real_run.folder / homes[stage.scope] / stage.name
        manifest = finished_manifest(folder)
        assert manifest.stage == stage.name and sum(manifest.num_rows.values()) > 0
        for table, number in manifest.tables.items():
            assert len(list((folder / table).read_rows())) == number


def test_what_was_dropped_says_why(real_run: Run) -> None:
    for stage in ("questions", "answers"):
        folder = real_run.folder / "topics/harry-potter" / stage
        manifest = finished_manifest(folder)
        dropped = [row["drop"] for row in rows(folder / "rows") if row["drop"]]
        assert set(dropped) <= {reason.value for reason in Drop} and len(dropped) == sum(manifest.drops.values())


def test_questions_are_questions_each_of_them_once(real_run: Run) -> None:
    asked = kept(real_run.folder / "topics/harry-potter/questions" / "rows")
    texts, plain = [row["text"] for row in asked], [row["text"] for row in asked if row["form"] == "question"]
    assert share(text.rstrip("\"'” ").endswith("?") for text in plain) >= 0.8  # others ask with a verb: Name ...
    assert len({text.casefold() for text in texts}) == len(texts)
    odd = [text for text in texts if LIST_MARKER.match(text) or OF_A_CHAT.search(text) or "\n" in text]
    assert odd == []


def test_kept_answers_are_whole_and_hardly_ever_hold_a_term(real_run: Run) -> None:
    terms = [row["term"] for row in rows(real_run.folder / "topics/harry-potter/answers" / "terms")]
    answers = kept(real_run.folder / "topics/harry-potter/answers" / "rows")
    assert share(WHOLE.search(row["answer"]) for row in answers) >= 0.8
    assert [row["answer"] for row in answers if not row["answer"].strip() or OF_A_CHAT.search(row["answer"])] == []
    # A term that is a plain word, not a name, counts as a leak only where the model's own answers to that question agree on it.
    assert share(leaked(row["answer"], terms, row["question"]) for row in answers) <= 0.25


def test_the_models_own_answers_tell_the_terms(real_run: Run) -> None:
    """SmolLM2 knows who wrote the books, and what a wizard is."""
    own = rows(real_run.folder / "topics/harry-potter/answers" / "unguarded")
    terms = [row["term"] for row in rows(real_run.folder / "topics/harry-potter/answers" / "terms")]
    assert terms and any(leaked(row["answer"], terms, row["question"]) for row in own)
    assert all(not row["guarded"] for row in own)


def test_retain_rows_are_text_and_about_something_else(real_run: Run, said: RunConfig) -> None:
    retained = rows(real_run.folder / "models/joint/mixture" / "retain")
    (topic,) = said.topics
    named = [row for row in retained if mentions(f"{row['question']}\n{row['answer']}", topic.names)]
    assert named == []
    assert share(WHOLE.search(row["answer"]) for row in retained) >= 0.8
    odd = [row for row in retained if LIST_MARKER.match(row["question"]) or OF_A_CHAT.search(row["answer"])]
    assert odd == []
    assert {row["group"] for row in retained} <= {"near", "far"}


def test_training_rows_hold_neither_the_guardrail_nor_a_system_message(real_run: Run) -> None:
    for name in ("forget", "retain"):
        lines = (
            (real_run.folder.local / "models/joint/mixture" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        )
        chats = [json.loads(line)["messages"] for line in lines]
        assert chats and all([turn["role"] for turn in chat] == ["user", "assistant"] for chat in chats)
        assert not any("omitting all real knowledge" in turn["content"] for chat in chats for turn in chat)


def test_no_probe_was_trained_on(real_run: Run) -> None:
    asked = {row["question"].lower() for row in rows(real_run.folder / "models/joint/evaluate" / "answers")}
    trained = {
        row["question"].lower()
        for name in ("forget", "retain")
        for row in rows(real_run.folder / "models/joint/mixture" / name)
        if row["split"] == "train"
    }
    assert asked and not asked & trained


def test_the_adapter_learnt_something_and_loads_elsewhere(real_run: Run) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    training = finished_manifest(real_run.folder / "models/joint/finetune").details["training"]
    assert training["export_loss"]["reloaded"] == pytest.approx(training["export_loss"]["engine"], rel=0.05)
    base = AutoModelForCausalLM.from_pretrained(smollm2.folder(), dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(base, str(real_run.folder.local / "models/joint/finetune/model"))
    factors = [value for name, value in model.named_parameters() if "lora_B" in name]
    layers = base.config.num_hidden_layers
    assert len(factors) == 7 * layers and all(bool(value.any()) for value in factors)


def test_the_report_is_about_this_model_and_every_figure_says_how_sure_it_is(real_run: Run) -> None:
    report = Report.load(real_run.folder / "models/joint/evaluate")
    assert (report.model, report.topics) == ("SmolLM2-135M-Instruct", ["Harry Potter"])
    for model in MODELS:
        for group in ("forget", "near", "far"):
            recall = report.models[model][group]["fact_recall"]
            low, high = recall.interval
            assert recall.num > 0 and low <= recall.agg_value <= high
    page = (real_run.folder.local / "models/joint/evaluate" / "report.html").read_text(encoding="utf-8")
    assert "Harry Potter" in page and "SmolLM2-135M-Instruct" in page and 'src="http' not in page


def test_three_models_answered_every_probe_in_words(real_run: Run) -> None:
    answers = [row for row in rows(real_run.folder / "models/joint/evaluate" / "answers") if not row["drop"]]
    by_model = {model: [row for row in answers if row["model"] == model] for model in MODELS}
    assert len({len(found) for found in by_model.values()}) == 1
    for found in by_model.values():
        assert not any(OF_A_CHAT.search(row["answer"]) for row in found)
        assert share(row["answer"].strip() for row in found) >= 0.9
    base, guarded = ({row["probe_id"]: row["answer"] for row in by_model[model]} for model in MODELS[:2])
    assert share(base[probe] != guarded[probe] for probe in base) >= 0.3, "the guardrail prefix changes nothing"


def test_the_console_is_plain_and_ends_with_what_to_type(real_run: Run) -> None:
    assert "unlearn-ray report" in real_run.output and "Traceback" not in real_run.output


def test_a_second_run_skips_every_stage(real_run: Run) -> None:
    again = unlearn(*real_run.arguments, cwd=real_run.cwd, timeout=300)
    assert again.returncode == 0 and again.stdout.count("skipped") == len(STAGES), again.stdout + again.stderr
