"""The checkpoints of one training in a directory or an object store: the best and the latest, written in the
background.

STORE/epoch-0007/   one checkpoint, as `checkpoints.checkpoint` describes it; complete once it has `metrics.json`
STORE/owner         the id of the current writer: workers of a killed driver can keep writing for seconds while the run
is resumed
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dreamprvr_ray.checkpoints.checkpoint import METRICS, add_moments, check_metrics
from dreamprvr_ray.checkpoints.layout import is_checkpoint_file
from dreamprvr_ray.errors import Failure, ObjectStoreError, StorageFailure, first_line
from dreamprvr_ray.model.moment_network import MomentNetwork
from dreamprvr_ray.storage.files import parse_json
from dreamprvr_ray.storage.location import Storage

WRITER = "owner"  # the file's name is that of earlier versions
_NAME = re.compile(r"epoch-(\d+)")
_TEMPORARY = re.compile(r"\.epoch-\d+-\w{8}(-old)?")  # left by a killed writer: see `storage.files.replacing`


class CheckpointStore:
    """Keeps the best and the latest checkpoint of a training in `storage`, for one writer at a time.

    The process group that claimed the store last is its writer; writes by earlier ones fail. Pass `writer`, the id that
    `claim` returned elsewhere, to write on behalf of that group. Otherwise the store is claimed by the first write.
    """

    def __init__(self, storage: Storage, writer: str | None = None) -> None:
        self.storage = storage
        self.writer = writer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def epochs(self) -> list[int]:
        """Return the epochs that have a complete checkpoint, ascending."""
        matches = (_NAME.fullmatch(name) for name in self.storage.names())
        return sorted(int(match[1]) for match in matches if match and self.storage.exists(f"{match[0]}/{METRICS}"))

    def metrics(self) -> dict[str, Any] | None:
        """Return `metrics.json` of the latest checkpoint, or None if there is no checkpoint.

        Raises `UserError` if the file is damaged.
        """
        epochs = self.epochs()
        if not epochs:
            return None
        latest = self.at(epochs[-1])
        return parse_json(latest.read_text(METRICS), f"{latest}/{METRICS}")

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """Open the latest checkpoint as a local directory; None if there is no checkpoint."""
        epochs = self.epochs()
        if not epochs:
            yield None
            return
        with self.opened(epochs[-1]) as directory:
            yield directory

    @contextmanager
    def best(self) -> Iterator[Path | None]:
        """Open the checkpoint of the best epoch as a local directory; None if there is no checkpoint."""
        metrics = self.metrics()
        if metrics is None:
            yield None
            return
        check_metrics(metrics, f"{self.storage}: {METRICS} of the latest checkpoint", {"best_epoch": int})
        with self.opened(metrics["best_epoch"]) as directory:
            yield directory

    def at(self, epoch: int) -> Storage:
        """Return the location of this epoch's checkpoint, which may not exist."""
        return self.storage / _name(epoch)

    @contextmanager
    def opened(self, epoch: int) -> Iterator[Path]:
        """Open this epoch's checkpoint as a local directory."""
        with self.at(epoch).local_directory() as directory:
            yield directory

    def keep_only(self, epoch: int) -> None:
        """Delete the checkpoints of all other epochs."""
        self._delete_others(self.storage.names(), (epoch,))

    def delete_all(self) -> None:
        """Delete all checkpoints."""
        self._delete_others(self.storage.names(), ())

    def claim(self) -> str:
        """Make this store the writer and return its id. Call it before reading the checkpoint to resume from."""
        self.writer = uuid.uuid4().hex
        self.storage.write_text(WRITER, self.writer)
        return self.writer

    def write(self, epoch: int, best_epoch: int, write: Callable[[Path], None]) -> None:
        """Write a checkpoint in the background, then delete all but this one and the best epoch's.

        `write` writes the checkpoint's files into a directory. Waits for the previous checkpoint first and raises what
        `wait` raises.
        """
        self.wait()
        self._pending = self._thread.submit(self._write, epoch, best_epoch, write)

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises `Failure` if it could not be written, `ObjectStoreError` if a retry may help.
        """
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def add_moments(self, epoch: int, learn: Callable[[Path], MomentNetwork | None]) -> None:
        """Add the network that `learn` learns from the checkpoint of an epoch to it, if it learns one.

        Waits for the last checkpoint first. Raises what `wait` raises.
        """
        self.wait()
        with self.opened(epoch) as directory:
            network = learn(directory)
        if network is None:
            return
        self._check_writer()
        try:
            add_moments(self.at(epoch), network)
        except OSError as error:
            raise self._failure(epoch, error) from None

    def _write(self, epoch: int, best_epoch: int, write: Callable[[Path], None]) -> None:
        try:
            if self.writer is None:
                self.claim()
            self._check_writer()
            self.storage.write_directory(_name(epoch), write, METRICS, is_checkpoint_file)
        except OSError as error:
            self._check_writer()  # a later writer deletes what this one has not finished
            raise self._failure(epoch, error) from None
        names = self.storage.names()  # including incomplete checkpoints of killed writers
        # Check after listing the names: a writer that claims the store from here on sees this checkpoint, and its own
        # is not listed.
        self._check_writer()
        self._delete_others(names, (epoch, best_epoch))

    def _failure(self, epoch: int, error: OSError) -> StorageFailure | ObjectStoreError:
        epochs = self.epochs()
        latest = f"the latest checkpoint is of epoch {epochs[-1]}" if epochs else "no checkpoint exists yet"
        reason = error.strerror or first_line(error)
        message = f"{self.storage}: cannot write the checkpoint of epoch {epoch}: {reason}; {latest}"
        return (StorageFailure if self.storage.directory else ObjectStoreError)(message)

    def _delete_others(self, names: Iterable[str], epochs: Collection[int]) -> None:
        """Delete the checkpoints among `names` but those of `epochs`. What is not the store's own stays."""
        kept = {_name(epoch) for epoch in epochs}
        for name in names:
            if name not in kept and (_NAME.fullmatch(name) or _TEMPORARY.fullmatch(name)):
                self.storage.delete_directory(name, is_checkpoint_file, first=METRICS)

    def _check_writer(self) -> None:
        if self.storage.read_text(WRITER) != self.writer:
            raise Failure(f"{self.storage}: another run has resumed this training; this one stops")


def _name(epoch: int) -> str:
    return f"epoch-{epoch:04d}"
