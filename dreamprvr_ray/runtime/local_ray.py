"""Starting a local Ray: what goes wrong is one line that says what to do."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import ray

from dreamprvr_ray.errors import Failure, UserError, first_line
from dreamprvr_ray.runtime import ray_internals

LOOPBACK = "127.0.0.1"
LONGEST_SOCKET = 107  # bytes of the path of a Unix socket on Linux

Context = TypeVar("Context")


def check_machine() -> None:
    """Raise `UserError` or `Failure` for what would keep a local Ray from starting; Ray itself may take minutes."""
    _check_folder()
    _check_home()
    try:
        with socket.create_server((LOOPBACK, 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        raise Failure(
            f"Ray cannot start: {LOOPBACK} does not answer ({error.strerror or error});"
            " it needs the loopback interface: ip link set lo up"
        ) from None


def _check_folder() -> None:
    """Check the directory of Ray's files and sockets."""
    folder = ray_internals.temporary_folder()
    variable = next((f"{name}=" for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), "")
    advice = "set RAY_TMPDIR to another directory"
    longest = f"{folder}/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    if (length := len(os.fsencode(longest))) > LONGEST_SOCKET:
        raise UserError(
            f"{variable}{folder}: too long for the paths of Ray's sockets, which would have {length} of at most"
            f" {LONGEST_SOCKET} bytes; set RAY_TMPDIR to a shorter directory, such as /tmp"
        )
    if reason := _write_error(Path(folder) / "ray"):
        raise UserError(f"{variable}{folder}: cannot be written: {reason}; Ray keeps its files there: {advice}")


def _check_home() -> None:
    """Check that Ray can read or write its token."""
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or os.environ.get("RAY_AUTH_MODE") == "disabled":
        return
    try:
        token = Path("~/.ray/auth_token").expanduser()
    except RuntimeError:
        raise UserError("HOME is not set, and Ray keeps its token there: set HOME to a directory") from None
    if not token.is_file() and (reason := _write_error(token.parent)):
        raise UserError(
            f"HOME={token.parents[1]}: cannot be written: {reason}; Ray keeps its token in .ray/auth_token:"
            " set HOME to another directory"
        )


def _write_error(folder: Path) -> str | None:
    """Return why a directory, or its first parent that exists, cannot be written; None if it can."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return error.strerror or str(error)


def start(connect: Callable[[], Context], log: Callable[[str], None]) -> Context:
    """Start a local Ray by `connect`, on a second try if need be. Raises `UserError` or `Failure` if it does not start.

    Ray gives its processes half a minute, which is too little on a machine where many start at once.
    """
    check_machine()
    log("starting Ray ...")
    try:
        return connect()
    except (UserError, Failure):
        raise
    except Exception as error:  # the types of Ray's errors have no common base
        log(f"Ray did not start ({first_line(error)}); trying once more ...")
        ray.shutdown()
    try:
        return connect()
    except Exception as error:
        folder = ray_internals.temporary_folder()
        raise Failure(
            f"Ray did not start: {first_line(error)}; the machine may be too busy, or short of memory or of room in"
            f" /dev/shm; RAY_TMPDIR sets where its files are (logs: {folder}/ray/session_latest/logs)"
        ) from None
