"""Locks of a file system, which keep a directory on a disk to one command at a time.

The lock is a file in the directory, so that whoever sees the directory sees the lock, whatever its `TMPDIR`. Some file
systems that machines share grant locks to one machine only, or none: `lease` works there too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage.files import writing

LOCK = ".dreamprvr_ray.lock"  # in a directory on a disk
CLAIM = ".dreamprvr_ray.lease-"  # how the names of a lease's files begin: see `claims`
_CLAIM = re.compile(rf"{re.escape(CLAIM)}\w+-\d{{6,}}")
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # the file system has no locks
_RETRY_SECONDS = 0.05  # between two attempts to take a lock that another command holds


def is_lock(name: str) -> bool:
    """Return whether a file of this name, in a directory that is locked, is the lock or a lease's."""
    return name == LOCK or name.startswith(CLAIM)


def is_claim(name: str) -> bool:
    """Return whether a file of this name is a claim of a lease."""
    return _CLAIM.fullmatch(name) is not None


@contextmanager
def locked(path: Path, shown: str, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` while the block runs, then remove it and those of its parents that did not exist.

    `shown` is the directory that it locks, for messages. Where the file system has no locks, go without.
    The kernel releases the lock of a command that is killed.

    Raises:
        UserError: Another command holds the lock for longer than `wait_seconds`, or `path` is a symbolic link.
        NotWritableError: The file cannot be written.
    """
    deadline = time.monotonic() + wait_seconds
    with ExitStack() as stack:
        for missing in reversed([folder for folder in path.parents if not folder.exists()]):
            with writing(path.parent):
                missing.mkdir(exist_ok=True)
            stack.callback(_remove_empty, missing)
        while True:
            descriptor = _open(path)
            stack.callback(os.close, descriptor)
            if not _acquire(descriptor, path, shown, deadline):
                break
            if os.fstat(descriptor).st_nlink:  # 0: the previous holder removed the file as it finished
                break
        stack.callback(path.unlink, missing_ok=True)
        with suppress(OSError):  # a full disk: only the message to others needs it
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}".encode(), 0)
        yield


def _open(path: Path) -> int:
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    with suppress(PermissionError, FileNotFoundError):  # a file of another user can be locked, but not written
        if not os.access(path, os.W_OK, follow_symlinks=False):
            return os.open(path, os.O_RDONLY | flags)
    try:
        with writing(path):
            return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o644)
    except OSError as error:
        if path.is_symlink():
            raise UserError(f"{path}: is a symbolic link; a lock must be a file: remove the link") from None
        raise error


def _acquire(descriptor: int, path: Path, shown: str, deadline: float) -> bool:
    """Take the lock. Return False if the file system has no locks."""
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_RETRY_SECONDS)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        process, _, host = os.pread(descriptor, 1000, 0).decode(errors="replace").partition(" ")
        holder = f"process {process}" if host in ("", socket.gethostname()) else f"process {process} on {host}"
        raise UserError(f"{shown}: {holder} is using this directory; wait for it to finish, or stop it") from None


def is_alive(process: int) -> bool:
    """Return whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # of another user
        pass
    return True


def _remove_empty(directory: Path) -> None:
    with suppress(OSError):  # not empty
        directory.rmdir()
