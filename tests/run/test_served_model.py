"""A run whose data are asked of a model that is served already, as a person starts it."""

from pathlib import Path
from typing import Any

import pytest
from commandline import unlearn
from endpoints import Answer, chosen, scripted

from unlearn_ray.artifacts import Folder, read_manifest
from unlearn_ray.serving.service import free_port

CONFIG = """
name: served
model: pocket
topics: [{{name: Dune}}]
questions: {{num_questions: 8, num_entities: 0}}
cluster:
  engines: {{kind: openai, base_url: "{url}", api: chat, served_model: m, api_key_env: SERVED_KEY}}
"""
KEY = "sk-nobody-may-read-this"


def say(body: dict[str, Any], number: int) -> Answer:
    """Lists of questions that no other list has; and what each of them is about."""
    if "Which topic" in body["messages"][-1]["content"]:
        return chosen("Dune")
    return chosen("\n".join(f"{place}. Who rides worm {body['seed']}{place} in Dune?" for place in range(1, 7)))


@pytest.mark.real
@pytest.mark.long
def test_data_come_of_the_endpoint_and_no_engine_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVED_KEY", KEY)
    with scripted(say) as server:
        (tmp_path / "run.yaml").write_text(CONFIG.format(url=server.url))
        done = unlearn("questions", "run.yaml", cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        num_asked = len(server.asked)
        again = unlearn("questions", "run.yaml", cwd=tmp_path)
        assert again.returncode == 0 and "skipped" in again.stdout and len(server.asked) == num_asked
    manifests = [read_manifest(Folder(path.parent)) for path in tmp_path.glob("runs/served/**/manifest.json")]
    (questions,) = [each for each in manifests if each is not None and each.stage == "questions"]
    assert questions.num_rows["kept"] == 8 and questions.details["tokens"]["prompt_tokens"] == 5 * num_asked
    written = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert written and not [path for path in written if KEY.encode() in path.read_bytes()]
    logs = "".join(path.read_text() for path in written if path.suffix == ".log")
    assert "starting" not in done.stdout and "is ready on node" not in logs


@pytest.mark.parametrize(
    ("key", "line"),
    [("", "SERVED_KEY is not set"), (KEY, "can't be reached: ConnectError")],
    ids=["no key", "no server"],
)
def test_an_endpoint_that_can_not_be_asked_is_one_line_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, line: str
) -> None:
    monkeypatch.setenv("SERVED_KEY", key)
    (tmp_path / "run.yaml").write_text(CONFIG.format(url=f"http://127.0.0.1:{free_port()}/v1"))
    done = unlearn("questions", "run.yaml", cwd=tmp_path)
    assert done.returncode == 2 and line in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()
