"""MLflow: logs to the server in MLFLOW_TRACKING_URI, or to a database in the logger's folder (`mlflow ui --backend-store-uri sqlite:///...`)."""

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from unlearn_ray.train.loggers.logger import Training

EXPERIMENT = "unlearn-ray"
TAG = "unlearn_ray.run"
_SECONDS = 10.0  # between two requests
_MOST = 500  # figures per request; a server accepts 1,000
_VALUE = 500  # characters of a parameter, at most


class MlFlow:
    """Implements `Logger`."""

    def __init__(self, training: Training) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{training.folder.absolute()}/mlflow.db"
        self._client: Any = MlflowClient(uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found is not None else self._client.create_experiment(name)
        # A resumed training continues the same MLflow run.
        before = self._client.search_runs([experiment], f"tags.`{TAG}` = '{training.run}'", max_results=1)
        if before:
            self._run = before[0].info.run_id
        else:
            self._run = self._client.create_run(
                experiment, run_name=training.name, tags={TAG: training.run}
            ).info.run_id
            values = {
                key: value if isinstance(value, str) else json.dumps(value) for key, value in training.config.items()
            }
            self._client.log_batch(self._run, params=[Param(key, value[:_VALUE]) for key, value in values.items()])
        self._waiting: list[Any] = []
        self._sent = time.monotonic()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._waiting += [Metric(name, value, now, step) for name, value in figures.items()]
        if time.monotonic() - self._sent >= _SECONDS or len(self._waiting) >= _MOST:
            self._send()

    def close(self) -> None:
        self._send()
        self._client.set_terminated(self._run)

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._sent = time.monotonic()
        if waiting:
            self._client.log_batch(self._run, metrics=waiting)


def open(training: Training) -> MlFlow:
    return MlFlow(training)
