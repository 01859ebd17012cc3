"""The table of metrics: a new one is a function and a row, and is then everywhere."""

import ast
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unlearn_ray.evals.scoring import Answered, Ask, ModelName, Said, Score, score_answer
from unlearn_ray.evals.table import MEASURES, per_answer
from unlearn_ray.evals.tally import Tally

ROOT = Path(__file__).parents[2]
FUNCTION = '''

def num_letters(answer: str) -> float:
    """Letters of the answer, at most 10, over 10."""
    return min(10, len(answer)) / 10
'''
ROW = """    Measure("num_letters", metrics.num_letters, "Letters said", "letters, at most ten", "none", ("answer",), column=("letters", "said")),
)  # fmt: skip

MEASURES"""
# Scores two answers of each model, and shows the report in each of its forms.
SHOW = """
import io, json, sys
sys.path.insert(0, sys.argv[1])
from rich.console import Console
from unlearn_ray.config import EvaluateConfig
from unlearn_ray.evals.html import render
from unlearn_ray.evals.probes import Selection
from unlearn_ray.evals.report import summary_table
from unlearn_ray.evals.scoring import MODELS, Answered, Ask, Score, score_answer
from unlearn_ray.evals.tally import make_report
import figures

asks = [Ask(m, f"p{i}", "Dune", "Dune", "forget", "first", f"f{i}", "Q?", "Arrakis", (), "Arrakis", ()) for m in MODELS for i in (1, 2)]
rows = [score_answer(ask, (), (), answer="Arrakis", samples=[]).to_dict() for ask in asks]
assert "num_letters" in Answered.schema().names
report = make_report([Score.of(row) for row in rows], EvaluateConfig(num_bootstrap=20), run="r", model="m", topics=["Dune"],
    selection=Selection([], []), unanswered={}, losses={}, stages={}, seed=0)
console = Console(width=120, record=True, file=io.StringIO())
console.print(summary_table(report))
saved = json.loads(report.model_dump_json())
print(json.dumps({
    "value": report.models["unlearned"]["forget"]["num_letters"].agg_value,
    "table": "letters" in console.export_text(), "page": "Letters said" in render(report, []),
    "json": saved["metrics"]["num_letters"]["title"], "demo": any(row[0] == "Letters said" for row in figures.scores(saved, "forget")),
}))
"""


def test_a_new_metric_is_a_function_and_a_row(tmp_path: Path) -> None:
    """In a copy of the package, of which those two files alone are changed, it stands in rows, report, table, page and demo."""
    package, files = ROOT / "unlearn_ray", ["metrics.py", "table.py"]
    copy = tmp_path / "unlearn_ray"
    shutil.copytree(package / "evals", copy / "evals", ignore=shutil.ignore_patterns("__pycache__"))
    for each in package.iterdir():
        if each.name != "evals":
            (copy / each.name).symlink_to(each)
    metrics, table = (copy / "evals" / name for name in files)
    metrics.write_text(metrics.read_text() + FUNCTION)
    table.write_text(table.read_text().replace(")  # fmt: skip\n\nMEASURES", ROW))
    changed = [path.name for path in sorted((copy / "evals").glob("*.py")) if path.read_text() != (package / "evals" / path.name).read_text()]  # fmt: skip
    assert changed == files
    command = [sys.executable, "-c", SHOW, str(ROOT / "demo")]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=240, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"value": 0.7, "table": true, "page": true, "json": "Letters said", "demo": true' in done.stdout


def test_no_other_module_lists_metrics() -> None:
    """One that names three or more of them in one list, tuple, set or dict would have to be told of a new one."""
    found = []
    for path in [*(ROOT / "unlearn_ray").rglob("*.py"), *(ROOT / "demo").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            items = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", ())
            named = {str(each.value) for each in items if isinstance(each, ast.Constant)} & MEASURES.keys()
            if len(named) > 2 and path.name != "table.py":
                found.append((path.name, sorted(named)))
    assert found == [("tally.py", ["probability", "rouge_l_recall", "truth_ratio"])], "the terms of the utility alone"


def test_every_row_says_what_it_needs() -> None:
    inputs = {*Said.__slots__, *MEASURES}
    for measure in MEASURES.values():
        assert set(measure.needs) <= inputs, measure.name
        assert measure.title and measure.meaning and measure.range[0] < measure.range[1]
        assert measure.function.__doc__, f"{measure.name}: formula and source"
    assert {row.name for row in per_answer()} <= set(Answered.schema().names)


@pytest.mark.parametrize("name", ["fact_recall", "rouge_l_recall", "choice"])
def test_headline_metrics_have_a_short_name(name: str) -> None:
    assert MEASURES[name].short in ("recall", "choice")


def test_references_that_a_model_prefers_look_like_members() -> None:
    """Base finds each reference likelier than any wrong answer, the unlearned model neither; its own base is no reference for base."""
    scores = []
    likely: dict[ModelName, tuple[float, float]] = {
        "base": (-0.1, -2.0),
        "guarded": (-0.1, -2.0),
        "unlearned": (-1.0, -1.0),
    }
    for model, (truth, wrong) in likely.items():
        for i in range(12):
            ask = Ask(model, f"p{i}", "Dune", "Dune", "forget", "w", f"f{i}", "Q?", "Arrakis", (), "It is Arrakis.", ("It is Oz.", "It is Narnia."))  # fmt: skip
            said = score_answer(
                ask, (), (), answer="Arrakis", samples=[], logprobs=[truth, truth], wrong_logprobs=[[wrong] * 2] * 2
            )
            scores.append(Score.of(Answered.of(said.to_dict()).to_dict()))
    models = Tally(scores, 200, 0).models()
    found = {model: models[model]["forget"] for model in likely}
    for name in ("mia_loss", "mia_min_k"):
        assert (found["base"][name].agg_value, found["unlearned"][name].agg_value) == (1.0, 0.5)
        assert found["base"][name].num == 12 and found["base"][name].floor == 0.5
    assert found["base"]["mia_zlib"].agg_value == 1.0
    assert "mia_reference" not in found["base"]
    # Less likely than by base, where the wrong answers became likelier: what was unlearned stands out.
    assert (found["guarded"]["mia_reference"].agg_value, found["unlearned"]["mia_reference"].agg_value) == (0.5, 0.0)


def test_floors_are_those_of_wrong_answers_in_the_form_of_the_reference() -> None:
    ask = Ask(
        "base",
        "p",
        "Dune",
        "Dune",
        "forget",
        "w",
        "f",
        "Q?",
        "Arrakis",
        (),
        "It is Arrakis.",
        ("It is Oz.", "It is Narnia."),
    )
    said = score_answer(
        ask, (), (), answer="It is Arrakis.", samples=["Arrakis"], logprobs=[math.log(0.9)], argmax=[True, True, True],
        wrong_logprobs=[[math.log(0.2)], [math.log(0.4)]], wrong_argmax=[[True, True, False], [False, False, True]],
    )  # fmt: skip
    assert said.floors == pytest.approx({
        "fact_recall": 0.0, "rouge_l_recall": 2 / 3, "sampled_recall": 0.0, "probability": 0.3, "truth_ratio": 1.0, "choice": 1 / 3,
        "exact_memorisation": 0.5, "extraction_strength": 1 / 6,
    })  # fmt: skip
    assert Answered.of(said.to_dict()) == said
