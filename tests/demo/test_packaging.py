"""The demo is on its own: over HTTP only, with dependencies that are declared and one module of ours, and carried by the wheel."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "demo"
FILES = sorted(DEMO.rglob("*.py"))


def imported(file: Path) -> set[str]:
    """The modules that a file imports, anywhere in it: the top-level ones of others, ours by their full names."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {_shown(name.name) for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{file}: relative import"
            names = (
                [f"unlearn_ray.{name.name}" for name in node.names] if node.module == "unlearn_ray" else [node.module]
            )
            found |= {_shown(name) for name in names}
    return found


def _shown(module: str) -> str:
    return module if module.startswith("unlearn_ray") else module.split(".")[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(DEMO)))
def test_the_demo_imports_nothing_but_itself_and_what_is_declared(file: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {Requirement(line).name for line in project["dependencies"]}
    own = {path.stem for path in DEMO.iterdir()}
    assert imported(file) - set(sys.stdlib_module_names) - own <= declared & {
        "altair",
        "httpx",
        "scipy",
        "streamlit",
    } | {
        "unlearn_ray.words"  # so that it marks what the report counts
    }


def test_the_wheel_carries_the_demo(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    files = [path for path in DEMO.rglob("*") if path.suffix in (".py", ".css")]
    assert {f"unlearn_ray/_demo/{path.relative_to(DEMO).as_posix()}" for path in files} <= names
    assert {
        "unlearn_ray/_demo/.streamlit/config.toml",
        "unlearn_ray/cli.py",
        "unlearn_ray/pocket/model/model.safetensors",
    } <= names
    assert not [name for name in names if name.startswith("demo/") or "__pycache__" in name]
