"""A directory on a disk, a shared file system or an object store, given by path or URI (s3://, gs://, abfs://).

It holds small files and whole directories. A directory is written atomically: on a disk it is renamed into place; in
an object store one of its files is uploaded last and deleted first, so that its presence means that all are there.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import pyarrow as pa
import pyarrow.fs

from dreamprvr_ray.errors import ObjectStoreError, UserError, first_line, redact, redact_uri
from dreamprvr_ray.storage.claims import DirectoryClaims, ObjectClaims
from dreamprvr_ray.storage.files import remove_own_files, replacing, write_bytes
from dreamprvr_ray.storage.lease import Lease, holding
from dreamprvr_ray.storage.locks import LOCK, is_lock, locked

_CONNECTIONS = 16
_SMALL = 8 * 2**20  # bytes that are read or written at once


def is_uri(location: str) -> bool:
    """Return whether `location` is a URI, such as s3://bucket/tvr or file:///mnt/tvr, rather than a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", location) is not None


def absolute(location: str) -> str:
    """Return a path as an absolute path, valid in any working directory; return a URI unchanged."""
    return location if is_uri(location) else str(Path(location).resolve())


def local_folder(location: str) -> Path:
    """Return the path of a directory that a command writes on this machine. Raises `UserError` for a URI."""
    if is_uri(location):
        raise UserError(f"{redact_uri(location)}: must be a local directory; copy it to the object store afterwards")
    return Path(location)


def local_file(location: str) -> Path:
    """Return the path of a file that a command reads or writes on this machine. Raises `UserError` for a URI."""
    if is_uri(location):
        raise UserError(f"{redact_uri(location)}: must be a path on this machine, not a URI")
    return Path(location)


