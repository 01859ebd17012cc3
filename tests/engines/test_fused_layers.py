"""A model whose layers have other names than Llama's, here Phi-3's fused ones: LoRA reaches all of them, and vLLM answers with them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
def test_an_adapter_on_fused_layers_answers_in_vllm_as_in_peft(tmp_path: Path) -> None:
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, here / "fused_layers.py", tmp_path], capture_output=True, text=True, timeout=600, env=environment, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("[[")]
    for base, adapted, of_peft in json.loads(line):
        # A letter of several bytes that the limit cuts is shown by transformers, and not by vLLM; a SentencePiece vocabulary's first space is
        # shown by vLLM alone.
        adapted, of_peft, base = (text.strip("\ufffd ") for text in (adapted, of_peft, base))
        assert adapted == of_peft != base
