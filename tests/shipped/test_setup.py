"""What `make setup` installs, and when: the script itself, with a `uv` that only writes down what it is told."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = """#!/bin/sh
if [ "$1" = --version ]; then grep -h ^UV_VERSION= scripts/env.sh | sed 's/.*=/uv /'; else echo "$@" >>told; fi
"""


class Checkout:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("scripts", "locks"):
            shutil.copytree(ROOT / name, folder / name)
        shutil.copy(ROOT / "pyproject.toml", folder)
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / ".venv" / "bin" / "python").symlink_to(sys.executable)
        self.program(".venv/bin/uv", UV)
        self.program("bin/nvidia-smi", "#!/bin/sh\nexit 9\n")  # no driver

    def program(self, name: str, text: str) -> None:
        file = self.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)

    def setup(self, **environment: str) -> "subprocess.CompletedProcess[str]":
        (self.folder / "told").unlink(missing_ok=True)
        known = {name: value for name, value in os.environ.items() if name != "ACCELERATOR"}
        known["PATH"] = f"{self.folder / 'bin'}:{known['PATH']}"
        return subprocess.run(
            [self.folder / "scripts" / "setup.sh"],
            env=known | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    @property
    def told(self) -> str:
        file = self.folder / "told"
        return file.read_text() if file.exists() else ""


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_a_machine_without_a_gpu_gets_its_lock_once(checkout: Checkout) -> None:
    first = checkout.setup()
    assert first.returncode == 0 and "ready for cpu" in first.stdout, first.stderr
    assert "sync --compile-bytecode locks/cpu.txt locks/dev.txt locks/cpu-torch.txt\n" in checkout.told
    assert "--editable ." in checkout.told
    again = checkout.setup()
    assert (again.returncode, again.stdout, again.stderr, checkout.told) == (0, "", "", "")


def test_a_machine_with_a_gpu_gets_the_lock_for_cuda(checkout: Checkout) -> None:
    checkout.program("bin/nvidia-smi", "#!/bin/sh\necho 'GPU 0: NVIDIA H100'\n")
    assert "ready for cuda" in checkout.setup().stdout
    assert "sync --compile-bytecode locks/cuda.txt locks/dev.txt\n" in checkout.told and "cpu" not in checkout.told


def test_the_accelerator_may_be_named(checkout: Checkout) -> None:
    checkout.setup(ACCELERATOR="cuda")
    assert "sync --compile-bytecode locks/cuda.txt" in checkout.told
    refused = checkout.setup(ACCELERATOR="tpu")
    assert refused.returncode != 0 and "take cpu or cuda" in refused.stderr and checkout.told == ""


@pytest.mark.parametrize("name", ["pyproject.toml", "locks/cpu.txt", "locks/dev.txt"])
def test_what_changed_is_installed_again(checkout: Checkout, name: str) -> None:
    checkout.setup()
    with (checkout.folder / name).open("a") as file:
        file.write("# another line\n")
    assert "ready for cpu" in checkout.setup().stdout and "sync" in checkout.told
