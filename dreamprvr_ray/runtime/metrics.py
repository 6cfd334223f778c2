"""Gauges on Ray's metrics ports, from which Prometheus reads how trainings and searches are doing.

The driver sets all of them, from results that it receives anyway. Ray exports them as `ray_dreamprvr_<name>`. Each has
the tag `experiment`; those of a training also have `trial`, the name of its directory. `docs/metrics.md` lists them
with the queries that plot them.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

from ray.util import metrics

from dreamprvr_ray.errors import SearchInterrupted, UserError
from dreamprvr_ray.training.reporter import EpochResult

PREFIX = "dreamprvr_"
REFRESH_SECONDS = 1.0

Value = Callable[[EpochResult], float | None]  # None: the result does not have it

# The gauges of a training: description and value.
TRIAL_GAUGES: dict[str, tuple[str, Value]] = {
    "epoch": ("Finished epochs", lambda result: result.epoch),
    "sumr": ("Sum of recall at 1, 5, 10 and 100 on val, in percent", lambda result: result.sumr),
    "best_sumr": ("Best SumR on val so far", lambda result: result.best_sumr),
    "videos_per_second": ("Training speed", lambda result: result.videos_per_second),
    "epoch_seconds": ("Duration of the last epoch, evaluation included", lambda result: result.seconds),
    "seconds_left": ("Estimated time until training ends, without early stopping", lambda result: result.seconds_left),
    "waited": ("Share of the last epoch's training time spent waiting for data", lambda result: result.waited),
    "gpu_bytes": ("Peak GPU memory of the first worker's tensors in the last epoch", lambda result: result.gpu_bytes),
    "sent_mb_loss": (
        "Megabytes that the first worker sends per step for the loss",
        lambda result: result.traffic.loss if result.traffic else None,
    ),
    "sent_mb_gradients": (
        "Megabytes that the first worker sends per step for the gradients",
        lambda result: result.traffic.gradients if result.traffic else None,
    ),
}


class Gauges:
    """The gauges of one experiment, which is a training or a search.

    Ray exports a gauge once after it is set and drops it after twice its export interval (10 s), but an epoch can take
    minutes. While the block runs, a thread therefore sets all gauges again every second. Those of a training that has
    ended are no longer set, and disappear.
    """

    def __init__(self, experiment: str) -> None:
        self._tags = {"experiment": experiment}
        self._values: dict[metrics.Gauge, dict[tuple[tuple[str, str], ...], float]] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)
        self._trial_gauges = {
            name: self._gauge(f"trial_{name}", description, "trial") for name, (description, _) in TRIAL_GAUGES.items()
        }
        self._recall = self._gauge("trial_recall", "Recall on val, in percent, by rank", "trial", "rank")
        self._collection_sumr = self._gauge(
            "trial_collection_sumr",
            "SumR on val of each collection that is trained on, if there are several",
            "trial",
            "collection",
        )
        self._loss = self._gauge(
            "trial_loss", "Mean loss over the epoch by part; unweighted except total", "trial", "part"
        )
        self._running = self._gauge("trial_running", "1 while the training runs", "trial")
        self._reported_at = self._gauge(
            "trial_reported_at", "When the training started or last reported an epoch, in seconds since 1970", "trial"
        )
        self._driver = self._gauge("driver_running", "1 while the command runs, 0 once it has ended normally")
        self._epochs = metrics.Counter(f"{PREFIX}epochs", "Epochs trained", ("experiment",))
        self._epochs.set_default_tags(self._tags)
        self._trials = self._gauge("search_trials", "Trials by state", "state")
        self._trials_requested = self._gauge("search_trials_wanted", "Trials requested")
        self._best_sumr = self._gauge("search_best_sumr", "Best SumR on val of all trials so far")
        self._checkpoint_bytes = self._gauge("search_kept_bytes", "Size of the checkpoints that the search keeps")

    def _gauge(self, name: str, description: str, *tags: str) -> metrics.Gauge:
        gauge = metrics.Gauge(PREFIX + name, description, ("experiment", *tags))
        gauge.set_default_tags(self._tags)
        self._values[gauge] = {}
        return gauge

    def __reduce__(self) -> tuple[type[Gauges], tuple[str]]:
        # Ray Tune pickles its callbacks, which refer to this object, when it starts. Nothing reads that copy.
        return Gauges, (self._tags["experiment"],)

    def __enter__(self) -> Gauges:
        self._set(self._driver, 1)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._closed.set()
        self._thread.join()
        # After any other error the gauges stay as after a kill, so that the alert fires.
        if kind is None or issubclass(kind, (KeyboardInterrupt, SearchInterrupted, UserError)):
            for tags in list(self._values[self._running]):
                self.mark_ended(dict(tags)["trial"])
            self._driver.set(0)

    def _refresh(self) -> None:
        while not self._closed.wait(REFRESH_SECONDS):
            with self._lock:
                for gauge, values in self._values.items():
                    for tags, value in values.items():
                        gauge.set(value, dict(tags))

    def _set(self, gauge: metrics.Gauge, value: float, **tags: str) -> None:
        with self._lock:
            self._values[gauge][tuple(tags.items())] = value
            gauge.set(value, tags)

    def mark_running(self, trial: str) -> None:
        """Record that a training has started."""
        self._set(self._running, 1, trial=trial)
        self._set(self._reported_at, time.time(), trial=trial)

    def record_epoch(self, trial: str, result: EpochResult) -> None:
        """Record a training's finished epoch."""
        self.mark_running(trial)
        self._epochs.inc()
        for name, (_, value_of) in TRIAL_GAUGES.items():
            value = value_of(result)
            if value is not None:
                self._set(self._trial_gauges[name], float(value), trial=trial)
        for rank, recall in result.recall.items():
            self._set(self._recall, float(recall), trial=trial, rank=str(rank))
        for collection, sumr in result.collections.items():
            self._set(self._collection_sumr, float(sumr), trial=trial, collection=collection)
        for part, loss in result.losses.items():
            self._set(self._loss, float(loss), trial=trial, part=part)

    def mark_ended(self, trial: str) -> None:
        """Record that a training no longer runs."""
        with self._lock:
            for values in self._values.values():
                for tags in [tags for tags in values if ("trial", trial) in tags]:
                    del values[tags]
            self._running.set(0, {"trial": trial})

    def record_search(
        self,
        states: Iterable[str],
        requested: int,
        best_sumr: float | None,
        checkpoint_bytes: int,
        all_states: Iterable[str],
    ) -> None:
        """Record the progress of a search.

        `states` holds the state of each trial, out of `all_states`; `requested` is the number of trials to run.
        """
        counts = Counter(states)
        for state in all_states:
            self._set(self._trials, counts[state], state=state)
        self._set(self._trials_requested, requested)
        if best_sumr is not None:
            self._set(self._best_sumr, best_sumr)
        self._set(self._checkpoint_bytes, checkpoint_bytes)
