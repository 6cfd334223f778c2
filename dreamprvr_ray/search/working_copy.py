"""A copy of a search's small files on the driver's machine. For a search on a disk, it is the search's directory.

The driver appends to the study, the epoch logs and the leaderboard; an object store has no appending. They are changed
in the copy and uploaded after every epoch, before its trial continues. A search resumed on another machine therefore
knows every epoch that pruning decisions depend on. Checkpoints and their test records are not part of the copy: they
are written to the store directly.

What an upload costs does not depend on the number of trials: the directories of runs are looked at only if they have
changed, and the journal is uploaded in parts. Imports no Ray.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dreamprvr_ray.checkpoints.layout import TENSORBOARD
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.layout import (
    BEST,
    CHECKPOINTS,
    EPOCHS,
    FINAL_RUNS,
    JOURNAL,
    RUNS,
    SEARCH,
    TEST_RECORD,
    WANDB,
)
from dreamprvr_ray.search.stored_journal import StoredJournal, is_journal
from dreamprvr_ray.storage.location import Storage


class WorkingCopy:
    """The files at `path` of the search in `storage`."""

    def __init__(
        self, storage: Storage, path: Path, log: Callable[[str], None], check: Callable[[], None] = lambda: None
    ) -> None:
        """`check` raises `LeaseLost` if this process has lost the search's directory to another one."""
        self.storage, self.path, self._log = storage, path, log
        self.checks = [check]  # of a study in a database, further ones
        self._journal = StoredJournal(storage)
        self._uploaded: dict[str, tuple[int, int]] = {}  # size and modification time of what was uploaded last
        self._changed: set[str] = set()  # directories of runs with files that the store may lack
        self._epoch_logs: set[str] = set()  # files of runs that the store has and the copy lacks

    def fetch(self, with_runs: bool = True) -> None:
        """Download the files that the store has. Those of runs can also be downloaded later, by `fetch_runs`."""
        files = self.storage.files()
        names = list(filter(_belongs_to_copy, files))
        self._journal.download(files, self.path / JOURNAL)
        if not with_runs:
            self._epoch_logs = {name for name in names if _is_of_run(name) and name.endswith(f"/{EPOCHS}")}
            names = [name for name in names if not _is_of_run(name)]
        self.storage.download(names, self.path)
        self._uploaded = self._stamps(())

    def fetch_runs(self, runs: Iterable[str]) -> None:
        """Download the epoch logs of runs that continue, by their directories such as `runs/trial_007`."""
        names = self._epoch_logs & {f"{run}/{EPOCHS}" for run in runs}
        if names:
            self.storage.download(sorted(names), self.path)
            self._epoch_logs -= names

    def forget_run(self, run: str) -> None:
        """Record that what the store had in a run's directory is no longer there."""
        self._epoch_logs.discard(f"{run}/{EPOCHS}")

    def mark_changed(self, run: str) -> None:
        """Record that files in a run's directory have changed, for the next upload."""
        if self.storage.directory is None:
            self._changed.add(run)

    def check_lease(self) -> None:
        """Raise `LeaseLost` if another process has taken over. Call it before anything of the search is changed."""
        for check in self.checks:
            check()

    def push(self) -> None:
        """Upload the files that have changed. Raises `ObjectStoreError` if the store does not accept them.

        The study comes last, so that every epoch in it is in the epoch logs as well. Raises `LeaseLost`, and uploads
        nothing, if another process has taken over.
        """
        self.check_lease()
        if self.storage.directory is not None:
            return
        stamps = self._stamps(self._changed)
        self.storage.upload(self.path, [name for name, stamp in stamps.items() if self._uploaded.get(name) != stamp])
        self.check_lease()  # again: many files take long
        self._journal.upload(self.path / JOURNAL)
        self._uploaded, self._changed = stamps, set()

    def finish(self) -> None:
        """Upload the files that have changed, and make one object of the journal. Raises `ObjectStoreError`."""
        self.push()
        self.check_lease()
        if self.storage.directory is None:
            self._journal.join(self.path / JOURNAL)

    def try_push(self) -> bool:
        """Upload the files that have changed. Return False, after logging the error, if that failed."""
        try:
            self.push()
        except UserError as error:
            self._log(f"{error}; will retry after the next epoch")
            return False
        return True

    def _stamps(self, runs: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Return the size and modification time of the files outside of runs, and of those of the given runs."""
        stamps = {}
        for name in filter(_belongs_to_copy, self._files(runs)):
            with suppress(FileNotFoundError):  # a tracker has just removed it
                stat = (self.path / name).stat()
                stamps[name] = (stat.st_size, stat.st_mtime_ns)
        return stamps

    def _files(self, runs: Iterable[str]) -> Iterator[str]:
        directories = list(runs)
        for entry in os.scandir(self.path):
            if not entry.is_dir():
                yield entry.name
            elif entry.name not in (RUNS, FINAL_RUNS, WANDB):
                directories.append(entry.name)
        for directory in directories:
            for name in Storage(str(self.path / directory)).files():
                yield f"{directory}/{name}"


@contextmanager
def downloaded(storage: Storage) -> Iterator[Path]:
    """Download the small files of a search from an object store, and its test record, for the length of the block.

    Raises `UserError` if there is no search.
    """
    files = storage.files()
    if SEARCH not in files:
        raise UserError(f"{storage} is not a search: it has no {SEARCH}; give the location of `tune --out`")
    with tempfile.TemporaryDirectory(prefix="dreamprvr-search-") as folder:
        names = [name for name in files if _belongs_to_copy(name) and TENSORBOARD not in name.split("/")]
        test_record = f"{BEST}/{TEST_RECORD}"
        StoredJournal(storage).download(files, Path(folder) / JOURNAL)
        storage.download([*names, test_record] if test_record in files else names, Path(folder))
        yield Path(folder)


@contextmanager
def working_copy(
    storage: Storage, log: Callable[[str], None], check: Callable[[], None] = lambda: None
) -> Iterator[WorkingCopy]:
    """Open the working copy of a search. When the block ends, it is uploaded and removed.

    If the upload fails, the copy stays on this machine's disk; the error is raised unless the block raised one.
    """
    if storage.directory is not None:
        yield WorkingCopy(storage, storage.directory, log, check)
        return
    copy = WorkingCopy(storage, Path(tempfile.mkdtemp(prefix="dreamprvr-search-")), log, check)
    is_uploaded = True  # nothing has changed yet
    try:
        copy.fetch(with_runs=False)
        is_uploaded = False
        yield copy
        copy.finish()
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
    """Return whether a file is uploaded and downloaded as a whole.

    It is neither the journal, nor a checkpoint's, nor W&B's (which uploads its own), nor a lock, nor temporary.
    """
    *folders, last = name.split("/")
    return (
        not {BEST, CHECKPOINTS, WANDB} & set(folders)
        and not last.startswith(".")
        and not last.startswith(f"{JOURNAL}.lock")
        and not is_journal(name)
    )


def _is_of_run(name: str) -> bool:
    return name.partition("/")[0] in (RUNS, FINAL_RUNS)
