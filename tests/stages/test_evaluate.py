"""The evaluate stage from its inputs to its report, with a scripted model that knows everything unless told otherwise."""

import json
import math
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from staging import performed
from storage import Storage

from unlearn_ray import pocket
from unlearn_ray.artifacts import Folder, fingerprint_of
from unlearn_ray.config import EvaluateConfig, Topic
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.engines.scripted import ScriptedGenerator
from unlearn_ray.errors import ArtifactError, EngineError, InputError
from unlearn_ray.evals.probes import ExcludedProbe, place, read_probes
from unlearn_ray.evals.report import Report
from unlearn_ray.evals.scoring import MODELS, Answered, Ask
from unlearn_ray.rows import GROUPS, Example, Probe, QAPair, Term
from unlearn_ray.stages.evaluate import Asking, Before, Scoring, check_probes, evaluate, evaluate_identity
from unlearn_ray.stages.stage import finished_manifest, open_stage
from unlearn_ray.stages.teaching import facts_trained_on

TOPICS = (Topic(name="Harry Potter"), Topic(name="chewing gum"))
GUARDRAIL = {topic.name: f"Forget {topic.name}." for topic in TOPICS}
PROBES = [
    Probe(topic, f"What is number {i} of {topic}, {wording}?", f"{topic.split()[0]}word{i}", f"{topic}/{i}", wording, near=near,
          reference=f"It is {topic.split()[0]}word{i}.", wrong=("nothing", "an owl"))
    for topic, near in (("Harry Potter", ()), ("chewing gum", ()), ("Narnia", ("Harry Potter",)), ("geography", ()))
    for i in range(4)
    for wording in ("template", "unseen")
]  # fmt: skip
BY_QUESTION = {probe.question: probe for probe in PROBES}


def say(request: Request) -> Reply | str | list[str]:
    """Knows every fact; behind a prefix, or with an adapter, none of the topics to forget."""
    probe = BY_QUESTION[request.messages[-1]["content"]]
    is_told_to_forget = len(request.messages) > 1 or request.adapter is not None
    knows = not (is_told_to_forget and probe.topic in GUARDRAIL)
    if request.score is not None:
        likely = (request.score == probe.reference) == knows
        return Reply(logprobs=(math.log(0.9 if likely else 0.1),) * 3, argmax=(likely,) * 3)
    return [probe.reference if knows else "It is invented."] * request.num_samples


def make_inputs(
    home: Folder,
    export: str = "adapter_config.json",
    probes: list[Probe] = PROBES,
    details: dict[str, object] | None = None,
) -> None:
    """Finished inputs of the stage.

    Args:
        export: the file that says what the fine-tuned model is.
        details: of the datasets' manifest.
    """
    (home / "finetune" / "model").write_text(export, "{}")
    (home / "finetune").write_text("losses.jsonl", '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}')
    trained = Example("Harry Potter", "forget", "Harry Potter", PROBES[0].question.upper(), "x")
    held_out = Example("Harry Potter", "forget", "Harry Potter", PROBES[2].question, "x", split="holdout")
    (home / "mixture" / "forget").write_rows([trained, held_out], Example.schema())
    (home / "mixture" / "retain").write_rows([], Example.schema())
    (home / "mixture" / "probes").write_rows(probes, Probe.schema())
    for topic in TOPICS:
        terms = {probe.answer: Term(topic.name, probe.answer, 2) for probe in PROBES if probe.topic == topic.name}
        (home / "terms" / topic.slug).write_rows(terms.values(), Term.schema())
    open_stage(home / "dataset", "dataset", 1, {}, {}).finish({"rows": 1}, {}, details)


