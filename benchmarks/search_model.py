"""A simulated search on a cluster: trials that report each epoch to one driver, nodes that fail and are replaced.

Events are simulated one by one; nothing is trained. A trial occupies its GPUs from its start to its end. The driver
handles one report at a time, as Ray Tune's does, and a trial waits for its answer. A failing node stops its trials,
which continue elsewhere from their last epoch. A node that joins fills its cache with the shards first.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

HOUR = 3600.0


@dataclass(frozen=True)
class ClusterSize:
    """The machines of a search. Times are in seconds."""

    nodes: int
    gpus_per_node: int = 8
    hours_between_failures: float = 500.0  # of one node, on average
    noticed_after: float = 20.0  # a node's failure, and until its trials run elsewhere
    replaced_after: float = 600.0
    cache_fill: float = 10.0  # of a node that joins


@dataclass(frozen=True)
class SearchLoad:
    """The trials of a search. Times are in seconds."""

    gpus_per_trial: int
    epochs: int
    epoch_seconds: float
    start_seconds: float  # of a trial, or of one that continues
    driver_report_seconds: float  # that the driver is busy with an epoch's report
    driver_trial_seconds: float  # with a trial's proposal, start and end
    rungs: tuple[int, ...] = ()  # epochs after which a trial is pruned
    pruned_share: float = 0.5  # at each rung
    requests_per_epoch: int = 12  # to the store
    requests_per_trial: int = 20


@dataclass
class SearchOutcome:
    """What happened within `seconds`."""

    seconds: float
    gpus: int
    trials: int = 0  # ended, pruned ones too
    epochs: int = 0
    training_gpu_seconds: float = 0.0  # of epochs that were finished
    lost_gpu_seconds: float = 0.0  # of epochs that a failure stopped
    driver_seconds: float = 0.0
    requests: int = 0
    failures: int = 0

    @property
    def utilisation(self) -> float:
        """The share of the GPUs' time in which they trained what counts."""
        return self.training_gpu_seconds / (self.gpus * self.seconds)

    @property
    def driver_load(self) -> float:
        """The share of the time in which the driver was busy."""
        return self.driver_seconds / self.seconds

    @property
    def trials_per_hour(self) -> float:
        return self.trials / self.seconds * HOUR

    def gpu_hours_per_trial(self) -> float:
        """Return the GPU hours that are paid for each ended trial."""
        return self.gpus * self.seconds / HOUR / max(self.trials, 1)


@dataclass
class _Trial:
    epoch: int = 0
    nodes: tuple[int, ...] = ()
    epoch_began: float | None = None  # None while it starts or waits for the driver
    stopped: int = 0  # by failures: events of before are void


@dataclass
class _Node:
    free_gpus: int
    alive: bool = True
    trials: list[_Trial] = field(default_factory=list)


class SimulatedSearch:
    """A search that has more trials than the time allows."""

    def __init__(self, cluster: ClusterSize, load: SearchLoad, seed: int = 0) -> None:
        self._cluster, self._load, self._random = cluster, load, random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._now, self._driver_free = 0.0, 0.0
        self._nodes = [_Node(0, alive=False) for _ in range(cluster.nodes)]
        self._interrupted: deque[_Trial] = deque()

    def run(self, hours: float) -> SearchOutcome:
        """Simulate the first `hours`."""
        self.outcome = SearchOutcome(hours * HOUR, self._cluster.nodes * self._cluster.gpus_per_node)
        for node in range(self._cluster.nodes):
            self._after(self._cluster.cache_fill, lambda node=node: self._join(node))  # type: ignore[misc]
        while self._events and self._events[0][0] <= hours * HOUR:
            self._now, _, act = heapq.heappop(self._events)
            act()
        return self.outcome

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now + seconds, next(self._order), act))

    def _join(self, number: int) -> None:
        self._nodes[number] = _Node(self._cluster.gpus_per_node)
        rate = 1 / (self._cluster.hours_between_failures * HOUR)
        self._after(self._random.expovariate(rate), lambda: self._fail(number))
        self._start_trials()

    def _fail(self, number: int) -> None:
        self.outcome.failures += 1
        node = self._nodes[number]
        node.alive, node.free_gpus = False, 0
        for trial in list(node.trials):
            trial.stopped += 1
            if trial.epoch_began is not None:
                self.outcome.lost_gpu_seconds += (self._now - trial.epoch_began) * self._load.gpus_per_trial
            self._release(trial)
            self._interrupted.append(trial)
        self._after(self._cluster.replaced_after + self._cluster.cache_fill, lambda: self._join(number))
        self._after(self._cluster.noticed_after, self._start_trials)

    def _start_trials(self) -> None:
        while nodes := self._allocate():
            trial = self._interrupted.popleft() if self._interrupted else _Trial()
            trial.nodes = nodes
            for number in set(nodes):
                self._nodes[number].trials.append(trial)
            if trial.stopped == 0:
                self.outcome.requests += self._load.requests_per_trial
            # The driver proposes and starts one trial after another.
            self._after(self._ask_driver(self._load.driver_trial_seconds) + self._load.start_seconds, self._of(trial))

    def _of(self, trial: _Trial) -> Callable[[], None]:
        stopped = trial.stopped

        def train() -> None:
            if trial.stopped == stopped:
                trial.epoch_began = self._now
                self._after(self._load.epoch_seconds, report)

        def report() -> None:
            if trial.stopped == stopped:
                trial.epoch_began = None
                self._count_epoch(trial)
                self._after(self._ask_driver(self._load.driver_report_seconds), answered)

        def answered() -> None:
            if trial.stopped != stopped:
                return
            if self._ends(trial):
                self.outcome.trials += 1
                self._release(trial)
                self._start_trials()
            else:
                train()

        return train

    def _count_epoch(self, trial: _Trial) -> None:
        trial.epoch += 1
        self.outcome.epochs += 1
        self.outcome.training_gpu_seconds += self._load.epoch_seconds * self._load.gpus_per_trial
        self.outcome.requests += self._load.requests_per_epoch

    def _ends(self, trial: _Trial) -> bool:
        pruned = trial.epoch in self._load.rungs and self._random.random() < self._load.pruned_share
        return pruned or trial.epoch >= self._load.epochs

    def _ask_driver(self, seconds: float) -> float:
        """Return after how many seconds the driver has done what takes it `seconds`."""
        self._driver_free = max(self._driver_free, self._now) + seconds
        self.outcome.driver_seconds += seconds
        return self._driver_free - self._now

    def _allocate(self) -> tuple[int, ...]:
        """Take the GPUs of a trial and return each one's node; an empty tuple if too few are free."""
        found: list[int] = []
        for number, node in enumerate(self._nodes):
            take = min(node.free_gpus, self._load.gpus_per_trial - len(found))
            if take == self._load.gpus_per_trial or self._load.gpus_per_trial > self._cluster.gpus_per_node:
                found += [number] * take
            if len(found) == self._load.gpus_per_trial:
                for taken in found:
                    self._nodes[taken].free_gpus -= 1
                return tuple(found)
        return ()

    def _release(self, trial: _Trial) -> None:
        for number in trial.nodes:
            if self._nodes[number].alive:
                self._nodes[number].free_gpus += 1
        for number in set(trial.nodes):
            self._nodes[number].trials.remove(trial)
        trial.nodes = ()
