"""Ray Tune's function: one trial trains the configuration with the requested values.

A trial of one worker trains in its own process, which Ray keeps for the next trial. A trial of several workers starts a
nested Ray Train run and waits for it.
"""

from __future__ import annotations

import gc
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from dreamprvr_ray.checkpoints.checkpoint import EXPERIMENT
from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.config import Experiment
from dreamprvr_ray.data.collections import Collections
from dreamprvr_ray.data.locations import Locations
from dreamprvr_ray.errors import Failure, ObjectStoreError, StorageFailure, UserError, first_line
from dreamprvr_ray.runtime.reporting import write_checkpoint
from dreamprvr_ray.runtime.resources import WorkerGroup
from dreamprvr_ray.runtime.train_run import group_trainer, run_group
from dreamprvr_ray.runtime.worker import TrainJob
from dreamprvr_ray.search.encoding_time import measure_encode_ms
from dreamprvr_ray.search.layout import CHECKPOINTS, SEARCH
from dreamprvr_ray.search.messages import TrialRequest
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.failure import TrialFailure, is_out_of_memory, is_storage_error
from dreamprvr_ray.training.loop import fit
from dreamprvr_ray.training.reporter import EpochResult, Learn, Snapshot, latest_result
from dreamprvr_ray.yaml_files import format_value

STORE_RETRY_SECONDS = 5.0  # before a trial is retried after a failed object-store request


@dataclass(frozen=True)
class TrialJob:
    """What all trials of a search share."""

    experiment: Experiment  # without the requested values
    shards: Locations
    group: WorkerGroup
    search_location: str
    runs: str  # name of the directory in the search's directory that gets a directory per trial
    measure_encoding: bool = False  # whether `encode_ms` is an objective


def run_trial(config: dict[str, Any], job: TrialJob) -> None:
    """Train a trial, from its checkpoint if it has one. Called by Ray Tune.

    A failure that a retry would not fix is reported. Any other is raised, so that Ray Tune retries the trial.
    """
    try:
        _train_with_retries(TrialRequest.from_config(config), job)
    except (UserError, Failure) as error:
        tune.report(TrialFailure.from_error(error).to_dict())
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error) and not is_storage_error(error):
            raise
        tune.report(TrialFailure.from_error(error).to_dict())


def _train_with_retries(request: TrialRequest, job: TrialJob) -> None:
    """Train, and retry after failed object-store requests: as often as Ray Tune retries after other errors.

    Ray Tune would deliver the last error as text only, without its type.
    """
    for _ in range(job.experiment.training.max_failures):
        try:
            return train_trial(request, job)
        except ObjectStoreError as error:
            print(f"{error}; retrying in {STORE_RETRY_SECONDS:g} s", flush=True)
            time.sleep(STORE_RETRY_SECONDS)
    return train_trial(request, job)


def train_trial(request: TrialRequest, job: TrialJob) -> None:
    """Train a trial once, from its checkpoint if it has one, and report its epochs to Ray Tune."""
    search_storage = Storage(job.search_location)
    with _on_this_node():
        search_storage.check_visible(SEARCH)
    experiment = job.experiment.with_values(request.values, request.run)
    run = search_storage / job.runs / request.run
    run.write_text(EXPERIMENT, experiment.to_yaml())
    print(f"{search_storage.name} {request.run}: {_describe(request.values)}", flush=True)
    store = CheckpointStore(run / CHECKPOINTS)
    writer = store.claim()  # a trial of a killed driver may still be writing
    reporter = TuneReporter(store, job.measure_encoding)
    if latest := latest_result(store):
        reporter.send(latest)  # a kill may have come between the checkpoint and its report
        if latest.finished:
            return
    if job.group.workers > 1:
        _train_nested(run, f"{search_storage.name}-{request.run}", experiment, job, writer)
    else:
        _train_here(request, experiment, job, reporter)


def _train_nested(run: Storage, name: str, experiment: Experiment, job: TrialJob, writer: str) -> None:
    train_job = TrainJob(experiment, job.shards, run.location, writer)
    run_group(group_trainer(train_job, job.group, name, [TuneReportCallback()]), run)


def _train_here(request: TrialRequest, experiment: Experiment, job: TrialJob, reporter: TuneReporter) -> None:
    gc.collect()  # frees the memory of the trial that ran in this process before
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        # Each of the trials that share a GPU keeps to its fraction: the one that needs too much fails, not its
        # neighbour.
        torch.cuda.set_per_process_memory_fraction(min(1.0, request.share * job.group.gpus_per_worker or 1.0))
    torch.set_num_threads(max(1, int(request.share * job.group.cpus_per_worker)))
    with _on_this_node():
        shards = Collections.open(job.shards)
    fit(experiment, shards, reporter)


@contextmanager
def _on_this_node() -> Iterator[None]:
    """Turn what is wrong with this node, such as a full cache or a missing mount, into a `StorageFailure`.

    Every other trial would fail here as well.
    """
    try:
        yield
    except ObjectStoreError:
        raise
    except UserError as error:
        raise StorageFailure(f"{socket.gethostname()}: {first_line(error)}") from None


def _describe(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {format_value(value, 4)}" for key, value in values.items())


class TuneReporter:
    """Keeps checkpoints and reports epochs to Ray Tune."""

    def __init__(self, store: CheckpointStore, measure_encoding: bool) -> None:
        self._store, self._measure_encoding = store, measure_encoding

    def latest_checkpoint(self) -> AbstractContextManager[Path | None]:
        return self._store.latest()

    def on_training_start(self) -> None:
        pass

    def add_moments(self, epoch: int, learn: Learn) -> None:
        self._store.add_moments(epoch, learn)

    def report(self, result: EpochResult, snapshot: Snapshot) -> None:
        write_checkpoint(self._store, result, snapshot)
        self._store.wait()  # the report may stop this trial, and with it the thread that writes the checkpoint
        print(result.line(), flush=True)  # to the log of this process, which the dashboard shows
        self.send(result)

    def send(self, result: EpochResult) -> None:
        """Report an epoch. The last one includes `encode_ms` of the best model if that is an objective."""
        if result.finished and self._measure_encoding:
            with self._store.best() as best:
                assert best is not None
                result = replace(result, encode_ms=measure_encode_ms(best))
        tune.report(result.to_dict())
