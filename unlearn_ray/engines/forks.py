"""An engine's process, begun early: it imports vLLM beside its parent's own imports, and is forked into the engine once that is asked for.

Python's fork server does the work: a process that is started clean, has a single thread, and holds no part of its parent.
"""

import multiprocessing
from multiprocessing import forkserver

VARIABLE = "UNLEARN_RAY_ENGINE_AHEAD"  # set where a process will start an engine
CONTEXT = multiprocessing.get_context("forkserver")
_MODULES = ["vllm.v1.engine.core", "vllm.v1.executor.uniproc_executor", "vllm.v1.worker.cpu_worker"]


def start() -> None:
    """Begin to import; call it before importing vLLM oneself."""
    CONTEXT.set_forkserver_preload(_MODULES)
    forkserver.ensure_running()