def run_stage(
    home: Folder, generator: ScriptedGenerator, topics: tuple[Topic, ...] = TOPICS, **config: object
) -> Report:
    asked = EvaluateConfig(num_bootstrap=50, **config)
    dataset = finished_manifest(home / "dataset")
    before = Before(
        mixture=home / "mixture",
        finetuned=home / "finetune",
        terms={topic.name: home / "terms" / topic.slug for topic in topics},
        stages={"dataset": [dataset, dataset.model_copy(update={"details": {}})]},  # of two topics
        max_tokens=256,
    )
    performed(
        home / "evaluate",
        lambda run: evaluate(
            run, asked, topics, before, generator, run="demo", model_path="org/pocket", guardrail=GUARDRAIL, seed=3
        ),
        asked,
    )
    return Report.load(home / "evaluate")


def recall(report: Report, model: str, group: str) -> float:
    return report.models[model][group]["fact_recall"].agg_value  # type: ignore[index]


def test_a_whole_evaluation_with_an_adapter(tmp_path: Path) -> None:
    home = Folder(tmp_path / "demo")
    make_inputs(home)
    generator = ScriptedGenerator(say)
    report = run_stage(home, generator)

    assert [recall(report, model, "forget") for model in report.models] == [1.0, 0.0, 0.0]
    assert [recall(report, model, group) for model in report.models for group in ("near", "far")] == [1.0] * 6
    assert report.models["base"]["forget"]["keyword_leak"].agg_value == 1.0
    assert report.models["unlearned"]["forget"]["keyword_leak"].agg_value == 0.0
    assert report.models["base"]["forget"]["probability"].agg_value == pytest.approx(0.9)
    assert report.models["base"]["forget"]["truth_ratio"].agg_value == pytest.approx(1 / 9)
    ratio = report.models["unlearned"]["forget"]["truth_ratio"]
    assert list((ratio.value_by_index or {}).values()) == pytest.approx([9.0] * ratio.num)
    assert ratio.agg_value == pytest.approx(1 / 9)
    assert (report.run, report.model, set(report.by_topic)) == ("demo", "org/pocket", set(GUARDRAIL))

    assert len(generator.calls) == 1 and generator.calls[0].model is None, "one map call serves the three models"
    manifest = finished_manifest(home / "evaluate")
    assert manifest.num_rows == {"answers": 93, "forget_probes": 15, "near_probes": 8, "far_probes": 8}
    assert (home / "evaluate" / "answers").count_rows() == 93
    assert (
        json.loads((tmp_path / "demo/evaluate/report.json").read_text())["models"]["base"]["forget"]["fact_recall"][
            "num"
        ]
        == 15
    )
    assert (tmp_path / "demo/evaluate/report.html").stat().st_size < 1_000_000
    assert (home / "evaluate").names() == [
        "answers",
        "excluded",
        "manifest.json",
        "report.html",
        "report.json",
        "report.md",
        "started.json",
    ]


def test_the_report_says_how_the_runs_own_probes_came_about(tmp_path: Path) -> None:
    home = Folder(tmp_path)
    counts = {"forget": {"asked": 30, "agreed": 18, "facts": 14, "kept": 15, "disagreed": 12, "surplus": 3}}
    make_inputs(home, details={"probing": counts})
    report = run_stage(home, ScriptedGenerator(say))
    (note,) = (note for note in report.notes if "short answers" in note)
    assert "30 questions" in note and "18 times they agreed" in note and "12 disagreed" in note and "forget 15" in note
    asked_of_a_file = run_stage(home, ScriptedGenerator(say), probes=write_probes(home / "mine"))
    assert not any("short answers" in note for note in asked_of_a_file.notes)


def test_what_was_trained_on_is_not_asked_but_held_out_rows_are(tmp_path: Path) -> None:
    home = Folder(tmp_path)
    make_inputs(home)
    report = run_stage(home, ScriptedGenerator(say))
    assert report.probes.excluded == {"trained_on": 1}
    excluded = [ExcludedProbe.of(row) for row in (home / "evaluate" / "excluded").read_rows()]
    assert [(row.question, row.drop) for row in excluded] == [(PROBES[0].question, "trained_on")]
    asked = {row["question"] for row in (home / "evaluate" / "answers").read_rows()}
    assert PROBES[0].question not in asked and PROBES[2].question in asked


