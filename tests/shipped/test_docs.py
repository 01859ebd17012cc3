"""The documents keep up with the code."""

import ast
import re
from pathlib import Path
from typing import get_args

from pydantic import BaseModel

from unlearn_ray import config
from unlearn_ray.config import ClusterConfig, RunConfig, Topic
from unlearn_ray.evals.table import MEASURES
from unlearn_ray.plan import plan
from unlearn_ray.serving.environment import SERVE_ENVIRONMENT
from unlearn_ray.serving.settings import ServiceSettings

ROOT = Path(__file__).parents[2]


def keys_of(model: type[BaseModel]) -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        for nested in get_args(field.annotation) or (field.annotation,):  # a section may be of several kinds
            if isinstance(nested, type) and issubclass(nested, BaseModel) and name not in {"weights"}:
                found |= {f"{name}.{key}" for key in nested.model_fields}
        found.add(name)
    return found


def test_every_key_of_the_configuration_is_documented() -> None:
    text = (ROOT / "docs" / "config.md").read_text()
    documented = set(re.findall(r"`([a-z_.]+)`", text))
    for name, field in RunConfig.model_fields.items():
        section = Topic if name == "topics" else ClusterConfig if name == "cluster" else field.annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            assert name in documented, name
            continue
        containers = {key.split(".")[0] for key in keys_of(section) if "." in key}
        compound = {"retain.kind", "retain.weight"}  # shown as one value
        missing = keys_of(section) - documented - (containers - {"retain"}) - compound - {"retain"}
        assert not missing, f"{name}: {sorted(missing)}"


def test_the_readmes_own_topic_can_be_planned_as_it_stands(tmp_path: Path) -> None:
    """On the pocket model: the one it names must be downloaded."""
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    file = tmp_path / "dune.yaml"
    file.write_text(text)
    assert config.load(file).model == "Qwen/Qwen2.5-0.5B-Instruct"
    planned = plan(config.load(file, ["model=pocket", f"output={tmp_path}"]))
    assert {state for stage in planned.stages for state in stage.states.values()} == {"fresh"}


def test_every_relative_link_of_the_documents_leads_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_file_that_a_document_or_a_shipped_file_names_is_there() -> None:
    """Such as in a command that a person copies."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile", *(ROOT / "docs").rglob("*.md")]
    pages += [
        path
        for folder in ("cluster", "serve", "jobs", "scripts")
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
    ]
    folders = "benchmarks|cluster|demo|docs|jobs|locks|scripts|serve|tests|unlearn_ray"
    named = re.compile(rf"(?<![\w/.])(?:{folders})/[\w./-]+\.(?:yaml|py|sh|txt|jsonl|json|md)\b")
    found = {(page.name, name) for page in pages for name in named.findall(page.read_text(errors="ignore"))}
    assert len(found) > 30
    assert sorted((page, name) for page, name in found if not (ROOT / name).exists()) == []


def test_every_metric_is_documented() -> None:
    documented = set(re.findall(r"`([a-z_]+)`", (ROOT / "docs" / "metrics.md").read_text()))
    assert not MEASURES.keys() - documented


def test_every_setting_of_the_service_is_documented() -> None:
    documented = set(re.findall(r"`([a-z_.]+)`", (ROOT / "docs" / "serving.md").read_text()))
    assert not keys_of(ServiceSettings) - {"chat", "engine", "scaling", "limits"} - documented


def test_every_error_code_of_the_service_is_documented() -> None:
    documented = set(re.findall(r"`([a-z_]+)`", (ROOT / "docs" / "serving.md").read_text()))
    codes = set()
    for path in (ROOT / "unlearn_ray" / "serving").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"Refusal", "error_body"}:
                codes |= {argument.value for argument in node.args[2:3] if isinstance(argument, ast.Constant)}
    assert len(codes) > 10
    assert not codes - documented


def test_every_variable_of_the_fast_path_is_documented() -> None:
    text = (ROOT / "docs" / "serving.md").read_text()
    assert [name for name, value in SERVE_ENVIRONMENT.items() if f"`{name}={value}`" not in text] == []
