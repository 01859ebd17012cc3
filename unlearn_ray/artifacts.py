"""A stage's output folder and its manifest, on a local disk, s3:// or gs://, through pyarrow.fs.

The manifest is written last: a folder without one is unfinished work. Nothing here knows what the rows mean.
"""

import json
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from pydantic import BaseModel, ConfigDict

from unlearn_ray.errors import ArtifactError, StorageError, gist
from unlearn_ray.rows import Row, digest

MANIFEST = "manifest.json"
T = TypeVar("T")
ROWS_PER_FILE = 16_384
_GS_RETRIES = "retry_limit_seconds=60"  # Arrow's default is a quarter of an hour, without any message
_ROWS_PER_GROUP = 1_024  # the least that a reader of a few rows must read


class Folder:
    """A folder by its URI or local path. Cheap and picklable. Its storage is opened at the first read or write."""

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        text = os.fspath(uri)
        self.uri = text.rstrip("/") if "://" in text else str(Path(text).absolute())

    def __truediv__(self, name: str) -> "Folder":
        place, mark, options = self._parts
        return Folder(f"{place}/{name}{mark}{options}")

    @property
    def _parts(self) -> tuple[str, str, str]:
        """The parts of the URI. The text after a question mark is options of the storage, such as another endpoint."""
        return (self.uri, "", "") if self.is_local else self.uri.partition("?")

    def __repr__(self) -> str:
        return f"Folder({self.uri!r})"

    def __str__(self) -> str:
        return self.uri

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder) and other.uri == self.uri

    def __hash__(self) -> int:
        return hash(self.uri)

    @property
    def name(self) -> str:
        return posixpath.basename(self._parts[0])

    @property
    def parent(self) -> "Folder":
        place, mark, options = self._parts
        return Folder(f"{posixpath.dirname(place)}{mark}{options}")

    @property
    def is_local(self) -> bool:
        return "://" not in self.uri

    @property
    def local(self) -> Path:
        """The local path.

        Raises:
            ArtifactError: the folder is in remote storage.
        """
        if not self.is_local:
            raise ArtifactError(f"{self.uri} is not on a local disk")
        return Path(self.uri)

    def _open(self) -> tuple[fs.FileSystem, str]:
        if self.is_local:
            return fs.LocalFileSystem(), self.uri
        place, _, options = self._parts
        if place.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in options:
            options = "&".join(filter(None, (options, _GS_RETRIES)))
        try:
            filesystem, path = fs.FileSystem.from_uri(f"{place}?{options}" if options else place)
        except (OSError, ValueError) as error:  # Arrow's errors are ValueErrors
            raise ArtifactError(f"{self.uri} can't be opened: {error}") from error
        return filesystem, path

    @property
    def filesystem(self) -> fs.FileSystem:
        return self._open()[0]

    @property
    def path(self) -> str:
        """The path within `filesystem`."""
        return self._open()[1]

    def make(self) -> Self:
        """Create the folder and its parents.

        Raises:
            ArtifactError: it can't be created.
        """
        filesystem, path = self._open()
        try:
            filesystem.create_dir(path, recursive=True)
        except OSError as error:
            raise ArtifactError(f"{self.uri} can't be created: {error}") from error
        return self

    def exists(self, name: str = "") -> bool:
        """Whether the folder, or the file of this name in it, exists.

        Raises:
            ArtifactError: it can't be determined, for example below a folder without access rights.
        """
        filesystem, path = self._open()
        try:
            info = filesystem.get_file_info(posixpath.join(path, name) if name else path)
        except OSError as error:
            raise ArtifactError(f"{self.uri} can't be read: {error}") from error
        return bool(info.type != fs.FileType.NotFound)

    def names(self, suffix: str = "") -> list[str]:
        """Names directly in this folder that end in `suffix`, sorted. Empty if the folder does not exist."""
        filesystem, path = self._open()
        # Google's storage lists a folder only if Arrow created a marker for it. Files in it show the folder as well.
        deep = not self.is_local and filesystem.type_name == "gcs"
        with self._told("read"):
            infos = _list(filesystem, fs.FileSelector(path, allow_not_found=True, recursive=deep))
        names = {posixpath.relpath(info.path, path).partition("/")[0] for info in infos}
        return sorted(name for name in names if name.endswith(suffix))

    def names_below(self, name: str) -> list[str]:
        """Relative paths of the files with this name in all folders below."""
        infos = _list(self.filesystem, fs.FileSelector(self.path, allow_not_found=True, recursive=True))
        found = (posixpath.relpath(info.path, self.path) for info in infos if info.type == fs.FileType.File)
        return sorted(path for path in found if posixpath.basename(path) == name)

    def delete(self) -> None:
        """Remove the folder and its content, if it exists."""
        filesystem, path = self._open()
        with self._told("deleted"):
            if filesystem.get_file_info(path).type == fs.FileType.Directory:
                filesystem.delete_dir(path)

    def remove(self, name: str) -> None:
        """Remove the file of this name, if it exists."""
        filesystem, path = self._open()
        file = posixpath.join(path, name)
        if filesystem.get_file_info(file).type == fs.FileType.File:
            filesystem.delete_file(file)

    def read_text(self, name: str) -> str:
        filesystem, path = self._open()
        with self._told("read", name), filesystem.open_input_stream(posixpath.join(path, name)) as stream:
            return bytes(stream.read()).decode()

    @contextmanager
    def opened(self, name: str) -> Iterator[pa.NativeFile]:
        """Open a file for random reads.

        Raises:
            StorageError: it can't be read.
        """
        filesystem, path = self._open()
        with self._told("read", name), filesystem.open_input_file(posixpath.join(path, name)) as file:
            yield file

    @contextmanager
    def _told(self, done: str, name: str = "") -> Iterator[None]:
        """Add the path to errors of the storage. Arrow's "No space left on device" names none.

        Raises:
            StorageError: any error of the storage.
        """
        try:
            yield
        except StorageError:
            raise  # the error of another path, which was read in the same block
        except OSError as error:
            place = (self / name if name else self).uri
            text = f"{place} can't be {done}: {gist(error)}"
            raise (StorageError(error.errno, text) if error.errno else StorageError(text)) from error

    @contextmanager
    def _whole(self, name: str, partial: str) -> Iterator[pa.NativeFile]:
        """Write a file atomically. A put in an object store is atomic by itself; on a disk a rename makes it so. If the write fails, for
        example on a full disk, or the caller does or is stopped, the partial file is removed.

        Raises:
            StorageError: it can't be written.
        """
        self.make()
        filesystem, path = self._open()
        final = posixpath.join(path, name)
        target = f"{final}{partial}" if self.is_local else final
        with self._told("written", name):
            try:
                with filesystem.open_output_stream(target) as stream:
                    yield stream
                if self.is_local:
                    filesystem.move(target, final)
            except BaseException:
                if self.is_local:
                    Path(target).unlink(missing_ok=True)
                raise

    def write_text(self, name: str, text: str) -> None:
        """Write a small file atomically.

        Raises:
            StorageError: it can't be written.
        """
        with self._whole(name, ".partial") as stream:
            stream.write(text.encode())

    def write_lines(self, name: str, lines: Iterable[str]) -> int:
        """Stream lines into a file, atomically. Returns their number.

        Raises:
            StorageError: it can't be written.
        """
        count = 0
        with self._whole(name, ".partial") as stream:
            for line in lines:
                stream.write(f"{line}\n".encode())
                count += 1
        return count

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write one Parquet file atomically: readers never see a partial file.

        Raises:
            StorageError: it can't be written.
        """
        with self._whole(name, f".{os.getpid()}.partial") as stream:
            pq.write_table(table, stream, row_group_size=_ROWS_PER_GROUP)

    def read_rows(self, columns: list[str] | None = None, batch_size: int = 1024) -> Iterator[dict[str, Any]]:
        """Stream the rows of this folder's *.parquet files, in the order of the files' names.

        Raises:
            ArtifactError: a file is corrupt.
        """
        filesystem, path = self._open()
        for name in self.names(".parquet"):
            try:
                with filesystem.open_input_file(posixpath.join(path, name)) as file:
                    for batch in pq.ParquetFile(file).iter_batches(batch_size, columns=columns):
                        yield from batch.to_pylist()
            except (pa.ArrowInvalid, OSError) as error:
                raise ArtifactError(
                    f"{self.uri}/{name} can't be read ({error}); delete its folder and rerun"
                ) from error

    def copy(self, name: str, target: "Folder", as_name: str) -> None:
        """Copy a file into another folder of the same storage. The storage copies it: no data pass through this process.

        Raises:
            StorageError: it can't be read or written.
        """
        filesystem, path = target.make()._open()
        with target._told("written", as_name):
            filesystem.copy_file(posixpath.join(self.path, name), posixpath.join(path, as_name))

    def counts(self, columns: Sequence[str]) -> Counter[tuple[Any, ...]]:
        """Number of rows per combination of values in these columns. Only these columns are read, and not as rows."""
        found: Counter[tuple[Any, ...]] = Counter()
        for name in self.names(".parquet"):
            with self.opened(name) as file:
                for batch in pq.ParquetFile(file).iter_batches(ROWS_PER_FILE, columns=list(columns)):
                    grouped = pa.Table.from_batches([batch]).group_by(list(columns)).aggregate([([], "count_all")])
                    for row in grouped.to_pylist():
                        found[tuple(row[column] for column in columns)] += row["count_all"]
        return found

    def sizes(self) -> dict[str, int]:
        """Number of rows of each *.parquet file here, by name. Only the footers are read."""
        filesystem, path = self._open()
        found = {}
        for name in self.names(".parquet"):
            with self._told("read", name), filesystem.open_input_file(posixpath.join(path, name)) as file:
                found[name] = pq.ParquetFile(file).metadata.num_rows
        return found

    def count_rows(self) -> int:
        """Number of rows in the *.parquet files here. Only the footers are read."""
        return sum(self.sizes().values())

    def count_tables(self) -> dict[str, int]:
        """Number of rows in each direct subfolder with *.parquet files, by name."""
        filesystem, path = self._open()
        infos = _list(filesystem, fs.FileSelector(path, allow_not_found=True, recursive=True))
        places = [posixpath.relpath(info.path, path).split("/") for info in infos if info.path.endswith(".parquet")]
        return {name: (self / name).count_rows() for name in sorted({place[0] for place in places if len(place) == 2})}

    def write_rows(self, rows: Iterable[Row | Mapping[str, Any]], schema: pa.Schema) -> int:
        """Stream rows into numbered Parquet files here. Returns their number. Existing rows are replaced."""
        self.delete()
        count = 0
        for index, chunk in enumerate(_chunks(rows, ROWS_PER_FILE)):
            table = pa.Table.from_pylist(
                [row.to_dict() if isinstance(row, Row) else dict(row) for row in chunk], schema
            )
            self.write_table(f"{index:05d}.parquet", table)
            count += len(chunk)
        if count == 0:  # an empty file still has the schema, which readers need
            self.write_table("00000.parquet", schema.empty_table())
        return count


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _list(filesystem: fs.FileSystem, selector: fs.FileSelector) -> list[fs.FileInfo]:
    """List a folder. Arrow fails if the folder is created during the call; then a second call works."""
    try:
        return list(filesystem.get_file_info(selector))
    except FileNotFoundError:
        return list(filesystem.get_file_info(selector))


class Manifest(BaseModel):
    """The record of a finished stage."""

    model_config = ConfigDict(frozen=True)

    stage: str
    fingerprint: str  # of stage, version, config section and inputs: the identity of the result
    version: int  # of the stage's code; raised when the same input gives a different result
    config: dict[str, Any]
    inputs: dict[str, str]  # name -> fingerprint
    num_rows: dict[str, int]  # name of an output -> rows
    drops: dict[str, int]  # reason -> rows
    tables: dict[
        str, int
    ] = {}  # folder of Parquet files -> number of rows, to detect files that are lost or truncated later
    details: dict[str, Any] = {}
    package_version: str = ""
    git_revision: str = ""
    libraries: dict[str, str] = {}
    seconds: float = 0.0
    finished_at: str = ""


def fingerprint_of(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The identity of a stage's result."""
    return digest(stage, version, json.dumps(config, sort_keys=True), json.dumps(dict(inputs), sort_keys=True))


def read_manifest(folder: Folder) -> Manifest | None:
    """The manifest of a finished stage. None if it is missing or half written: the stage is unfinished."""
    if not folder.exists(MANIFEST):
        return None
    try:
        return Manifest.model_validate_json(folder.read_text(MANIFEST))
    except ValueError:  # pydantic's errors, and those of bytes that are not text
        return None


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    """Write the manifest, which makes the folder finished."""
    folder.write_text(MANIFEST, manifest.model_dump_json(indent=2))
