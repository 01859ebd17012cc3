"""The wheel, in an environment that has what it needs and no checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def done(*command: str | Path, cwd: Path) -> str:
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(command, cwd=cwd, env=bare, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    return found.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder, cwd=ROOT)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment's folder. Other packages are those that run the tests; the path file of an editable install is not read."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    uv = Path(sys.executable).with_name("uv")
    done(
        uv,
        "pip",
        "install",
        "--quiet",
        "--offline",
        "--no-deps",
        "--python",
        folder / "bin" / "python",
        wheel,
        cwd=folder,
    )
    return folder


def test_the_wheel_has_every_file_of_the_package_and_of_the_demo(wheel: Path) -> None:
    files = [
        path.relative_to(ROOT)
        for part in ("unlearn_ray", "demo")
        for path in (ROOT / part).rglob("*")
        if path.is_file()
    ]
    written = [str(path) for path in files if "__pycache__" not in path.parts]
    expected = {f"unlearn_ray/_{name}" if name.startswith("demo/") else name for name in written}
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == expected


def test_an_installed_wheel_plans_the_quickstart_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "pocket.yaml").write_text((ROOT / "jobs" / "configs" / "pocket.yaml").read_text())
    where = done(installed / "bin" / "python", "-c", "import unlearn_ray; print(unlearn_ray.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed)
    plan = done(installed / "bin" / "unlearn-ray", "run", "pocket.yaml", "--dry-run", cwd=tmp_path)
    assert "questions" in plan and "evaluate" in plan and not (tmp_path / "runs").exists()
