"""The file `optuna.journal`, which holds the study of a search, one record a line.

A full disk or a loss of power cuts a line off in the middle, or fills the end of the file with zeros. Optuna appends
behind it, and cannot read the file from then on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from dreamprvr_ray.errors import UserError, first_line
from dreamprvr_ray.search.layout import JOURNAL
from dreamprvr_ray.storage.files import reading, writing

INCOMPLETE = f"{JOURNAL}.incomplete"  # what was cut off the journal
LOCK_SECONDS = 1.0  # for which a lock of Optuna must not change to be a killed process's; it is held for milliseconds


class SafeJournal(JournalFileBackend):
    """Optuna's journal, which stays readable when the disk is full. One process writes it, by the directory's lock."""

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        """`check` is called before each write: see `WorkingCopy`."""
        with writing(path):
            super().__init__(str(path))
        self._path, self._check = path, check

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records. If that fails, the file stays as it was."""
        self._check()
        size = self._path.stat().st_size
        try:
            super().append_logs(logs)
        except OSError:
            os.truncate(self._path, size)
            raise


def prepare_journal(directory: Path, log: Callable[[str], None]) -> None:
    """Make a journal ready to be continued by the process that holds the directory's lock.

    An incomplete last line is moved to `optuna.journal.incomplete`, and Optuna's lock that a killed process left behind
    is removed. Raises `UserError`, naming the line, if another line is damaged; nothing is changed then.
    """
    path = directory / JOURNAL
    if not path.exists():
        return
    with reading(path):
        content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    lines, rest = content[:end].split(b"\n")[:-1], content[end:]
    _check_lines(path, [*lines, rest] if _is_record(rest) else lines)
    if rest:
        _repair_end(path, end, rest, log)
    _remove_stale_lock(directory / f"{JOURNAL}.lock")


def _repair_end(path: Path, end: int, rest: bytes, log: Callable[[str], None]) -> None:
    with writing(path):
        if _is_record(rest):  # only its line end is missing
            with path.open("ab") as file:
                file.write(b"\n")
            return
        with path.with_name(INCOMPLETE).open("ab") as file:
            file.write(rest + b"\n")
            os.fsync(file.fileno())
        os.truncate(path, end)
    log(
        f"{path}: the last line was incomplete ({len(rest)} bytes), as after a full disk or a loss of power; moved to"
        f" {INCOMPLETE}"
    )


def _is_record(line: bytes) -> bool:
    with suppress(ValueError, RecursionError):
        return isinstance(json.loads(line), dict)
    return False


def _check_lines(path: Path, lines: list[bytes]) -> None:
    journal = _Lines(lines)
    try:
        JournalStorage(journal)
    except Exception as error:  # of json, or whatever Optuna meets in a record that it did not write
        reason = "not valid JSON" if isinstance(error, (ValueError, RecursionError)) else first_line(error)
        raise UserError(
            f"{path}, line {journal.number}: damaged ({reason}); nothing was changed: restore the file, or remove the"
            " line if its record may be lost"
        ) from None


class _Lines(BaseJournalBackend):
    """The lines of a journal, and the `number` of the one that was read last."""

    def __init__(self, lines: list[bytes]) -> None:
        self._lines, self.number = lines, 0

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the records from a number on."""
        for self.number, line in enumerate(self._lines[log_number_from:], log_number_from + 1):  # noqa: B020
            yield json.loads(line)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Refuse to write."""
        raise AssertionError("the lines are only checked")


def _remove_stale_lock(path: Path) -> None:
    """Remove a lock that does not change: Optuna would wait half a minute for its release."""
    before = _identity(path)
    if before is None:
        return
    time.sleep(LOCK_SECONDS)
    if _identity(path) == before:
        path.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.lstat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns
