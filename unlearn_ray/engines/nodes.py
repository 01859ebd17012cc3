"""Watches the cluster's nodes from the driver. The run's log has a line for each node that joins or is lost."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

from unlearn_ray.errors import gist

log = logging.getLogger(__name__)
_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_TO_END = 5.0  # limit for the thread's end, because calls to a lost head hang for a while


@contextmanager
def watching_nodes() -> Iterator[None]:
    """Log each node that joins or leaves within the context. Ray must stay connected until its end."""
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(ended,), name="nodes", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(_SECONDS_TO_END)


def _watch(ended: threading.Event) -> None:
    up: dict[str, str] | None = None  # id -> the node as text, because Ray reports no resources of lost nodes
    while not ended.wait(_SECONDS_BETWEEN_LOOKS):
        try:
            nodes = ray.nodes()
        except (RayError, RuntimeError, ConnectionError) as error:  # the head itself may be gone
            log.warning("the cluster's nodes can't be listed: %s", gist(error))
            continue
        now = {node["NodeID"]: _named(node) for node in nodes if node["Alive"]}
        if up is None:
            log.info("nodes: %s", "; ".join(now.values()))
            up = now
        for name in now.keys() - up.keys():
            log.info("node %s joined", now[name])
        for node in nodes:
            if node["NodeID"] in up.keys() - now.keys():
                log.warning(
                    "node %s was lost: %s",
                    up[node["NodeID"]],
                    node.get("DeathReasonMessage") or "no reason was reported",
                )
        up = now


def _named(node: dict[str, Any]) -> str:
    resources = [f"{node['Resources'][name]:g} {name}s" for name in ("CPU", "GPU") if node["Resources"].get(name)]
    return f"{node['NodeID'][-12:]} at {node['NodeManagerAddress']} ({', '.join(resources) or 'no CPUs'})"