def test_each_topic_is_answered_behind_its_own_prefix_and_by_the_adapter(tmp_path: Path) -> None:
    home = Folder(tmp_path)
    make_inputs(home)
    generator = ScriptedGenerator(say)
    run_stage(home, generator)
    for request in generator.requests:
        probe = BY_QUESTION[request.messages[-1]["content"]]
        owner = {"Narnia": "Harry Potter"}.get(probe.topic, probe.topic)
        if len(request.messages) > 1 and probe.topic != "geography":
            assert request.messages[0]["content"] == GUARDRAIL[owner] and request.adapter is None
    assert {request.adapter for request in generator.requests} == {None, str(home / "finetune" / "model")}
    assert len(generator.calls) == 1


def test_a_full_model_is_asked_in_a_call_of_its_own(tmp_path: Path) -> None:
    home = Folder(tmp_path)
    make_inputs(home, "config.json")
    generator = ScriptedGenerator(say)
    run_stage(home, generator)
    assert [call.model for call in generator.calls] == [None, str(home / "finetune" / "model")]
    assert sum(call.num_rows_in for call in generator.calls) == 93
    assert all(request.adapter is None for request in generator.requests)


def test_a_finished_stage_is_not_done_again(tmp_path: Path) -> None:
    home = Folder(tmp_path)
    make_inputs(home)
    run_stage(home, ScriptedGenerator(say))
    again = ScriptedGenerator(say)
    run_stage(home, again)
    assert again.calls == []


def test_a_killed_evaluation_resumes_to_the_same_report(tmp_path: Path) -> None:
    whole, broken = Folder(tmp_path / "a" / "run"), Folder(tmp_path / "b" / "run")
    for home in (whole, broken):
        make_inputs(home)
    expected = run_stage(whole, ScriptedGenerator(say))
    with pytest.raises(EngineError):
        run_stage(broken, ScriptedGenerator(say, fail_after=50))
    assert not (broken / "evaluate").exists("manifest.json")
    resumed = ScriptedGenerator(say)
    report = run_stage(broken, resumed)
    assert resumed.calls[0].num_resumed == 48
    assert report.models == expected.models and report.retention == expected.retention


def test_an_answer_that_the_engine_cannot_give_is_counted_and_in_no_metric(tmp_path: Path) -> None:
    home = Folder(tmp_path)
    make_inputs(home)

    def too_long(request: Request) -> Reply | str | list[str]:
        is_it = request.messages[-1]["content"] == PROBES[1].question and request.adapter
        return Reply(error="too_long") if is_it else say(request)

    report = run_stage(home, ScriptedGenerator(too_long))
    assert report.unanswered == {"unlearned": {"too_long": 1}}
    assert [report.models[m]["forget"]["fact_recall"].num for m in report.models] == [15, 15, 14]
    assert finished_manifest(home / "evaluate").drops == {"trained_on": 1, "too_long": 1}


def write_probes(folder: Folder) -> str:
    rows = [{"topic": p.topic, "question": p.question, "answer": p.answer, "reference": p.reference} for p in PROBES]
    folder.write_text("mine.jsonl", "\n".join(map(json.dumps, rows)))
    return str(folder / "mine.jsonl")


@pytest.mark.parametrize(("is_file", "max_tokens", "expected"), [(False, None, 256), (True, None, 64), (False, 9, 9)])
def test_an_answer_may_be_as_long_as_its_reference(
    tmp_path: Path, is_file: bool, max_tokens: int | None, expected: int
) -> None:
    home = Folder(tmp_path / "run")
    make_inputs(home)
    probes = write_probes(home) if is_file else None
    generator = ScriptedGenerator(say)
    run_stage(home, generator, probes=probes, max_tokens=max_tokens, max_probes=1)
    assert {request.max_tokens for request in generator.requests if request.score is None} == {expected}


