"""The service's files: what `serve deploy`, KubeRay and Grafana read, held to their schemas, to our settings and to each other."""

import importlib
import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import CLUSTER, DOCKERFILE, groups_of, manifest, read
from prometheus_client import CollectorRegistry
from ray.serve.schema import ServeDeploySchema

from unlearn_ray.serving.environment import SERVE_ENVIRONMENT
from unlearn_ray.serving.metrics import Metrics
from unlearn_ray.serving.names import full_route
from unlearn_ray.serving.settings import KEYS_VARIABLE, ServiceSettings, parse_settings

ROOT = Path(__file__).parents[2]
SERVE = ROOT / "serve"
CONFIGS = sorted(SERVE.glob("*.yaml"))


def deployed(path: Path) -> dict[str, Any]:
    values = yaml.safe_load(path.read_text())
    assert isinstance(values, dict)
    return values


# serve deploy


def test_the_service_has_its_yaml() -> None:
    assert [path.name for path in CONFIGS] == ["config.yaml", "with-full.yaml"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_serve_deploy_takes_the_file(path: Path) -> None:
    schema = ServeDeploySchema.model_validate(deployed(path))
    assert len({app.name for app in schema.applications}) == len(schema.applications)
    assert len({app.route_prefix for app in schema.applications}) == len(schema.applications)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_each_apps_builder_takes_its_args(path: Path) -> None:
    values = deployed(path)
    for app in values["applications"]:
        module, _, builder = app["import_path"].partition(":")
        assert callable(getattr(importlib.import_module(module), builder))
        settings = parse_settings(app["args"])
        assert settings.port == values["http_options"]["port"]
        assert not settings.allow_no_keys
        assert app["route_prefix"] == (full_route(settings.release) if settings.release else "/")


def test_the_file_shows_every_setting_of_the_engine_that_a_gpu_has_and_of_scale_and_limits() -> None:
    args = deployed(SERVE / "config.yaml")["applications"][0]["args"]
    without_a_gpu = {"kv_cache_gib", "num_cpus"}
    for section, left_out in (("engine", without_a_gpu | {"stream_interval"}), ("scaling", set()), ("limits", set())):
        fields = type(getattr(ServiceSettings(), section)).model_fields
        assert set(args[section]) == set(fields) - left_out


def test_a_full_fine_tune_stands_beside_the_same_service() -> None:
    alone, both = (deployed(SERVE / name) for name in ("config.yaml", "with-full.yaml"))
    full = both["applications"].pop()
    assert alone == both
    assert full["args"] == both["applications"][0]["args"] | {"release": full["args"]["release"]}


# Kubernetes


def test_kubernetes_runs_the_same_service() -> None:
    assert yaml.safe_load(manifest("rayservice")["spec"]["serveConfigV2"]) == deployed(SERVE / "config.yaml")


@pytest.mark.parametrize("name", ["raycluster", "rayjob", "rayservice"])
def test_ray_starts_in_every_pod_with_the_services_environment(name: str) -> None:
    for group in groups_of(name):
        given = {each["name"]: each.get("value") for each in group["template"]["spec"]["containers"][0]["env"]}
        assert SERVE_ENVIRONMENT.items() <= given.items()
        assert KEYS_VARIABLE in given


def test_what_counts_the_variables_counts_all_of_them() -> None:
    number = {10: "ten", 11: "eleven", 12: "twelve"}[len(SERVE_ENVIRONMENT)]
    said = re.compile(
        r"these (\w+): Ray Serve's fast path|(\w+) variables, which must stand|serving\.md's (\w+) variables"
    )
    places = [*CLUSTER.rglob("*.yaml"), *SERVE.glob("*.yaml"), ROOT / "docs" / "serving.md"]
    found = {
        path.name: [word.lower() for words in said.findall(path.read_text()) for word in words if word]
        for path in places
    }
    assert sum(map(len, found.values())) >= 6
    assert {name: words for name, words in found.items() if set(words) - {number}} == {}


def test_ray_starts_on_virtual_machines_with_the_services_environment() -> None:
    options = [shlex.split(option)[0] for option in read("aws.yaml")["docker"]["run_options"]]
    assert {f"--env={name}={value}" for name, value in SERVE_ENVIRONMENT.items()} <= set(options)


def test_the_image_holds_the_services_files() -> None:
    assert "COPY serve serve" in DOCKERFILE


# Grafana

DASHBOARD = json.loads((SERVE / "grafana.json").read_text())
_METRIC = re.compile(r"\b((?:unlearn_|vllm:)[a-z_:]+)")


def expressions() -> list[str]:
    variables = [each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    return variables + [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def exported() -> set[str]:
    """Every name in /metrics: ours from the registry, vLLM's from the source that declares them."""
    registry = CollectorRegistry()
    metrics = Metrics("r", registry)
    metrics.ended("base", 200, 1.0)
    metrics.first_token("base", 1.0)
    metrics.tokens("base", 1, 1)
    metrics.cut("base")
    ours = {sample.name for family in registry.collect() for sample in family.samples}
    found = find_spec("vllm")
    assert found is not None and found.submodule_search_locations
    source = (Path(found.submodule_search_locations[0]) / "v1" / "metrics" / "loggers.py").read_text()
    declared = set(re.findall(r'name="(vllm:[a-z_]+)"', source))
    return ours | declared | {f"{name}{suffix}" for name in declared for suffix in ("_total", "_bucket")}


def test_grafana_can_import_the_dashboard() -> None:
    assert DASHBOARD["schemaVersion"] >= 36 and DASHBOARD["title"] and DASHBOARD["uid"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids) >= 10
    assert all(panel["title"] and panel["type"] and panel["targets"] for panel in DASHBOARD["panels"])


def test_no_panel_covers_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x + place["x"], y + place["y"]) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_the_dashboard_asks_which_prometheus() -> None:
    names = {each["name"]: each["type"] for each in DASHBOARD["templating"]["list"]}
    assert names["datasource"] == "datasource"
    for panel in DASHBOARD["panels"]:
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    used = {name for text in expressions() for name in re.findall(r"\$(\w+)", text) if not name.startswith("__")}
    assert used <= set(names)


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_an_expression_names_what_is_exported(expression: str) -> None:
    names = set(_METRIC.findall(expression))
    assert names and names <= exported()
    assert expression.count("(") == expression.count(")") and expression.count("{") == expression.count("}")


@pytest.mark.parametrize("needed", ["unlearn_requests_total", "unlearn_tokens_total", "vllm:num_requests_waiting"])
def test_what_an_operator_looks_for_is_shown(needed: str) -> None:
    assert any(needed in text for text in expressions())
