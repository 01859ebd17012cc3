"""The demo's modules as its own process finds them, a scripted service, and the page in a real browser."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "demo"), str(HERE)]  # `streamlit run` puts the script's folder there

from browser import browser, streamlit  # noqa: E402
from scripted_service import ScriptedService  # noqa: E402


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedService]:
    """A scripted service that the demo's environment points to."""
    with ScriptedService() as service:
        monkeypatch.setenv("UNLEARN_RAY_ENDPOINT", service.url)
        monkeypatch.delenv("UNLEARN_RAY_API_KEY", raising=False)
        yield service


# Ended with its module: while Playwright runs, no other test of this session could start an event loop.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def reader(chromium: Browser, shown: tuple[str, ScriptedService]) -> Iterator[BrowserContext]:
    """A browser's window. Its pages are each a session of Streamlit's own, and share what was loaded."""
    context = chromium.new_context(base_url=shown[0])
    context.set_default_timeout(20_000)
    yield context
    context.close()


@pytest.fixture(scope="session")
def shown() -> Iterator[tuple[str, ScriptedService]]:
    """The demo's address, and the scripted service behind it."""
    with ScriptedService() as service, streamlit(service.url) as url:
        yield url, service


@pytest.fixture
def behind(shown: tuple[str, ScriptedService]) -> ScriptedService:
    """The service behind the page, as new."""
    _, service = shown
    service.seconds = 0.02
    service.failures.clear()
    service.asked.clear()
    return service


@pytest.fixture
def page(reader: BrowserContext) -> Iterator[Page]:
    """The demo, just opened by a new reader."""
    page = reader.new_page()
    page.set_viewport_size({"width": 1400, "height": 900})
    page.goto("/")
    page.get_by_test_id("stChatInputTextArea").wait_for()  # the last that is drawn
    yield page
    for page in reader.pages:
        page.close()