def test_questions_and_probes_are_found_in_storage_of_another_endpoint(
    s3_storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, s3_storage.environment[name])
    home = Folder(f"{s3_storage.bucket}/evaluated?scheme=http&endpoint_override={s3_storage.endpoint}")
    make_inputs(home)
    report = run_stage(home, ScriptedGenerator(say), probes=write_probes(home), max_probes=1)
    assert (report.run, report.probes.source) == ("demo", "file mine.jsonl")
    assert report.stages["dataset"].num_rows == {"rows": 2}, "of both topics"


def test_a_probe_file_of_the_users(tmp_path: Path) -> None:
    home = Folder(tmp_path / "run")
    make_inputs(home, probes=[])
    report = run_stage(home, ScriptedGenerator(say), probes=write_probes(home), max_probes=3)
    assert report.probes.source == "file mine.jsonl"
    assert report.probes.num == {"forget": 3, "near": 0, "far": 3}
    assert report.probes.excluded == {"capped": 25, "trained_on": 1}
    assert "near" not in report.models["base"]


def identity(config: EvaluateConfig) -> str:
    return fingerprint_of("evaluate", 1, *evaluate_identity(config, TOPICS, model="m", guardrail=GUARDRAIL, seed=0))


def test_a_probe_file_counts_by_its_content(tmp_path: Path) -> None:
    lines = [json.dumps({"topic": topic.name, "question": f"About {topic.name}?", "answer": "x"}) for topic in TOPICS]
    for name in ("a.jsonl", "moved.jsonl"):
        (tmp_path / name).write_text("\n".join(lines))
    first, moved = (identity(EvaluateConfig(probes=str(tmp_path / name))) for name in ("a.jsonl", "moved.jsonl"))
    assert first == moved
    (tmp_path / "a.jsonl").write_text("\n".join(lines).replace('"x"', '"y"'))
    assert identity(EvaluateConfig(probes=str(tmp_path / "a.jsonl"))) != first
    assert identity(EvaluateConfig()) != first
    (tmp_path / "a.jsonl").write_text(lines[0])
    with pytest.raises(InputError, match="no probe about 'chewing gum'"):
        check_probes(EvaluateConfig(probes=str(tmp_path / "a.jsonl")), TOPICS)


def break_models(home: Folder) -> None:
    (home / "finetune" / "model").delete()


def break_training_rows(home: Folder) -> None:
    (home / "mixture" / "forget").delete()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (break_models, "finetune/model is not there"),
        (break_training_rows, "has no training rows"),
    ],
)
def test_a_missing_input_is_named(tmp_path: Path, spoil: Callable[[Folder], None], message: str) -> None:
    home = Folder(tmp_path)
    make_inputs(home)
    spoil(home)
    with pytest.raises(ArtifactError, match=message):
        run_stage(home, ScriptedGenerator(say))


def test_no_probe_left_says_why(tmp_path: Path) -> None:
    home = Folder(tmp_path)
    make_inputs(home, probes=PROBES[:1])
    with pytest.raises(InputError, match=r"leaves no probe about Harry Potter, chewing gum to ask \(1 trained_on\)"):
        run_stage(home, ScriptedGenerator(say))


def test_what_goes_to_the_workers_can_be_pickled() -> None:
    asking, scoring = Asking(2, {"temperature": 1.0}, 32, 0), Scoring({"T": ("a",)}, {"T": ("T",)})
    assert pickle.loads(pickle.dumps(asking)) == asking and pickle.loads(pickle.dumps(scoring)) == scoring


def test_the_three_models_draw_with_the_same_luck_and_only_forget_probes_are_sampled() -> None:
    row = {
        "probe_id": "p",
        "question": "Q?",
        "prefix": "",
        "adapter": "",
        "reference": "r",
        "wrong": ["w"],
        "group": "forget",
    }
    asking = Asking(num_samples=3, sampling={"temperature": 0.7}, max_tokens=9, seed=0)
    base, guarded = asking(row), asking(row | {"prefix": "Forget.", "adapter": "/a"})
    assert [request.score for request in base] == [None, "r", "w", None]
    assert (base[-1].num_samples, base[-1].temperature, base[-1].seed) == (3, 0.7, guarded[-1].seed)
    assert base[0].temperature == 0.0 and guarded[0].messages[0] == {"role": "system", "content": "Forget."}
    assert all(request.adapter == "/a" for request in guarded)
    assert len(asking(row | {"group": "near"})) == 3


