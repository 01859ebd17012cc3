"""The page of all topics and models: its columns are sorted whatever stands in them."""

import json
import shutil
import subprocess

import pytest

from unlearn_ray.evals.html import asset
from unlearn_ray.evals.overview import Line

# As much of a page as the script touches.
PAGE = """
const cell = (text) => ({ textContent: text, dataset: {} });
const body = { rows: TEXTS.map((text) => ({ cells: [cell(text)] })), append(...rows) { this.rows = rows; } };
let click;
const head = {
  textContent: "figure", attributes: {}, replaceChildren() {},
  getAttribute(name) { return this.attributes[name]; },
  setAttribute(name, value) { this.attributes[name] = value; },
  removeAttribute(name) { delete this.attributes[name]; },
};
globalThis.document = {
  querySelectorAll: () => [{ tBodies: [body], tHead: { rows: [{ cells: [head] }] } }],
  createElement: () => ({ addEventListener: (name, then) => { click = then; } }),
};
"""
AFTER = """
const shown = () => body.rows.map((row) => row.cells[0].textContent);
click(); const rising = shown(); click();
console.log(JSON.stringify([rising, shown()]));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
@pytest.mark.parametrize(
    ("texts", "rising", "falling"),
    [
        (
            ["10", "–", "b", "9", "", "a", "-3.5", "1,200", "80 %"],
            ["-3.5", "9", "10", "80 %", "1,200", "a", "b", "–", ""],
            ["b", "a", "1,200", "80 %", "10", "9", "-3.5", "–", ""],
        ),
        (
            ["Topic 10", "topic 9", "Ähre", "—"],
            ["Ähre", "topic 9", "Topic 10", "—"],
            ["Topic 10", "topic 9", "Ähre", "—"],
        ),
    ],
    ids=["numbers and text", "text"],
)
def test_a_mixed_column_is_sorted_by_numbers_then_text_and_what_is_missing_comes_last(
    texts: list[str], rising: list[str], falling: list[str]
) -> None:
    script = PAGE.replace("TEXTS", json.dumps(texts)) + asset("index.js") + AFTER
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == [rising, falling]


def test_a_figure_that_is_not_there_is_sorted_as_none() -> None:
    line = Line("mine", "model", "joint", "finished", "evaluate", figures={"base_near": 0.5, "forgetting": "forgotten"})
    assert (line.value("base_near"), line.value("base_far"), line.value("forgetting")) == (0.5, "", "")
