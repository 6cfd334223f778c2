"""How a training's progress travels from the first worker to the command that shows it, through a queue.

The worker's side is `RayTrainReporter`; the driver's side is `progress_relay`. Messages are plain dictionaries on their
way: the queue's process would import torch to hold an object of one of our classes.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import ray.train
from ray.util.queue import Queue

from dreamprvr_ray.checkpoints.layout import TENSORBOARD
from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.errors import UserError, first_line
from dreamprvr_ray.runtime.metrics import Gauges
from dreamprvr_ray.runtime.tensorboard import EventFile
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.reporter import EpochResult, Learn, Snapshot

POLL_SECONDS = 0.5  # how often the driver looks into the queue


@dataclass(frozen=True)
class StartTimes:
    """When a command was started and when Ray was ready, in seconds since 1970."""

    command: float
    ray: float


@dataclass(frozen=True)
class TrainingStarted:
    """The first step of a worker group begins. Times are in seconds since 1970."""

    KIND: ClassVar[str] = "training_started"

    workers: int
    worker_entered: float  # when the first worker entered the training function
    first_step: float

    def line(self, start: StartTimes | None) -> str:
        """Return a one-line summary; `start` is None if the group was restarted."""
        workers = f"{self.workers} worker{'s' if self.workers > 1 else ''}"
        setup = f"model and data {self.first_step - self.worker_entered:.1f} s"
        if start is None:
            return f"training restarted with {workers} ({setup})"
        ray = f"Python and Ray {start.ray - start.command:.1f} s, workers {self.worker_entered - start.ray:.1f} s"
        return f"training started with {workers} after {self.first_step - start.command:.1f} s ({ray}, {setup})"

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.KIND, **asdict(self)}

    @classmethod
    def from_dict(cls, message: Mapping[str, Any]) -> TrainingStarted:
        return cls(message["workers"], message["worker_entered"], message["first_step"])


@dataclass(frozen=True)
class EpochFinished:
    """An epoch was trained and evaluated."""

    KIND: ClassVar[str] = "epoch_finished"

    result: EpochResult

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.KIND, "metrics": self.result.to_dict(), "planned_epochs": self.result.planned_epochs}

    @classmethod
    def from_dict(cls, message: Mapping[str, Any]) -> EpochFinished:
        return cls(replace(EpochResult.from_dict(message["metrics"]), planned_epochs=message["planned_epochs"]))


Message = TrainingStarted | EpochFinished


def read_message(message: Mapping[str, Any]) -> Message:
    """Read what a message's `to_dict` wrote."""
    kinds: dict[str, type[TrainingStarted] | type[EpochFinished]] = {
        kind.KIND: kind for kind in (TrainingStarted, EpochFinished)
    }
    return kinds[message["kind"]].from_dict(message)


class RayTrainReporter:
    """The first worker's reporter: keeps checkpoints, and sends messages to the driver if it is given a queue.

    `worker_entered` is when the worker entered the training function, in seconds since 1970.
    """

    def __init__(self, store: CheckpointStore, messages: Queue | None, worker_entered: float) -> None:
        self.store = store
        self._messages = messages
        self._worker_entered = worker_entered

    def latest_checkpoint(self) -> AbstractContextManager[Path | None]:
        return self.store.latest()

    def on_training_start(self) -> None:
        workers = ray.train.get_context().get_world_size()
        self._send(TrainingStarted(workers, self._worker_entered, time.time()))

    def add_moments(self, epoch: int, learn: Learn) -> None:
        self.store.add_moments(epoch, learn)

    def report(self, result: EpochResult, snapshot: Snapshot) -> None:
        write_checkpoint(self.store, result, snapshot)
        with suppress(OSError):  # of a full disk
            print(result.line(), flush=True)  # into the worker's log, which the dashboard shows
        ray.train.report(result.to_dict())
        self._send(EpochFinished(result))

    def _send(self, message: Message) -> None:
        if self._messages is not None:
            self._messages.put(message.to_dict())


class FollowerReporter:
    """The reporter of all other workers: it only takes part in Ray Train's reports, which wait for every worker."""

    def latest_checkpoint(self) -> AbstractContextManager[Path | None]:
        return nullcontext()

    def on_training_start(self) -> None:
        pass

    def add_moments(self, epoch: int, learn: Learn) -> None:
        pass

    def report(self, result: EpochResult, snapshot: Snapshot) -> None:
        ray.train.report(result.to_dict())


def write_checkpoint(store: CheckpointStore, result: EpochResult, snapshot: Snapshot) -> None:
    """Start writing an epoch's checkpoint in the background; wait for the one of the last epoch.

    Raises what `CheckpointStore.wait` raises.
    """
    store.write(result.epoch, result.best_epoch, snapshot().write)
    if result.finished:
        store.wait()


@contextmanager
def progress_relay(messages: Queue, storage: Storage, log: Callable[[str], None], start: StartTimes) -> Iterator[None]:
    """Print the lines of a run's messages while the block runs, and update TensorBoard's scalars and the gauges."""
    stopped = threading.Event()
    with Gauges(storage.name) as gauges:
        relay = _Relay(storage, log, start, gauges)
        thread = threading.Thread(target=relay.run, args=(messages, stopped), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join(timeout=10)


class _Relay:
    def __init__(self, storage: Storage, log: Callable[[str], None], start: StartTimes, gauges: Gauges) -> None:
        self._storage, self._log, self._gauges = storage, log, gauges
        self._start: StartTimes | None = start  # None once the first step was reported
        self._traffic_printed = False

    def run(self, messages: Queue, stopped: threading.Event) -> None:
        """Show messages until `stopped` is set and the queue is empty."""
        with _tensorboard(self._storage, self._log) as events:
            while True:
                stopping = stopped.is_set()  # read before the queue is, or the last message could be lost
                # `get` on an empty queue would show as a failed task on the dashboard.
                if not messages.empty():
                    self._show(read_message(messages.get()), events)
                elif stopping:
                    return
                else:
                    stopped.wait(POLL_SECONDS)

    def _show(self, message: Message, events: EventFile) -> None:
        if isinstance(message, TrainingStarted):
            self._gauges.mark_running(self._storage.name)
            self._log(message.line(self._start))
            self._start = None
            return
        result = message.result
        self._log(result.line())
        if result.traffic and not self._traffic_printed:
            self._log(result.traffic.line())
            self._traffic_printed = True
        self._gauges.record_epoch(self._storage.name, result)
        events.add_scalars(result.to_dict(), result.epoch)


@contextmanager
def _tensorboard(storage: Storage, log: Callable[[str], None]) -> Iterator[EventFile]:
    """Write TensorBoard's event files into a run's directory; in an object store, upload them when the block ends."""
    with ExitStack() as stack:
        directory = storage.directory and storage.directory / TENSORBOARD
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dreamprvr-tensorboard-")))
        events = EventFile(directory, log)
        try:
            yield events
        finally:
            events.close()
            if storage.directory is None:
                try:
                    storage.upload_directory(TENSORBOARD, directory)
                except (UserError, OSError) as error:
                    log(f"warning: TensorBoard's file was not uploaded: {first_line(error)}")