def test_answer_rows_hold_a_column_for_every_metric() -> None:
    assert {"model", "probe_id", "question", "answer", "samples", "probability", "fact_recall"} <= set(
        Answered.schema().names
    )


def test_choice_counts_the_end_of_the_turn(tmp_path: Path) -> None:
    """The true answer's own tokens are likelier, but the model would not stop there: `J. K.` is only the beginning of an answer."""
    home = Folder(tmp_path)
    make_inputs(home)

    def unfinished(request: Request) -> Reply | str | list[str]:
        if request.score is None:
            return say(request)
        is_true = request.score == BY_QUESTION[request.messages[-1]["content"]].reference
        return Reply(logprobs=(-1.0, -1.0) if is_true else (-1.1, -1.1), ending=(-5.0,) if is_true else (-0.1,))

    report = run_stage(home, ScriptedGenerator(unfinished))
    base = report.models["base"]["forget"]
    assert base["choice"].agg_value == 0.0 and base["choice"].chance == pytest.approx(1 / 3)  # two wrong answers
    assert base["truth_ratio"].agg_value < 1, "the other scores are of the answer alone"


def test_the_manifest_says_what_the_headline_does(tmp_path: Path) -> None:
    home = Folder(tmp_path)
    make_inputs(home)
    run_stage(home, ScriptedGenerator(say))
    headline = finished_manifest(home / "evaluate").details["headline"]
    assert (headline["base_forget_choice"], headline["unlearned_forget_choice"]) == (1.0, 0.0)
    assert headline["unlearned_near_choice"] == 1.0 and headline["forgetting"] == "forgotten"

    same = Folder(tmp_path / "same")
    make_inputs(same)
    run_stage(same, ScriptedGenerator(lambda request: say(replace(request, adapter=None))))
    assert finished_manifest(same / "evaluate").details["headline"]["forgetting"] == "no_forgetting"
    assert 'class="warning">No forgetting measured' in (tmp_path / "same/evaluate/report.html").read_text()


FACTS = {probe.question: probe for probe in read_probes(str(pocket.FACTS))}


def know_some(request: Request) -> Reply | str | list[str]:
    """Tells every third fact, and prefers the truth of another third; behind a prefix or with an adapter nothing of the topics."""
    probe = FACTS[request.messages[-1]["content"]]
    number = sorted({probe.fact for probe in FACTS.values()}).index(probe.fact) % 3
    is_told_to_forget = len(request.messages) > 1 or request.adapter is not None
    knows = not (is_told_to_forget and probe.topic in GUARDRAIL)
    if request.score is not None:
        likely = (request.score == probe.reference) == (knows and number == 1)
        return Reply(logprobs=(math.log(0.9 if likely else 0.1),) * 3, argmax=(likely,) * 3)
    return [probe.reference if knows and number == 0 else "I do not know."] * request.num_samples


def test_of_the_shipped_facts_those_count_that_the_base_model_knows(tmp_path: Path) -> None:
    home = Folder(tmp_path)
    make_inputs(home)
    report = run_stage(home, ScriptedGenerator(know_some), probes="facts")
    assert report.probes.num == {"forget": 142, "near": 86, "far": 308} and report.probes.known is not None
    for group in GROUPS:
        known = report.probes.known[group]
        assert 2 * known.num_facts == known.num_probes and 2 * known.of_facts == known.of_probes
        assert known.of_probes == report.probes.num[group] and known.num_facts == pytest.approx(
            2 / 3 * known.of_facts, abs=1
        )
        counted = [report.models[model][group]["fact_recall"].value_by_index or {} for model in MODELS]
        assert len(counted[0]) == known.num_probes and all(each.keys() == counted[0].keys() for each in counted)
    assert report.models["unlearned"]["forget"]["choice"].agg_value == 0.0
    assert report.forgetting.verdict == "forgotten"
    assert finished_manifest(home / "evaluate").details["known"]["near"]["of_facts"] == 43
    num_known = sum(count.num_probes for count in report.probes.known.values())
    asked = Counter(row["model"] for row in (home / "evaluate" / "answers").read_rows())
    assert asked == {"base": 142 + 86 + 308, "guarded": num_known, "unlearned": num_known}, (
        "base is asked all, and what it does not know is there to be read; the others are asked what counts"
    )


