"""Work on rows without a model: tasks on the cluster's CPUs. Each reads and writes files, and returns counts to the driver."""

import os
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError

from unlearn_ray.engines.chunks import TASK_CPUS
from unlearn_ray.engines.failures import plain, portable
from unlearn_ray.engines.protocols import R, T

_RETRIES = 3  # per task whose worker or node is lost


class RowWorkers:
    """The cluster's CPUs for work on rows. Thread-safe. At most as many tasks run at once as there are cores."""

    def __init__(self) -> None:
        self._room = threading.Condition()
        self._num_busy = 0

    def each(
        self,
        task: Callable[[T], R],
        items: Sequence[T],
        take: Callable[[R], object],
        on_progress: Callable[[int, int], None],
    ) -> None:
        """See `protocols.Generator.each`.

        Args:
            on_progress: called with the number of items done, and their total.
        """
        shared = ray.put(cloudpickle.dumps(task))  # once for all items: it may hold a vocabulary
        num_slots, waiting, num_done = _num_slots(), deque(items), 0
        ordered: deque[ray.ObjectRef[Any]] = deque()
        running: list[ray.ObjectRef[Any]] = []
        ended: set[ray.ObjectRef[Any]] = set()
        on_progress(0, len(items))
        try:
            while waiting or ordered:
                while waiting and self._start(num_slots, must_wait=not running):
                    running.append(_work.remote(shared, waiting.popleft()))
                    ordered.append(running[-1])
                just_ended, running = ray.wait(running, num_returns=1)
                self._end(len(just_ended))
                ended.update(just_ended)
                while ordered and ordered[0] in ended:  # results in order; a slow task does not block the others
                    reference = ordered.popleft()
                    ended.discard(reference)
                    take(_result(reference))
                    num_done += 1
                    on_progress(num_done, len(items))
        finally:
            for left in running:
                ray.cancel(left)
            self._end(len(running))

    def _start(self, num_slots: int, must_wait: bool) -> bool:
        """Whether there is room for one more task. A caller without a running task waits until there is."""
        with self._room:
            while self._num_busy >= num_slots:
                if not must_wait:
                    return False
                self._room.wait()
            self._num_busy += 1
            return True

    def _end(self, number: int) -> None:
        with self._room:
            self._num_busy -= number
            self._room.notify_all()


def _result(reference: "ray.ObjectRef[Any]") -> Any:
    """The result of a task.

    Raises:
        Exception: the error that the task raised.
    """
    try:
        failed, result = ray.get(reference)
    except RayError as error:
        raise plain(error) from error
    if failed:
        raise cloudpickle.loads(failed)
    return result


def _num_slots() -> int:
    """Number of tasks at the same time. Ray's CPUs are only accounting: on one machine there are more of them than cores."""
    num_cpus = int(ray.cluster_resources().get("CPU", 1))
    is_one_machine = sum(bool(node["Alive"]) for node in ray.nodes()) == 1
    return max(1, min(num_cpus, os.cpu_count() or 1) if is_one_machine else num_cpus)


# The same share of a CPU as for the tasks that ask engines: then they fit into the room beside the engines that a run checks for.
@ray.remote(num_cpus=TASK_CPUS, max_retries=_RETRIES, scheduling_strategy="SPREAD")
def _work(task: bytes, item: Any) -> tuple[bytes, Any]:
    """The result, or the error as a value. Ray would wrap a raised error."""
    try:
        return b"", cloudpickle.loads(task)(item)
    except Exception as error:
        kept = portable(error, "work on rows failed")
        kept.add_note(f"in a worker:\n{traceback.format_exc()}")
        return cloudpickle.dumps(kept), None
