"""One trial: an experiment with the proposed values, trained where it runs.

A trial of one worker trains in its own process, which Ray keeps warm for the next one; a trial of several is a nested Ray Train run.
"""

from __future__ import annotations

import gc
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from dreamprvr_ray.checkpoints.checkpoint import EXPERIMENT, load_model
from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.config import CLIPS, FRAMES, Experiment
from dreamprvr_ray.data.cache import local_shards
from dreamprvr_ray.device import best_device
from dreamprvr_ray.errors import Failure, ObjectStoreError, UserError
from dreamprvr_ray.runtime.reporting import write_checkpoint
from dreamprvr_ray.runtime.resources import WorkerGroup
from dreamprvr_ray.runtime.train_run import group_trainer, run_group
from dreamprvr_ray.runtime.worker import TrainJob
from dreamprvr_ray.search.layout import CHECKPOINTS, SEARCH, trial_name
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.failure import is_out_of_memory
from dreamprvr_ray.training.loop import fit
from dreamprvr_ray.training.reporter import EpochResult, Snapshot

# What stands among a trial's values beside the configuration's keys.
TRIAL_NUMBER = "trial_number"  # Optuna's number of it, from 0
SHARE = "share"  # it gets the resources of so many trials
RUN = "run"  # the name of its directory, where that is not its trial's
# What a trial reports in place of an epoch.
FAILURE = "failure"  # why it cannot be trained
OUT_OF_MEMORY = "out_of_memory"

LATENCY_VIDEOS = 64  # encoded at a time to measure `encode_ms`


@dataclass(frozen=True)
class TrialJob:
    """What all trials of a search share."""

    experiment: dict[str, Any]
    shards: str
    group: WorkerGroup
    out: str  # the search's directory
    room: str  # the directory in it in which each trial has one of its own, laid out as a training's
    measure_encoding: bool = False


def run_name(values: dict[str, Any]) -> str:
    """What the directory of a trial with these values is called."""
    return str(values.get(RUN) or trial_name(values[TRIAL_NUMBER]))


def run_trial(values: dict[str, Any], job: TrialJob) -> None:
    """Ray Tune's function: trains the job's experiment with `values` by dotted key, from the trial's checkpoint if it has one.

    What trying again would not mend is reported as its failure; Ray Tune tries again after an exception.
    """
    try:
        _train(values, job)
    except ObjectStoreError:
        raise
    except (UserError, Failure) as error:
        _report_failure(error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        _report_failure(error, out_of_memory=True)


def _report_failure(error: BaseException, out_of_memory: bool = False) -> None:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    tune.report({FAILURE: reason, OUT_OF_MEMORY: out_of_memory})


def _train(values: dict[str, Any], job: TrialJob) -> None:
    out, name = Storage(job.out), run_name(values)
    out.check_visible(SEARCH)
    settings = {key: value for key, value in values.items() if key not in (TRIAL_NUMBER, SHARE, RUN)}
    experiment = Experiment.model_validate(job.experiment).with_values(settings, name)
    run = out / job.room / name
    run.write_text(EXPERIMENT, experiment.to_yaml())
    print(
        f"{out.name} {name}: "
        + ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in settings.items()
        ),
        flush=True,
    )
    store = CheckpointStore(run / CHECKPOINTS)
    writer = store.claim()  # from a process of a killed driver's, which may write on for seconds
    reporter = TuneReporter(store, job.measure_encoding)
    reached = store.metrics()
    if reached:  # a kill may have come between the checkpoint and its report
        reporter.send(reached)
        if reached["finished"]:
            return
    if job.group.workers > 1:
        train_job = TrainJob(experiment, job.shards, run.location, writer)
        run_group(group_trainer(train_job, job.group, f"{out.name}-{name}", [TuneReportCallback()]), run)
        return
    gc.collect()  # the process is kept for the next trial: give back what the one before held
    share = values.get(SHARE, 1)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        # Trials that share a GPU each keep to their part, so that the one which needs more is the one that fails.
        torch.cuda.set_per_process_memory_fraction(min(1.0, share * job.group.gpus_per_worker or 1.0))
    torch.set_num_threads(max(1, int(share * job.group.cpus_per_worker)))
    fit(experiment, local_shards(job.shards), reporter)


class TuneReporter:
    """Reports to Ray Tune, and keeps checkpoints."""

    def __init__(self, store: CheckpointStore, measure_encoding: bool) -> None:
        self.store = store
        self.measure_encoding = measure_encoding

    def latest_checkpoint(self) -> AbstractContextManager[Path | None]:
        return self.store.latest()

    def on_training_start(self) -> None:
        pass

    def report(self, result: EpochResult, snapshot: Snapshot) -> None:
        write_checkpoint(self.store, result, snapshot)
        self.store.wait()  # the report may stop this trial, and with it what runs beside it
        print(result.line(), flush=True)  # into the process's log, which the dashboard shows
        self.send(result.to_dict())

    def send(self, metrics: dict[str, Any]) -> None:
        """Reports an epoch's metrics; with the last ones, if asked for, how long the best model takes to encode a video."""
        if metrics["finished"] and self.measure_encoding:
            with self.store.best() as best:
                assert best is not None
                metrics = metrics | {"encode_ms": encode_milliseconds(best)}
        tune.report(metrics)


@torch.no_grad()
def encode_milliseconds(checkpoint: Path) -> float:
    """How long a checkpoint's model takes to encode a video, of many at a time, where this runs: the best of five tries."""
    trained, device = load_model(checkpoint), best_device()
    model, size = trained.model.to(device), trained.experiment.data.video_size
    clips = torch.randn(LATENCY_VIDEOS, CLIPS, size, device=device)
    frames = torch.randn(LATENCY_VIDEOS, FRAMES, size, device=device)
    mask = torch.ones(LATENCY_VIDEOS, FRAMES, dtype=torch.bool, device=device)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        model.encode_videos(clips, frames, mask)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 1000 * min(seconds) / LATENCY_VIDEOS
