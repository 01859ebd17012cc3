"""The figures in the documents are those that the plan works out."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_figures_of_the_8b_configs_are_computed() -> None:
    """`python scripts/plan_tables.py` writes them anew."""
    spec = importlib.util.spec_from_file_location("plan_tables", ROOT / "scripts" / "plan_tables.py")
    assert spec is not None and spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    page = (ROOT / "docs" / "cluster.md").read_text()
    assert tables.BEGIN in page and tables.END in page
    assert tables.with_figures(page) == page
    assert "2 x 96.4 GB" in page
