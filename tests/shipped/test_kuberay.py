"""The manifests of cluster/kuberay: held to KubeRay's own schemas, and to what the service and the runs need of their pods."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from manifests import (
    CLUSTER,
    DOCKERFILE,
    KUBERAY,
    MANIFESTS,
    ROOT,
    cluster_of,
    containers_of,
    errors_of,
    first,
    groups_of,
    manifest,
    pods_of,
)

from unlearn_ray.serving.settings import ServiceSettings, parse_settings

needs_schemas = pytest.mark.skipif(
    not KUBERAY.is_dir(),
    reason=f"{KUBERAY} is not there: put KubeRay's definitions beside the checkout, or name their folder in UNLEARN_RAY_KUBERAY",
)
RELEASES = ("1.6.2", "1.7.0")
_UNITS = {"Gi": 2**30, "Mi": 2**20}


@pytest.fixture(scope="module")
def service() -> ServiceSettings:
    return parse_settings(yaml.safe_load(manifest("rayservice")["spec"]["serveConfigV2"])["applications"][0]["args"])


def bytes_of(quantity: str) -> int:
    return int(quantity[:-2]) * _UNITS[quantity[-2:]]


def gpus_of(group: dict[str, Any]) -> int:
    return int(group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0))


# KubeRay's schemas


@needs_schemas
@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberay_takes_the_manifest(name: str, release: str) -> None:
    assert errors_of(manifest(name), release) == []


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        json.dumps(manifest("rayjob"))
    )  # what an anchor names is there once for each place
    change(content)
    return content


def _head(content: dict[str, Any]) -> Any:
    return content["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]


@needs_schemas
@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda content: content.update(apiVersion="ray.io/v2"), "apiVersion"),
        (lambda content: content["metadata"].update(nmae="x"), "metadata"),
        (lambda content: content["spec"].update(backofLimit=0), "spec"),
        (lambda content: content["spec"].update(backoffLimit="0"), "spec.backoffLimit"),
        (lambda content: content["spec"].update(activeDeadlineSeconds=2**31), "spec.activeDeadlineSeconds"),
        (lambda content: content["spec"].update(preRunningDeadlineSeconds=0), "spec.preRunningDeadlineSeconds"),
        (lambda content: content["spec"]["submitterPodTemplate"]["spec"].update(restartpolicy="x"), "spec.submitterPodTemplate"),
        (lambda content: content["spec"]["rayClusterSpec"]["autoscalerOptions"].update(version="v3"), "autoscalerOptions.version"),
        (lambda content: content["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName"), "workerGroupSpecs.0"),
        (lambda content: _head(content)["securityContext"].update(runAsUser="1000"), "securityContext.runAsUser"),
        (lambda content: _head(content)["containers"][0]["resources"]["limits"].update(memory="16 GB"), "limits.memory"),
        (lambda content: _head(content)["containers"][0]["env"].append({"name": "HF_TOKEN"}), "containers.0.env"),
        (lambda content: _head(content)["containers"][0]["env"].append({"name": "X", "value": 1}), "value"),
        (lambda content: content["spec"].update(managedBy="nobody"), "spec.managedBy"),  # a rule in CEL
    ],
)  # fmt: skip
def test_what_kubernetes_would_refuse_is_seen(
    change: Callable[[dict[str, Any]], object], place: str, release: str
) -> None:
    errors = errors_of(changed(change), release)
    assert len(errors) == 1 and place in errors[0].partition(": ")[0], errors


def test_what_kuberay_names_after_a_manifest_is_named_so_where_a_person_copies_it_from() -> None:
    """Services and jobs: https://docs.ray.io/en/latest/cluster/kubernetes"""
    cluster, job, service = (manifest(name)["metadata"]["name"] for name in MANIFESTS)
    texts = {name: (CLUSTER / "kuberay" / f"{name}.yaml").read_text() for name in MANIFESTS}
    assert f"service/{cluster}-head-svc" in texts["raycluster"] and f"secret `{cluster}`" in texts["raycluster"]
    assert f"job/{job}" in texts["rayjob"]
    assert f"service/{service}-serve-svc 8000" in texts["rayservice"]
    assert f'targets: ["{service}-serve-svc:8000"]' in (ROOT / "docs" / "serving.md").read_text()


