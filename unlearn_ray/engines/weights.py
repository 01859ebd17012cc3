"""Weights in remote storage, copied once to each machine that needs them."""

import shutil
import tempfile
from pathlib import Path

from pyarrow import fs

from unlearn_ray.artifacts import Folder
from unlearn_ray.errors import ModelError
from unlearn_ray.rows import digest


def local_copy(uri: str) -> Path:
    """A folder on this machine's disk: the path itself, or a copy of the remote folder, made once per machine.

    Raises:
        ModelError: it does not exist, or can't be read.
    """
    if "://" not in uri:
        return Path(uri)
    copy, source = place_of(uri), Folder(uri)
    if not copy.exists():
        partial = Path(tempfile.mkdtemp(dir=Folder(copy.parent).make().local, suffix=".partial"))
        try:
            fs.copy_files(source.path, str(partial), source_filesystem=source.filesystem)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise ModelError(f"{uri} can't be copied to this machine: {error}") from error
        try:
            partial.rename(copy)
        except OSError:  # another engine on this machine made the copy first
            shutil.rmtree(partial, ignore_errors=True)
    return copy


def place_of(uri: str) -> Path:
    """The path of `local_copy`'s copy of a remote folder. It follows from the folder's files, so it is the same on every machine.

    Raises:
        ModelError: it does not exist, or can't be read.
    """
    source = Folder(uri)
    try:
        infos = source.filesystem.get_file_info(fs.FileSelector(source.path, recursive=True))
    except OSError as error:
        raise ModelError(f"{uri} can't be read: {error}") from error
    files = [f"{info.path} {info.size} {info.mtime_ns}" for info in infos if info.type == fs.FileType.File]
    return Path(tempfile.gettempdir()) / "unlearn-ray-weights" / digest(uri, *sorted(files))
