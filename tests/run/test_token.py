"""The token for a gated model comes from a cluster's nodes: all processes of a job have it, and nothing that Ray shows holds it."""

import hashlib
import re
import secrets
import urllib.request
from pathlib import Path

import pytest
from head import BIN, started

from unlearn_ray.config import EngineResources
from unlearn_ray.engines.vllm_engine import EngineSpec, environment
from unlearn_ray.serving.keys import read_keys
from unlearn_ray.serving.settings import EngineSettings, ServiceSettings

# What a driver, a task and an actor with the environment of our engines each find; its hash, since a job's log is shown, too.
JOB = """
import hashlib
import ray
from huggingface_hub import get_token
from unlearn_ray.config import EngineResources
from unlearn_ray.engines.vllm_engine import EngineSpec, environment

def found():
    return hashlib.sha256((get_token() or "").encode()).hexdigest()

@ray.remote
class Engine:
    def found(self):
        return found()

if __name__ == "__main__":
    ray.init()
    variables = environment(EngineSpec("pocket", EngineResources(), "cpu"))
    engine = Engine.options(runtime_env={"env_vars": variables}).remote()
    for each in (found(), ray.get(ray.remote(found).remote()), ray.get(engine.found.remote())):
        print("found", each)
"""
SHOWN = (
    "jobs/",
    "jobs/with-token",
    "jobs/with-token/logs",
    "v0/jobs?detail=1",
    "v0/actors?detail=1",
    "v0/runtime_envs?detail=1",
)


@pytest.mark.long(waits=True)
@pytest.mark.parametrize("way", ["variable", "file"])
def test_a_job_has_the_token_of_its_nodes_and_ray_shows_it_nowhere(way: str, tmp_path: Path) -> None:
    token = f"hf_{secrets.token_hex(16)}"
    file, script = tmp_path / "home" / "token", tmp_path / "code" / "job.py"
    for path, text in ((file, token if way == "file" else ""), (script, JOB)):
        path.parent.mkdir()
        path.write_text(text)
    file.chmod(0o600)
    # HF_HOME is ~/.cache/huggingface unless it is set.
    nodes = {"HF_HOME": str(file.parent)} | ({"HF_TOKEN": token} if way == "variable" else {})
    with started(nodes) as head:
        submit: list[str | Path] = ["job", "submit", "--address", head.dashboard, "--submission-id", "with-token"]
        submit += ["--", "python", script]
        # As a person's shell, which has no token.
        done = head.run(BIN / "ray", *submit, cwd=script.parent, HF_TOKEN="", HF_HOME=str(script.parent))
        assert re.findall(r"found (\w+)", done.stdout) == [hashlib.sha256(token.encode()).hexdigest()] * 3
        told = [done.stdout, head.run(BIN / "ray", "job", "list", "--address", head.dashboard, cwd=tmp_path).stdout]
        for page in SHOWN:
            with urllib.request.urlopen(f"{head.dashboard}/api/{page}", timeout=60) as answer:
                told.append(answer.read().decode())
    assert all("with-token" in text for text in told[:4])
    assert not [text for text in told if token in text]


def test_what_our_engines_and_replicas_are_sent_holds_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray shows the runtime_env of actors and of Serve's applications."""
    from unlearn_ray.serving.app import llm_config

    monkeypatch.setenv("HF_TOKEN", token := f"hf_{secrets.token_hex(16)}")
    keys = tmp_path / "keys"
    keys.write_text("sk-fedcba9876543210\n")
    settings = ServiceSettings(registry=str(tmp_path), engine=EngineSettings(accelerator="cpu"))
    sent = llm_config(settings, read_keys(str(keys))).model_dump_json(exclude={"server_cls", "callback_config"})
    assert "sha256" in sent and token not in sent
    assert token not in str(environment(EngineSpec("pocket", EngineResources(), "cpu")))
