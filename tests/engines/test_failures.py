"""What is told of an engine that failed. On a GPU vLLM's engine is a process of its own, whose last words stand in a log."""

from pathlib import Path

import pytest

from unlearn_ray.engines.failures import root_cause

# As vLLM 0.29 raises them in the process that asked.
START = "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"
DEATH = "EngineCore encountered an issue. See stack trace (above) for the root cause."
WRITTEN = """(EngineCore pid=71) INFO 11-27 16:21:50 [core.py:94] Initializing a V1 LLM engine
(EngineCore pid=71) ERROR 11-27 16:21:58 [core.py:770]   File "vllm/v1/worker/utils.py", line 44, in request_memory
(EngineCore pid=71) ERROR 11-27 16:21:58 [core.py:770]     raise ValueError(
(EngineCore pid=71) ERROR 11-27 16:21:58 [core.py:770] ValueError: Free memory on device (3.1/79.2 GiB) is less than desired.
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}
vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.
"""


@pytest.mark.parametrize("pointer", [START, DEATH])
def test_an_error_that_points_to_another_process_is_followed_there(tmp_path: Path, pointer: str) -> None:
    log = tmp_path / "worker.err"
    log.write_text(WRITTEN)
    assert (
        root_cause(RuntimeError(pointer), log)
        == "ValueError: Free memory on device (3.1/79.2 GiB) is less than desired."
    )


def test_without_a_word_there_it_is_told_as_it_is(tmp_path: Path) -> None:
    assert root_cause(RuntimeError(DEATH), tmp_path / "nothing.err") == DEATH
    (tmp_path / "empty.err").write_text("INFO all is well\n")
    assert root_cause(RuntimeError(DEATH), tmp_path / "empty.err") == DEATH


def test_an_error_of_its_own_is_told_as_it_is(tmp_path: Path) -> None:
    log = tmp_path / "worker.err"
    log.write_text(WRITTEN)
    assert root_cause(ValueError("no such thing"), log) == "no such thing"
