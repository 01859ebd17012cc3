"""The cluster's resources, the most that an autoscaler may add to them, and the resources that are free now.

Ray 2.60 does not report a cluster's limits: `get_cluster_config()` is None, because no autoscaler reports one. So the limits are read from
the autoscaler's own source, on the head: the file that its monitor was started with (`ray up`), or the RayCluster (KubeRay).
docs/decisions/capacity.md compares the alternatives.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray

from unlearn_ray.errors import gist

log = logging.getLogger(__name__)

Shape = Mapping[str, float]  # the request of one actor: resource -> amount

_HEAD = "node:__internal_head__"  # the resource by which Ray marks the head
_SECONDS_TO_READ = 30.0  # for reading the limits; most of it is the start of a worker process
_SECONDS_TO_KEEP = 30.0  # age at which the limits are read again, because an operator may raise them during a run
_SECONDS_OF_STATUS = 10.0
_KUBERNETES = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class NodeKind:
    """One kind of worker node that the autoscaler may start."""

    resources: Shape
    max_count: int


@dataclass(frozen=True, slots=True)
class Growth:
    """The nodes that an autoscaler may start in addition to the head."""

    kinds: tuple[NodeKind, ...] = ()
    max_workers: int = 0  # of all kinds together
    unknown: str = ""  # why the limits of a running autoscaler can't be read; "" if they were

    def most(self, value: Callable[[Shape], float]) -> float:
        """The largest sum of a value over the worker nodes that can be up at once."""
        total, left = 0.0, self.max_workers
        for kind in sorted(self.kinds, key=lambda kind: value(kind.resources), reverse=True):
            count = min(left, kind.max_count)
            total += count * value(kind.resources)
            left -= count
        return total


def growth() -> Growth | None:
    """The limits of the cluster's autoscaler. None if no autoscaler runs."""
    return _growth_of(ray.get_runtime_context().gcs_address, int(time.monotonic() / _SECONDS_TO_KEEP))


@lru_cache(maxsize=4)
def _growth_of(address: str, moment: int) -> Growth | None:
    """`growth` of the cluster at an address. `moment` makes the cached result expire."""
    head = next((node for node in _nodes() if _HEAD in node["Resources"]), None)
    try:
        if head is not None and head["NodeID"] == ray.get_runtime_context().get_node_id():
            return read_growth()
        task = ray.remote(num_cpus=0, resources={_HEAD: 0.001}, max_retries=0)(read_growth).remote()
        found: Growth | None = ray.get(task, timeout=_SECONDS_TO_READ)
    except Exception as error:  # from Ray, from its client of the head, or from the Kubernetes API
        return Growth(unknown=f"the head does not report its limits: {gist(error)}")
    return found


def read_growth() -> Growth | None:
    """`growth`, read on the head."""
    if reported := _reported():
        return reported
    monitor = _monitor()
    if monitor is not None:
        file = next((word.partition("=")[2] for word in monitor if word.startswith("--autoscaling-config=")), "")
        return _of_file(file) if file else None  # a monitor without a file only reports, and starts no nodes
    if (_KUBERNETES / "token").is_file() and (name := os.environ.get("RAY_CLUSTER_NAME")):
        return _of_kubernetes(name)
    if _status().autoscaling_state.autoscaler_state_version:
        return Growth(unknown="an autoscaler runs, but its limits can't be read")
    return None


def _reported() -> Growth | None:
    """The limits that an autoscaler reports itself. Ray's own reports none (ray-project/ray#63012), hosted ones may."""
    from ray._private.state import state

    config = state.get_cluster_config()
    if config is None or not config.node_group_configs:
        return None
    kinds = tuple(
        NodeKind(dict(kind.resources), sys.maxsize if kind.max_count == -1 else int(kind.max_count))
        for kind in config.node_group_configs
    )
    return Growth(kinds, sum(kind.max_count for kind in kinds))


def _monitor() -> list[str] | None:
    """The command line of this cluster's autoscaler, found by the session's name. None if this machine has no such process."""
    session = _status().cluster_resource_state.cluster_session_name
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # the process has ended, or belongs to another user
            continue
        is_monitor = any(word.endswith("/monitor.py") for word in words)
        if is_monitor and any(session in word for word in words if word.startswith("--logs-dir=")):
            return words
    return None


def _of_file(file: str) -> Growth:
    import yaml

    try:
        return growth_from(yaml.safe_load(Path(file).expanduser().read_text()))
    except Exception as error:  # Ray's validation raises many classes
        return Growth(unknown=f"{file} on the head can't be read: {error}")


