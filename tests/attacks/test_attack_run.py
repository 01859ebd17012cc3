"""Attacks on a finished run, whose engines are scripted: what they measure, write, skip and resume."""

import io
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from attacked_run import RULERS, Engines, finished, home_of, knows
from rich.console import Console
from typer.testing import CliRunner

from unlearn_ray.artifacts import Folder, read_manifest
from unlearn_ray.attacks import table
from unlearn_ray.attacks.attack import AttackedModel, Hit, Setup
from unlearn_ray.attacks.context import Context, Options
from unlearn_ray.attacks.figures import AttackFigures, AttackReport, Figure, figures_of
from unlearn_ray.attacks.page import table as worst_table
from unlearn_ray.attacks.page import verdict
from unlearn_ray.attacks.prompt import WORST
from unlearn_ray.attacks.running import Hooks, Job, chosen, contexts_of, jobs_of, perform, write_report
from unlearn_ray.attacks.table import ATTACKS, Attack
from unlearn_ray.attacks.templates import load_kinds
from unlearn_ray.cli import app
from unlearn_ray.config import ChatConfig, RunConfig
from unlearn_ray.engines.protocols import Reply, Request
from unlearn_ray.errors import ConfigError, EngineError, InputError
from unlearn_ray.evals import attacked as reading
from unlearn_ray.evals.attacked import read_attacks, worst_of
from unlearn_ray.stages.evaluate import PROBE_TOKENS

FEW = ("plain", "answer_prefill", "multiple_choice", "best_of_32")
PROMPT = next(attack for attack in ATTACKS if attack.name == "prompt")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return finished(tmp_path_factory.mktemp("made"))


@pytest.fixture
def config(made: RunConfig, tmp_path: Path) -> RunConfig:
    """A copy of the finished run, at another place."""
    shutil.copytree(made.folder.local, tmp_path / "mine")
    return made.model_copy(update={"output": str(tmp_path)})


def context_of(config: RunConfig, **options: object) -> Context:
    """Of few kinds of prompts, unless the options name a file."""
    if "prompts" not in options:
        file = config.folder.parent.local / "few.yaml"
        file.write_text("".join(f"{name}: null\n" for name in load_kinds(None) if name not in FEW))
        options["prompts"] = str(file)
    (context,) = contexts_of(config, [home_of(config)], Options(**options))  # type: ignore[arg-type]
    return context


def attacked(config: RunConfig, engines: Engines, *attacks: Attack, **options: object) -> AttackReport:
    context = context_of(config, **options)
    failures = perform([Job(attack, context) for attack in attacks or (PROMPT,)], lambda: engines, Hooks())
    if failures:
        raise failures[0][1]
    return write_report(context)


def gives_in(request: Request) -> Reply | str:
    """Unlearned, but for two facts: one where its answer is begun, one in one of 32 samples."""
    if request.adapter and request.score is None:
        if request.messages[-1] == {"role": "assistant", "content": "The ruler of part 1 is"}:
            return " Paul."
        if request.num_samples == 32 and "part 2" in request.messages[-1]["content"]:
            return Reply(("Nobody.",) * 31 + ("It is Ghanima.",), (False,) * 32)
    return knows(request)


def test_prompts_bring_back_what_at_least_one_kind_brings_back(config: RunConfig) -> None:
    report = attacked(config, Engines(gives_in))
    found = report.of("prompt")
    assert found is not None

    def recall(setting: str, model: str = "unlearned") -> float:
        (figure,) = [
            each for each in found.figures if (each.setting, each.model, each.metric) == (setting, model, "recall")
        ]
        assert figure.interval[0] <= figure.value <= figure.interval[1] and figure.num == figure.num_facts == len(
            RULERS
        )
        return figure.value

    assert recall("plain", "base") == 1.0 and recall("plain") == recall("plain", "guarded") == 0.0
    assert recall("answer_prefill") == recall("best_of_32") == pytest.approx(1 / 6)
    assert recall(WORST) == pytest.approx(2 / 6) and recall(WORST, "base") == 1.0
    worst = worst_of(found.figures, "recall")
    assert worst is not None and worst.setting == WORST
    told = [
        row
        for row in (home_of(config) / "attacks/prompt/answers").read_rows()
        if row["model"] == "unlearned" and row["value"]
    ]
    assert {(row["kind"], row["answers"][0]) for row in told if not row["gives_answer"]} == {
        ("answer_prefill", "The ruler of part 1 is Paul."),
        ("best_of_32", "It is Ghanima."),
    }


