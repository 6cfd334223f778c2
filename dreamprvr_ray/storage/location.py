"""A directory on a disk, on a shared file system or in an object store, by its path or URI (s3://bucket/run, gs://, abfs://).

Small files and whole directories only: what a run keeps besides Ray's own records. A directory appears whole or not at all: on a disk by
a rename; in an object store by the file that is uploaded last and deleted first, whose presence says that the others
exist.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.fs

from dreamprvr_ray.errors import ObjectStoreError, UserError, first_line, redact
from dreamprvr_ray.storage.files import replacing, write_text

_CONNECTIONS = 8


def is_uri(location: str) -> bool:
    """Whether it is a URI, as s3://bucket/tvr or file:///mnt/tvr, and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", location) is not None


def absolute(location: str) -> str:
    """A path made absolute, for processes that run elsewhere; a URI as it is."""
    return location if is_uri(location) else str(Path(location).resolve())


def local_folder(location: str) -> Path:
    """The path of a folder that a command writes on this machine alone. Raises `UserError` for a URI."""
    if is_uri(location):
        raise UserError(
            f"{redact(location)}: this is written to a folder of this machine, which you then copy to the store"
        )
    return Path(location)


@dataclass(frozen=True)
class Storage:
    """A directory; `location` is as the user wrote it, made absolute where it is a path."""

    location: str

    @classmethod
    def of(cls, location: str | Path) -> Storage:
        """Raises `UserError` where a URI's kind is not known."""
        text = str(location)
        if not is_uri(text) or text.startswith("file://"):
            return cls(str(Path(text.removeprefix("file://")).resolve()))
        try:
            pyarrow.fs.FileSystem.from_uri(text)
        except (
            pa.ArrowException,
            ValueError,
            OSError,
        ) as error:  # OSError: S3 does not know in which region that bucket would be
            raise UserError(f"{redact(text)}: no storage that can be used: {redact(first_line(error))}") from None
        return cls(text)

    @property
    def directory(self) -> Path | None:
        """The directory's path, None in an object store."""
        return None if is_uri(self.location) else Path(self.location)

    @cached_property
    def _store(self) -> tuple[pyarrow.fs.FileSystem, str]:
        with _readable(self):
            filesystem, path = pyarrow.fs.FileSystem.from_uri(self.location)
        return filesystem, path.rstrip("/")

    def __truediv__(self, name: str) -> Storage:
        path, mark, query = self.location.partition("?")
        return Storage(f"{path.rstrip('/')}/{name}{mark}{query}")

    def __str__(self) -> str:
        return redact(self.location) if is_uri(self.location) else self.location

    @property
    def name(self) -> str:
        """The last part of its path."""
        return str(self).rstrip("/").rpartition("/")[2]

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other commands of this machine from writing there while the block runs.

        Raises `UserError` where one is at work. A killed command holds nothing: the kernel has let go of its lock.
        """
        place = hashlib.sha256(self.location.encode()).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / f"dreamprvr-ray-{os.getuid()}-{place}"
        with ExitStack() as stack:
            while True:
                holder = stack.enter_context(open(path, "a+"))
                try:
                    fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    holder.seek(0)
                    raise UserError(
                        f"{self}: process {holder.read()} of this machine is at work there; wait for its end, or stop it"
                    ) from None
                if os.fstat(holder.fileno()).st_nlink:  # else its holder, which has just ended, has removed it
                    break
            stack.callback(path.unlink, missing_ok=True)
            holder.truncate(0)
            holder.write(str(os.getpid()))
            holder.flush()
            yield

    def names(self) -> list[str]:
        """What is in the directory, sorted; empty where it does not exist."""
        if (directory := self.directory) is not None:
            return sorted(os.listdir(directory)) if directory.is_dir() else []
        filesystem, path = self._store
        with _readable(self):
            return sorted(
                info.base_name for info in filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
            )

    def size(self) -> int:
        """The bytes of the files in the directory and below."""
        if (directory := self.directory) is not None:
            return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        filesystem, path = self._store
        with _readable(self):
            selector = pyarrow.fs.FileSelector(path, allow_not_found=True, recursive=True)
            return sum(info.size or 0 for info in filesystem.get_file_info(selector))

    def files(self) -> list[str]:
        """All files below the directory, by their paths in it, sorted; empty where it does not exist."""
        if (directory := self.directory) is not None:
            return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
        filesystem, path = self._store
        with _readable(self):
            found = filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True, recursive=True))
        return sorted(info.path.removeprefix(f"{path}/") for info in found if info.is_file)

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        if (directory := self.directory) is not None:
            return (directory / name).is_file()
        filesystem, path = self._store
        with _readable(self):
            return bool(filesystem.get_file_info(f"{path}/{name}").is_file)

    def read_text(self, name: str) -> str:
        """A small file."""
        if (directory := self.directory) is not None:
            return (directory / name).read_text(encoding="utf-8")
        filesystem, path = self._store
        with _readable(self), filesystem.open_input_stream(f"{path}/{name}") as file:
            return bytes(file.read()).decode()

    def write_text(self, name: str, text: str) -> None:
        """Writes a small file whole or not at all."""
        if (directory := self.directory) is not None:
            write_text(directory / name, text)
            return
        filesystem, path = self._store
        with _readable(self), filesystem.open_output_stream(f"{path}/{name}") as file:
            file.write(text.encode())

    def write_directory(self, name: str, write: Callable[[Path], None], last: str) -> None:
        """Keeps what `write` puts into a directory under `name`, whole or not at all. Raises OSError where there is no room."""
        if (directory := self.directory) is not None:
            with replacing(directory / name) as temporary:
                write(temporary)
            return
        with tempfile.TemporaryDirectory(prefix="dreamprvr-upload-") as folder:
            write(Path(folder))
            self.add_files(name, Path(folder), last=last)

    def add_files(self, name: str, folder: Path, last: str | None = None) -> None:
        """Copies the files of `folder` into the directory `name` of an object store, the one called `last` after all others."""
        for file in sorted(folder.iterdir(), key=lambda file: file.name == last):
            self._upload(file, f"{name}/{file.name}")

    def upload(self, folder: Path, names: Iterable[str]) -> None:
        """Copies the files of these names in `folder` into an object store, several at a time."""
        with _readable(self), ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="upload") as pool:
            list(pool.map(lambda name: self._upload(folder / name, name), names))

    def download(self, names: Iterable[str], folder: Path) -> None:
        """Copies the files of these names in an object store into `folder`, several at a time."""
        filesystem, path = self._store

        def fetch(name: str) -> None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (
                filesystem.open_input_stream(f"{path}/{name}", compression=None) as source,
                (folder / name).open("wb") as target,
            ):
                shutil.copyfileobj(source, target, 8 * 2**20)

        with _readable(self), ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="download") as pool:
            list(pool.map(fetch, names))

    def _upload(self, file: Path, name: str) -> None:
        filesystem, path = self._store
        with file.open("rb") as source, filesystem.open_output_stream(f"{path}/{name}", compression=None) as target:
            shutil.copyfileobj(source, target, 8 * 2**20)

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """The directory as files on this machine: itself, or a copy for the length of the block."""
        if (directory := self.directory) is not None:
            yield directory
            return
        filesystem, path = self._store
        with tempfile.TemporaryDirectory(prefix="dreamprvr-download-") as folder:
            with _readable(self):
                pyarrow.fs.copy_files(path, folder, source_filesystem=filesystem)
            yield Path(folder)

    def delete_directory(self, name: str, first: str | None = None) -> None:
        """Removes a directory if it exists, its file `first` before all others."""
        if (directory := self.directory) is not None:
            if first is not None:
                (directory / name / first).unlink(missing_ok=True)
            shutil.rmtree(directory / name, ignore_errors=True)
            return
        filesystem, path = self._store
        with _readable(self), suppress(FileNotFoundError):
            if first is not None and self.exists(f"{name}/{first}"):
                filesystem.delete_file(f"{path}/{name}/{first}")
            filesystem.delete_dir(f"{path}/{name}")

    def check_visible(self, name: str) -> None:
        """Raises `UserError` where a file that another node wrote is not seen from this one: nobody would look here for what it writes."""
        if not self.exists(name):
            raise UserError(
                f"{self}: is not the same on all nodes; use a file system that they share, or a store as in s3://bucket/run"
            )


@contextmanager
def _readable(storage: Storage) -> Iterator[None]:
    """Says what went wrong with a store in one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{storage}: {first_line(error)}") from None
    except OSError as error:
        raise ObjectStoreError(f"{storage}: the store does not answer as it should: {first_line(error)}") from None
