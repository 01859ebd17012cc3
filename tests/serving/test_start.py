"""The start of a service and of the demo: what is refused, and that while one thread imports vLLM, the other imports nothing."""

import io
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import COMMAND, environment

from unlearn_ray.console import make_console
from unlearn_ray.errors import ClusterError, ConfigError
from unlearn_ray.serving import service, start
from unlearn_ray.serving.registry import Release, ReleasedTopic, State
from unlearn_ray.serving.settings import ServiceSettings

START = """
import json, sys, tempfile
from importlib import import_module
from pathlib import Path
from unlearn_ray.config import ClusterConfig
from unlearn_ray.serving import service
from unlearn_ray.serving.settings import parse_settings
settings = parse_settings({"registry": sys.argv[1], "port": service.free_port(), "allow_no_keys": True})
home = tempfile.TemporaryDirectory(dir="/tmp")  # short, as the service's own
service._set_environment(Path(home.name), settings)
from ray import serve
from ray.serve.config import HTTPOptions
from unlearn_ray.engines.session import connect
for module in service.STARTERS:
    import_module(module)
before = set(sys.modules)
with connect(ClusterConfig(num_cpus=8)):
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=settings.port))
    new = sorted(set(sys.modules) - before)
    import ray
    heard = ray.get(ray.remote(num_cpus=0)(service.http_host).remote())  # as the builder of `serve deploy` does
    serve.shutdown()
print(json.dumps([new, heard]))
"""


@pytest.mark.long
def test_ray_and_serve_import_nothing_while_they_start_and_a_task_hears_where_serve_listens(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", START, str(tmp_path)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [[], "127.0.0.1"]


def test_a_cluster_is_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ClusterError, match=r"RAY_ADDRESS is 10.0.0.1:6379.*serve deploy"):
        start.prepare("pocket", [], host="127.0.0.1", port=8000, keys=None, registry=None)
    with pytest.raises(ClusterError, match="RAY_ADDRESS"), service.running(ServiceSettings(), "127.0.0.1"):
        pass


@pytest.mark.parametrize("host", ["10.1.2.3", "127.0.0.9", "::1", "::", "example.org"])
def test_a_host_at_which_no_replica_could_be_reached(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(service.KEYS_VARIABLE, "sk-0123456789abcdef")
    with pytest.raises(ConfigError, match=f"--host {host}: give 127.0.0.1, or 0.0.0.0"):
        service.check_host(host, ServiceSettings())
    for each in service.HOSTS:
        service.check_host(each, ServiceSettings())


def test_a_service_that_does_not_become_ready_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_SECONDS_TO_START", 0)
    with pytest.raises(ClusterError, match="is not ready at"):
        service._wait("http://127.0.0.1:1", lambda: "")


def test_an_app_that_ends_while_it_starts_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise RuntimeError("Deploying application unlearn-ray failed:\n  Traceback\n  no memory left")

    monkeypatch.setattr("ray.serve.run", run)
    with pytest.raises(ClusterError, match=r"can't start: no memory left"):
        service._deploy(None)


def demo(cwd: Path, port: int) -> subprocess.CompletedProcess[str]:
    """The page, with what lies in `cwd` before Streamlit itself."""
    command = [*COMMAND, "demo", "--port", str(port)]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("port", [None, 99_999])
def test_the_demo_refuses_a_port_that_it_can_not_have(tmp_path: Path, port: int | None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = demo(tmp_path, port or taken.getsockname()[1])
    assert done.returncode == 2 and done.stdout == "", done.stdout
    assert "choose another port" in done.stderr and done.stderr.count("\n") == 1


def test_a_demo_that_ends_by_itself_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "streamlit").mkdir()
    (tmp_path / "streamlit" / "__init__.py").touch()
    (tmp_path / "streamlit" / "__main__.py").write_text("raise SystemExit(3)")
    done = demo(tmp_path, service.free_port())
    assert done.returncode == 2 and "the page ended with code 3" in done.stderr, done.stderr


def test_a_list_of_models_takes_no_markup_from_topics() -> None:
    release = Release(
        name="a-ap", version=1, kind="adapter", model="pocket", topics=(ReleasedTopic(name="[red]A$AP[/] :smile:", slug="a-ap"),)
    )  # fmt: skip
    console = make_console()
    console.file, console.width = io.StringIO(), 200
    console.print(start.table(State(releases={release.id: release}, aliases={"a-ap": 1})))
    assert "[red]A$AP[/] :smile:" in console.file.getvalue()
