"""Watches whether trainings get room for their workers on the cluster. Ray Train itself waits silently and without limit."""

import logging
import os
import threading
import time
from collections.abc import Callable

import ray
from ray.util import placement_group_table

from unlearn_ray.config import WorkerResources
from unlearn_ray.engines.capacity import Shape, described, in_words
from unlearn_ray.errors import ClusterError

log = logging.getLogger(__name__)
_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_TO_FIRST_WORD = 5.0
_SECONDS_BETWEEN_WORDS = 30.0
_SECONDS_TO_END = 5.0
THREAD = "train-"  # prefix of the names of threads that wait for a training


class Room:
    """Watches the placement groups in which Ray Train asks for the workers of this driver's trainings."""

    def __init__(
        self,
        workers: WorkerResources,
        shape: Shape,
        timeout_seconds: float,
        on_wait: Callable[[str], None] = lambda text: None,
    ) -> None:
        """
        Args:
            shape: the resources of each worker.
            timeout_seconds: how long no training may have its workers.
            on_wait: called repeatedly during a wait, with the reason as text.
        """
        self._workers, self._shape, self._timeout, self._on_wait = workers, shape, timeout_seconds, on_wait
        self._since: float | None = None  # start of the wait of some training
        self._alone_since: float | None = None  # start of the time in which one waits and none runs
        self._looked = self._spoke = 0.0
        # Longer than our timeout, whose message says more. After its default of a minute, Ray Train withdraws its request while an
        # autoscaler is still starting nodes for it.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", f"{2 * timeout_seconds:g}")

    def check(self) -> None:
        """Report a wait. Cheap, and to be called often.

        Raises:
            ClusterError: no training got its workers in time.
        """
        now = time.time()
        if now - self._looked < _SECONDS_BETWEEN_LOOKS:
            return
        self._looked = now
        states = self._states()
        if not states & {"PENDING", "RESCHEDULING"}:  # RESCHEDULING: after the loss of a node
            self._since = self._alone_since = None
            return
        self._since = self._since or now
        self._alone_since = None if "CREATED" in states else self._alone_since or now
        waited = now - self._since
        text = f"{in_words(self._shape)} for each of {self._workers.in_words.replace(' worker', ' training worker')}"
        if self._alone_since is not None and (alone := now - self._alone_since) > self._timeout:
            raise ClusterError(
                f"cluster.start_timeout_seconds: the cluster had no room of {text} for {alone:.0f} s: "
                f"{described()}: end what holds it, add nodes, or wait longer"
            )
        if waited >= _SECONDS_TO_FIRST_WORD and now - self._spoke >= _SECONDS_BETWEEN_WORDS:
            self._spoke = now
            began = time.strftime("%H:%M:%S", time.localtime(self._since))
            line = f"waiting since {began} ({waited:.0f} s) for room of {text}: {described()}"
            log.info("%s", line)
            if "CREATED" not in states:  # otherwise a training runs, and its steps are shown
                self._on_wait(line)

    def _states(self) -> set[str]:
        job = ray.get_runtime_context().get_job_id()
        # A placement group's id ends with the id of its job.
        states = {group["state"] for name, group in placement_group_table().items() if name.endswith(job)}
        states -= {"REMOVED"}
        # With an elastic number of workers, Ray Train requests none until there is room for the minimum.
        return states or ({"PENDING"} if isinstance(self._workers.num_workers, tuple) else set())


def end_trainings() -> None:
    """End this driver's running trainings. Must be called before Ray is shut down: a thread that still waits for a training would then abort
    the process, before the run's last messages are printed. Ray Train can't end a `fit()` from outside its thread."""
    from ray._private import state, worker

    waiting = [thread for thread in threading.enumerate() if thread.name.startswith(THREAD)]
    if not waiting:
        return
    job = ray.get_runtime_context().get_job_id()
    for actor in state.actors().values():
        if actor["ActorClassName"] == "TrainController" and actor["JobID"] == job and actor["State"] != "DEAD":
            worker.global_worker.core_worker.kill_actor(ray.ActorID.from_hex(actor["ActorID"]), True)
    for thread in waiting:
        thread.join(_SECONDS_TO_END)
