"""benchmarks/gpu.py, which is run where no Ray and no vLLM are: all of its code, on a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
# What imports one of them fails, as where they are not installed.
ALONE = """
import runpy, sys
for name in ("ray", "vllm", "typer"):
    sys.modules[name] = None
script, *arguments = sys.argv[1:]
sys.path.insert(0, script.rpartition("/")[0])
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""


def test_it_runs_in_one_process_without_ray_and_vllm(tmp_path: Path) -> None:
    arguments = ["--shape", "tiny", "--num-steps", "3", "--out", str(tmp_path / "gpu.json")]
    own = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(SCRIPT), *arguments],
        env=os.environ | own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert {each["weights"] for each in figures["speeds"]} == {"lora", "full"}
    assert all(each["fits"] and each["tokens_per_second"] > 0 for each in figures["speeds"])
    assert {each["zero_stage"] for each in figures["parity"]} == {0, 1, 2, 3}
    assert all(each["is_equal"] for each in figures["parity"])
    assert figures["card"] == "CPU" and "torch" in figures["versions"] and figures["date"]
