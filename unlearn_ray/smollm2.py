"""Where SmolLM2-135M-Instruct lies once scripts/smollm2.py has made its folder, and whether all of it is there.

It is a real chat model that the package index carries: what runs on it needs no model hub. Importing this module costs nothing.
"""

import hashlib
import json
import os
from functools import cache
from pathlib import Path

from unlearn_ray.errors import ModelError

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
VARIABLE = "UNLEARN_RAY_SMOLLM2"  # the folder, where it is not the default
SUMS = "sums.json"  # SHA-256 of every other file; written last, it makes the folder a finished one of ours
_AGAIN = "`make smollm2` makes it again"


def folder() -> Path:
    """The model's folder, whether it is there or not: of UNLEARN_RAY_SMOLLM2, else in the user's cache."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser().absolute()
    # An empty or relative one counts as not set: https://specifications.freedesktop.org/basedir-spec/latest/
    cache_home = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(cache_home) if os.path.isabs(cache_home) else Path.home() / ".cache"
    return home / "unlearn-ray" / HUB_NAME.rpartition("/")[2]


def checked_folder() -> str:
    """The model's folder, every file of it as it was written.

    Raises:
        ModelError: it is not there, or damaged.
    """
    path = folder()
    if not path.is_dir():
        raise ModelError(
            f"model smollm2 is not on this machine ({path}): `make smollm2` makes it from the package index; where the Hugging Face hub is, {HUB_NAME} is the same model"
        )
    if fault := fault_of(path):
        raise ModelError(f"model smollm2 can't be used: {fault}: {_AGAIN}")
    return str(path)


def fault_of(path: Path) -> str:
    """What is wrong with a folder that is there; "" where nothing is."""
    try:
        return _fault_of(
            path, tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in _files(path))
        )
    except OSError as error:
        return f"{path} can't be read ({error.strerror or error})"


@cache  # once a process, as long as no file changes: 270 MB take a third of a second
def _fault_of(path: Path, files: tuple[tuple[str, int, int], ...]) -> str:
    try:
        sums = json.loads((path / SUMS).read_text(encoding="utf-8"))
        names = {name for name, *_ in files}
        if missing := sorted(set(sums) - names):
            return f"{path / missing[0]} is missing"
        if others := sorted(names - set(sums) - {SUMS}):
            return f"{path / others[0]} does not belong there"
        changed = sorted(name for name in sums if digest(path / name) != sums[name])
        return f"{path / changed[0]} is not as it was written" if changed else ""
    except FileNotFoundError:
        return f"{path} has no {SUMS}, so that it was not made by `make smollm2`"
    except (ValueError, TypeError, AttributeError):
        return f"{path / SUMS} can't be read"


def write_sums(path: Path) -> None:
    """Mark a folder as finished."""
    sums = {file.name: digest(file) for file in _files(path)}
    (path / SUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if not file.name.startswith("."))
