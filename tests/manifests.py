"""The files of cluster/, read as their readers would: strictly, so that a mistyped key is seen."""

import gzip
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from unlearn_ray.reading import load_yaml

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
# KubeRay's CustomResourceDefinitions, gzipped: v1.7.0-rayjobs.yaml.gz and so on.
KUBERAY = Path(os.environ.get("UNLEARN_RAY_KUBERAY") or ROOT.parent / "shared" / "kuberay")
MANIFESTS = ("raycluster", "rayjob", "rayservice")


def first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    assert found, f"nothing matches {pattern}"
    return found[1]


RAY = first(r"^ray==(\S+)", (ROOT / "locks" / "cuda.txt").read_text())


def read(name: str) -> Any:
    """A file of cluster/; a key given twice is an error, as it is to Kubernetes."""
    return load_yaml((CLUSTER / name).read_text())


def manifest(name: str) -> Any:
    return read(f"kuberay/{name}.yaml")


def cluster_of(name: str) -> dict[str, Any]:
    """The RayCluster of a manifest."""
    spec: dict[str, Any] = manifest(name)["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return found


def groups_of(name: str) -> list[dict[str, Any]]:
    """The head's, then the workers'."""
    cluster = cluster_of(name)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods_of(name: str) -> list[dict[str, Any]]:
    """The `spec` of every pod that a manifest describes."""
    submitter = manifest(name)["spec"].get("submitterPodTemplate")
    return [group["template"]["spec"] for group in groups_of(name)] + ([submitter["spec"]] if submitter else [])


def containers_of(name: str) -> list[dict[str, Any]]:
    return [container for pod in pods_of(name) for container in pod["containers"]]


def without_gpu(model: str = "pocket") -> dict[str, Any]:
    """serve/config.yaml with the changes that its head names for a machine without a GPU.

    Args:
        model: one of those that the head names.
    """
    text = (ROOT / "serve" / "config.yaml").read_text()
    values: dict[str, Any] = yaml.safe_load(text)
    for path, value in re.findall(r"^#   ([\w.]+): (\S+)(?: # or \S+)?$", text, re.MULTILINE):
        *sections, key = path.split(".")
        section = values["applications"][0]["args"]
        for name in sections:
            section = section[name]
        section[key] = yaml.safe_load(value)
    assert re.search(rf"^#   model: .*\b{model}\b", text, re.MULTILINE)
    values["applications"][0]["args"]["model"] = model
    return values


# KubeRay's schemas: what the API server checks


def errors_of(content: Any, release: str) -> list[str]:
    """What KubeRay's schema of this release (1.6.2) says against a manifest; each names its place."""
    if f"{content.get('apiVersion')}" != "ray.io/v1":
        return [f"apiVersion: {content.get('apiVersion')!r}"]
    found = _validator(release, content["kind"]).iter_errors(content)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[-200:]}" for error in found]


@cache
def _validator(release: str, kind: str) -> Any:
    with gzip.open(KUBERAY / f"v{release}-{kind.lower()}s.yaml.gz") as file:
        definition = yaml.load(file, Loader=yaml.CSafeLoader)
    assert definition["spec"]["names"]["kind"] == kind
    (schema,) = (each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"] if each["name"] == "v1")
    schema = _strict(schema)
    # What Kubernetes adds to every definition, as far as ours have any of it.
    schema["properties"]["metadata"] = _strict({"type": "object", "properties": {"name": {"type": "string"}}})
    base = jsonschema.Draft202012Validator
    rules = {"x-kubernetes-list-map-keys": _keys_differ, "x-kubernetes-validations": _not_checked}
    formats = jsonschema.FormatChecker(())
    formats.checks("int32")(lambda value: not isinstance(value, int) or -(2**31) <= value < 2**31)
    formats.checks("int64")(lambda value: not isinstance(value, int) or -(2**63) <= value < 2**63)
    return jsonschema.validators.extend(base, rules)(schema, format_checker=formats)


def _strict(schema: Any) -> Any:
    """An OpenAPI 3 schema of Kubernetes as JSON Schema, where an unknown key is an error (`kubectl apply --validate=strict`)."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    # Below `properties` each key is a field's name, which may be that of a keyword.
    result = {
        key: {name: _strict(each) for name, each in value.items()} if key == "properties" else _strict(value)
        for key, value in schema.items()
        if key not in ("default", "description", "enum")
    }
    if "enum" in schema:
        result["enum"] = schema["enum"]
    if schema.get("x-kubernetes-int-or-string"):
        result["type"] = ["integer", "string"]
    if schema.get("x-kubernetes-list-type") == "set":
        result["uniqueItems"] = True
    if schema.get("nullable"):
        result["type"] = [result["type"], "null"]
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in schema and not is_open:
        result["additionalProperties"] = False
    return result


def _keys_differ(validator: Any, keys: list[str], items: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
    """A list with `x-kubernetes-list-type: map` holds a key once."""
    # A key that has a default may be left out.
    defaults = {name: field.get("default") for name, field in schema["items"].get("properties", {}).items()}
    named = [tuple(item.get(key, defaults.get(key)) for key in keys) for item in items]
    for name in {name for name in named if named.count(name) > 1}:
        yield jsonschema.ValidationError(f"{', '.join(map(str, name))} is there twice")


def _not_checked(validator: Any, rules: Any, instance: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
    yield jsonschema.ValidationError(f"has rules in CEL, which this test can't evaluate: {rules}")
