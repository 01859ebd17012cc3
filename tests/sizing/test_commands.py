"""`unlearn-ray plan` and `--dry-run` as a person types them, where the hub never answers."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commandline import COMMAND, environment

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
LORA, FULL = CONFIGS / "llama3-8b-lora.yaml", CONFIGS / "llama3-8b-full.yaml"


@pytest.fixture
def silence() -> Iterator[str]:
    """The address of a hub that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def said(tmp_path: Path, hub: str, *arguments: str | Path, code: int = 0) -> tuple[str, float]:
    """What a command prints, and the seconds that it took."""
    own = environment() | {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf"), "COLUMNS": "160"}
    own.pop("HF_HUB_OFFLINE", None)
    began = time.monotonic()
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=tmp_path,
        env=own,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert not [name for name in os.listdir(tmp_path) if name != "hf"]
    return done.stdout + done.stderr, time.monotonic() - began


def test_a_known_model_is_planned_without_the_hub(tmp_path: Path, silence: str) -> None:
    text, _ = said(tmp_path, silence, "plan", FULL, "--gpu", "h100", "--usd-per-gpu-hour", "2.5")
    for part in ("8.03 B parameters", "weights are not on this machine", "GPU-hours", "USD", "2 x 96.4 GB"):
        assert part in text
    assert "✗" not in text
    text, _ = said(tmp_path, silence, "plan", FULL, "--gpu", "l40s", "cluster.workers.num_workers=1")
    assert "✗ finetune does not fit" in text and "it fits with cluster.workers." in text


def test_a_dry_run_of_a_known_model_waits_for_no_hub(tmp_path: Path, silence: str) -> None:
    text, seconds = said(tmp_path, silence, "run", LORA, "--dry-run")
    assert "its weights are not here" in text and "finetune" in text and "3 x 600 steps" in text
    _, alone = said(tmp_path, silence, "version")
    assert seconds - alone < 60  # two seconds for the hub, the rest is imports on a busy machine


def test_a_run_of_it_does_not_begin(tmp_path: Path, silence: str) -> None:
    text, _ = said(tmp_path, silence, "run", LORA, code=2)
    assert text.count("\n") == 1 and "is not on this machine" in text


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--gpu", "tpu"), "--gpu"),
        (("--gpu", "h100", "--usd-per-gpu-hour", "-1"), "--usd-per-gpu-hour"),
        (("--gpu", "h100", "finetune.num_stepz=3"), "did you mean 'num_steps'"),
    ],
)
def test_what_can_not_be_planned_is_one_line(
    tmp_path: Path, silence: str, arguments: tuple[str, ...], part: str
) -> None:
    text, _ = said(tmp_path, silence, "plan", FULL, *arguments, code=2)
    assert part in text and text.count("\n") == 1
