"""Our changes to vLLM, most of them for machines without a GPU. Each process of vLLM loads this plugin (entry point `vllm.general_plugins`)."""

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
    """Apply the changes: end with the parent, and read tokenizers as we do. On a CPU also: use our LoRA operator and fast floats, keep an
    engine with one worker in one process, and fork that process from the one that was started early.

    On a CPU vLLM starts a separate process for the worker, to bind its threads to cores. Ours are not bound (`vllm_engine.environment`). That
    process would import all of torch and vLLM once more: 20 s of a service's start, and 0.5 GB.
    """
    threading.Thread(target=end_with_parent, daemon=True).start()
    _read_tokenizers_as_we_do()
    if not current_platform.is_cpu():
        return
    platform = type(current_platform)
    lora = f"{GroupedLora.__module__}.{GroupedLora.__qualname__}"
    all_dtypes = platform.supported_dtypes.fget
    # The types that `dtype: auto` chooses from.
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
    """Make vLLM read a tokenizer as `train.chat.read_tokenizer` does. In vLLM's mode `hf`, transformers would still use a tekken.json.

    vllm-project/vllm#49907 makes that mode read transformers' config. Remove this when it also keeps to transformers' tokenizer files.
    """
    from vllm.tokenizers.hf import CachedHfTokenizer  # imports all of transformers' tokenizers

    as_vllm = CachedHfTokenizer.from_pretrained.__func__

    def read(cls: type, *arguments: Any, **options: Any) -> Any:
        return as_vllm(cls, *arguments, **{"mistral_format": False, **options})

    CachedHfTokenizer.from_pretrained = classmethod(read)


def end_with_parent() -> None:
    """End this process when its parent ends. Does nothing in a process that `multiprocessing` did not start.

    vLLM's engine outlives a killed parent, and keeps its memory, including a GPU's. The next engine would then find no room.
    """
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)
