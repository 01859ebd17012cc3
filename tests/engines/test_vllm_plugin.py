"""What vLLM makes of our plugin. (Imported in the tests: every test process collects this file, and one runs it.)"""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from unlearn_ray.pocket import MODEL_DIR


@pytest.mark.parametrize(("num_workers", "executor"), [(1, "UniProcExecutor"), (3, "MultiprocExecutor")])
def test_a_worker_without_peers_needs_no_process_of_its_own(num_workers: int, executor: str) -> None:
    from vllm import EngineArgs
    from vllm.v1.executor import Executor

    from unlearn_ray.engines.vllm_plugin import register

    register()
    engine = EngineArgs(
        model=str(MODEL_DIR),
        tensor_parallel_size=num_workers,
        distributed_executor_backend="mp",  # as ray.serve.llm insists
        enforce_eager=True,
    )
    assert Executor.get_class(engine.create_engine_config()).__name__ == executor


@pytest.mark.parametrize(("able", "dtype"), [(["avx2", "amx_bf16"], torch.bfloat16), (["avx2"], torch.float32)])
def test_a_model_in_bf16_stays_so_where_the_cpu_computes_it(
    able: list[str], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.config import ModelConfig

    from unlearn_ray.engines.vllm_plugin import register

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(able, True))
    register()
    assert ModelConfig(str(MODEL_DIR)).dtype == dtype
    assert ModelConfig(str(MODEL_DIR), dtype="bfloat16").dtype == torch.bfloat16


PARENT = """
import multiprocessing, time
from unlearn_ray.engines.vllm_plugin import end_with_parent
if __name__ == "__main__":
    end_with_parent()  # has no parent of its kind: returns
    for method in ("spawn", "forkserver"):
        child = multiprocessing.get_context(method).Process(target=end_with_parent)
        child.start()
        print(child.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.long
def test_an_engine_does_not_outlive_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            lines = (line for line in parent.stdout if line.strip().isdigit())  # vLLM says things too
            engines = [psutil.Process(int(next(lines))) for _ in range(2)]
        finally:
            parent.kill()
    _, alive = psutil.wait_procs(engines, timeout=120)
    assert alive == []