def test_the_page_and_the_report_tell_what_came_back(config: RunConfig) -> None:
    attacked(config, Engines(gives_in))
    home = home_of(config)
    page = (home / "attacks").read_text("attacks.html")
    assert "tells 33 % of the facts (base: 100 %" in page and "<svg" in page and "any kind" in page
    assert "The ruler of part 1 is <mark>Paul</mark>." in page
    assert "://" not in page.replace("http://www.w3.org/", ""), "a page needs no network"
    assert '<a href="../attacks/attacks.html">' in (home / "evaluate").read_text("report.html")
    found = json.loads((home / "attacks").read_text("attacks.json"))
    assert found["finetune"] == read_manifest(home / "finetune").fingerprint  # type: ignore[union-attr]


def test_markup_in_prompts_and_answers_is_text(config: RunConfig) -> None:
    def said(request: Request) -> Reply | str:
        return "<script>Leto</script>" if request.score is None else knows(request)

    attacked(config, Engines(said))
    page = (home_of(config) / "attacks").read_text("attacks.html")
    assert "&lt;script&gt;" in page and "<script>" not in page


def test_a_finished_attack_is_skipped_and_an_interrupted_one_goes_on(config: RunConfig) -> None:
    broken = Engines(gives_in, fail_after=32)
    with pytest.raises(EngineError, match="the script ends here"):
        attacked(config, broken)
    again = Engines(gives_in)
    first = attacked(config, again)
    assert again.evaluator.calls[0].num_resumed == 32
    idle = Engines(gives_in)
    assert attacked(config, idle) == first and idle.evaluator.calls == []
    attacked(config, idle, num_facts=2)
    assert idle.evaluator.calls[0].num_resumed == 0, "another number of facts is another attack"


def test_the_facts_that_are_asked_are_chosen_by_hash_and_capped(config: RunConfig) -> None:
    assert len(context_of(config).few) == len(RULERS)
    few = context_of(config, num_facts=2).few
    assert len(few) == 2 and {placed.probe.id for placed in few} < {
        placed.probe.id for placed in context_of(config).few
    }


def test_a_twin_is_asked_as_another_model(config: RunConfig) -> None:
    engines = Engines(lambda request: "Nobody rules it.")
    report = attacked(config, engines, twin="never/knew")
    assert [call.model for call in engines.evaluator.calls] == [None, "never/knew"]
    assert any(each.model == "twin" for each in report.attacks[0].figures)


def test_a_full_fine_tune_is_asked_on_engines_of_its_own(tmp_path: Path) -> None:
    config = finished(tmp_path, finetune={"weights": {"kind": "full"}})
    engines = Engines()
    attacked(config, engines, num_facts=1)
    assert [call.model for call in engines.evaluator.calls] == [None, str(home_of(config) / "finetune" / "model")]
    assert {target.name: target.path for target in context_of(config).setup().targets}["unlearned"].endswith(
        "finetune/model"
    )


# An attack of its own, as a module with `run`: what a new one takes.


def run(setup: Setup) -> Iterator[Hit]:
    setup.on_progress("dummy", 1, 1)
    for target in setup.targets:
        for at in (1.0, 2.0):
            for placed in setup.untaught:
                probe = placed.probe
                value = 0.0 if target.name == "unlearned" and at == 1.0 else 1.0
                yield Hit("dummy", "only", target.name, at, "recall", probe.id, probe.fact_id, value)


DUMMY = Attack("dummy", "process", 1, __name__, "does nothing", "steps")


