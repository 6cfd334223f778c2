"""One training run: a group of Ray Train workers that train a model in a run's directory.

The directory holds `experiment.yaml`, `checkpoints/` (the best and the latest), `ray/` (Ray Train's own records),
`tensorboard/`, and, once training has ended or was interrupted, `best/`, a copy of the best checkpoint. It can be on a
local disk, on a file system that all nodes share, or in an object store.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import ray
import ray.train
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dreamprvr_ray.checkpoints.checkpoint import (
    EXPERIMENT,
    METRICS,
    add_moments,
    copy_checkpoint_files,
    read_moments,
)
from dreamprvr_ray.checkpoints.layout import BEST, CHECKPOINTS, MOMENTS, RAY, is_checkpoint_file
from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.config import Experiment
from dreamprvr_ray.data.collections import open_manifest
from dreamprvr_ray.data.locations import Locations, absolute_locations
from dreamprvr_ray.data.manifest import Manifest
from dreamprvr_ray.data.shards_record import shard_changes
from dreamprvr_ray.errors import Failure, UserError
from dreamprvr_ray.runtime.ray_internals.trainers import CommandTrainer, Trainer
from dreamprvr_ray.runtime.reporting import StartTimes, progress_relay
from dreamprvr_ray.runtime.resources import WorkerCount, WorkerGroup, plan_group
from dreamprvr_ray.runtime.run_directory import check_run
from dreamprvr_ray.runtime.session import ray_session
from dreamprvr_ray.runtime.worker import TrainJob, train_worker
from dreamprvr_ray.storage.files import read_json, read_text
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.failure import FailureKind, TrainingDiverged, TrialFailure, WorkersFailed
from dreamprvr_ray.training.loop import with_feature_sizes
from dreamprvr_ray.training.reporter import latest_result

RESIZE_SECONDS = "DREAMPRVR_RAY_RESIZE_SECONDS"  # environment: how often an elastic group checks whether it can grow


def train(
    experiment: Experiment,
    shards: Locations,
    out: str,
    workers: WorkerCount,
    *,
    resume: bool,
    log: Callable[[str], None],
    command_started: float | None = None,
) -> dict[str, Any]:
    """Train in Ray Train workers, copy the best checkpoint to `out`/best and return that checkpoint's metrics.

    `shards` are those of one collection or, to train on several together, of each.
    `log` receives each line of progress. `command_started` is when the command was started, in seconds
    since 1970; by default, now. Raises `UserError` if `out` exists without `resume`, or is not a run of this
    experiment; `Failure` if training cannot continue.
    """
    command_started = command_started or time.time()
    storage = Storage.of(out)
    manifest = open_manifest(shards, log)
    experiment = with_feature_sizes(experiment, manifest)
    check_run(storage, experiment, resume)
    check_shards(storage, manifest)
    with storage.lock() as lease, ray_session(dashboard=False, log=log):
        group = plan_group(workers.maximum, min_workers=workers.minimum)
        storage.write_text(EXPERIMENT, experiment.to_yaml())
        store = CheckpointStore(storage / CHECKPOINTS)
        latest = latest_result(store)
        already_finished = latest is not None and latest.finished
        if not already_finished:
            job = TrainJob(experiment, absolute_locations(shards), storage.location, store.claim(), _message_queue())
            trainer = group_trainer(job, group, storage.name, trainer_type=CommandTrainer)
            assert job.messages is not None
            with (
                publishing_if_it_ends_early(store, storage, log, lease.check),
                progress_relay(job.messages, storage, log, StartTimes(command_started, time.time())),
            ):
                run_group(trainer, storage)
        lease.check()
        return _publish_best(store, storage)


def _message_queue() -> Queue:
    """Start the queue on this node: on another one it could be lost with that node."""
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": this_node})


@contextmanager
def publishing_if_it_ends_early(
    store: CheckpointStore,
    storage: Storage,
    log: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """If the block raises, copy the best checkpoint so far to `storage`/best, and re-raise.

    Not if `check` raises `LeaseLost`: the run is another process's then.
    """
    try:
        yield
    except BaseException:
        with suppress(OSError, UserError, Failure, KeyError):  # which must not hide why training ended
            check()
            store.claim()  # workers that still run must not delete the checkpoint while it is copied
            metrics = _publish_best(store, storage)
            log(f"best epoch so far: {metrics['best_epoch']}, checkpoint {storage / BEST}")
        raise


def _publish_best(store: CheckpointStore, storage: Storage) -> dict[str, Any]:
    """Copy the best checkpoint to `storage`/best and return its metrics.

    A copy of the same checkpoint that exists stays: replacing it would delete the record of its test evaluations. What
    a user has put there stays.
    """
    with store.best() as best:
        if best is None:
            raise Failure(f"{storage}: training ended without a checkpoint")
        metrics, published = read_json(best / METRICS), storage / BEST
        if not published.exists(METRICS) or published.read_text(METRICS) != read_text(best / METRICS):
            write = partial(copy_checkpoint_files, best)
            storage.write_directory(BEST, write, METRICS, is_checkpoint_file)
        elif (network := read_moments(best)) is not None and not published.exists(MOMENTS):
            add_moments(published, network)  # published before the training had ended
        return metrics


def group_trainer(
    job: TrainJob,
    group: WorkerGroup,
    name: str,
    callbacks: list[Any] | None = None,
    trainer_type: type[Trainer] = Trainer,
) -> Trainer:
    """Return the trainer of a worker group that runs `job`; the dashboard shows the run under `name`."""
    return trainer_type(
        train_worker,
        train_loop_config=job.to_dict(),
        scaling_config=scaling_config(group),
        run_config=run_config(Storage(job.run), name, job.experiment, callbacks),
    )


def run_group(trainer: Trainer, storage: Storage) -> None:
    """Run a worker group until it ends.

    Raises the `UserError` or `Failure` with which a worker ended, `TrainingDiverged`, or `WorkersFailed` for any other
    error.
    """
    try:
        diverged = trainer.fit().return_value
    except ray.train.WorkerGroupError as error:
        errors = list(error.worker_failures.values())
        for worker_error in errors:
            if isinstance(worker_error, (UserError, Failure)):
                raise worker_error from None
        reason = _last_line(errors[0]) if errors else "unknown reason"
        kind: FailureKind = TrialFailure.from_error(errors[0]).kind if errors else "error"
        raise WorkersFailed(
            f"{storage}: training failed: {reason}; use --resume to continue from the last checkpoint", kind
        ) from error
    if diverged:
        raise TrainingDiverged(diverged)


def _last_line(error: BaseException) -> str:
    """Return the last line of an error's message: Ray's errors say why a worker died there."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def scaling_config(group: WorkerGroup) -> ray.train.ScalingConfig:
    """Return a group's size and resources as Ray Train's configuration."""
    resources = {"CPU": group.cpus_per_worker} | ({"GPU": group.gpus_per_worker} if group.gpus_per_worker else {})
    return ray.train.ScalingConfig(
        num_workers=(group.min_workers, group.workers) if group.min_workers else group.workers,
        use_gpu=group.gpus_per_worker > 0,
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=float(os.environ.get(RESIZE_SECONDS, 60)),
    )


def run_config(
    run: Storage, name: str, experiment: Experiment, callbacks: list[Any] | None = None
) -> ray.train.RunConfig:
    """Return the configuration of a run that restarts its group up to `training.max_failures` times when workers are
    lost.

    Checkpoints are kept by `CheckpointStore`, not by Ray Train, which writes its list of checkpoints in place: after a
    kill at that moment, or on a full disk, the run could not be resumed.
    """
    return ray.train.RunConfig(
        name=name,
        storage_path=(run / RAY).location,
        callbacks=callbacks,
        failure_config=ray.train.FailureConfig(max_failures=experiment.training.max_failures),
    )


def check_shards(storage: Storage, manifest: Manifest) -> None:
    """Raise `UserError` if the run in `storage` was trained on shards with another content."""
    store = CheckpointStore(storage / CHECKPOINTS)
    metrics = store.metrics()
    if metrics is None:
        return
    try:
        changes = shard_changes(metrics, manifest)
    except ValueError as error:
        raise UserError(f"{store.storage}: the latest {METRICS} is damaged: {error}") from None
    if changes:
        raise UserError(*(f"{storage}: cannot resume on other shards: {change}" for change in changes))
