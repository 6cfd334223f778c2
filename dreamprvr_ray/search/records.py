"""What is kept of every epoch of a search's trials: RUNS/trial_007/epochs.jsonl, and TensorBoard's scalars beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from dreamprvr_ray.checkpoints import write_text
from dreamprvr_ray.search.layout import EPOCHS, read_epochs

_NOT_MEASURED = ("config/", "training_iteration", "timestamp", "pid", "done", "time_since_restore", "iterations_since_restore")  # Ray Tune adds them


class Records:
    """Appends each epoch once, whatever is reported twice around a kill."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self._last_epoch: dict[str, int] = {}
        self._boards: dict[str, SummaryWriter] = {}

    def add(self, run: str, result: dict[str, Any]) -> None:
        """Keeps a finished epoch of the run of this name."""
        directory = self.runs / run
        if run not in self._boards:
            kept = read_epochs(directory)
            self._last_epoch[run] = kept[-1]["epoch"] if kept else 0
            # A kill in the middle of a line leaves a part of it.
            write_text(directory / EPOCHS, "".join(json.dumps(each) + "\n" for each in kept))
            self._boards[run] = SummaryWriter(str(directory / "tensorboard"))
        if result["epoch"] <= self._last_epoch[run]:
            return
        self._last_epoch[run] = result["epoch"]
        measured = {name: value for name, value in result.items() if isinstance(value, (bool, int, float)) and not name.startswith(_NOT_MEASURED)}
        with (directory / EPOCHS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(measured) + "\n")
        for name, value in measured.items():
            self._boards[run].add_scalar(name, float(value), result["epoch"])

    def close(self, run: str) -> None:
        """Hears that a run has ended."""
        if run in self._boards:
            self._boards.pop(run).close()
