"""How long a search will still take, by the epochs of its running, planned and final trainings. Imports no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dreamprvr_ray.search.messages import TrialEpoch
from dreamprvr_ray.search.results import TrialRecord
from dreamprvr_ray.search.settings import FinalSettings


def epochs_left(trials: Sequence[TrialRecord], running: Mapping[int, int], planned: int, epochs: int) -> float:
    """Return how many epochs the trials of a search will still train.

    A trial is expected to train for as long as those that have ended did, since many are pruned; one that has trained
    for longer, to its end.

    Args:
        trials: The study's trials.
        running: The finished epochs of the trials that run now, by number.
        planned: How many trials the search has in all.
        epochs: For how many epochs a trial trains unless it is stopped.
    """
    expected = _mean([trial.epochs for trial in trials if trial.is_trained], epochs)
    left = max(0, planned - len(trials)) * expected
    for trial in trials:
        if trial.state in ("running", "waiting"):
            done = max(trial.epochs, running.get(trial.number, 0))
            left += (expected if done < expected else max(done, epochs)) - done
    return left


def final_epochs(final: FinalSettings | None, trials: Sequence[TrialRecord], epochs: int) -> float:
    """Return how many epochs the final stage will train: as many a run as the trials that were not stopped."""
    if final is None:
        return 0.0
    runs = (final.top + len(final.ablate) + 1) * final.seeds
    return runs * _mean([trial.epochs for trial in trials if trial.state == "finished"], epochs)


def _mean(counts: Sequence[int], default: int) -> float:
    return sum(counts) / len(counts) if counts else float(default)


@dataclass
class Pace:
    """How fast this driver trains: counts the epochs of its own time, not those before it resumed the search."""

    before: dict[str, int] = field(default_factory=dict)  # epochs of a run before this driver, by the run's name
    epochs: dict[str, int] = field(default_factory=dict)  # finished, of each run that it has seen
    latest: dict[str, TrialEpoch] = field(default_factory=dict)  # the latest epoch of each run that trains now
    ended: int = 0  # trainings that ended in its time

    def observe(self, epochs: Mapping[str, TrialEpoch], ended: int) -> None:
        """Take the latest epoch of the runs that train now, and the number of those that have ended."""
        for run, epoch in epochs.items():
            self.before.setdefault(run, epoch.result.epoch - 1)
            self.epochs[run] = epoch.result.epoch
        self.latest = dict(epochs) or self.latest
        self.ended = ended

    def seconds(self, left: float, elapsed: float, running: int) -> float | None:
        """Return how long `left` epochs take, with `elapsed` seconds so far; None if no epoch has ended yet.

        Until the first training has ended, the start of the trainings is no part of the estimate: it would count for
        every epoch.
        """
        done = sum(self.epochs.values()) - sum(self.before.values())
        if not done:
            return None
        if self.ended:
            return left * elapsed / done
        mean = sum(epoch.result.seconds for epoch in self.latest.values()) / len(self.latest)
        return left * mean / max(1, running)
