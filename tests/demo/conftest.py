"""The demo's modules as its own process finds them: `streamlit run` puts their folder on the path."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "demo"), str(HERE)]

from scripted_service import ScriptedService  # noqa: E402


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedService]:
    """A scripted service that the demo's environment points to."""
    with ScriptedService() as service:
        monkeypatch.setenv("UNLEARN_RAY_ENDPOINT", service.url)
        monkeypatch.delenv("UNLEARN_RAY_API_KEY", raising=False)
        yield service
