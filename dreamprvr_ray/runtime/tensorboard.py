"""TensorBoard's event files, of which a failure never blocks or ends a training."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import scalar


class EventFile:
    """A new event file in a directory. After the first error nothing more is written, and `log` receives a warning.

    tensorboardX's `SummaryWriter` writes in a thread, through a queue of ten: if a write fails, the thread ends, and
    whoever adds to the queue waits forever.
    """

    def __init__(self, directory: Path, log: Callable[[str], None]) -> None:
        self._directory, self._log = directory, log
        self._writer: EventsWriter | None = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(directory / "events"))
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write an epoch's numbers by name."""
        self._write([(scalar(name, float(value)), step) for name, value in values.items()])

    def add_summaries(self, *summaries: Summary) -> None:
        """Write summaries that belong to no step."""
        self._write([(summary, None) for summary in summaries])

    def close(self) -> None:
        """Close the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:
                self._give_up(error)

    def _write(self, summaries: list[tuple[Summary, int | None]]) -> None:
        if self._writer is None:
            return
        try:
            for summary, step in summaries:
                self._writer.write_event(Event(wall_time=time.time(), summary=summary, step=step))
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(OSError):  # it still holds what could not be written
                writer.close()
        self._log(
            f"warning: {self._directory}: TensorBoard's file cannot be written: {error.strerror or error};"
            " its curves end here, and the training continues"
        )
