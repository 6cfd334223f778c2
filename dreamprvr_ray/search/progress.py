"""What a person sees while a search runs: a table that reads as well in a log file as on a screen."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from dreamprvr_ray.reporter import duration
from dreamprvr_ray.search.leaderboard import Entry, entry_of, ranked, table

BETWEEN_TABLES = 20.0  # seconds, unless a trial ended


class SearchProgress(Callback):
    """Prints the table of trials to stderr when one ends, and every now and then between."""

    def __init__(self, name: str, trials: int, keys: list[str]) -> None:
        self.name, self.trials, self.keys = name, trials, keys
        self.started = self.printed = time.monotonic()
        self.ended = 0
        self.ended_before: int | None = None  # trials that an earlier, killed run had ended

    def __getstate__(self) -> dict[str, Any]:  # Ray saves callbacks with the experiment: the clock starts anew on resume
        return {name: self.__dict__[name] for name in ("name", "trials", "keys")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if self.ended_before is None:
            self.ended_before = self.ended = sum(trial.is_finished() for trial in trials)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        ended = sum(trial.is_finished() for trial in trials)
        news = any((trial.last_result or {}).get("epoch") for trial in trials) and time.monotonic() - self.printed > BETWEEN_TABLES
        if ended == self.ended and not news:
            return
        self.ended, self.printed = ended, time.monotonic()
        entries = [entry_of(trial) for trial in trials]
        lines = [self._summary(entries, trials), *("  " + line for line in table(ranked(entries), self.keys))]
        print("\n".join(lines), file=sys.stderr, flush=True)

    def _summary(self, entries: list[Entry], trials: list[Trial]) -> str:
        counts = Counter(entry.state for entry in entries)
        ended = counts["finished"] + counts["pruned"] + counts["failed"]
        best = ranked(entries)[0]
        said = f"best val SumR {best.best_sumr:.1f} (trial {best.number}, epoch {best.best_epoch})" if best.best_sumr is not None else "no SumR yet"
        states = ", ".join(f"{counts[state]} {state}" for state in ("finished", "pruned", "failed", "running", "waiting") if counts[state])
        elapsed = time.monotonic() - self.started
        done = ended - (self.ended_before or 0)
        left = duration(elapsed / done * (self.trials - ended)) if done else self._first_guess(trials, elapsed)
        return f"search {self.name}: {ended} of {self.trials} trials ended ({states}) | {said} | {duration(elapsed)} so far, left: {left}"

    def _first_guess(self, trials: list[Trial], elapsed: float) -> str:
        """The time left before any trial ended: as if all took as long as the running ones say."""
        results = [trial.last_result for trial in trials if trial.last_result and "seconds_left" in trial.last_result]
        if not results:
            return "not known yet"
        whole = sum(result["time_total_s"] + result["seconds_left"] for result in results) / len(results)
        return duration(max(0.0, whole * self.trials / len(results) - elapsed))
