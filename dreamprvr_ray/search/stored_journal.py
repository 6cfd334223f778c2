"""The study's journal in an object store, which has no appending.

optuna.journal                      the journal from its beginning; all of it if it is short or the search has ended
optuna.journal.parts/000000065536   what follows, from this byte on: at most PART_BYTES and the records of one upload

The last object is replaced while it grows, so that an upload costs the same however long the journal is. Stores replace
an object atomically: a kill leaves the journal as it was before the upload or after it. When the search ends, the
journal becomes one object again. Parts that `optuna.journal` contains were left there by a kill in between.
Imports no Ray.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.layout import JOURNAL
from dreamprvr_ray.storage.location import Storage

PARTS = f"{JOURNAL}.parts"
PART_BYTES = 64 * 2**10
_PART = re.compile(r"\d{12,}")


class StoredJournal:
    """The journal of the search in `storage`, for one process that writes it."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._begin = 0  # of the last object
        self._end = 0  # of the records that the store has
        self._has_parts = False

    def download(self, names: Iterable[str], path: Path) -> None:
        """Write the journal to `path`, if the store has one. `names` are the files that the store has.

        Raises `UserError` if a part of it is missing.
        """
        parts = sorted(name for name in names if is_journal(name))
        self._has_parts = any(name != JOURNAL for name in parts)
        if not parts:
            return
        content = b""
        with tempfile.TemporaryDirectory(prefix="dreamprvr-journal-") as folder:
            self._storage.download(parts, Path(folder))
            for name in parts:
                begin = _begin(name)
                part = (Path(folder) / name).read_bytes()
                if begin > len(content):
                    raise UserError(
                        f"{self._storage}: the study is damaged: bytes {len(content):,} to {begin:,} of its journal are"
                        f" missing, before {name}; restore the file that held them"
                    )
                if begin + len(part) > len(content):
                    content, self._begin = content[:begin] + part, begin
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self._end = content.rfind(b"\n") + 1
        if self._end == len(content):
            self._next_part()

    def upload(self, path: Path) -> None:
        """Upload the records that the store lacks. Raises `ObjectStoreError` if it does not accept them."""
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._begin)
            content = file.read()
        content = content[: content.rfind(b"\n") + 1]  # an incomplete record may still be removed
        if self._begin + len(content) == self._end:
            return
        self._storage.write_bytes(f"{PARTS}/{self._begin:012d}" if self._begin else JOURNAL, content)
        self._has_parts = self._has_parts or self._begin > 0
        self._end = self._begin + len(content)
        self._next_part()

    def join(self, path: Path) -> None:
        """Make one object of the journal, which `upload` has uploaded."""
        if self._has_parts:
            self._storage.upload(path.parent, [path.name])
            self._storage.delete_directory(PARTS, lambda name: _PART.fullmatch(name) is not None)
            self._begin, self._has_parts = self._end, False

    def _next_part(self) -> None:
        if self._end - self._begin >= PART_BYTES:
            self._begin = self._end


def is_journal(name: str) -> bool:
    """Return whether a file of a search in an object store, given by its relative path, holds its journal."""
    folder, _, last = name.rpartition("/")
    return name == JOURNAL or (folder == PARTS and _PART.fullmatch(last) is not None)


def _begin(name: str) -> int:
    return 0 if name == JOURNAL else int(name.rpartition("/")[2])
