"""What can be watched from outside while trainings run: gauges on Ray's metrics ports, which Prometheus reads.

All are set by the driver, from the reports that it gets anyway. Ray exports them as `ray_dreamprvr_<name>`; every one has the tag
`experiment`, those of a training also `trial`, the name of its directory. `docs/metrics.md` lists them with the queries that draw them.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ray.util import metrics

from dreamprvr_ray.errors import UserError

PREFIX = "dreamprvr_"
REPEAT_SECONDS = 1.0
PARTS = {"loss/": "part", "R@": "rank"}  # results that share a gauge, told apart by a tag
NAMES = {"loss/": "loss", "R@": "recall", "seconds": "epoch_seconds"}  # where a result's own name would not say it
TRAINING = {
    "epoch": "Finished epochs",
    "SumR": "Sum of recall at 1, 5, 10 and 100 on val, in percent",
    "best_SumR": "The best SumR on val so far",
    "R@": "Recall on val, in percent, by rank",
    "loss/": "Mean of a part of the loss over the epoch, unweighted but total",
    "videos_per_second": "Training speed",
    "seconds": "Duration of the epoch, evaluation included",
    "seconds_left": "Time until the training ends, if it is not stopped early",
    "waited": "Share of the epoch's training time that was spent waiting for data",
    "gpu_bytes": "The most GPU memory that tensors took in the epoch",
    "sent_MB/loss": "Megabytes that a worker sends in a step for the loss",
    "sent_MB/gradients": "Megabytes that a worker sends in a step for the gradients",
}


class Gauges:
    """The gauges of one experiment: a training, or a search of many.

    Inside its block all of them are set again and again: Ray exports what was set since the last time, and after twice its interval (10 s)
    has forgotten it, where an epoch may take minutes. Those of a training that has ended are left to be forgotten.
    """

    def __init__(self, experiment: str) -> None:
        self._tags = {"experiment": experiment}
        self._shown: dict[metrics.Gauge, dict[tuple[tuple[str, str], ...], float]] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)
        self._of_training: dict[str, metrics.Gauge] = {}
        for result, description in TRAINING.items():
            part = (PARTS[result],) if result in PARTS else ()
            self._of_training[result] = self._gauge(f"trial_{_name(result)}", description, "trial", *part)
        self._running = self._gauge("trial_running", "1 while the training runs", "trial")
        self._reported = self._gauge(
            "trial_reported_at", "When it began or reported an epoch last, in seconds since 1970", "trial"
        )
        self._driver = self._gauge(
            "driver_running", "1 while the command runs that sets all this, 0 when it has ended as it should"
        )
        self._epochs = metrics.Counter(f"{PREFIX}epochs", "Epochs that were trained", ("experiment",))
        self._epochs.set_default_tags(self._tags)
        self._trials = self._gauge("search_trials", "Trials by state", "state")
        self._wanted = self._gauge("search_trials_wanted", "Trials that the search is to have")
        self._best = self._gauge("search_best_sumr", "The best SumR on val of all trials so far")
        self._kept = self._gauge("search_kept_bytes", "What the checkpoints take that the search keeps")

    def _gauge(self, name: str, description: str, *tags: str) -> metrics.Gauge:
        gauge = metrics.Gauge(PREFIX + name, description, ("experiment", *tags))
        gauge.set_default_tags(self._tags)
        self._shown[gauge] = {}
        return gauge

    def __reduce__(self) -> tuple[type[Gauges], tuple[str]]:
        """Ray Tune pickles its callbacks when it starts, and what hangs on them; nobody reads that."""
        return Gauges, (self._tags["experiment"],)

    def __enter__(self) -> Gauges:
        self._set(self._driver, 1)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._closed.set()
        self._thread.join()
        if kind is None or issubclass(
            kind, (KeyboardInterrupt, UserError)
        ):  # else as after a kill: something is gone that should be running
            for tags in list(self._shown[self._running]):
                self.ended(dict(tags)["trial"])
            self._driver.set(0)

    def _repeat(self) -> None:
        while not self._closed.wait(REPEAT_SECONDS):
            with self._lock:
                for gauge, values in self._shown.items():
                    for tags, value in values.items():
                        gauge.set(value, dict(tags))

    def _set(self, gauge: metrics.Gauge, value: float, **tags: str) -> None:
        with self._lock:
            self._shown[gauge][tuple(tags.items())] = value
            gauge.set(value, tags)

    def started(self, trial: str) -> None:
        """Hears that a training runs."""
        self._set(self._running, 1, trial=trial)
        self._set(self._reported, time.time(), trial=trial)

    def epoch(self, trial: str, result: Mapping[str, Any]) -> None:
        """Takes a finished epoch, by the names of `EpochResult.to_dict`."""
        self.started(trial)
        self._epochs.inc()
        for name, value in result.items():
            prefix = next((prefix for prefix in PARTS if name.startswith(prefix)), name)
            if prefix in self._of_training:
                part = {PARTS[prefix]: name.removeprefix(prefix)} if prefix in PARTS else {}
                self._set(self._of_training[prefix], float(value), trial=trial, **part)

    def ended(self, trial: str) -> None:
        """Hears that a training does not run any more."""
        with self._lock:
            for values in self._shown.values():
                for tags in [tags for tags in values if ("trial", trial) in tags]:
                    del values[tags]
            self._running.set(0, {"trial": trial})

    def search(
        self, states: Iterable[str], wanted: int, best_sumr: float | None, kept_bytes: int, all_states: Iterable[str]
    ) -> None:
        """Takes where a search stands: the states of its trials, and all the states that there are."""
        counts = Counter(states)
        for state in all_states:
            self._set(self._trials, counts[state], state=state)
        self._set(self._wanted, wanted)
        if best_sumr is not None:
            self._set(self._best, best_sumr)
        self._set(self._kept, kept_bytes)


def _name(result: str) -> str:
    """A result's name as a metric's."""
    return NAMES.get(result, result.replace("/", "_").lower())
