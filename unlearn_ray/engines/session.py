"""Ray for one run: joins an existing cluster, or starts a local Ray on this machine and stops it at the end."""

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn

import ray
import ray.data  # creates its log handlers

from unlearn_ray.config import ClusterConfig
from unlearn_ray.engines.capacity import capacity, growth, in_words, places
from unlearn_ray.engines.nodes import watching_nodes
from unlearn_ray.engines.room import end_trainings
from unlearn_ray.engines.settings import check_arguments_without_gpu
from unlearn_ray.errors import ClusterError, gist

log = logging.getLogger(__name__)

# Logical CPUs are only accounting. A local Ray must hold an engine, a trainer's workers and controller, and Ray Data's tasks at the same
# time. With two logical CPUs, a two-core machine would deadlock. The operating system shares the real cores.
_LEAST_CPUS = 8
_MAX_STARTS = 3
_SECONDS_TO_KNOCK = 10


@contextmanager
def connect(cluster: ClusterConfig, logs: Path | None = None) -> Iterator[None]:
    """Join `cluster.address` or RAY_ADDRESS. If neither is set, start a local Ray and stop it at the end.

    Args:
        logs: folder for a copy of the workers' logs of a local Ray, made at the end.

    Raises:
        ClusterError: the address can't be reached.
    """
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():  # a session that the caller started, such as a test's
        yield
        return
    _quieten()
    _hear_raylets()
    _count_no_usage()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    if address:
        _knock(address)
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ClusterError(f"the Ray cluster at {address} can't be reached: {gist(error)}") from error
        _hear_sigterm(on_sigterm)
        try:
            with watching_nodes():
                yield
        finally:
            _shut_down()
        return
    os.environ.setdefault("RAY_worker_niceness", "0")  # the default, 15, starves workers beside ordinary processes
    os.environ.setdefault("RAY_process_group_cleanup_enabled", "1")  # a killed engine's processes keep no GPU memory
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault(
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0"
    )  # a single machine is not preempted; this saves a process
    # A new folder: two heads in the same temporary folder overwrite each other's sockets. A socket's path may have at most 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="ur-", dir="/tmp" if Path("/tmp").is_dir() else None))
    try:
        _start_local(cluster, home, quiet)
        _hear_sigterm(on_sigterm)
        yield
    finally:
        _shut_down()
        if logs is not None:
            _keep_logs(home, logs)
        shutil.rmtree(home, ignore_errors=True)


def _shut_down() -> None:
    if ray.is_initialized():
        end_trainings()
    ray.shutdown()


def _hear_sigterm(before: Any) -> None:
    """Restore the SIGTERM handler from before Ray started. Ray's handler aborts the process, before `connect` can clean up."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before if callable(before) else _leave)


def _leave(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)


def _knock(address: str) -> None:
    """Refuse an address where nothing listens. Ray itself would try for minutes, and report it on the console.

    Raises:
        ClusterError: no connection can be made.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto": Ray finds it
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS_TO_KNOCK).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"the Ray cluster at {address} can't be reached: {error}") from error


def _start_local(cluster: ClusterConfig, home: Path, quiet: dict[str, Any]) -> None:
    """Start a local Ray. On a machine too busy for Ray's limit of 30 seconds it is tried again.

    Raises:
        ClusterError: Ray does not start.
    """
    for attempt in range(1, _MAX_STARTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=cluster.num_cpus or max(_LEAST_CPUS, os.cpu_count() or 1),
                include_dashboard=False,
                _temp_dir=str(home / str(attempt)),
                **quiet,
            )
            return
        except Exception as error:  # Ray raises plain exceptions
            log.warning("Ray did not start (%d of %d): %s", attempt, _MAX_STARTS, error)
            ray.shutdown()
            if attempt == _MAX_STARTS:
                raise ClusterError(f"Ray can't be started on this machine: {gist(error)}") from error


def _quieten() -> None:
    """Keep the reports of Ray's libraries off the console, which is for the run. Their log files still have them."""
    for name in ("ray", "ray.data", "ray.train"):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.ERROR)


def _count_no_usage() -> None:
    """Switch off Ray Data's usage statistics. Their thread queries Prometheus on this machine every few seconds, and is never stopped.

    The thread logs each failed query. If Ray has closed the log file by then, Python prints a traceback to the console after a successful run.
    Introduced by ray-project/ray#64686; remove this when that thread ends before Ray closes its log files.
    """
    os.environ.setdefault("RAY_DATA_USAGE_DISABLED", "1")


def _hear_raylets() -> None:
    """Send Ray's messages about lost workers and full clusters to the log. Ray prints dozens of such lines to the console, even with
    `log_to_driver=False`.

    Remove this when a driver can choose where Ray's error messages go (ray-project/ray#30832).
    """
    from ray._private import worker

    def into_the_log(data: Mapping[str, Any], print_file: Any, ignore_prefix: bool = False) -> None:
        for line in data.get("lines", ()):
            log.warning("Ray (%s): %s", data.get("pid"), line)

    worker.print_worker_logs = into_the_log


def _keep_logs(home: Path, logs: Path) -> None:
    """Copy the workers' output, if there is any: it explains why a worker died."""
    if not logs.is_dir():
        return
    target = logs / "ray"
    target.mkdir(exist_ok=True)
    for file in home.glob("*/session_latest/logs/worker-*"):
        if file.is_file() and file.stat().st_size:
            shutil.copyfile(file, target / file.name)


_MANY_ENGINES = 10_000  # more than any cluster holds


