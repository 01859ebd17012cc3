"""Work that needs the whole model in one process, such as an attack on its weights: one task on the cluster, with a GPU where there is one."""

import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import ray
from ray import cloudpickle
from ray.exceptions import RayError

from unlearn_ray.config import ClusterConfig
from unlearn_ray.engines.capacity import described, in_words
from unlearn_ray.engines.failures import plain, portable
from unlearn_ray.engines.session import device_of, require_workers, worker_shape
from unlearn_ray.errors import ClusterError

log = logging.getLogger(__name__)
T = TypeVar("T")
OnProgress = Callable[[str, int, int], None]
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_FIRST_WORD = 15.0  # a worker process takes some to start
_SECONDS_BETWEEN_WORDS = 30.0
_ITEMS_AT_ONCE = 1000


def alone(
    work: Callable[[OnProgress], Iterator[T]],
    cluster: ClusterConfig,
    label: str,
    on_progress: OnProgress,
    on_wait: Callable[[str], None] = lambda text: None,
) -> Iterator[T]:
    """What `work` yields in a process of the shape of one training worker.

    Args:
        work: picklable; called with a function that takes how far it is: label, done, total.
        on_progress: gets that here, with our label before its own.

    Raises:
        ClusterError: the cluster had no room for it in time.
        EngineError: its process or node was lost.
        Exception: what the work raised.
    """
    require_workers(cluster)
    shape, is_cuda = worker_shape(cluster), device_of(cluster) == "cuda"
    # Ray hides the GPUs of a task only where it may: a machine has others that this task must not take.
    variables = {} if is_cuda else {"CUDA_VISIBLE_DEVICES": ""}
    variables |= {
        "MALLOC_ARENA_MAX": "1",  # the work is in a thread, and glibc's main arena is faster
        "OMP_WAIT_POLICY": "PASSIVE",  # idle threads sleep: others share these cores
    }
    variables["OMP_NUM_THREADS"] = f"{max(1, int(shape['CPU']))}"
    task: Any = ray.remote(num_cpus=shape["CPU"], num_gpus=shape["GPU"], max_retries=0, num_returns="streaming")(_run)
    stream = task.options(runtime_env={"env_vars": variables}).remote(cloudpickle.dumps(work))
    is_over = False
    try:
        _wait_for(stream, cluster.start_timeout_seconds, in_words(shape), on_wait)
        for reference in stream:
            kind, value = ray.get(reference)
            if kind == "progress":
                name, done, total = value
                on_progress(f"{label}, {name}" if name else label, done, total)
            elif kind == "failed":
                raise cloudpickle.loads(value)
            elif kind == "items":
                yield from value
        is_over = True
    except RayError as error:
        raise plain(error) from error
    finally:
        if not is_over:  # its process with it: a thread in there goes on otherwise
            ray.cancel(stream, force=True)


def _wait_for(stream: Any, timeout: float, shape: str, on_wait: Callable[[str], None]) -> None:
    """Return once the task runs: it says so first of all."""
    began, spoke = time.time(), 0.0
    while not ray.wait([stream], timeout=_SECONDS_BETWEEN_LOOKS)[0]:
        waited = time.time() - began
        if waited > timeout:
            raise ClusterError(
                f"cluster.start_timeout_seconds: the cluster had no room of {shape} for {waited:.0f} s: {described()}: "
                "end what holds it, add nodes, or wait longer"
            )
        if waited >= _SECONDS_TO_FIRST_WORD and time.time() - spoke >= _SECONDS_BETWEEN_WORDS:
            spoke = time.time()
            text = f"waiting for {waited:.0f} s for room of {shape}: {described()}"
            log.info("%s", text)
            on_wait(text)


def _run(work: bytes) -> Iterator[tuple[str, Any]]:
    """The work's items and progress as they come. It runs in a thread: what it tells of its progress between two items must not wait."""
    yield "started", None
    told: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def produce() -> None:
        try:
            for item in cloudpickle.loads(work)(lambda *progress: told.put(("progress", progress))):
                told.put(("item", item))
            told.put(("ended", None))
        except Exception as error:
            kept = portable(error, "work in one process failed")
            kept.add_note(f"in a worker:\n{traceback.format_exc()}")
            told.put(("failed", cloudpickle.dumps(kept)))

    threading.Thread(target=produce, name="alone", daemon=True).start()
    items: list[Any] = []
    while True:
        kind, value = told.get()
        if kind == "item":
            items.append(value)
            if len(items) < _ITEMS_AT_ONCE:
                continue
        if items:
            yield "items", items
            items = []
        if kind in ("progress", "failed"):
            yield kind, value
        if kind in ("ended", "failed"):
            return