@pytest.mark.parametrize("name", MANIFESTS)
def test_ports_are_those_of_ray_and_of_the_service(name: str, service: ServiceSettings) -> None:
    ports = {
        port["name"]: port["containerPort"] for port in groups_of(name)[0]["template"]["spec"]["containers"][0]["ports"]
    }
    assert ports == {"gcs": 6379, "dashboard": 8265, "serve": service.port}


# Pods


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_pod_runs_as_the_images_user_by_its_number(name: str) -> None:
    user = int(first(r"^USER (\d+)$", DOCKERFILE))
    for pod in pods_of(name):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == user


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_restricted_namespace_takes_the_pods(name: str) -> None:
    """Kubernetes' Pod Security Standards; the autoscaler's container, which KubeRay adds to the head, included."""
    contained = [container["securityContext"] for container in containers_of(name)]
    contained.append(cluster_of(name)["autoscalerOptions"]["securityContext"])
    for context in contained:
        assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert all(pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"} for pod in pods_of(name))


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_pod_gets_what_it_asks_for(name: str) -> None:
    for container in containers_of(name):
        assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_workers_scale_and_their_shared_memory_holds_rays_objects(name: str) -> None:
    """Ray takes 30 % of a pod's memory for its objects; what lies in shared memory counts as the pod's."""
    for group in groups_of(name)[1:]:
        assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]
        (volume,) = (volume for volume in group["template"]["spec"]["volumes"] if volume["name"] == "shm")
        memory = bytes_of(group["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"])
        assert 0.3 * memory < bytes_of(volume["emptyDir"]["sizeLimit"]) < 0.5 * memory


def test_a_job_runs_on_the_same_cluster_as_the_one_that_stays() -> None:
    def shape(name: str) -> dict[str, Any]:
        cluster = copy.deepcopy(cluster_of(name))
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            group["template"]["spec"].pop("terminationGracePeriodSeconds", None)  # the one that stays serves, too
        return cluster

    assert shape("rayjob") == shape("raycluster")


def test_the_services_cluster_differs_from_the_others_in_its_workers_size_alone() -> None:
    ours, theirs = copy.deepcopy(cluster_of("rayservice")), copy.deepcopy(cluster_of("raycluster"))
    for cluster in (ours, theirs):
        for group in cluster["workerGroupSpecs"]:
            for key in ("replicas", "minReplicas", "maxReplicas"):
                del group[key]
            del group["template"]["spec"]["containers"][0]["resources"]
            del group["template"]["spec"]["volumes"]
    assert ours == theirs


# The job


def test_a_mistyped_config_costs_one_cluster_and_no_gpu() -> None:
    """KubeRay makes `backoffLimit` further clusters for whatever failure."""
    assert manifest("rayjob")["spec"]["backoffLimit"] == 0
    assert [group["minReplicas"] for group in groups_of("rayjob")[1:]] == [0]


def test_no_job_waits_or_runs_for_ever() -> None:
    spec = manifest("rayjob")["spec"]
    assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    assert spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] > 0


# The service


def test_a_pod_of_the_service_is_one_replica(service: ServiceSettings) -> None:
    (workers,) = groups_of("rayservice")[1:]
    assert gpus_of(workers) == service.engine.tensor_parallel_size
    assert workers["minReplicas"] == service.scaling.min_replicas
    assert workers["maxReplicas"] == service.scaling.max_replicas
    assert manifest("rayservice")["spec"]["excludeHeadPodFromServeSvc"]


def test_a_pod_of_the_service_holds_the_adapters_that_wait(service: ServiceSettings) -> None:
    """Llama-3-8B's, at the rank that is served; four times `max_loras` are kept in memory. Half of it is free of Ray's objects."""
    values = 81_920 * 32 * service.engine.max_lora_rank
    memory = bytes_of(groups_of("rayservice")[1]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"])
    assert 4 * service.engine.max_loras * values * 2 < 0.5 * memory


@pytest.mark.parametrize("name", ["raycluster", "rayservice"])
def test_a_pod_that_goes_has_the_time_of_its_replicas(name: str, service: ServiceSettings) -> None:
    """Kubernetes' own 30 seconds are less than what a replica has for the answers under way."""
    for pod in pods_of(name):
        assert pod["terminationGracePeriodSeconds"] >= service.scaling.drain_seconds + 30


def test_the_cluster_that_stays_holds_what_the_service_may_grow_to(service: ServiceSettings) -> None:
    (workers,) = groups_of("raycluster")[1:]
    assert (
        service.scaling.max_replicas * service.engine.tensor_parallel_size <= gpus_of(workers) * workers["maxReplicas"]
    )
