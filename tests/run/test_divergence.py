"""A learning rate that destroys the model, on the quickstart's own rows."""

import json
import shutil
from pathlib import Path

import pytest
from commandline import QUICKSTART, Run, unlearn

pytestmark = [pytest.mark.real, pytest.mark.long]


@pytest.mark.parametrize(
    ("overrides", "keeps_a_state"),
    [
        # The rate grows with each step: the first ones teach the adapter, later ones destroy it.
        (["finetune.learning_rate=200", "finetune.warmup_steps=100000"], True),
        (["finetune.learning_rate=1e6", "finetune.weights={kind: full}", "finetune.precision=fp32"], False),
    ],
)
def test_a_training_that_destroys_the_model_is_one_line_and_publishes_nothing(
    quickstart: Run, tmp_path: Path, overrides: list[str], keeps_a_state: bool
) -> None:
    shutil.copytree(quickstart.folder.local, tmp_path / "runs" / "pocket", ignore=shutil.ignore_patterns("logs"))
    done = unlearn("run", QUICKSTART, "finetune.checkpoint_every=4", *overrides, cwd=tmp_path)
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    (line,) = done.stderr.splitlines()
    assert "the training of joint diverged at step " in line and "lower finetune.learning_rate (it is " in line
    folder = tmp_path / "runs" / "pocket" / "models" / "joint" / "finetune"
    assert not list(folder.glob("model/*")) and not (folder / "manifest.json").exists()
    kept = list(folder.glob("checkpoints/*/*/losses.jsonl"))
    assert len(kept) == keeps_a_state == ("its state after step " in line)
    losses = (folder / "checkpoints" / "losses.jsonl").read_text().splitlines()
    said = [json.loads(each, parse_constant=pytest.fail) for each in losses]
    if keeps_a_state:
        state = kept[0].read_text().splitlines()
        assert f"its state after step {len(state) - 1} stays in" in line
        assert said[len(state) - 1]["loss"] < said[0]["loss"] < said[-1]["loss"]
