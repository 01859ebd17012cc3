"""The trainer: Ray Train starts and restarts workers, DeepSpeed shards the model over them, several jobs run side by side.

If a worker is lost, Ray Train restarts the group from the last checkpoint. If the driver is lost, the next driver finds the training by its
name. The name holds a fingerprint of all inputs, so two different trainings are never confused. Any number of workers can resume a training.
"""

import hashlib
import json
import logging
import os
import queue
import threading
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import ray

from unlearn_ray.artifacts import Folder
from unlearn_ray.config import ClusterConfig, WorkerResources
from unlearn_ray.engines.capacity import capacity, growth
from unlearn_ray.engines.protocols import TrainJob, TrainResult
from unlearn_ray.engines.room import THREAD, Room
from unlearn_ray.engines.session import device_of, require_workers, worker_shape
from unlearn_ray.engines.training_job import RESULT, Assignment, Progress, check_workers, work
from unlearn_ray.errors import EngineError
from unlearn_ray.rows import digest

OnProgress = Callable[[str, int, int], None]
LABEL = "finetune"
log = logging.getLogger(__name__)
_POLL_SECONDS = 0.5
_SECONDS_TO_GROW = 300.0  # between checks for room for more workers; adding them costs a restart and the steps since the last checkpoint


class RayDeepSpeedTrainer:
    """Implements `protocols.Trainer`. Ray must be connected.

    Args:
        on_progress: called with a label that names the job, its steps done and their number.
        on_wait: called with the reason, as text, while no training has room for its workers.
        on_speed: called with the same label, and with the last step's loss and speed as text.
    """

    def __init__(
        self,
        cluster: ClusterConfig,
        *,
        on_progress: OnProgress | None = None,
        on_wait: Callable[[str], None] = lambda text: None,
        on_speed: Callable[[str, str], None] = lambda label, text: None,
    ) -> None:
        self._cluster = cluster
        self._on_progress, self._on_speed = on_progress, on_speed
        self._on_wait = on_wait

    def outcomes(self, jobs: Sequence[TrainJob]) -> dict[str, TrainResult | Exception]:
        """Train and export every job. Jobs that an interrupted call had finished are not trained again.

        Raises:
            ConfigError: the sharding settings contradict each other.
            ClusterError: the cluster can't hold one job's workers, or had no room for them in time.
        """
        workers = self._cluster.workers
        check_workers(workers)
        jobs = [_anywhere(job) for job in jobs]
        device = device_of(self._cluster)
        num_side_by_side = self._num_side_by_side(len(jobs))
        runs = {job.name: run_name(job) for job in jobs}
        left = deque(job for job in jobs if read_result(job, runs[job.name]) is None)
        if left:
            # Imports torch. Not at the top, because a finished run needs none of it. Not in the threads, where imports may collide.
            import_module("ray.train.torch")
        progress: Any = ray.remote(num_cpus=0)(Progress).remote() if left and self._on_progress else None
        try:
            failures = self._train_all(left, runs, device, num_side_by_side, progress)
        finally:
            if progress is not None:
                ray.kill(progress)
        ended: dict[str, TrainResult | Exception] = {}
        for job in jobs:
            result = read_result(job, runs[job.name])
            lost = EngineError(f"the training of {job.name} ended without a result in {job.checkpoints}")
            ended[job.name] = failures.get(job.name) or result or lost
        return ended

    def _train_all(
        self,
        left: deque[TrainJob],
        runs: Mapping[str, str],
        device: Literal["cpu", "cuda"],
        num_side_by_side: int,
        progress: Any,
    ) -> dict[str, Exception]:
        """Try each job. Returns the failures by job name."""
        workers = self._cluster.workers
        ended: queue.Queue[tuple[TrainJob, Exception | None]] = queue.Queue()
        shape, timeout = worker_shape(self._cluster), self._cluster.start_timeout_seconds
        room = Room(workers, shape, timeout, self._on_wait)
        num_running = 0
        failures: dict[str, Exception] = {}
        while num_running or left:
            while left and num_running < num_side_by_side:
                job = left.popleft()
                run = runs[job.name]
                launch = Launch(
                    Assignment(job, workers, run, f"unlearn-ray-{run}-{uuid.uuid4().hex[:8]}", device, progress)
                )
                # Not a thread pool: a thread that waits for Ray must not keep an interrupted driver alive.
                threading.Thread(target=launch.run, args=(ended,), name=f"{THREAD}{job.name}", daemon=True).start()
                num_running += 1
                log.info("%s: training begins", job.name)
            try:
                job, failure = ended.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                self._tell(progress)
                room.check()
                continue
            num_running -= 1
            log.info("%s: training %s", job.name, "ended" if failure is None else "failed")
            self._tell(progress)
            if failure is not None:
                log.error("%s: %s", job.name, failure, exc_info=failure)
                failures[job.name] = failure
        return failures

    def _tell(self, progress: Any) -> None:
        if progress is not None and self._on_progress is not None:
            for name, (step, num_steps, speed) in ray.get(progress.take.remote()).items():
                self._on_speed(f"{LABEL} {name}", speed)
                self._on_progress(f"{LABEL} {name}", step, num_steps)

    def _num_side_by_side(self, num_jobs: int) -> int:
        """The number of jobs that the cluster can hold at the same time.

        Raises:
            ClusterError: the cluster can't hold a single job.
        """
        require_workers(self._cluster)
        workers = self._cluster.workers
        most = workers.span[1]  # the first job takes all the room that there is
        wanted = {"CPU": most * workers.num_cpus}
        if device_of(self._cluster) == "cuda":
            wanted["GPU"] = float(most)
        has = {name: capacity(name) for name in wanted}
        if workers.concurrent_jobs != "auto":
            return workers.concurrent_jobs
        if _is_one_machine():
            has["CPU"] = max(wanted["CPU"], min(has["CPU"], float(os.cpu_count() or 1)))
        return max(1, min(num_jobs, *(int(has[name] // amount) for name, amount in wanted.items())))


@dataclass(frozen=True, slots=True)
class Launch:
    """One job in Ray Train."""

    assignment: Assignment

    def run(self, ended: "queue.Queue[tuple[TrainJob, Exception | None]]") -> None:
        """Train, and put the outcome into `ended`. Runs in a thread."""
        job = self.assignment.job
        try:
            self._fit()
        except Exception as error:
            from unlearn_ray.engines.training_failures import cause

            ended.put((job, cause(job.name, error)))
        else:
            ended.put((job, None))

    def _fit(self) -> None:
        from ray.train import CheckpointConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from unlearn_ray.engines.training_failures import NoSecondTry, borne

        job, workers = self.assignment.job, self.assignment.workers
        is_cuda = self.assignment.device == "cuda"
        resources: dict[str, float] = {"CPU": workers.num_cpus}
        if is_cuda:
            resources["GPU"] = 1.0
        job.checkpoints.make()
        TorchTrainer(
            work,
            train_loop_config={"assignment": self.assignment},
            torch_config=TorchConfig(backend="nccl" if is_cuda else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=num_workers_of(workers),
                elastic_resize_monitor_interval_s=_SECONDS_TO_GROW,
                use_gpu=is_cuda,
                resources_per_worker=resources,
            ),
            run_config=RunConfig(
                name=self.assignment.run,
                storage_path=job.checkpoints.path,
                storage_filesystem=job.checkpoints.filesystem,
                failure_config=borne(job.config.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=job.config.keep_checkpoints),
                callbacks=[NoSecondTry(job.name)],
                worker_runtime_env={"env_vars": self.environment()},
            ),
        ).fit()

    def environment(self) -> dict[str, str]:
        """Variables of the workers' processes."""
        variables = {
            "TOKENIZERS_PARALLELISM": "true",
            # Also on GPU workers: an offloaded optimizer runs on the CPU, and Ray would give it a single thread.
            "OMP_NUM_THREADS": f"{max(1, int(self.assignment.workers.num_cpus))}",
        }
        if self.assignment.device == "cpu":
            variables |= {
                "DS_ACCELERATOR": "cpu",
                "CUDA_VISIBLE_DEVICES": "",  # this worker must not use memory of the machine's GPUs
                "OMP_WAIT_POLICY": "PASSIVE",  # idle threads sleep: spinning threads on shared cores slow a step down to seconds
            }
        return variables


def num_workers_of(workers: WorkerResources) -> int | tuple[int, int]:
    """The number of workers for Ray Train. An elastic maximum is limited by the cores if there is only one machine."""
    if isinstance(workers.num_workers, int):
        return workers.num_workers
    least, most = workers.span
    if _is_one_machine():
        most = max(least, min(most, int((os.cpu_count() or 1) // workers.num_cpus)))
    return least, most


def _is_one_machine() -> bool:
    """Whether there is one machine and no autoscaler. Ray may then have more logical CPUs than cores: a local Ray of ours has eight on two cores."""
    return len(ray.nodes()) == 1 and growth() is None


def run_name(job: TrainJob) -> str:
    """The name of a training in Ray Train. Two trainings have the same name if and only if one may resume the other, with any number of workers."""
    what = job.config.model_dump(mode="json", exclude=job.config.changes_nothing)
    rows = [_content(folder) for folder in (job.forget, job.retain, job.gate, job.truths) if folder is not None]
    asked = job.chat.model_dump_json()
    return f"{job.name[:40]}-{digest(job.model, asked, json.dumps([what, rows]), job.seed, *job.topics)}"


def _content(folder: Folder) -> str:
    """A digest of a folder's Parquet files."""
    found = hashlib.sha256()
    for name in folder.names(".parquet"):
        found.update(name.encode())
        with folder.filesystem.open_input_stream(f"{folder.path}/{name}") as file:
            while chunk := file.read(2**24):
                found.update(chunk)
    return found.hexdigest()


def _anywhere(job: TrainJob) -> TrainJob:
    """The job with an absolute path to its model, because workers run in another folder."""
    return replace(job, model=str(Path(job.model).absolute())) if Path(job.model).is_dir() else job


def read_result(job: TrainJob, run: str) -> TrainResult | None:
    """The result of a finished training. None if this one is unfinished."""
    if not job.checkpoints.exists(RESULT) or not job.out.exists():
        return None
    found = json.loads(job.checkpoints.read_text(RESULT))
    return TrainResult(**found["result"]) if found["run"] == run else None
