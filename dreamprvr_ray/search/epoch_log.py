"""What is kept of every epoch of a search's trials, and shown: RUNS/trial_007/epochs.jsonl, TensorBoard's scalars beside it, and the gauges."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from dreamprvr_ray.checkpoints.layout import TENSORBOARD
from dreamprvr_ray.runtime.metrics import Gauges
from dreamprvr_ray.search.layout import EPOCHS, read_epochs
from dreamprvr_ray.storage.files import write_text
from dreamprvr_ray.training.reporter import EpochResult

_NOT_MEASURED = (
    "config/",
    "training_iteration",
    "timestamp",
    "pid",
    "done",
    "time_since_restore",
    "iterations_since_restore",
)  # Ray Tune adds them


class Records:
    """Appends each epoch once, whatever is reported twice around a kill."""

    def __init__(self, runs: Path, gauges: Gauges) -> None:
        self.runs, self.gauges = runs, gauges
        self._last_epoch: dict[str, int] = {}
        self._boards: dict[str, SummaryWriter] = {}

    def begin(self, run: str) -> None:
        """Hears that the run of this name has begun."""
        self.gauges.mark_running(run)

    def add(self, run: str, result: dict[str, Any], values: Mapping[str, Any]) -> None:
        """Keeps a finished epoch of the run of this name, which trains with these values by dotted key."""
        directory = self.runs / run
        if run not in self._boards:
            kept = read_epochs(directory)
            self._last_epoch[run] = kept[-1]["epoch"] if kept else 0
            # A kill in the middle of a line leaves a part of it.
            write_text(directory / EPOCHS, "".join(json.dumps(each) + "\n" for each in kept))
            self._boards[run] = SummaryWriter(str(directory / TENSORBOARD))
            self._add_to_table(run, values)
        if result["epoch"] <= self._last_epoch[run]:
            return
        self._last_epoch[run] = result["epoch"]
        self.gauges.record_epoch(run, EpochResult.from_dict(result))
        measured = {
            name: value
            for name, value in result.items()
            if isinstance(value, (bool, int, float)) and not name.startswith(_NOT_MEASURED)
        }
        with (directory / EPOCHS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(measured) + "\n")
        for name, value in measured.items():
            self._boards[run].add_scalar(name, float(value), result["epoch"])

    def close(self, run: str) -> None:
        """Hears that a run has ended."""
        self.gauges.mark_ended(run)
        if run in self._boards:
            self._boards.pop(run).close()

    def _add_to_table(self, run: str, values: Mapping[str, Any]) -> None:
        """Gives the run a line in TensorBoard's table of hyperparameters, with the best SumR as its result."""
        experiment, start, _ = hparams({key: value for key, value in values.items() if "." in key}, {"best_SumR": None})
        for summary in (experiment, start):
            self._boards[run].file_writer.add_summary(summary)
