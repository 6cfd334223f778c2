"""Searches without Ray whose trials are simulated: everything but Ray and the training is real."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dreamprvr_ray.checkpoints.checkpoint import Checkpoint
from dreamprvr_ray.checkpoints.layout import CHECKPOINTS
from dreamprvr_ray.data.cache import read_manifest
from dreamprvr_ray.data.shards_record import ShardsRecord
from dreamprvr_ray.errors import Failure
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.runtime.resources import WorkerGroup
from dreamprvr_ray.search import driver, finalists, session
from dreamprvr_ray.search.epoch_log import EpochLog
from dreamprvr_ray.search.messages import TrialEpoch, TrialRequest
from dreamprvr_ray.search.plan import TrialPlan
from dreamprvr_ray.search.ray_tune import SourceScheduler, SourceSearcher, TrialSource
from dreamprvr_ray.search.session import SearchSession
from dreamprvr_ray.search.space import load_search
from dreamprvr_ray.training.reporter import EpochResult

RunTrials = Callable[[SearchSession, TrialSource, str, object], None]


@contextmanager
def without_ray(run_trials: RunTrials) -> Iterator[None]:
    """Let searches in the block run without Ray, and their trials by `run_trials`."""

    @contextmanager
    def no_ray(**_: Any) -> Iterator[None]:
        yield

    replacements: list[tuple[Any, str, Any]] = [
        (session, "ray_session", no_ray),
        (session, "plan_trials", lambda *_: TrialPlan(WorkerGroup(1, 1.0, 0.0), at_a_time=1)),
        (session, "check_shared", lambda _: None),
        (SearchSession, "compute", lambda _, function, *arguments: function(*arguments)),
        (driver, "run_trials", run_trials),
        (finalists, "run_trials", run_trials),
    ]
    before = [getattr(owner, name) for owner, name, _ in replacements]
    for owner, name, replacement in replacements:
        setattr(owner, name, replacement)
    try:
        yield
    finally:
        for (owner, name, _), value in zip(replacements, before, strict=True):
            setattr(owner, name, value)


def refuse_trials(session: SearchSession, source: TrialSource, runs: str, progress: object) -> None:
    """Let a search end where it would train."""
    raise Failure("no trials are run here")


def simulate_trials(session: SearchSession, source: TrialSource, runs: str, progress: object) -> None:
    """Run trials of one epoch each, which leave an untrained model as their checkpoint."""
    searcher = SourceSearcher(source)
    scheduler = SourceScheduler(source, searcher, EpochLog(session.copy.path / runs, session.gauges))
    shards, number = ShardsRecord.of(read_manifest(session.shards)).to_dict(), 0
    while isinstance(config := searcher.suggest(str(number)), dict):
        request = TrialRequest.from_config(config)
        epoch = simulated_epoch([100.0 + request.number])
        experiment = session.search.experiment.with_values(request.values, request.run)
        model = DreamPRVR(experiment.model, experiment.data.video_size, experiment.data.text_size)
        run = session.copy.path / runs / request.run
        checkpoint = run / CHECKPOINTS / "epoch-0001"
        checkpoint.mkdir(parents=True)
        Checkpoint(model.state_dict(), None, experiment, epoch.result.to_dict() | {"shards": shards}).write(checkpoint)
        (run / "experiment.yaml").write_text(experiment.to_yaml())
        trial: Any = SimpleNamespace(config=config, trial_id=str(number))
        result = epoch.to_dict()
        scheduler.on_trial_result(None, trial, result)  # type: ignore[arg-type]
        scheduler.on_trial_complete(None, trial, result)  # type: ignore[arg-type]
        searcher.on_trial_complete(str(number), result)
        number += 1


def write_finished_search(space: Path, shards: Path, out: Path) -> None:
    """Run the search of the file `space` into `out`, with simulated trials."""
    search = load_search(space, {"shards": str(shards), "out": str(out)})
    with without_ray(simulate_trials):
        driver.run_search(search, resume=False, log=lambda _: None)


def simulated_epoch(sumrs: Sequence[float], epochs: int = 1) -> TrialEpoch:
    """Return the last epoch of a trial whose epochs had these SumR, out of `epochs`."""
    sumr, best = sumrs[-1], max(sumrs)
    result = EpochResult(
        epoch=len(sumrs),
        sumr=sumr,
        best_sumr=best,
        best_epoch=sumrs.index(best) + 1,
        recall={1: 10.0, 5: 20.0, 10: 30.0, 100: sumr - 60.0},
        median_rank=4.0,
        ties=0,
        losses={"total": 1.0},
        learning_rate=1e-4,
        videos_per_second=100.0,
        seconds=1.0,
        seconds_left=float(epochs - len(sumrs)),
        waited=0.0,
        finished=len(sumrs) == epochs,
    )
    return TrialEpoch(result, seconds_since_report=1.0, seconds_total=float(len(sumrs)))
