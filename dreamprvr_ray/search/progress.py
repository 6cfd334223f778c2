"""The progress of a search as lines of text, readable both on a screen and in a log file."""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from dreamprvr_ray.runtime.metrics import Gauges
from dreamprvr_ray.search.layout import trial_name
from dreamprvr_ray.search.messages import TrialEpoch
from dreamprvr_ray.search.results import STATES, TrialRecord, best_trial
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.search.summary import format_table
from dreamprvr_ray.search.time_left import Pace, epochs_left, final_epochs
from dreamprvr_ray.training.reporter import duration

TABLE_INTERVAL = 20.0  # seconds between two tables, unless a trial ended
GAUGE_INTERVAL = 5.0  # seconds between two updates of the gauges, as above; Ray exports them every few seconds
MANY_TRIALS, MANY_INTERVAL = 100, 5.0  # once more trials than this have ended: seconds between two tables
ENDED = ("finished", "pruned", "failed")
SHOWN_TRIALS = 5  # ended trials in the table
LOG_WIDTH = 160  # columns if the output is not a terminal


class SearchProgress:
    """Logs how far the search is, with its best and its running trials, and updates the gauges."""

    def __init__(
        self, study: SearchStudy, log: Callable[[str], None], gauges: Gauges, stored_bytes: Callable[[], int]
    ) -> None:
        """`stored_bytes` returns the size of the kept checkpoints."""
        self._study, self._log, self._gauges, self._stored_bytes = study, log, gauges, stored_bytes
        self._name, self._planned = study.search.name, study.search.settings.trials
        self._keys = [parameter.key for parameter in study.search.parameters]
        self._started = self._logged = time.monotonic()
        self._pace = Pace()
        self._measured = -math.inf
        self._ended_before = sum(trial.state in ENDED for trial in study.ranked())  # by an earlier driver
        self._ended = self._ended_before

    def update(self, ended: int, epochs: Mapping[str, TrialEpoch]) -> None:
        """Show the number of trials that this driver has ended, and the latest epoch of each running one, by its run.

        Something is logged only when a trial has ended, or after a while.
        """
        self._pace.observe(epochs, ended)
        ended += self._ended_before
        if MANY_TRIALS < ended < self._planned and time.monotonic() - self._logged < MANY_INTERVAL:
            return
        if ended != self._ended or time.monotonic() - self._measured > GAUGE_INTERVAL:
            self._measured = time.monotonic()
            self._update_gauges()
        is_due = bool(epochs) and time.monotonic() - self._logged > TABLE_INTERVAL
        if ended == self._ended and not is_due:
            return
        self._ended, self._logged = ended, time.monotonic()
        trials = self._study.ranked()
        table = ("  " + line for line in format_progress(trials, self._keys))
        self._log("\n".join([self._summary(trials, epochs), *table]))

    def _update_gauges(self) -> None:
        trials = self._study.ranked()
        best = best_trial(trials)
        self._gauges.record_search(
            [trial.state for trial in trials],
            self._planned,
            best.best_sumr if best else None,
            self._stored_bytes(),
            STATES.values(),
        )

    def _summary(self, trials: list[TrialRecord], epochs: Mapping[str, TrialEpoch]) -> str:
        counts: Counter[str] = Counter(trial.state for trial in trials)
        ended = sum(counts[state] for state in ENDED)
        best = best_trial(trials)
        sumr = "no SumR yet"
        if best:
            sumr = f"best val SumR {best.best_sumr:.1f} (trial {best.number}, epoch {best.best_epoch})"
        states = ", ".join(f"{counts[state]} {state}" for state in (*ENDED, "running", "waiting") if counts[state])
        reasons = Counter(trial.error for trial in trials if trial.error)
        failures = "".join(f" | failed {count} times: {reason}" for reason, count in reasons.most_common(2))
        elapsed = time.monotonic() - self._started
        return (
            f"search {self._name}: {ended} of {self._planned} trials ended ({states}) | {sumr}"
            f" | {duration(elapsed)} so far, left: {self._time_left(trials, epochs, elapsed)}{failures}"
        )

    def _time_left(self, trials: list[TrialRecord], epochs: Mapping[str, TrialEpoch], elapsed: float) -> str:
        search = self._study.search
        planned = search.experiment.training.epochs
        running = {
            trial.number: epochs[trial_name(trial.number)].result.epoch
            for trial in trials
            if trial_name(trial.number) in epochs
        }
        final = final_epochs(search.settings.final, trials, planned)
        left = epochs_left(trials, running, self._planned, planned)
        seconds = self._pace.seconds(left + final, elapsed, len(epochs))
        if seconds is None:
            return "not known yet"
        return duration(seconds) + (" with the final stage" if final else "")


class FinalProgress:
    """Logs how far the final stage is, and how long it will still take."""

    def __init__(
        self, planned_epochs: Mapping[str, int], log: Callable[[str], None], stage: str = "final stage"
    ) -> None:
        """`planned_epochs` has the epochs of each run that is trained, by its name. Messages start with `stage`."""
        self._planned_epochs, self._log, self._stage = planned_epochs, log, stage
        self._started = self._logged = time.monotonic()
        self._pace, self._ended = Pace(), 0

    def update(self, ended: int, epochs: Mapping[str, TrialEpoch]) -> None:
        """Show the number of runs that have ended, and the latest epoch of each running one, by its name.

        Something is logged only when a run has ended, or after a while.
        """
        self._pace.observe(epochs, ended)
        is_due = bool(epochs) and time.monotonic() - self._logged > TABLE_INTERVAL
        if ended == self._ended and not is_due:
            return
        self._ended, self._logged = ended, time.monotonic()
        elapsed = self._logged - self._started
        done = self._pace.epochs
        ended_early = {run for run in done if run not in epochs}  # their patience ran out
        left = sum(
            planned - done.get(run, 0) for run, planned in self._planned_epochs.items() if run not in ended_early
        )
        seconds = self._pace.seconds(left, elapsed, len(epochs))
        running = "".join(f", {run} at epoch {done[run]}/{self._planned_epochs.get(run, '?')}" for run in epochs)
        self._log(
            f"{self._stage}: {ended} of {len(self._planned_epochs)} runs ended{running} | {duration(elapsed)} so far,"
            f" left: {'not known yet' if seconds is None else duration(seconds)}"
        )


def format_progress(trials: Sequence[TrialRecord], keys: Sequence[str], width: int | None = None) -> list[str]:
    """Return a table of the best ended trials and all others, best first, with their values if `width` allows."""
    best = [trial.number for trial in trials if trial.state in ENDED][:SHOWN_TRIALS]
    shown = [trial for trial in trials if trial.state not in ENDED or trial.number in best]
    lines = format_table(shown, keys)
    fits = len(lines[0]) + 2 <= (width or shutil.get_terminal_size((LOG_WIDTH, 24)).columns)
    return lines if fits else format_table(shown, ())