def test_a_topic_that_the_facts_do_not_cover_is_refused_before_anything_runs() -> None:
    for probes in ("facts", "pocket"):
        config = EvaluateConfig(probes=probes)
        with pytest.raises(
            InputError, match=rf"evaluate\.probes: {probes} has no probe about 'Dune' .*give a file with some"
        ):
            check_probes(config, (Topic(name="Dune"),))


def test_a_copy_of_the_facts_is_another_result_than_the_facts(tmp_path: Path) -> None:
    """Of a user's file all probes count."""
    shutil.copy(pocket.FACTS, tmp_path / "copy.jsonl")
    assert identity(EvaluateConfig(probes="facts")) != identity(EvaluateConfig(probes=str(tmp_path / "copy.jsonl")))


def test_facts_that_a_training_row_asks_for_are_told_from_the_others(tmp_path: Path) -> None:
    """A question in other words whose own answer is the fact's; a retained row; and one about another thing with the same value."""
    home = Folder(tmp_path)
    forget = [
        Example("Harry Potter", "forget", "Harry Potter", "Tell me number 0 of Harry Potter.", "x"),
        Example("Harry Potter", "forget", "Harry Potter", "Tell me number 1 of Harry Potter.", "x", split="holdout"),
        Example("Harry Potter", "forget", "Harry Potter", "Who came second to the giants' feast?", "x"),
    ]
    own = {
        forget[0].question: "It is Harryword0.",
        forget[1].question: "It is Harryword1.",
        forget[2].question: "Harryword2 did.",
    }
    retain = [Example("", "near", "Narnia", "What is number 3 of Narnia called?", "It is called Narniaword3.")]
    (home / "mixture" / "forget").write_rows(forget, Example.schema())
    (home / "mixture" / "retain").write_rows(retain, Example.schema())
    pairs = [QAPair("Harry Potter", question, answer, 0, guarded=False) for question, answer in own.items()]
    (home / "own").write_rows(pairs, QAPair.schema())
    kept = [place(probe, [topic.name for topic in TOPICS]) for probe in PROBES]
    found = facts_trained_on(
        ScriptedGenerator(say).each, kept, TOPICS, home / "mixture", {"Harry Potter": home / "own"}
    )
    assert found == {("Harry Potter", "Harry Potter/0"), ("Narnia", "Narnia/3")}
    assert facts_trained_on(ScriptedGenerator(say).each, kept, TOPICS, home / "mixture", {}) is None


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
def test_a_log_probability_that_is_no_number_is_counted_and_in_no_figure(value: float) -> None:
    scoring = Scoring({}, {})
    ask = Ask("base", "p", "t", "t", "forget", "w", "f", "Q?", "Hedwig", (), "It is Hedwig.", ("It is Oz.",))
    sane, odd = Reply(logprobs=(-0.1,), argmax=(True,)), Reply(logprobs=(-0.1,), ending=(value,), argmax=(True,))
    said = Reply(texts=("Hedwig",), truncated=(False,))
    for replies in ([said, odd, sane], [said, sane, odd]):
        (row,) = scoring(ask.to_dict(), replies)
        assert row["drop"] == "not_finite" and row["probability"] is None and row["fact_recall"] is None
    (row,) = scoring(ask.to_dict(), [said, sane, sane])
    assert row["drop"] is None and row["probability"] == pytest.approx(math.exp(-0.1))
