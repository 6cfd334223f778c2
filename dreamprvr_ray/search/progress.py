"""What a person sees while a search runs: a table that reads as well in a log file as on a screen."""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from dreamprvr_ray.runtime.metrics import Gauges
from dreamprvr_ray.search.results import STATES, TrialRecord, rank_trials
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.search.summary import format_table
from dreamprvr_ray.training.reporter import duration

BETWEEN_TABLES = 20.0  # seconds, unless a trial ended
BETWEEN_MEASUREMENTS = 5.0  # seconds, likewise; Ray sends gauges every few
ENDED = ("finished", "pruned", "failed")
BEST = 5  # of the trials that have ended, so many are shown
WIDTH = 160  # columns of a log file


class SearchProgress(Callback):
    """Says how far the search is, its best and its running trials, when one ends and every now and then between."""

    def __init__(
        self, study: SearchStudy, say: Callable[[str], None], gauges: Gauges, kept_bytes: Callable[[], int]
    ) -> None:
        self.study, self.say = study, say
        self.gauges, self.kept_bytes = gauges, kept_bytes
        self.name, self.trials = study.search.name, study.search.settings.trials
        self.keys = [parameter.key for parameter in study.search.parameters]
        self.started = self.printed = time.monotonic()
        self.measured = -math.inf
        self.ended = self.ended_before = sum(entry.state in ENDED for entry in self._entries())

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        ended = sum(trial.is_finished() for trial in trials) + self.ended_before
        if ended != self.ended or time.monotonic() - self.measured > BETWEEN_MEASUREMENTS:
            self.measured = time.monotonic()
            self._measure(self._entries())
        news = (
            any((trial.last_result or {}).get("epoch") for trial in trials)
            and time.monotonic() - self.printed > BETWEEN_TABLES
        )
        if ended == self.ended and not news:
            return
        self.ended, self.printed = ended, time.monotonic()
        entries = self._entries()
        self.say("\n".join([self._summary(entries, trials), *("  " + line for line in current(entries, self.keys))]))

    def _measure(self, entries: list[TrialRecord]) -> None:
        best = max(
            (entry.best_sumr for entry in entries if entry.best_sumr is not None and entry.state != "failed"),
            default=None,
        )
        self.gauges.record_search(
            [entry.state for entry in entries], self.trials, best, self.kept_bytes(), STATES.values()
        )

    def _entries(self) -> list[TrialRecord]:
        return rank_trials(TrialRecord.from_study(trial) for trial in self.study.trials())

    def _summary(self, entries: list[TrialRecord], trials: list[Trial]) -> str:
        counts: Counter[str] = Counter(entry.state for entry in entries)
        ended = sum(counts[state] for state in ENDED)
        best = entries[0] if entries else None
        said = (
            f"best val SumR {best.best_sumr:.1f} (trial {best.number}, epoch {best.best_epoch})"
            if best and best.best_sumr
            else "no SumR yet"
        )
        states = ", ".join(f"{counts[state]} {state}" for state in (*ENDED, "running", "waiting") if counts[state])
        reasons = Counter(entry.error for entry in entries if entry.error)
        failures = "".join(f" | failed {count} times: {reason}" for reason, count in reasons.most_common(2))
        elapsed = time.monotonic() - self.started
        done = ended - self.ended_before
        left = duration(elapsed / done * (self.trials - ended)) if done else self._first_guess(trials, elapsed)
        return f"search {self.name}: {ended} of {self.trials} trials ended ({states}) | {said} | {duration(elapsed)} so far, left: {left}{failures}"

    def _first_guess(self, trials: list[Trial], elapsed: float) -> str:
        """The time left before any trial ended: as if all took as long as the running ones say."""
        results = [trial.last_result for trial in trials if trial.last_result and "seconds_left" in trial.last_result]
        if not results:
            return "not known yet"
        whole = sum(result["time_total_s"] + result["seconds_left"] for result in results) / len(results)
        return duration(max(0.0, whole * (self.trials - self.ended_before) / len(results) - elapsed))


def current(entries: list[TrialRecord], keys: list[str], width: int | None = None) -> list[str]:
    """The table of the best few trials that have ended and of all others, best first; with their values where these fit into a line."""
    best = [entry.number for entry in entries if entry.state in ENDED][:BEST]
    shown = [entry for entry in entries if entry.state not in ENDED or entry.number in best]
    lines = format_table(shown, keys)
    fits = len(lines[0]) + 2 <= (width or shutil.get_terminal_size((WIDTH, 24)).columns)
    return lines if fits else format_table(shown, ())
