"""The checkpoints of one training, wherever they are kept: the best epoch's and the latest, written beside the training.

STORE/epoch-0007/   as `checkpoints` describes it; one that has `metrics.json` is whole
STORE/owner         whose writes count: workers of a killed driver write on for seconds, beside the run that goes on from their checkpoints
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dreamprvr_ray.checkpoints.checkpoint import METRICS
from dreamprvr_ray.errors import Failure, ObjectStoreError
from dreamprvr_ray.storage.files import parse_json
from dreamprvr_ray.storage.location import Storage

OWNER = "owner"
_NAME = re.compile(r"epoch-(\d+)")


class CheckpointStore:
    """Keeps the best and the latest checkpoint of a training in `storage`, for one owner at a time.

    The latest to take it over is the owner, and the others' writes fail. A store takes over with its first write, unless `owner` says whom
    it writes for.
    """

    def __init__(self, storage: Storage, owner: str | None = None) -> None:
        self.storage = storage
        self.owner = owner
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def epochs(self) -> list[int]:
        """The epochs whose checkpoint is whole, ascending."""
        found = (_NAME.fullmatch(name) for name in self.storage.names())
        return sorted(int(match[1]) for match in found if match and self.storage.exists(f"{match[0]}/{METRICS}"))

    def metrics(self) -> dict[str, Any] | None:
        """What was measured at the latest checkpoint; None where there is none."""
        epochs = self.epochs()
        return (
            parse_json(self.at(epochs[-1]).read_text(METRICS), f"{self.at(epochs[-1])}/{METRICS}") if epochs else None
        )

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """The latest checkpoint as files on this machine; None where there is none."""
        epochs = self.epochs()
        if not epochs:
            yield None
            return
        with self.opened(epochs[-1]) as directory:
            yield directory

    @contextmanager
    def best(self) -> Iterator[Path | None]:
        """The checkpoint of the best epoch, as the latest one says; None where there is none."""
        metrics = self.metrics()
        if metrics is None:
            yield None
            return
        with self.opened(metrics["best_epoch"]) as directory:
            yield directory

    def at(self, epoch: int) -> Storage:
        """Where the checkpoint of this epoch is, if it is kept."""
        return self.storage / _name(epoch)

    @contextmanager
    def opened(self, epoch: int) -> Iterator[Path]:
        """The checkpoint of this epoch as files on this machine."""
        with self.at(epoch).opened() as directory:
            yield directory

    def keep_only(self, epoch: int) -> None:
        """Deletes the checkpoints of all other epochs."""
        for name in self.storage.names():
            if name not in (OWNER, _name(epoch)):
                self.storage.delete_directory(name, first=METRICS)

    def take_over(self) -> str:
        """Makes this store the owner, to be called before reading what to go on from; returns the `owner` for stores that write for it."""
        self.owner = uuid.uuid4().hex
        self.storage.write_text(OWNER, self.owner)
        return self.owner

    def write(self, epoch: int, best_epoch: int, write: Callable[[Path], None]) -> None:
        """Keeps a checkpoint, written in the background, and drops those that are neither it nor the best one's.

        Waits for the one before. Raises `Failure` where that one could not be written.
        """
        self.wait()
        self._pending = self._writer.submit(self._write, epoch, best_epoch, write)

    def wait(self) -> None:
        """Until the last checkpoint is written. Raises `Failure` where it could not be, `ObjectStoreError` where trying again may help."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _write(self, epoch: int, best_epoch: int, write: Callable[[Path], None]) -> None:
        try:
            if self.owner is None:
                self.take_over()
            self._check_owner()
            self.storage.write_directory(_name(epoch), write, last=METRICS)
        except OSError as error:
            self._check_owner()  # a later one sweeps away what we are writing
            reason = error.strerror or str(error).splitlines()[0]
            kept = self.epochs()
            last = f"the last good one is of epoch {kept[-1]}" if kept else "there is none yet"
            told = f"{self.storage}: the checkpoint of epoch {epoch} could not be written: {reason}; {last}"
            raise (Failure if self.storage.directory else ObjectStoreError)(told) from None
        names = self.storage.names()  # also what killed writers left behind
        # After the names were listed: whoever takes over from here on finds our checkpoint, and what it writes is not among them.
        self._check_owner()
        for name in names:
            if name not in (OWNER, _name(epoch), _name(best_epoch)):
                self.storage.delete_directory(name, first=METRICS)

    def _check_owner(self) -> None:
        if self.storage.read_text(OWNER) != self.owner:
            raise Failure(f"{self.storage}: a later run has taken this training over; this one stops")


def _name(epoch: int) -> str:
    return f"epoch-{epoch:04d}"
