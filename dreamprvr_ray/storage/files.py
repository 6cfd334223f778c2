"""Atomic writes of files and directories, and JSON from disk."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dreamprvr_ray.errors import NotWritableError, UserError, first_line

# Of the place and not of the moment, as a full disk is.
_OF_THE_PLACE = (
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.ENOENT,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)


@contextmanager
def writing(destination: Path) -> Iterator[None]:
    """Raises `NotWritableError`, which names `destination` and no temporary name beside it, where the block cannot write there."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_THE_PLACE:
            raise
        raise NotWritableError(error.errno, error.strerror, str(destination)) from error


_AT_WORKING_DIRECTORY, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD of fcntl.h, RENAME_EXCHANGE of linux/fs.h


@contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """A temporary directory that takes the place of `directory` when the block ends well, and vanishes when it does not."""
    with writing(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp's are for the owner alone
        try:
            os.replace(temporary, directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            _exchange(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(one: Path, other: Path) -> None:
    """Swaps two directories: in one step where the system can, so that a kill at any time leaves a whole one in each place."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)  # Linux; Python has no name for it
    if (
        renameat2
        and renameat2(
            _AT_WORKING_DIRECTORY, os.fsencode(one), _AT_WORKING_DIRECTORY, os.fsencode(other), _RENAME_EXCHANGE
        )
        == 0
    ):
        return
    aside = one.with_name(
        one.name + "-old"
    )  # a system or file system (NFS) without it: a kill just here leaves the old one aside
    os.replace(other, aside)
    os.replace(one, other)
    os.replace(aside, one)


def write_text(path: Path, text: str) -> None:
    """Writes a small file whole or not at all. Raises `NotWritableError` where there is no place for it."""
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    with writing(path):
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def copy_files(source: Path, target: Path) -> None:
    """Copies the files of a checkpoint directory into another one."""
    shutil.copytree(source, target, dirs_exist_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises `UserError` where it is missing or damaged."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged: {first_line(error)}") from None
    return parse_json(text, str(path))


def parse_json(text: str, where: str) -> dict[str, Any]:
    """A JSON object from a text. Raises `UserError` that names `where` it is damaged."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: damaged: {first_line(error)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: must hold an object")
    return value
