"""What we change of vLLM, most of it where there is no GPU: a plugin of vLLM's (entry point `vllm.general_plugins`), loaded by each of its processes."""

import multiprocessing
import os
import signal
import threading
from functools import cache
from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.engine import utils as processes

from unlearn_ray.engines import forks
from unlearn_ray.engines.cpu_lora import GroupedLora
from unlearn_ray.engines.precision import has_bf16

_IN_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


@cache  # vLLM calls it more than once
def register() -> None:
    """End with the parent; take our adapters' operator and the fast floats, keep an engine of one worker in one process, and fork that where it was begun ahead.

    On a CPU vLLM gives the worker a process of its own, to bind its threads to cores; ours are not bound
    (`vllm_engine.environment`). That process imports all of torch and vLLM once more: 20 s of a service's start, and 0.5 GB.
    """
    threading.Thread(target=end_with_parent, daemon=True).start()
    _read_tokenizers_as_we_do()
    if not current_platform.is_cpu():
        return
    platform = type(current_platform)
    lora = f"{GroupedLora.__module__}.{GroupedLora.__qualname__}"
    all_dtypes = platform.supported_dtypes.fget
    # What `dtype: auto` chooses from.
    platform.supported_dtypes = property(lambda self: all_dtypes(self) if has_bf16("cpu") else [torch.float32])
    platform.get_punica_wrapper = classmethod(lambda cls: lora)
    as_vllm = platform.check_and_update_config

    def check(cls: type, vllm_config: Any) -> None:
        as_vllm(vllm_config)
        parallel = vllm_config.parallel_config
        if parallel.distributed_executor_backend == "mp" and parallel.world_size == 1:
            parallel.distributed_executor_backend = _IN_PROCESS

    platform.check_and_update_config = classmethod(check)
    if forks.VARIABLE in os.environ:
        processes.get_mp_context = lambda: forks.CONTEXT


def _read_tokenizers_as_we_do() -> None:
    """Have vLLM read a tokenizer as `train.chat.read_tokenizer` does: in its mode `hf`, transformers would still take a tekken.json.

    vllm-project/vllm#49907 has that mode read transformers' config; this can go when it keeps to transformers' tokenizer files as well.
    """
    from vllm.tokenizers.hf import CachedHfTokenizer  # with all of transformers' tokenizers

    as_vllm = CachedHfTokenizer.from_pretrained.__func__

    def read(cls: type, *arguments: Any, **options: Any) -> Any:
        return as_vllm(cls, *arguments, **{"mistral_format": False, **options})

    CachedHfTokenizer.from_pretrained = classmethod(read)


def end_with_parent() -> None:
    """Return at once in a process that `multiprocessing` did not start; else wait for the parent's end, and end.

    vLLM's engine outlives a parent that was killed, and holds its memory, a GPU's too: the next engine would find no room.
    """
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)
