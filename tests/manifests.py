"""The files of cluster/, read as their readers would: strictly, so that a mistyped key is seen."""

import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()


def first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    assert found, f"nothing matches {pattern}"
    return found[1]


RAY = first(r"^ray==(\S+)", (ROOT / "locks" / "cuda.txt").read_text())


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Resources(Strict):
    requests: dict[str, str]
    limits: dict[str, str]


class Container(Strict):
    name: str
    image: str
    resources: Resources
    ports: list[dict[str, Any]] = []
    env: list[dict[str, Any]] = []
    volumeMounts: list[dict[str, str]] = []


class PodSpec(Strict):
    containers: list[Container]
    volumes: list[dict[str, Any]] = []


class Template(Strict):
    spec: PodSpec


class Group(Strict):
    template: Template
    rayStartParams: dict[str, str]


class WorkerGroup(Group):
    groupName: str
    replicas: int
    minReplicas: int
    maxReplicas: int


class AutoscalerOptions(Strict):
    version: Literal["v2"]
    idleTimeoutSeconds: int


class AuthOptions(Strict):
    mode: Literal["token"]


class ClusterSpec(Strict):
    """What of KubeRay's ray.io/v1 RayCluster we use: a key that is not here is a typo until someone looks it up."""

    rayVersion: str
    enableInTreeAutoscaling: Literal[True]
    autoscalerOptions: AutoscalerOptions
    authOptions: AuthOptions
    headGroupSpec: Group
    workerGroupSpecs: list[WorkerGroup]

    @property
    def containers(self) -> list[Container]:
        groups = [self.headGroupSpec, *self.workerGroupSpecs]
        return [container for group in groups for container in group.template.spec.containers]


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: dict[str, str]
    spec: ClusterSpec


class JobSpec(Strict):
    entrypoint: str
    runtimeEnvYAML: str
    shutdownAfterJobFinishes: Literal[True]
    ttlSecondsAfterFinished: int = Field(ge=0)
    backoffLimit: int = Field(ge=0)
    rayClusterSpec: ClusterSpec


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: dict[str, str]
    spec: JobSpec


class ServiceSpec(Strict):
    serveConfigV2: str
    rayClusterConfig: ClusterSpec
    excludeHeadPodFromServeSvc: Literal[True]


class RayService(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: dict[str, str]
    spec: ServiceSpec


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def cluster_of(name: str) -> ClusterSpec:
    if name == "kuberay/rayjob.yaml":
        return RayJob.model_validate(read(name)).spec.rayClusterSpec
    if name == "kuberay/rayservice.yaml":
        return RayService.model_validate(read(name)).spec.rayClusterConfig
    return RayCluster.model_validate(read(name)).spec