def _of_kubernetes(cluster: str) -> Growth | None:
    """The limits in the RayCluster, read with the rights that KubeRay gives the head's pod for its autoscaler."""
    import requests
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    try:
        client = KubernetesHttpApiClient((_KUBERNETES / "namespace").read_text().strip())
        found = client.get(f"rayclusters/{cluster}")
    except (requests.RequestException, OSError) as error:
        return Growth(unknown=f"the RayCluster {cluster} can't be read from the head's pod: {error}")
    return of_ray_cluster(found)


def of_ray_cluster(found: dict[str, Any]) -> Growth | None:
    """The limits of a RayCluster's autoscaler. None if it has none."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    if not found["spec"].get("enableInTreeAutoscaling"):
        return None
    try:
        return growth_from(_derive_autoscaling_config_from_ray_cr(found))
    except Exception as error:  # Ray raises plain exceptions for a group whose resources it can't read
        return Growth(unknown=f"the RayCluster can't be read: {error}")


def growth_from(config: dict[str, Any]) -> Growth:
    """The limits of an autoscaler with this config."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    parsed = AutoscalingConfig(config, skip_content_hash=True)
    head, kinds = parsed.get_head_node_type(), []
    for name, kind in (parsed.get_node_type_configs() or {}).items():
        count = kind.max_worker_nodes - (name == head)  # Ray counts the head as one node of its kind
        kinds.append(NodeKind({key: float(value) for key, value in kind.resources.items()}, count))
    return Growth(tuple(kinds), parsed.get_max_num_worker_nodes() or 0)


def capacity(resource: str) -> float:
    """The most of a resource that the cluster has or can get."""
    return _most(lambda resources: float(resources.get(resource, 0.0)))


def places(shape: Shape) -> int:
    """Number of actors of a shape that the cluster's nodes can hold, with the nodes that may be added. No actor spans two nodes."""
    return int(_most(lambda resources: holds(resources, shape)))


def holds(resources: Shape, shape: Shape) -> int:
    """Number of actors of a shape that one node can hold."""
    counts = [int(resources.get(name, 0.0) // amount) for name, amount in shape.items() if amount > 0]
    return min(counts, default=0)


def _most(value: Callable[[Shape], float]) -> float:
    nodes = _nodes()
    now = sum(value(node["Resources"]) for node in nodes)
    if (grown := growth()) is None:
        return now
    head = sum(value(node["Resources"]) for node in nodes if _HEAD in node["Resources"])
    return max(now, head + grown.most(value))


def is_refused(shape: Shape) -> bool:
    """Whether the autoscaler finds no node for a pending actor of this shape, and no running node could hold it even when idle.

    The second condition is needed because autoscaler v2 also calls actors infeasible that only wait for others to end.
    """
    if any(holds(node["Resources"], shape) for node in _nodes()):
        return False
    wanted = {name: amount for name, amount in shape.items() if amount > 0}
    requests = _status().autoscaling_state.infeasible_resource_requests
    return any(
        {name: amount for name, amount in request.resources_bundle.items() if amount > 0} == wanted
        for request in requests
    )


def described() -> str:
    """The free resources, and the cluster's limits, as text."""
    nodes, free = _nodes(), ray.available_resources()
    has = {name: sum(float(node["Resources"].get(name, 0.0)) for node in nodes) for name in ("CPU", "GPU")}
    parts = [f"{free.get(name, 0.0):g} of {has[name]:g} {name}s are free" for name in ("CPU", "GPU") if has[name]]
    text = f"{len(nodes)} node{'s are' if len(nodes) != 1 else ' is'} up, {' and '.join(parts) or 'none with CPUs'}"
    grown = growth()
    if grown is None:
        return f"{text}; no autoscaler runs"
    if grown.unknown:
        return f"{text}; an autoscaler runs"
    return f"{text}; it may grow to {capacity('CPU'):g} CPUs and {capacity('GPU'):g} GPUs"


def in_words(shape: Shape) -> str:
    """A shape as text, such as "1 CPU and 2 GPUs"."""
    return " and ".join(f"{amount:g} {name}{'' if amount == 1 else 's'}" for name, amount in shape.items() if amount)


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _status() -> Any:
    """The autoscaler's last report, with its requests."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    status = GetClusterStatusReply()
    client = GcsClient(ray.get_runtime_context().gcs_address)
    status.ParseFromString(client.get_cluster_status(timeout_s=_SECONDS_OF_STATUS))
    return status
