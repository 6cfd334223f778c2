"""Atomic writes of files and directories, and JSON files."""

from __future__ import annotations

import codecs
import ctypes
import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from dreamprvr_ray.errors import PATH_ERRORS, NotWritableError, UserError, first_line

LFS_POINTER = b"version https://git-lfs"  # how a file begins that `git lfs pull` would replace by the real one
BLANKS = " \t\r\n"  # what is stripped around a value: Unicode has more blanks, which may be part of a name

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_AT_WORKING_DIRECTORY, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD of fcntl.h, RENAME_EXCHANGE of linux/fs.h


@contextmanager
def writing(destination: Path) -> Iterator[None]:
    """Turn a permanent OSError of the block into a `NotWritableError` that names `destination`."""
    try:
        yield
    except OSError as error:
        if error.errno not in PATH_ERRORS:
            raise
        raise NotWritableError(error.errno, error.strerror, str(destination)) from error


def reason(error: OSError) -> str:
    """Return why the system refused something, in its words. pyarrow's errors carry it in their text only."""
    return os.strerror(error.errno) if error.errno else first_line(error)


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn an OSError of the block into a `UserError` that names the file that could not be read, else `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {reason(error)}") from None
    except ValueError as error:
        if "\0" in str(path):  # Python's own message does not name the path
            raise UserError(f"{str(path)!r}: a path must not hold a NUL character") from error
        raise


def nothing(name: str) -> bool:
    """Say of no file that it is the program's own."""
    return False


@contextmanager
def replacing(directory: Path, is_own: Callable[[str], bool] = nothing) -> Iterator[Path]:
    """Yield a temporary directory that becomes `directory` if the block succeeds and is removed if it fails.

    Of a directory that exists, the files whose names `is_own` accepts are replaced; whatever else is in it stays.

    Raises `NotWritableError` if the temporary directory cannot be created, or if a file would replace another's.
    """
    with writing(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    is_exchanged = False
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp creates it readable by its owner only
        try:
            os.replace(temporary, directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            others = [name for name in os.listdir(directory) if not is_own(name)]
            for name in others:
                if os.path.lexists(temporary / name):
                    raise NotWritableError(errno.EEXIST, os.strerror(errno.EEXIST), str(directory / name)) from None
            _exchange(temporary, directory)
            is_exchanged = True
            for name in others:
                os.rename(temporary / name, directory / name)
    finally:
        if is_exchanged:
            remove_own_files(temporary, is_own)
        else:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_own_files(directory: Path, is_own: Callable[[str], bool]) -> None:
    """Remove the files of a directory whose names `is_own` accepts, and the directory if nothing else is in it.

    What cannot be removed stays, as does all that a link leads to.
    """
    if directory.is_symlink() or not directory.is_dir():
        return
    for path in directory.iterdir():
        if is_own(path.name):
            with suppress(OSError):
                path.unlink()
    remove_empty([directory])


def _exchange(one: Path, other: Path) -> None:
    """Swap two directories, atomically if the system can, so that a kill leaves a complete one at each path."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)  # Linux only; Python's os module does not have it
    if renameat2 is not None:
        cwd, first, second = _AT_WORKING_DIRECTORY, os.fsencode(one), os.fsencode(other)
        if renameat2(cwd, first, cwd, second, _RENAME_EXCHANGE) == 0:
            return
    # Not supported here (as on NFS): a kill between the next two lines leaves the previous directory under `aside`.
    aside = one.with_name(one.name + "-old")
    os.replace(other, aside)
    os.replace(one, other)
    os.replace(aside, one)


def partial_path(path: Path) -> Path:
    """Return the temporary path, in the same directory, to which this process writes `path` before renaming it."""
    return path.with_name(f".{path.name}.partial-{os.getpid()}")


def remove_partial_files(directory: Path, names: Iterable[str]) -> None:
    """Remove the temporary files of `partial_path` for files of these names that killed processes left."""
    own = {f".{name}" for name in names}
    for path in directory.glob(".*.partial-*"):
        name, _, process = path.name.rpartition(".partial-")
        if name in own and process.isdecimal() and not path.is_dir():
            path.unlink(missing_ok=True)


def open_lock_file(path: Path) -> IO[bytes]:
    """Open a file to lock it, creating it. Its content stays; a symbolic link, which others may plant, is refused.

    Raises OSError if it cannot be opened.
    """
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+b", buffering=0)


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` if the block succeeds and removed if it fails."""
    partial = partial_path(path)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, creating its directory. Raises `NotWritableError` where it cannot be written."""
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path), replacing_file(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically, creating its directory. Raises `NotWritableError` where it cannot be written."""
    write_bytes(path, text.encode())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an indented JSON object atomically, creating its directory. Raises `NotWritableError` as `write_text`."""
    write_text(path, json.dumps(values, indent=1) + "\n")


@contextmanager
def reserved_room(directory: Path, size: int) -> Iterator[None]:
    """Occupy `size` bytes of the disk of `directory` while the block runs, for what is written there afterwards.

    Raises OSError that names the directory if there is not so much room. A file system that cannot reserve is trusted.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile(dir=directory))
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise OSError(error.errno, error.strerror, str(directory)) from None
        yield


def remove_empty(directories: Iterable[Path]) -> None:
    """Remove those directories that are empty, in this order."""
    for directory in directories:
        with suppress(OSError):
            directory.rmdir()


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 file without its byte order mark. Raises `UserError` if it cannot be read."""
    return read_text_as(path, ("utf-8-sig",))[0]


def read_text_as(path: Path, encodings: Sequence[str]) -> tuple[str, str]:
    """Return the content of a file and the first of `encodings` in which it is valid, the first of which is UTF-8.

    Raises `UserError` if it cannot be read. UTF-16, which is valid Latin-1, is refused.
    """
    try:
        require_regular(path)
        content = path.read_bytes()
        if content.startswith(LFS_POINTER):
            raise UserError(f"{path}: is a Git LFS pointer, not the file itself; run `git lfs pull`")
        try:
            return content.decode(encodings[0]), encodings[0]
        except UnicodeDecodeError:
            if len(encodings) == 1 or content[:2] in _UTF16:
                raise
            return content.decode(encodings[1]), encodings[1]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        hint = ": it is UTF-16; save it as UTF-8" if error.object[:2] in _UTF16 else "; save it as UTF-8"
        raise UserError(f"{path}: not UTF-8 at byte {error.start}{hint}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def require_regular(path: Path) -> None:
    """Raise `UserError` if a path is a pipe, a device or a directory, which must not be read: it might never end.

    Raises OSError if it does not exist.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise UserError(f"{path}: cannot be read: is {kind}; must be a file")


def text_lines(text: str) -> list[str]:
    """Return the lines of a text, whose ends are LF, CR LF or CR, as Linux, Windows and old Mac programs write them.

    Unlike `str.splitlines`, which also splits at form feeds and Unicode separators that are part of a sentence or id.
    A byte order mark at the start of a line, where files were concatenated, is left out.
    """
    return [line.removeprefix("\ufeff") for line in re.split(r"\r\n|\n|\r", text)]


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises `UserError` if the file is missing or damaged."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged: {first_line(error)}") from None
    return parse_json(text, str(path))


def parse_json(text: str, path: str) -> dict[str, Any]:
    """Return the JSON object in `text`, the content of the file `path`. Raises `UserError` if it is damaged."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: damaged: {first_line(error)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return value
