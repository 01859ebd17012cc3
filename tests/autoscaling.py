"""A cluster that grows: a real head with autoscaler v2, whose nodes Ray's FakeMultiNodeProvider starts as processes on this machine.

`ray.cluster_utils.AutoscalingCluster` reads a file that the wheel of Ray does not have, and ends every Ray of the machine.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from commandline import environment
from head import BIN, Head, free_ports, running

_HEAD_ID = "f" * 51 + "00000"  # the provider numbers its nodes from there
_HEAD_TYPE = "ray.head.default"  # the one that the provider knows
_EMPTY: dict[str, Any] = {
    "auth": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}
_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
    "RAY_NODE_TYPE_NAME": _HEAD_TYPE,
}


@contextmanager
def growing(
    kinds: Mapping[str, Mapping[str, Any]], max_workers: int, idle_seconds: float = 30, more: Mapping[str, str] = {}
) -> Iterator[Head]:
    """A head without CPUs, and worker nodes of these kinds (`resources`, `max_workers`) that come when something waits for them."""
    gcs, dashboard, client, agent = free_ports(4)
    home = Path(tempfile.mkdtemp(prefix="ur-", dir="/tmp"))  # short: a socket's path has 107 bytes
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": f"127.0.0.1:{gcs}",
        "head_node_id": _HEAD_ID,
        "launch_multiple": True,
    }
    types = {name: {"node_config": {}, "min_workers": 0, **kind} for name, kind in kinds.items()}
    config = {
        "cluster_name": "growing",
        "max_workers": max_workers,
        "idle_timeout_minutes": idle_seconds / 60,
        "upscaling_speed": 1.0,
        "provider": provider,
        "available_node_types": {_HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}, **types},
        "head_node_type": _HEAD_TYPE,
        **_EMPTY,
    }
    file = home / "autoscaling.yaml"
    file.write_text(json.dumps(config))
    command: list[str | Path] = [BIN / "ray", "start", "--head", "--block"]
    command += ["--num-cpus=0", "--node-ip-address=127.0.0.1"]
    command += [f"--port={gcs}", f"--temp-dir={home}/ray", "--include-dashboard=true", f"--dashboard-port={dashboard}"]
    command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}", "--disable-usage-stats"]
    command += [f"--autoscaling-config={file}"]
    with running(command, environment() | _ENVIRONMENT | dict(more), gcs, dashboard, agent) as head:
        yield head
