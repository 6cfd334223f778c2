"""Searches for tests without Ray: a search file, a session on it, and the epochs that trials would report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dreamprvr_ray.runtime.metrics import Gauges
from dreamprvr_ray.runtime.resources import WorkerGroup
from dreamprvr_ray.search.messages import TrialEpoch
from dreamprvr_ray.search.plan import TrialPlan
from dreamprvr_ray.search.session import SearchSession
from dreamprvr_ray.search.space import Search, load_search
from dreamprvr_ray.search.working_copy import WorkingCopy
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.reporter import EpochResult

SPACE = {
    "model.registers": {"int": [0, 8]},
    "optimizer.learning_rate": {"float": [1e-4, 1e-2], "log": True},
    "training.epochs": 9,
}


def make_search(folder: Path, space: dict[str, Any] | None = None, **keys: Any) -> Search:
    """Write a search file, create the search's directory `out`, and load the search."""
    path = folder / "synthetic.yaml"
    values = {"config": "demo", "shards": "shards", "out": str(folder / "out"), "trials": 8, "space": space or SPACE}
    path.write_text(yaml.safe_dump(values | keys))
    (folder / "out").mkdir(exist_ok=True)
    return load_search(path)


def make_session(search: Search, messages: list[str] | None = None, at_a_time: int = 1) -> SearchSession:
    """Return a session of trials with one worker, without locking the directory or connecting to Ray."""
    log = [].append if messages is None else messages.append
    storage = Storage.of(search.settings.out)
    assert storage.directory is not None
    copy = WorkingCopy(storage, storage.directory, log)
    plan = TrialPlan(WorkerGroup(1, 1.0, 0.0), at_a_time)
    return SearchSession(search, storage, search.settings.shards, plan, copy, Gauges("synthetic"), log)


def trial_epoch(
    epoch: int, sumr: float, best: float | None = None, finished: bool = False, best_epoch: int | None = None
) -> TrialEpoch:
    """Return an epoch as a trial reports it."""
    result = EpochResult(
        epoch=epoch,
        sumr=sumr,
        best_sumr=sumr if best is None else best,
        best_epoch=epoch if best_epoch is None else best_epoch,
        recall={1: 10.0, 5: 20.0, 10: 30.0, 100: sumr - 60.0},
        median_rank=4.0,
        ties=0,
        losses={"total": 1.0},
        learning_rate=1e-4,
        videos_per_second=100.0,
        seconds=1.0,
        seconds_left=2.0,
        waited=0.0,
        finished=finished,
    )
    return TrialEpoch(result, seconds_since_report=1.0, seconds_total=2.5)
