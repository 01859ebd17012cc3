"""What vLLM makes of our plugin."""

import pytest
from vllm import EngineArgs
from vllm.v1.executor import Executor

from unlearn_ray.engines.vllm_plugin import register
from unlearn_ray.pocket import MODEL_DIR


@pytest.mark.parametrize(("num_workers", "executor"), [(1, "UniProcExecutor"), (3, "MultiprocExecutor")])
def test_a_worker_without_peers_needs_no_process_of_its_own(num_workers: int, executor: str) -> None:
    register()
    engine = EngineArgs(
        model=str(MODEL_DIR),
        tensor_parallel_size=num_workers,
        distributed_executor_backend="mp",  # as ray.serve.llm insists
        enforce_eager=True,
    )
    assert Executor.get_class(engine.create_engine_config()).__name__ == executor
