"""Drivers of searches, each in its own process, as on its own machine.

Trials are simulated, everything else is real. Drivers wait before each epoch that the test has not allowed yet.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dreamprvr_ray.checkpoints.layout import CHECKPOINTS, EXPERIMENT, METRICS
from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.errors import Failure, UserError
from dreamprvr_ray.runtime.resources import WorkerGroup
from dreamprvr_ray.search import driver, session
from dreamprvr_ray.search.messages import TrialRequest
from dreamprvr_ray.search.plan import TrialPlan
from dreamprvr_ray.search.ray_tune import SourceScheduler, SourceSearcher, SyncCallback, TrialSource, create_epoch_log
from dreamprvr_ray.search.session import SearchSession
from dreamprvr_ray.search.space import load_search
from dreamprvr_ray.storage import lease, locks
from dreamprvr_ray.storage.files import write_text
from dreamprvr_ray.training.failure import TrialFailure

EPOCHS = 3
HANGING_SECONDS = 120.0  # after which a driver that should have ended never will


@dataclass
class Driver:
    """A driver, whose output goes to the file `log`."""

    process: Any  # of multiprocessing
    log: Path

    def lines(self) -> list[str]:
        """Return its complete lines so far."""
        return self.log.read_text().split("\n")[:-1] if self.log.exists() else []

    def wait_for(self, trial: int, epoch: int) -> None:
        """Wait until it has recorded this epoch of this trial."""
        while f"trial {trial} epoch {epoch}" not in self.lines():
            assert self.process.is_alive(), self.lines()
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.process.pid, number)

    def end(self) -> tuple[int, list[str]]:
        """Wait for its end, and return its exit code and its lines."""
        self.process.join(HANGING_SECONDS)
        assert self.process.exitcode is not None, f"still runs: {self.lines()}"
        return self.process.exitcode, self.lines()


class Drivers:
    """Starts drivers, which share imported modules, and kills those that still run at its end."""

    def __init__(self, folder: Path, lease_seconds: float) -> None:
        self._folder, self._lease_seconds, self._all = folder, lease_seconds, list[Driver]()
        self._gate = folder / "allowed"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])

    def allow(self, trial: int, epoch: int = EPOCHS) -> None:
        """Let drivers train up to this epoch of this trial."""
        write_text(self._gate, str(trial * EPOCHS + epoch))

    def start(self, host: str, space: Path, overrides: dict[str, Any], *, resume: bool = False) -> Driver:
        """Start a driver on a host of this name."""
        log = self._folder / f"driver-{len(self._all)}.log"
        arguments = (host, space, overrides, resume, log, self._lease_seconds, self._gate)
        process = self._context.Process(target=_drive, args=arguments, daemon=True)
        process.start()
        self._all.append(Driver(process, log))
        return self._all[-1]

    def __enter__(self) -> Drivers:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._all:
            each.process.kill()


def _drive(
    host: str, space: Path, overrides: dict[str, Any], resume: bool, log: Path, lease_seconds: float, gate: Path
) -> None:
    sys.stdout = sys.stderr = log.open("w", buffering=1)
    os.environ[lease.LEASE_SECONDS] = str(lease_seconds)
    replacements: list[tuple[Any, str, Any]] = [
        (lease, "_machine", lambda: host),
        (lease.socket, "gethostname", lambda: host),
        (locks, "_acquire", lambda *_: False),  # a file system that grants its locks to one machine only
        (session, "ray_session", _no_ray),
        (session, "plan_trials", lambda *_: TrialPlan(WorkerGroup(1, 1.0, 0.0), at_a_time=1)),
        (session, "check_shared", lambda _: None),
        (driver, "run_trials", partial(_simulate_trials, gate)),
        (driver, "_best_trial", lambda session, source, trials: (trials[0], None)),
        (driver, "publish_best_trial", lambda session, trials, best, checkpoint: trials),
    ]
    for owner, name, replacement in replacements:
        setattr(owner, name, replacement)
    try:
        driver.run_search(load_search(space, overrides), resume=resume, log=lambda line: print(line, flush=True))
    except (UserError, Failure) as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(2 if isinstance(error, UserError) else 1)


@contextmanager
def _no_ray(**_: Any) -> Iterator[None]:
    yield


def _simulate_trials(gate: Path, session: SearchSession, source: TrialSource, runs: str, progress: object) -> None:
    from support.searches import trial_epoch

    searcher = SourceSearcher(source)
    scheduler = SourceScheduler(source, searcher, create_epoch_log(session, runs))
    sync = SyncCallback(session.copy, source)
    count = 0
    while isinstance(config := searcher.suggest(str(count)), dict):
        request = TrialRequest.from_config(config)
        run = session.storage / runs / request.run
        run.write_text(EXPERIMENT, session.search.experiment.with_values(request.values, request.run).to_yaml())
        store = CheckpointStore(run / CHECKPOINTS)
        store.claim()
        first = max(store.epochs(), default=0) + 1
        trial: Any = SimpleNamespace(config=config, trial_id=str(count))
        result: dict[str, Any] = {}
        for epoch in range(first, EPOCHS + 1):
            while int(gate.read_text()) < request.number * EPOCHS + epoch:
                time.sleep(0.01)
            try:
                store.write(epoch, epoch, lambda directory: (directory / METRICS).write_text("{}"))
                store.wait()
            except Failure as error:
                result = TrialFailure.from_error(error).to_dict()
                break
            result = trial_epoch(epoch, 10.0 + request.number, finished=epoch == EPOCHS).to_dict()
            decision = scheduler.on_trial_result(None, trial, result)  # type: ignore[arg-type]
            sync.on_trial_result(0, [], trial, result)
            print(f"trial {request.number} epoch {epoch}", flush=True)
            if decision == scheduler.STOP:
                break
        scheduler.on_trial_complete(None, trial, result)  # type: ignore[arg-type]
        searcher.on_trial_complete(str(count), result)
        count += 1
