"""A test that is marked neither `real` nor `long` starts no Ray and no engine: what `make test-fast` runs is quick, and stays so."""

import contextlib
import threading
import time
from collections.abc import Generator

import psutil
import pytest

SLOW = ("real", "long", "gpu")
_RAY = "gcs_server"  # each Ray has one; its nodes and workers may come whenever an older Ray wants
_SECONDS_BETWEEN_LOOKS = 0.25  # a Ray takes seconds to start
_ENGINE = "vllm-engine"  # the thread of an engine in this process


class Watch:
    """Sees each Ray that is started by this process or by one that it started, and each engine in this process."""

    def __init__(self) -> None:
        self._rays: set[int] = set()
        threading.Thread(target=self._go_on, name="watch", daemon=True).start()

    def _go_on(self) -> None:
        while True:
            self._look()
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _look(self) -> None:
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.name() == _RAY:
                        self._rays.add(process.pid)

    def seen(self) -> set[int]:
        """Ids of processes, and of threads, that are or were there."""
        self._look()
        return self._rays | {thread.ident or 0 for thread in threading.enumerate() if thread.name == _ENGINE}


class Guard:
    """Pytest's hooks: before a test's fixtures of any scope, and after its own are gone."""

    def __init__(self) -> None:
        self._watch, self._before = Watch(), set[int]()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        self._before = self._watch.seen()  # what tests share may be there

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        result = yield
        if not any(map(item.get_closest_marker, SLOW)) and self._watch.seen() - self._before:
            pytest.fail(
                "started a Ray or an engine: mark the test `real`, or `long`, or take a fixture of tests/conftest.py"
            )
        return result
