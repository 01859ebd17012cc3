"""Each logger's files are read with its own library. W&B and MLflow are not dependencies: their tests are skipped if they are not installed."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from unlearn_ray.artifacts import Folder
from unlearn_ray.errors import ConfigError
from unlearn_ray.train.loggers import table
from unlearn_ray.train.loggers.logger import Training
from unlearn_ray.train.loggers.table import LOGGERS, Entry, chosen, opened
from unlearn_ray.train.metrics import METRICS
from unlearn_ray.train.recorder import Recorder
from unlearn_ray.train.records import StepRecord


def training(folder: Path, first_step: int = 0) -> Training:
    return Training("dune", "dune-1234", first_step, folder, {"num_steps": 8, "objective": {"kind": "relabel"}})


def log_two_steps(name: str, about: Training) -> None:
    logger = opened(name, about)
    for step in (about.first_step, about.first_step + 1):
        logger.log(step, {"train/loss": 0.5 - step / 10, "gate/score": float(step)})
    logger.close()


def test_tensorboard_reads_what_is_written_and_a_step_that_is_done_again_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not a dependency; Ray Train brings only its writer")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_two_steps("tensorboard", training(tmp_path))
    log_two_steps("tensorboard", training(tmp_path, first_step=1))
    found = EventAccumulator(str(tmp_path)).Reload()
    assert set(found.Tags()["scalars"]) == {"train/loss", "gate/score"}
    assert [(each.step, pytest.approx(each.value)) for each in found.Scalars("train/loss")] == [(0, 0.5), (1, 0.4), (2, 0.3)]  # fmt: skip


def test_the_default_logger_needs_nothing_that_ray_train_does_not_bring(tmp_path: Path) -> None:
    assert chosen(None) == ["tensorboard"] and chosen(()) == []
    log_two_steps("tensorboard", training(tmp_path))
    (file,) = tmp_path.glob("events.out.tfevents.*")
    assert b"train/loss" in file.read_bytes()


def test_wandb_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not a dependency")
    monkeypatch.setenv("WANDB_MODE", "offline")
    log_two_steps("wandb", training(tmp_path))
    log_two_steps("wandb", training(tmp_path, first_step=1))
    assert wandb.__version__
    files = sorted(tmp_path.rglob("*.wandb"))
    assert len(files) == 2 and all("dune-1234" in file.name for file in files)
    assert all(b"train/loss" in file.read_bytes() for file in files)


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", None])
def test_mlflow_goes_on_in_the_same_run(variable: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not a dependency")
    if variable is None:
        pytest.importorskip("sqlalchemy", reason="mlflow-skinny writes no database")
        uri = f"sqlite:///{tmp_path / 'files'}/mlflow.db"
    else:
        uri = f"file://{tmp_path / 'store'}"
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        monkeypatch.setenv(variable, uri)
    for first_step in (0, 1):
        log_two_steps("mlflow", training(tmp_path / "files", first_step))
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("unlearn-ray")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert {each.step: pytest.approx(each.value) for each in history} == {0: 0.5, 1: 0.4, 2: 0.3}
    assert run.data.params["num_steps"] == "8" and run.info.status == "FINISHED"


def test_one_that_is_not_there_or_not_installed_is_one_line() -> None:
    with pytest.raises(
        ConfigError, match=r"finetune\.loggers: there is no logger 'tensorbord': did you mean tensorboard\?"
    ):
        chosen(("tensorbord",))
    with pytest.raises(ConfigError, match=r"there is no logger 'neptune': choose of tensorboard, wandb, mlflow"):
        chosen(("neptune",))
    for name in LOGGERS:
        if find_spec(LOGGERS[name].module) is None:
            with pytest.raises(ConfigError, match=f"{name} is not installed: pip install {LOGGERS[name].package}"):
                chosen((name,))


class Listing:
    """A logger of a user's own, as CONTRIBUTING shows one."""

    def __init__(self, about: Training) -> None:
        self.file = about.folder / "figures.csv"

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if step > 1:
            raise ConnectionError("the server is gone")
        with self.file.open("a") as file:
            file.writelines(f"{step},{name},{value}\n" for name, value in figures.items())

    def close(self) -> None:
        self.file.with_name("closed").touch()


def test_a_logger_that_fails_on_the_way_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(table.LOGGERS, "csv", Entry(Listing, "csv", "python"))
    about = replace(training(tmp_path), folder=tmp_path / "scratch")
    recorder = Recorder(
        Folder(tmp_path), tmp_path / "scratch", chosen(("csv",)), about, 4, lambda step: 100, torch.device("cpu")
    )
    with recorder, caplog.at_level(logging.WARNING):
        for step in range(4):
            found = recorder.see(StepRecord(step, 0.5, 0.4, None, 1e-3, 0.1))
            assert found.tokens == 100 and found.tokens_per_second > 0 and 0 < found.memory_gib < 100
    assert [line for line in caplog.messages if "csv" in line] == ["csv gets no further figures: the server is gone"]
    lines = (tmp_path / "csv" / "figures.csv").read_text().splitlines()
    assert (
        "0,train/loss,0.5" in lines and "1,train/lr,0.001" in lines and not [each for each in lines if each[0] == "2"]
    )
    assert len((tmp_path / METRICS).read_text().splitlines()) == 4
    with pytest.raises(ConfigError, match=r"finetune\.loggers: csv can't begin: no key"):
        monkeypatch.setitem(table.LOGGERS, "csv", Entry(lambda about: _refuse(), "csv", "python"))
        opened("csv", about)


def _refuse() -> Listing:
    raise RuntimeError("no key")