def device_of(cluster: ClusterConfig) -> Literal["cpu", "cuda"]:
    """The device of engines and trainers: as configured, or CUDA if the cluster has or can get a GPU.

    Raises:
        ClusterError: the cluster's limits are unknown.
    """
    if cluster.accelerator != "auto":
        return cluster.accelerator
    if capacity("GPU") >= 1:
        return "cuda"
    _known("cluster.accelerator: auto", "set it to cpu or cuda")
    return "cpu"


def _known(key: str, advice: str) -> None:
    grown = growth()
    if grown is not None and grown.unknown:
        raise ClusterError(f"{key} depends on how far the cluster can grow, and {grown.unknown}: {advice}")


def engine_shape(cluster: ClusterConfig) -> dict[str, float]:
    """The resources of one engine's actor."""
    engines = cluster.engines
    num_gpus = engines.num_gpus if device_of(cluster) == "cuda" else 0
    return {"CPU": engines.num_cpus, "GPU": float(num_gpus)}


def worker_shape(cluster: ClusterConfig) -> dict[str, float]:
    """The resources of one training worker."""
    return {"CPU": cluster.workers.num_cpus, "GPU": 1.0 if device_of(cluster) == "cuda" else 0.0}


def engine_span(cluster: ClusterConfig) -> tuple[int, int]:
    """Minimum and maximum number of engines in a fleet.

    Raises:
        ClusterError: as in `num_engines`.
    """
    asked = cluster.engines.num_engines
    return asked if isinstance(asked, tuple) else (num_engines(cluster),) * 2


def num_engines(cluster: ClusterConfig) -> int:
    """Minimum number of engines in a fleet: as configured, or as many as the cluster's GPUs can hold, or one without GPUs.

    Raises:
        ClusterError: the cluster's limit of GPUs is unknown.
    """
    engines = cluster.engines
    if isinstance(engines.num_engines, tuple):
        return engines.num_engines[0]
    if engines.num_engines != "auto":
        return engines.num_engines
    if device_of(cluster) == "cpu":
        return 1
    _known("cluster.engines.num_engines: auto", "set a number")
    # One CPU is left for Ray Data's tasks, which ask the engines.
    count = min(places(engine_shape(cluster)), int((capacity("CPU") - 1) // engines.num_cpus))
    if count > _MANY_ENGINES:
        raise ClusterError(
            "cluster.engines.num_engines: auto depends on how far the cluster can grow, and its autoscaler has no limit: set a number"
        )
    return max(1, count)


def require(cluster: ClusterConfig) -> None:
    """Refuse a config that can never fit on the cluster, before anything waits for room.

    Raises:
        ClusterError: engines or training workers ask for more CPUs or GPUs than the cluster has or can get.
    """
    require_engines(cluster)
    require_workers(cluster)


def require_engines(cluster: ClusterConfig) -> None:
    """`require`, only for the engines.

    Raises:
        ClusterError: they ask for more than the cluster has or can get.
        ConfigError: an argument of vLLM needs a GPU.
    """
    without_gpu = device_of(cluster) == "cpu"
    if without_gpu:
        check_arguments_without_gpu(cluster.engines)
    if without_gpu and cluster.engines.num_gpus > 1:
        raise ClusterError(
            "cluster.engines: tensor_parallel_size and pipeline_parallel_size count GPUs, and without a GPU an engine is one process: "
            "leave both at 1, or add nodes with GPUs"
        )
    parallel = "pipeline" if cluster.engines.pipeline_parallel_size > 1 else "tensor"
    keys = {"CPU": "cluster.engines.num_cpus", "GPU": f"cluster.engines.{parallel}_parallel_size"}
    _require("cluster.engines.num_engines", keys, "engine", num_engines(cluster), engine_shape(cluster), spare=1)


def require_workers(cluster: ClusterConfig) -> None:
    """`require`, only for the workers of one training.

    Raises:
        ClusterError: they ask for more than the cluster has or can get.
    """
    keys = {"CPU": "cluster.workers.num_cpus", "GPU": "cluster.accelerator"}
    _require("cluster.workers.num_workers", keys, "worker", cluster.workers.span[0], worker_shape(cluster))


def _require(
    key: str, keys: Mapping[str, str], what: str, count: int, shape: Mapping[str, float], spare: int = 0
) -> None:
    """Refuse `count` actors of a shape if the cluster can't hold all of them at the same time.

    Args:
        keys: for each resource, the config key of one actor's share.
        spare: additional CPUs, for Ray Data's tasks that ask the engines.
    """
    if (grown := growth()) is not None and grown.unknown:
        return  # unknown limits: the fleet reports it while it waits
    fitting = places(shape)
    for resource, each in ((name, amount) for name, amount in shape.items() if amount):
        beside = spare if resource == "CPU" else 0
        wanted, there = count * each + beside, capacity(resource)
        if wanted <= there and count <= places({resource: each}):
            continue
        # If not even one actor fits, a lower number does not help.
        alone = places({resource: each})
        named = key if alone else keys[resource]
        room = f" in nodes with room for {alone} of them" if count > alone and wanted <= there else ""
        also = f" and {beside} beside" if beside else ""
        advice = "lower it" if there or resource != "GPU" else "set cluster.accelerator: cpu"
        raise ClusterError(
            f"{named}: {count} {what}{'s' if count > 1 else ''} of {each:g} {resource}s{also} ask for {wanted:g}, "
            f"the cluster {'has' if grown is None else 'has, or can grow to,'} {there:g}{room}: "
            f"{advice}, or add nodes"
        )
    if count > fitting:
        raise ClusterError(
            f"{key}: {count} {what}{'s' if count > 1 else ''} of {in_words(shape)} each, the cluster's nodes have room "
            f"for {fitting} of them: lower it, or add nodes"
        )
