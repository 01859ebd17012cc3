"""What tells one model from another: its content."""

import hashlib
from pathlib import Path

from unlearn_ray.rows import digest

_HEAD, _STRIDE, _BLOCK = 16 * 2**20, 4 * 2**20, 64 * 2**10  # bytes of a weights file that tell it from others


def model_identity(path: str) -> str:
    """A name for a model's content: of a folder its files, wherever it lies; of a hub model its name."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    parts = []
    for file in sorted(
        f for f in folder.iterdir() if f.is_file() and f.suffix in {".json", ".safetensors", ".bin", ".jinja"}
    ):
        parts.append((file.name, file.stat().st_size, _sample(file)))
    return f"{folder.name}:{digest(*parts)}"


def _sample(file: Path) -> str:
    """A hash of a file's head, which is a safetensors file's index, and of blocks all through it: some of every large tensor, in a
    second where all of an 8B model takes a minute."""
    found = hashlib.sha256()
    with file.open("rb") as stream:
        found.update(stream.read(_HEAD))
        for start in range(_HEAD, file.stat().st_size, _STRIDE):
            stream.seek(start)
            found.update(stream.read(_BLOCK))
    return found.hexdigest()
