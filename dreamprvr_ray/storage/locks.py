"""Locks that keep a directory to one command at a time.

The lock of a directory on a disk is a file in it, so that whoever sees the directory sees the lock, whatever its
`TMPDIR`. The lock of a directory in an object store is a file in the user's home directory: it keeps other commands of
this user away, on this machine and on those that share the home directory.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import pwd
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage.files import writing

LOCK = ".dreamprvr_ray.lock"  # in a directory on a disk
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # the file system has no locks
_RETRY_SECONDS = 0.05  # between two attempts to take a lock that another command holds

_log = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, shown: str, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` while the block runs, then remove it and those of its parents that did not exist.

    `shown` is the directory that it locks, for messages. Where the file system has no locks, go without, and say so.
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
    """Take the lock. Return False, after a warning, if the file system has no locks."""
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
        process, _, host = os.pread(descriptor, 1000, 0).decode(errors="replace").partition(" ")
        is_here = host in ("", socket.gethostname())
        holder = f"process {process}" if is_here else f"process {process} on {host}"
        is_held = error.errno not in _NO_LOCKS or (is_here and process.isdecimal() and is_alive(int(process)))
        if is_held:
            raise UserError(f"{shown}: {holder} is using this directory; wait for it to finish, or stop it") from None
        _log.warning(
            "%s: the file system grants no locks (%s): start no second command with this directory",
            path.parent,
            error.strerror,
        )
        return False


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


def object_store_lock(uri: str) -> Path:
    """Return the path of the lock file of a directory in an object store. Spellings of one location have one."""
    path, _, query = uri.partition("?")
    scheme, _, path = path.partition("://")
    path = re.sub("/+", "/", path.rpartition("@")[2]).strip("/")
    endpoint = parse_qs(query).get("endpoint_override", [""])[0].rstrip("/")
    name = hashlib.sha256(f"{scheme.lower()}://{path} {endpoint}".encode()).hexdigest()[:16]
    return _user_directory() / f"{name}.lock"


def _user_directory() -> Path:
    """Return a directory of this user, the same for all of the user's processes. It does not depend on `TMPDIR`."""
    user = os.getuid()
    try:
        home = Path(pwd.getpwuid(user).pw_dir)
    except KeyError:  # as in some containers
        home = Path("~").expanduser()
    for directory in (home / ".cache" / "dreamprvr_ray" / "locks", Path(f"/tmp/dreamprvr_ray-{user}")):
        with suppress(OSError):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            if directory.lstat().st_uid == user and not directory.is_symlink() and os.access(directory, os.W_OK):
                return directory
    raise UserError(f"{home}: no place for locks: neither it nor /tmp can be written")
