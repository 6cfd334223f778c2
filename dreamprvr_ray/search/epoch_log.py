"""Logging of every epoch that a search trains: to each run's `epochs.jsonl` and TensorBoard files, and to gauges."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tensorboardX.summary import hparams

from dreamprvr_ray.checkpoints.layout import TENSORBOARD
from dreamprvr_ray.runtime.metrics import Gauges
from dreamprvr_ray.runtime.tensorboard import EventFile
from dreamprvr_ray.search.layout import EPOCHS, read_epochs
from dreamprvr_ray.search.messages import SECONDS_TOTAL, TrialEpoch, TrialRequest
from dreamprvr_ray.search.working_copy import WorkingCopy
from dreamprvr_ray.storage.files import write_text


class EpochLog:
    """Logs each epoch once. A training that resumes after a kill may report an epoch twice."""

    def __init__(
        self,
        runs: Path,
        gauges: Gauges,
        log: Callable[[str], None] = print,
        copy: WorkingCopy | None = None,
    ) -> None:
        """`runs` is the directory that holds the runs' directories, in the working copy `copy` if that is given.

        `log` receives warnings.
        """
        self._runs, self._gauges, self._log, self._copy = runs, gauges, log, copy
        self._last_epoch: dict[str, int] = {}
        self._seconds_before: dict[str, float] = {}  # of a run's training before it was resumed
        self._seconds: dict[str, float] = {}  # since then, as Ray Tune counts them
        self._tensorboards: dict[str, EventFile] = {}

    def start(self, run: str) -> None:
        """Record that a run has started."""
        self._gauges.mark_running(run)

    def add(self, request: TrialRequest, epoch: TrialEpoch) -> TrialEpoch:
        """Log a finished epoch, unless it is already in the log.

        Return it with the run's total time, which includes that before it was resumed.
        """
        if self._copy is not None:
            self._copy.check_lease()
        run, number = request.run, epoch.result.epoch
        if run not in self._tensorboards:
            self._open(request)
        if epoch.seconds_total < self._seconds[run]:  # Ray Tune has started the trial again
            self._seconds_before[run] += self._seconds[run]
        self._seconds[run] = epoch.seconds_total
        epoch = replace(epoch, seconds_total=self._seconds_before[run] + epoch.seconds_total)
        if number <= self._last_epoch[run]:
            return epoch
        self._last_epoch[run] = number
        self._gauges.record_epoch(run, epoch.result)
        with (self._runs / run / EPOCHS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(epoch.to_dict()) + "\n")
        self._tensorboards[run].add_scalars(epoch.to_dict(), number)
        if self._copy:
            self._copy.mark_changed(f"{self._runs.name}/{run}")
        return epoch

    def close(self, run: str) -> None:
        """Record that a run has ended."""
        self._gauges.mark_ended(run)
        if run in self._tensorboards:
            self._tensorboards.pop(run).close()
            del self._last_epoch[run], self._seconds_before[run], self._seconds[run]

    def _open(self, request: TrialRequest) -> None:
        directory = self._runs / request.run
        if self._copy:
            self._copy.fetch_runs([f"{self._runs.name}/{request.run}"])
        logged = read_epochs(directory)
        self._last_epoch[request.run] = logged[-1]["epoch"] if logged else 0
        seconds = logged[-1].get(SECONDS_TOTAL) if logged else None
        self._seconds_before[request.run] = float(seconds) if isinstance(seconds, (int, float)) else 0.0
        self._seconds[request.run] = 0.0
        # Rewritten because a kill in the middle of a write leaves an incomplete line, to which the next one would be
        # appended.
        write_text(directory / EPOCHS, "".join(json.dumps(epoch) + "\n" for epoch in logged))
        tensorboard = EventFile(directory / TENSORBOARD, self._log)
        self._tensorboards[request.run] = tensorboard
        # The run's line in TensorBoard's HPARAMS table, with the best SumR as its metric.
        experiment, start, _ = hparams(request.values, {"best_SumR": None})
        tensorboard.add_summaries(experiment, start)
