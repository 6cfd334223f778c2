"""The small files of a search on the driver's machine: its directory itself or, of one in an object store, a copy.

The study, the trials' records and the leaderboard are appended to and rewritten here, and go up to the store whenever they have changed by an
epoch: before its trial goes on, so that a search taken up elsewhere misses no epoch that decides what is pruned. Checkpoints, and what is
recorded beside them, are written into the store by those who make them; they have no part in this. Imports no Ray.
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

    def __init__(self, storage: Storage, path: Path, say: Callable[[str], None]) -> None:
        self.storage, self.path, self.say = storage, path, say
        self._kept: dict[str, tuple[int, int]] = {}  # size and time of change of what the store has

    def fetch(self) -> None:
        """Copies what the store has."""
        self.storage.download(filter(_is_small, self.storage.files()), self.path)
        self._kept = self._found()

    def push(self) -> None:
        """Copies what has changed into the store, the study last: an epoch that it knows is in the records, too."""
        if self.storage.directory is not None:
            return
        found = self._found()
        changed = [name for name, stamp in found.items() if self._kept.get(name) != stamp]
        self.storage.upload(self.path, [name for name in changed if name != JOURNAL])
        self.storage.upload(self.path, [name for name in changed if name == JOURNAL])
        self._kept = found

    def keep_up(self) -> bool:
        """Does so while trials run, which a store that does not answer does not end; returns whether it did."""
        try:
            self.push()
        except UserError as error:
            self.say(f"{error}; tried again after the next epoch")
            return False
        return True

    def _found(self) -> dict[str, tuple[int, int]]:
        found = {}
        for name in filter(_is_small, Storage(str(self.path)).files()):
            with suppress(FileNotFoundError):  # a tracker has done with it
                stat = (self.path / name).stat()
                found[name] = (stat.st_size, stat.st_mtime_ns)
        return found


@contextmanager
def downloaded(storage: Storage) -> Iterator[Path]:
    """The small files of a search in an object store, and what was said of test in the end, for the length of the block."""
    names = storage.files()
    if SEARCH not in names:
        raise UserError(f"{storage}: no search: it has no {SEARCH} (name what `tune --out` named)")
    with tempfile.TemporaryDirectory(prefix="dreamprvr-search-") as folder:
        storage.download([name for name in names if _is_small(name) or name == f"{BEST}/{TEST_RECORD}"], Path(folder))
        yield Path(folder)


@contextmanager
def working_copy(storage: Storage, say: Callable[[str], None]) -> Iterator[WorkingCopy]:
    """The working copy of a search for the length of the block, up to date in the store when it ends.

    One that the store did not take stays on this machine's disk. Raises `ObjectStoreError` then, where the block ended well.
    """
    if storage.directory is not None:
        yield WorkingCopy(storage, storage.directory, say)
        return
    copy = WorkingCopy(storage, Path(tempfile.mkdtemp(prefix="dreamprvr-search-")), say)
    kept = True  # nothing has changed yet
    try:
        copy.fetch()
        kept = False
        yield copy
        copy.push()
        kept = True
    except BaseException:
        kept = kept or copy.keep_up()
        raise
    finally:
        if kept:
            shutil.rmtree(copy.path, ignore_errors=True)
        else:
            say(f"{storage} did not take all: {copy.path} holds what it lacks")


def _is_small(name: str) -> bool:
    """Whether a file belongs to the copy: it is no checkpoint's, none that W&B sends up itself, no lock and no file that is being written."""
    *folders, last = name.split("/")
    return (
        not {BEST, CHECKPOINTS, WANDB} & set(folders)
        and not last.startswith(".")
        and not last.startswith(f"{JOURNAL}.lock")
    )
