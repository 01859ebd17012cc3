"""A training's log: what it said last, whichever worker failed."""

import logging
from pathlib import Path

import pytest

from unlearn_ray.artifacts import Folder
from unlearn_ray.errors import ConfigError, DivergenceError
from unlearn_ray.train.log import LOG, NUM_SHOWN, clear_logs, last_log_lines, logged

ours, others = logging.getLogger("unlearn_ray.train.test"), logging.getLogger("deepspeed")


def is_loss(error: Exception) -> bool:
    return isinstance(error, ConnectionError)


def fail(folder: Folder, rank: int, error: Exception) -> None:
    with pytest.raises(type(error)), logged(folder, rank, is_loss):
        for step in range(20):
            ours.info("step %d of rank %d", step, rank)
        others.info("chatter")
        others.warning("a warning\nof two lines")
        raise error


def test_the_log_grows_and_ends_with_what_went_wrong(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    with logged(folder, 0, is_loss):
        ours.info("step 1")
        assert folder.read_text(LOG).endswith(" INFO step 1\n")
    ours.info("after it")
    fail(folder, 0, DivergenceError("the training diverged"))
    lines = last_log_lines(folder)
    assert lines[-1].endswith(" ERROR the training diverged") and lines[-2].endswith("of two lines")
    assert len(lines) == NUM_SHOWN and not any("chatter" in line or "Traceback" in line for line in lines)
    assert "step 0 of rank 0" in folder.read_text(LOG) and "after it" not in folder.read_text(LOG)
    fail(folder, 0, ValueError("no such thing"))
    assert "Traceback" in folder.read_text(LOG) and last_log_lines(folder)[-1].endswith("ValueError: no such thing")


def test_the_worker_that_failed_is_heard_and_not_those_that_lost_it(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    fail(folder, 0, ConnectionError("connection closed by peer"))
    fail(folder, 2, ConnectionError("connection closed by peer"))
    assert folder.names() == [LOG] and last_log_lines(folder)[-1].endswith("connection closed by peer")
    fail(folder, 3, RuntimeError("CUDA error: out of memory"))
    assert folder.names() == ["training-rank3.log", LOG]
    assert last_log_lines(folder)[-1].endswith("RuntimeError: CUDA error: out of memory")
    fail(folder, 0, ConnectionError("connection closed by peer"))  # Ray Train's next attempt
    assert folder.names() == [LOG]
    for error in (DivergenceError("the training diverged"), ConfigError("nothing is left")):  # on all ranks alike
        fail(folder, 1, error)
    assert folder.names() == [LOG]
    clear_logs(folder)
    assert folder.names() == [] and last_log_lines(folder) == []
