"""The checkpoints of one training, wherever they are kept: the best epoch's and the latest, written beside the training.

STORE/epoch-0007/   as `checkpoints` describes it; one that has `metrics.json` is whole
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from dreamprvr_ray.checkpoints import METRICS, read_json
from dreamprvr_ray.errors import Failure
from dreamprvr_ray.storage import Storage

_NAME = re.compile(r"epoch-(\d+)")


class CheckpointStore:
    """Keeps the best and the latest checkpoint of a training in `storage`, for one writer at a time."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def epochs(self) -> list[int]:
        """The epochs whose checkpoint is whole, ascending."""
        found = (_NAME.fullmatch(name) for name in self.storage.names())
        return sorted(int(match[1]) for match in found if match and self.storage.exists(f"{match[0]}/{METRICS}"))

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
        with self.latest() as latest:
            epoch: int | None = read_json(latest / METRICS)["best_epoch"] if latest else None
        if epoch is None:
            yield None
            return
        with self.opened(epoch) as directory:
            yield directory

    @contextmanager
    def opened(self, epoch: int) -> Iterator[Path]:
        """The checkpoint of this epoch as files on this machine."""
        with (self.storage / _name(epoch)).opened() as directory:
            yield directory

    def write(self, epoch: int, best_epoch: int, write: Callable[[Path], None]) -> None:
        """Keeps a checkpoint, written in the background, and drops those that are neither it nor the best one's.

        Waits for the one before. Raises `Failure` where that one could not be written.
        """
        self.wait()
        self._pending = self._writer.submit(self._write, epoch, best_epoch, write)

    def wait(self) -> None:
        """Until the last checkpoint is written. Raises `Failure` where it could not be."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _write(self, epoch: int, best_epoch: int, write: Callable[[Path], None]) -> None:
        try:
            self.storage.write_directory(_name(epoch), write)
        except OSError as error:
            reason = error.strerror or str(error).splitlines()[0]
            kept = self.epochs()
            last = f"the last good one is of epoch {kept[-1]}" if kept else "there is none yet"
            raise Failure(f"{self.storage}: the checkpoint of epoch {epoch} could not be written: {reason}; {last}") from None
        for name in self.storage.names():  # also what killed writers left behind
            if name not in (_name(epoch), _name(best_epoch)):
                self.storage.delete_directory(name)


def _name(epoch: int) -> str:
    return f"epoch-{epoch:04d}"
