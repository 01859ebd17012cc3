"""Starts an engine's process early. It imports vLLM while its parent does its own imports, and is forked when the engine is started.

This uses Python's fork server: a process that starts clean, has a single thread, and shares nothing with its parent.
"""

import multiprocessing
from multiprocessing import forkserver

VARIABLE = "UNLEARN_RAY_ENGINE_AHEAD"  # set in processes that will start an engine
CONTEXT = multiprocessing.get_context("forkserver")
_MODULES = ["vllm.v1.engine.core", "vllm.v1.executor.uniproc_executor", "vllm.v1.worker.cpu_worker"]


def start() -> None:
    """Begin the import in the other process. Call this before importing vLLM in the own process."""
    CONTEXT.set_forkserver_preload(_MODULES)
    forkserver.ensure_running()
