"""The start of a service: while one thread imports vLLM, the other must import nothing."""

import json
import subprocess
import sys
from pathlib import Path

from commandline import environment

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
    serve.shutdown()
print(json.dumps(new))
"""


def test_ray_and_serve_import_nothing_while_they_start(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", START, str(tmp_path)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []
