"""One real run of the shipped quickstart, whose artifacts the tests of this folder read."""

from pathlib import Path

import pytest
from commandline import QUICKSTART, Run, unlearn

from unlearn_ray.artifacts import Folder


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`make quickstart`, in an empty folder."""
    cwd = tmp_path_factory.mktemp("quickstart")
    arguments: list[str | Path] = ["run", QUICKSTART]
    done = unlearn(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Run(cwd, Folder(cwd / "runs" / "pocket"), arguments, done.stdout)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "quickstart" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real)
