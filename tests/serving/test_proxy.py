"""What HAProxy is told instead of what Ray writes for it."""

import json
import subprocess
from pathlib import Path

import pytest
import ray
from ray.serve._private import haproxy_templates

from unlearn_ray.serving.environment import SERVE_ENVIRONMENT
from unlearn_ray.serving.service import _haproxy
from unlearn_ray.serving.settings import Limits

PAGE = 28_404  # a port of a page that is nobody's business


@pytest.fixture
def told(tmp_path: Path) -> str:
    """Ray's template as our HAProxy reads it."""
    config = tmp_path / "haproxy.cfg"
    config.write_text(f"{haproxy_templates.HAPROXY_CONFIG_TEMPLATE}\n    bind *:{PAGE}\n")
    subprocess.run([_haproxy(tmp_path, [PAGE], 7), "-v", str(config)], check=True, capture_output=True)
    return config.read_text()


def test_no_answer_is_plain_text(told: str) -> None:
    ray = haproxy_templates.HAPROXY_CONFIG_TEMPLATE
    assert (
        "Ingress request router failed" in ray and "for available routes" in ray
    )  # else there is nothing to change any more
    assert "Ingress request router failed" not in told and "for available routes" not in told


def test_a_request_that_no_router_can_place_is_told_to_come_back(told: str, tmp_path: Path) -> None:
    line = next(line for line in told.splitlines() if "return status 503" in line and "router_failed" in line)
    assert "content-type application/json hdr retry-after 7" in line
    assert line.endswith(
        "if { var(txn.ingress_request_router_failed) -m found } !{ var(txn.ingress_request_router_recoverable) -m found }"
    )
    error = json.loads((tmp_path / "503.json").read_text())["error"]
    assert error["code"] == "no_replica" and "try again in 7 s" in error["message"]


def test_pages_of_figures_listen_on_loopback(told: str) -> None:
    assert f"bind 127.0.0.1:{PAGE}" in told and f"*:{PAGE}" not in told


def test_every_variable_of_the_fast_path_is_one_that_ray_reads() -> None:
    home = Path(ray.__file__).parent
    read = "".join(
        (home / file).read_text() for file in ("serve/_private/constants.py", "llm/_internal/serve/constants.py")
    )
    assert [name for name in SERVE_ENVIRONMENT if f'"{name}"' not in read] == []


def test_an_old_haproxy_carries_the_longest_answer_to_its_end() -> None:
    assert "hard-stop-after {{ config.hard_stop_after_s }}s" in haproxy_templates.HAPROXY_CONFIG_TEMPLATE
    slow = 5  # tokens a second that a full engine gives each of its clients
    assert int(SERVE_ENVIRONMENT["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) > Limits().max_output_tokens / slow
