"""Where there is no browser, a person's tests are skipped with the reason, and those of CI fail."""

from pathlib import Path

import browser
import pytest
from _pytest.outcomes import Failed, Skipped


@pytest.mark.parametrize(("ci", "outcome"), [("", Skipped), ("true", Failed)])
def test_no_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ci: str, outcome: type[BaseException]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # neither a browser nor apt-get
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="apt-get install chromium"), browser.browser():
        raise AssertionError("no browser was to be found")
