"""A copy of a search's small files on the driver's machine. For a search on a disk, it is the search's directory.

The driver appends to the study, the epoch logs and the leaderboard; an object store has no appending. They are changed
in the copy and uploaded after every epoch, before its trial continues. A search resumed on another machine therefore
knows every epoch that pruning decisions depend on. Checkpoints and their test records are not part of the copy: they
are written to the store directly. Imports no Ray.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.layout import BEST, CHECKPOINTS, JOURNAL, SEARCH, TEST_RECORD, WANDB
from dreamprvr_ray.storage.location import Storage


class WorkingCopy:
    """The files at `path` of the search in `storage`."""

    def __init__(self, storage: Storage, path: Path, log: Callable[[str], None]) -> None:
        self.storage, self.path, self._log = storage, path, log
        self._uploaded: dict[str, tuple[int, int]] = {}  # size and modification time of what the store has

    def fetch(self) -> None:
        """Download the files that the store has."""
        self.storage.download(filter(_belongs_to_copy, self.storage.files()), self.path)
        self._uploaded = self._stamps()

    def push(self) -> None:
        """Upload the files that have changed. Raises `ObjectStoreError` if the store does not accept them.

        The study comes last, so that every epoch in it is in the epoch logs as well.
        """
        if self.storage.directory is not None:
            return
        stamps = self._stamps()
        changed = [name for name, stamp in stamps.items() if self._uploaded.get(name) != stamp]
        self.storage.upload(self.path, [name for name in changed if name != JOURNAL])
        self.storage.upload(self.path, [name for name in changed if name == JOURNAL])
        self._uploaded = stamps

    def try_push(self) -> bool:
        """Upload the files that have changed. Return False, after logging the error, if that failed."""
        try:
            self.push()
        except UserError as error:
            self._log(f"{error}; will retry after the next epoch")
            return False
        return True

    def _stamps(self) -> dict[str, tuple[int, int]]:
        stamps = {}
        for name in filter(_belongs_to_copy, Storage(str(self.path)).files()):
            with suppress(FileNotFoundError):  # a tracker has just removed it
                stat = (self.path / name).stat()
                stamps[name] = (stat.st_size, stat.st_mtime_ns)
        return stamps


@contextmanager
def downloaded(storage: Storage) -> Iterator[Path]:
    """Download the small files of a search from an object store, and its test record, for the length of the block.

    Raises `UserError` if there is no search.
    """
    names = storage.files()
    if SEARCH not in names:
        raise UserError(f"{storage} is not a search: it has no {SEARCH}; give the location of `tune --out`")
    with tempfile.TemporaryDirectory(prefix="dreamprvr-search-") as folder:
        test_record = f"{BEST}/{TEST_RECORD}"
        storage.download([name for name in names if _belongs_to_copy(name) or name == test_record], Path(folder))
        yield Path(folder)


@contextmanager
def working_copy(storage: Storage, log: Callable[[str], None]) -> Iterator[WorkingCopy]:
    """Open the working copy of a search. When the block ends, it is uploaded and removed.

    If the upload fails, the copy stays on this machine's disk; the error is raised unless the block raised one.
    """
    if storage.directory is not None:
        yield WorkingCopy(storage, storage.directory, log)
        return
    copy = WorkingCopy(storage, Path(tempfile.mkdtemp(prefix="dreamprvr-search-")), log)
    is_uploaded = True  # nothing has changed yet
    try:
        copy.fetch()
        is_uploaded = False
        yield copy
        copy.push()
        is_uploaded = True
    except BaseException:
        is_uploaded = is_uploaded or copy.try_push()
        raise
    finally:
        if is_uploaded:
            shutil.rmtree(copy.path, ignore_errors=True)
        else:
            log(f"{storage}: upload incomplete; remaining files are in {copy.path}")


def _belongs_to_copy(name: str) -> bool:
    """Return whether a file is neither a checkpoint's, nor W&B's (which uploads its own), nor a lock, nor temporary."""
    *folders, last = name.split("/")
    return (
        not {BEST, CHECKPOINTS, WANDB} & set(folders)
        and not last.startswith(".")
        and not last.startswith(f"{JOURNAL}.lock")
    )