def test_a_new_attack_is_a_module_and_a_line(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("running", "table"):
        monkeypatch.setattr(f"unlearn_ray.attacks.{module}.ATTACKS", (*ATTACKS, DUMMY))
    assert chosen("dummy, prompt") == [PROMPT, DUMMY]
    engines = Engines()
    report = attacked(config, engines, PROMPT, DUMMY)
    assert engines.labels == ["attack dummy"]
    found = report.of("dummy")
    assert found is not None and [(each.model, each.at, each.value, each.num) for each in found.figures] == [
        ("base", 1.0, 1.0, 3),
        ("base", 2.0, 1.0, 3),
        ("unlearned", 1.0, 0.0, 3),
        ("unlearned", 2.0, 1.0, 3),
    ]
    page = (home_of(config) / "attacks").read_text("attacks.html")
    assert "Dummy" in page and "2 steps" in page
    assert attacked(config, engines, DUMMY) == report and engines.labels == ["attack dummy"]


def test_each_attack_of_the_table_says_what_it_is() -> None:
    names = [attack.name for attack in ATTACKS]
    assert tuple(names) == reading.ATTACKS, "a gate can ask for each of them"
    assert all(attack.summary and attack.module.startswith("unlearn_ray.attacks.") for attack in ATTACKS)


def test_an_attacker_knows_one_half_of_the_facts_and_is_measured_on_the_other(config: RunConfig) -> None:
    setup = context_of(config).setup()
    assert [target.name for target in setup.targets] == ["base", "unlearned"]
    taught = {answer for _, answer in setup.taught}
    untaught = {placed.probe.reference for placed in setup.untaught}
    assert len(taught) == len(untaught) == 3 and not taught & untaught
    assert len(setup.probes) == 6 and setup.unrelated and setup.near
    assert context_of(config).setup() == setup


def test_attacks_in_one_process_ask_as_the_evaluation_did(config: RunConfig) -> None:
    chat = ChatConfig(prefix="user", template_arguments={"enable_thinking": False})
    evaluate = config.evaluate.model_copy(update={"max_tokens": 300})
    setup = context_of(config.model_copy(update={"chat": chat, "evaluate": evaluate})).setup()
    assert (setup.chat, setup.max_tokens) == (chat, 300)
    assert context_of(config).setup().max_tokens == PROBE_TOKENS


def test_a_twin_is_known_by_what_is_in_its_folder(tmp_path: Path) -> None:
    def identities(home: str) -> list[Mapping[str, object]]:
        return [attack.identity(Options(twin=str(tmp_path / home / "twin"))) for attack in ATTACKS]

    twin = tmp_path / "here" / "twin"
    twin.mkdir(parents=True)
    (twin / "config.json").write_text("{}")
    (twin / "model.safetensors").write_bytes(b"weights")
    before = identities("here")
    shutil.copytree(twin, tmp_path / "there" / "twin")
    assert identities("there") == before
    (twin / "model.safetensors").write_bytes(b"another")
    assert all(new != old for new, old in zip(identities("here"), before, strict=True))
    assert not any(attack.identity(Options(twin="never/knew")) == attack.identity(Options()) for attack in ATTACKS)


def test_each_attack_is_tried_on_all_models_before_the_next(config: RunConfig) -> None:
    """Engines start once for all models: what works in one process ends them."""
    first, second = context_of(config), context_of(config, num_facts=2)
    jobs = jobs_of([PROMPT, DUMMY], [first, second])
    assert [(job.attack, job.context) for job in jobs] == [
        (PROMPT, first), (PROMPT, second), (DUMMY, first), (DUMMY, second),
    ]  # fmt: skip


def test_one_fact_alone_cannot_be_halved(config: RunConfig) -> None:
    context = context_of(config)
    alone = Context(context.unit, context.base, context.export, {}, context.probes[:1], [], [], Options())
    with pytest.raises(InputError, match="two facts of Dune"):
        alone.setup()


def test_one_failed_attack_stops_no_other(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Attack("absent", "process", 1, __name__, "fails", "steps")

    def fails(setup: Setup) -> Iterator[Hit]:
        raise EngineError("no memory")
        yield

    monkeypatch.setattr(Attack, "function", lambda self: fails if self is absent else run)
    context, told = context_of(config), []
    failures = perform(
        [Job(absent, context), Job(DUMMY, context)],
        Engines,
        Hooks(on_finish=lambda job, manifest, is_new: told.append(job.label)),
    )
    assert [(job.label, str(error)) for job, error in failures] == [("absent", "no memory")] and told == ["dummy"]


def test_figures_of_another_training_are_not_shown(config: RunConfig) -> None:
    attacked(config, Engines())
    home = home_of(config)
    assert read_attacks(home / "evaluate")
    manifest = json.loads((home / "finetune").read_text("manifest.json"))
    (home / "finetune").write_text("manifest.json", json.dumps(manifest | {"fingerprint": "another"}))
    assert read_attacks(home / "evaluate") == []


def test_a_rank_is_no_share() -> None:
    hits = [Hit("steer", "lens", "unlearned", 3.0, "rank", f"{i}", f"{i}", 40.0 + i) for i in range(4)]
    (figure,) = figures_of(hits, 100, 0)
    assert figure.value == pytest.approx((40 * 41 * 42 * 43) ** 0.25) and figure.interval[1] > 1 and not figure.is_share


def test_both_pages_tell_the_same_of_the_same_attack(config: RunConfig) -> None:
    def figure(setting: str, model: AttackedModel, value: float) -> Figure:
        return Figure(setting=setting, model=model, at=10, metric="recall", value=value, interval=(0.0, 1.0), num=30, num_facts=30)  # fmt: skip

    tried = [
        figure("full", "unlearned", 0.51),
        figure("lora", "unlearned", 0.22),
        figure("full", "base", 0.63),
        figure("lora", "base", 0.97),
        figure("full", "twin", 0.04),
        figure("lora", "twin", 0.08),
    ]
    relearn = AttackFigures(name="relearn", summary="taught", axis="steps", fingerprint="a", seconds=1, figures=tried)
    report = AttackReport(run="r", model="joint", topics=["Dune"], finetune="a", evaluate="b", attacks=[relearn])
    (line,) = reading.worst_of_each(
        [reading.AttackFigure(**each.model_dump(exclude={"num_facts"}), attack="relearn") for each in tried]
    )
    assert (line.base, line.twin) == ("97 %", "8 %")
    assert f"51 % of the facts (base: {line.base}, never knew: {line.twin})" in verdict(report)
    shown = Console(width=200, file=io.StringIO())
    shown.print(worst_table(report))
    assert re.findall(r"(\d+ %) \[", shown.file.getvalue()) == [line.base, "51 %", line.twin]  # type: ignore[attr-defined]


# The command itself.


def refused(folder: Path, *arguments: str) -> str:
    """The one line that it says, having written nothing."""
    before = sorted(path for path in folder.rglob("*"))
    result = CliRunner().invoke(app, ["attack", *arguments])
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.count("\n") == 1, result.stderr
    assert sorted(path for path in folder.rglob("*")) == before
    return result.stderr


def test_bad_input_is_one_line_and_nothing_is_written(config: RunConfig, tmp_path: Path) -> None:
    folder = str(config.folder)
    assert "is not a run" in refused(tmp_path, str(tmp_path / "nothing"))
    assert "no attack 'promt'" in refused(tmp_path, folder, "--only", "promt")
    assert "names no attack" in refused(tmp_path, folder, "--only", ",")
    assert "absent.yaml can't be read" in refused(tmp_path, folder, "--prompts", str(tmp_path / "absent.yaml"))
    assert "no/such/model is not there" in refused(tmp_path, folder, "--twin", "./no/such/model")
    (tmp_path / "mine.yaml").write_text("mine: {summary: x, user: '{questoin}'}")
    assert "mine.user" in refused(tmp_path, folder, "--prompts", str(tmp_path / "mine.yaml"))
    (config.folder.local / "models/joint/evaluate/manifest.json").unlink()
    assert "is unfinished" in refused(tmp_path, folder)


def test_the_command_attacks_a_run_wherever_it_lies(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    class Scripted(Engines):
        def __init__(self, config: RunConfig, *_: object, **__: object) -> None:
            super().__init__()

        def connect(self) -> None:
            pass

    monkeypatch.setattr("unlearn_ray.engines.run_engines.RunEngines", Scripted)
    monkeypatch.setattr("unlearn_ray.cli.console", Console(width=160))
    result = CliRunner().invoke(
        app, ["attack", str(config.folder), "--only", "prompt", "--facts", "1"], env={"COLUMNS": "160"}
    )
    assert result.exit_code == 0, (result.output, result.exception)
    assert "prompt: facts told" in result.stdout and "attacks.html" in result.stdout
    again = CliRunner().invoke(
        app, ["attack", str(config.folder), "--only", "prompt", "--facts", "1"], env={"COLUMNS": "160"}
    )
    assert again.exit_code == 0 and "skipped" in again.stdout


def test_an_attack_that_is_not_in_the_table() -> None:
    with pytest.raises(ConfigError, match="choose from prompt"):
        chosen("gcg")
    assert chosen(None) == list(ATTACKS) == list(table.ATTACKS)


def test_a_folder_of_attacks_is_not_taken_for_a_stage(config: RunConfig) -> None:
    attacked(config, Engines())
    from unlearn_ray.runs import evaluated, states

    folder = Folder(config.folder.uri)
    assert [home.parent.name for home in evaluated(folder)] == ["joint"]
    assert {each.state for each in states(folder)} == {"finished"}