@dataclass(frozen=True)
class Storage:
    """A directory. `location` is an absolute path or the URI as the user wrote it, which may hold credentials.

    Methods that reach an object store raise `ObjectStoreError` if a request fails.
    """

    location: str

    @classmethod
    def of(cls, location: str | Path) -> Storage:
        """Return the directory at a path or URI. Raises `UserError` if the URI is invalid or unsupported."""
        text = str(location)
        if "\0" in text:
            raise UserError(f"{redact(text)!r}: a location must not hold a NUL character")
        if match := re.match(r"(s3|gs|gcs|abfss?|hdfs|https?|file):(?!//)", text):
            raise UserError(f"{redact_uri(text)}: is neither a path nor a URI; a URI begins with {match[1]}://")
        if not is_uri(text) or text.startswith("file://"):
            return cls(str(Path(text.removeprefix("file://")).resolve()))
        try:
            _, path = pyarrow.fs.FileSystem.from_uri(text)
            if not path.strip("/"):
                raise ValueError("it names no bucket")
        except (pa.ArrowException, ValueError, OSError) as error:  # OSError: the region of an S3 bucket was not found
            raise UserError(f"{redact_uri(text)}: not a usable storage location: {redact(first_line(error))}") from None
        return cls(text)

    @property
    def directory(self) -> Path | None:
        """The directory's path, or None if it is in an object store."""
        return None if is_uri(self.location) else Path(self.location)

    @cached_property
    def _store(self) -> tuple[pyarrow.fs.FileSystem, str]:
        location = self.location
        if location.startswith("s3://") and "allow_delayed_open" not in location:
            # A small file is then written by one request in place of three.
            location += f"{'&' if '?' in location else '?'}allow_delayed_open=true"
        with _requests_to(self):
            filesystem, path = pyarrow.fs.FileSystem.from_uri(location)
        return filesystem, path.rstrip("/")

    def __truediv__(self, name: str) -> Storage:
        path, mark, query = self.location.partition("?")
        return Storage(f"{path.rstrip('/')}/{name}{mark}{query}")

    def __str__(self) -> str:
        return redact_uri(self.location)

    @property
    def name(self) -> str:
        """The last part of the directory's path."""
        return str(self).rstrip("/").rpartition("/")[2]

    @contextmanager
    def lock(self, wait_seconds: float = 0.0) -> Iterator[Lease]:
        """Keep other commands, on this machine and on others, from using the directory while the block runs.

        On a disk the directory has a lock of the file system as well, which some file systems grant on one machine
        only, or not at all. What runs for long calls `check` of the lease before it writes: see `storage.lease`.

        Raises `UserError` if another command holds the lock for longer than `wait_seconds`.
        """
        if (directory := self.directory) is not None:
            with (
                locked(directory / LOCK, str(self), wait_seconds),
                holding(DirectoryClaims(directory), str(self), wait_seconds=wait_seconds) as lease,
            ):
                yield lease
            return
        filesystem, path = self._store
        claims = ObjectClaims(filesystem, path, partial(_requests_to, self))
        with holding(claims, str(self), wait_seconds=wait_seconds) as lease:
            yield lease

    def names(self) -> list[str]:
        """Return the names of the directory's entries but its lock, sorted; empty if the directory does not exist."""
        if (directory := self.directory) is not None:
            with _reading(directory):
                names = os.listdir(directory) if directory.is_dir() else []
        else:
            filesystem, path = self._store
            with _requests_to(self):
                found = filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
            names = [info.base_name for info in found]
        return sorted(name for name in names if not is_lock(name))

    def size(self) -> int:
        """Return the total size in bytes of the files in the directory and below."""
        if (directory := self.directory) is not None:
            with _reading(directory):
                return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
        filesystem, path = self._store
        with _requests_to(self):
            selector = pyarrow.fs.FileSelector(path, allow_not_found=True, recursive=True)
            return sum(info.size or 0 for info in filesystem.get_file_info(selector))

    def files(self) -> list[str]:
        """Return the relative paths of all files in the directory and below, sorted; empty if it does not exist."""
        if (directory := self.directory) is not None:
            with _reading(directory):
                names = [str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()]
        else:
            filesystem, path = self._store
            with _requests_to(self):
                found = filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True, recursive=True))
            names = [info.path.removeprefix(f"{path}/") for info in found if info.is_file]
        return sorted(name for name in names if not is_lock(name))

    def exists(self, name: str) -> bool:
        """Return whether the directory has a file of this name, which may be a relative path."""
        if (directory := self.directory) is not None:
            with _reading(directory / name):
                return (directory / name).is_file()
        filesystem, path = self._store
        with _requests_to(self):
            return bool(filesystem.get_file_info(f"{path}/{name}").is_file)

    def read_text(self, name: str) -> str:
        """Return the content of a small file. Raises `UserError` if it is not UTF-8."""
        try:
            if (directory := self.directory) is not None:
                with _reading(directory / name):
                    return (directory / name).read_text(encoding="utf-8")
            filesystem, path = self._store
            with _requests_to(self), filesystem.open_input_stream(f"{path}/{name}") as file:
                return bytes(file.read()).decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{self}/{name}: damaged: not UTF-8 at byte {error.start}") from None

    def read_bytes(self, name: str) -> bytes:
        """Return the content of a file of at most some megabytes."""
        if (directory := self.directory) is not None:
            with _reading(directory / name):
                return (directory / name).read_bytes()
        filesystem, path = self._store
        with _requests_to(self), filesystem.open_input_stream(f"{path}/{name}", compression=None) as file:
            return bytes(file.read())

    def write_text(self, name: str, text: str) -> None:
        """Write a small file atomically."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file of at most some megabytes atomically."""
        if (directory := self.directory) is not None:
            write_bytes(directory / name, content)
            return
        filesystem, path = self._store
        with _requests_to(self), filesystem.open_output_stream(f"{path}/{name}") as file:
            file.write(content)

    def write_directory(
        self, name: str, write: Callable[[Path], None], last: str, is_own: Callable[[str], bool]
    ) -> None:
        """Write the subdirectory `name` atomically. Of an existing one, all files that `is_own` accepts are replaced.

        `write` fills the temporary directory that it is given. Its file `last` marks the directory as complete in an
        object store. Raises OSError if a disk is full.
        """
        if (directory := self.directory) is not None:
            with replacing(directory / name, is_own) as temporary:
                write(temporary)
            return
        with tempfile.TemporaryDirectory(prefix="dreamprvr-upload-") as folder:
            write(Path(folder))
            self.delete_directory(name, is_own, first=last)
            self.upload_directory(name, Path(folder), last=last)

    def upload_directory(self, name: str, folder: Path, last: str | None = None) -> None:
        """Copy the files in `folder` to the subdirectory `name` in an object store, `last` after all others."""
        for file in sorted(folder.iterdir(), key=lambda file: file.name == last):
            self._upload(file, f"{name}/{file.name}")

    def upload(self, folder: Path, names: Iterable[str]) -> None:
        """Copy the named files (paths relative to `folder`) from `folder` into an object store, several at a time."""
        with _requests_to(self), ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="upload") as pool:
            list(pool.map(lambda name: self._upload(folder / name, name), names))

    def download(self, names: Iterable[str], folder: Path) -> None:
        """Copy the named files (relative paths) from an object store into `folder`, several at a time."""
        filesystem, path = self._store

        def fetch(name: str) -> None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (
                filesystem.open_input_stream(f"{path}/{name}", compression=None) as source,
                (folder / name).open("wb") as target,
            ):
                shutil.copyfileobj(source, target, _SMALL)

        with _requests_to(self), ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="download") as pool:
            list(pool.map(fetch, names))

    def _upload(self, file: Path, name: str) -> None:
        """Copy a file into an object store. If that fails, the object stays as it was."""
        filesystem, path = self._store
        with file.open("rb") as source:
            if os.fstat(source.fileno()).st_size <= _SMALL:
                content = source.read()  # before the object is opened: see below
                with filesystem.open_output_stream(f"{path}/{name}", compression=None) as target:
                    target.write(content)
                return
            # Closing the stream completes the object, and so does an exception: pyarrow has no way to abort an upload.
            # A part of the file therefore never gets the object's name.
            partial = f"{path}/{name.rpartition('/')[0]}/.{file.name}.partial-{uuid.uuid4().hex}".replace("//", "/")
            try:
                with filesystem.open_output_stream(partial, compression=None) as target:
                    shutil.copyfileobj(source, target, _SMALL)
                filesystem.move(partial, f"{path}/{name}")
            except BaseException:
                with suppress(OSError):
                    filesystem.delete_file(partial)
                raise

    @contextmanager
    def local_directory(self) -> Iterator[Path]:
        """Yield the directory as a local path: its own path on a disk, else a copy that is removed after the block."""
        if (directory := self.directory) is not None:
            yield directory
            return
        filesystem, path = self._store
        with tempfile.TemporaryDirectory(prefix="dreamprvr-download-") as folder:
            with _requests_to(self):
                pyarrow.fs.copy_files(path, folder, source_filesystem=filesystem)
            yield Path(folder)

    def delete_directory(self, name: str, is_own: Callable[[str], bool], first: str | None = None) -> None:
        """Delete the files of the subdirectory `name` that `is_own` accepts, `first` before all others.

        The subdirectory is deleted as well unless anything else is in it, which stays.
        """
        if (directory := self.directory) is not None:
            if first is not None:
                with suppress(NotADirectoryError):
                    (directory / name / first).unlink(missing_ok=True)
            remove_own_files(directory / name, is_own)
            return
        filesystem, path = self._store
        with _requests_to(self), suppress(FileNotFoundError):
            found = filesystem.get_file_info(pyarrow.fs.FileSelector(f"{path}/{name}", allow_not_found=True))
            own = [info for info in found if info.is_file and is_own(info.base_name)]
            for info in sorted(own, key=lambda info: info.base_name != first):
                filesystem.delete_file(info.path)
            is_directory = found or filesystem.get_file_info(f"{path}/{name}").type == pyarrow.fs.FileType.Directory
            if is_directory and len(own) == len(found):
                filesystem.delete_dir(f"{path}/{name}")

    def rename_directory(self, name: str, new: str) -> None:
        """Rename the subdirectory `name`, if it exists, to `new`, which must not exist."""
        if (directory := self.directory) is not None:
            with suppress(FileNotFoundError):
                os.rename(directory / name, directory / new)
            return
        filesystem, path = self._store
        with _requests_to(self):  # object stores have no directories
            for file in (self / name).files():
                filesystem.move(f"{path}/{name}/{file}", f"{path}/{new}/{file}")

    def check_visible(self, name: str) -> None:
        """Raise `UserError` if this node does not see the file `name`, which another node wrote."""
        if not self.exists(name):
            raise UserError(
                f"{self}: is not visible from every node; use a shared file system or an object store (s3://bucket/run)"
            )


@contextmanager
def _requests_to(storage: Storage) -> Iterator[None]:
    """Turn errors of requests to an object store into one-line errors that name the directory."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{storage}: {first_line(error)}") from None
    except OSError as error:
        raise ObjectStoreError(f"{storage}: object-store request failed: {first_line(error)}") from None
    except (pa.ArrowException, ValueError) as error:  # the name of a bucket or a file is invalid
        raise UserError(f"{storage}: not a usable storage location: {redact(first_line(error))}") from None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn an error that a retry will not help into a `UserError`: no permission, a name that is too long, a loop.

    Other errors are those of a store that may come back, or of a file that may appear.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP):
            raise
        raise UserError(f"{path}: cannot be read: {os.strerror(error.errno)}") from None
