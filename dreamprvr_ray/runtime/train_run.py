"""Ray Train: the worker group around the training loop.

A run directory holds `experiment.yaml`, `checkpoints/` (the best and the latest), `ray/` (Ray Train's own records), `tensorboard/`, and,
when the training has ended, `best/`, a copy of the best checkpoint. It may be on a disk, on a file system that all nodes share, or in an
object store.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import get_device
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tensorboardX import SummaryWriter

from dreamprvr_ray.checkpoints.checkpoint import EXPERIMENT, METRICS
from dreamprvr_ray.checkpoints.layout import BEST, CHECKPOINTS, RAY, TENSORBOARD
from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.config import Experiment, build_experiment
from dreamprvr_ray.data.cache import local_shards, read_manifest
from dreamprvr_ray.distributed import Workers
from dreamprvr_ray.errors import Failure, UserError
from dreamprvr_ray.runtime.metrics import Gauges
from dreamprvr_ray.runtime.ray_internals import CommandTrainer
from dreamprvr_ray.runtime.resources import WorkerCount, WorkerGroup, plan_group
from dreamprvr_ray.runtime.session import ray_session
from dreamprvr_ray.storage.files import copy_files, read_json
from dreamprvr_ray.storage.location import Storage, absolute
from dreamprvr_ray.training.failure import TrainingDiverged
from dreamprvr_ray.training.loop import fit, with_feature_sizes
from dreamprvr_ray.training.reporter import EpochResult, Snapshot
from dreamprvr_ray.yaml_files import parse_yaml

RESIZE_SECONDS = "DREAMPRVR_RAY_RESIZE_SECONDS"  # how often a running elastic group looks for room to grow


def scaling_config(group: WorkerGroup) -> ray.train.ScalingConfig:
    """Return a group's size and resources as Ray Train's configuration."""
    resources = {"CPU": group.cpus_per_worker} | ({"GPU": group.gpus_per_worker} if group.gpus_per_worker else {})
    return ray.train.ScalingConfig(
        num_workers=(group.min_workers, group.workers) if group.min_workers else group.workers,
        use_gpu=group.gpus_per_worker > 0,
        resources_per_worker=resources,
        elastic_resize_monitor_interval_s=float(os.environ.get(RESIZE_SECONDS, 60)),
    )


def train(
    experiment: Experiment,
    shards: str,
    out: str,
    workers: WorkerCount,
    *,
    resume: bool,
    say: Callable[[str], None],
    began: float,
) -> dict[str, Any]:
    """Trains in Ray Train workers and copies the best checkpoint to `out`/best; returns that checkpoint's metrics.

    `began` is when the command was started, in seconds of `time.time`.
    Raises `UserError` where `out` is in the way or does not fit what is to be resumed, `Failure` where the training failed for good.
    """
    storage = Storage.of(out)
    experiment = with_feature_sizes(experiment, read_manifest(shards))
    check_run(storage, experiment, resume)
    with storage.lock(), ray_session(dashboard=False):
        group = plan_group(workers.maximum, min_workers=workers.minimum)
        storage.write_text(EXPERIMENT, experiment.to_yaml())
        store = CheckpointStore(storage / CHECKPOINTS)
        with store.latest() as latest:
            finished = latest is not None and bool(read_json(latest / METRICS)["finished"])
        if not finished:
            # On this node: with another one it would be lost.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            job = {
                "experiment": experiment.model_dump(),
                "shards": absolute(shards),
                "run": storage.location,
                "owner": store.claim(),
                "reports": Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here}),
            }
            settings = run_config(storage, storage.name, experiment)
            trainer = CommandTrainer(
                train_worker, train_loop_config=job, scaling_config=scaling_config(group), run_config=settings
            )
            with _relay(job["reports"], storage, say, Start(began, time.time())):
                run_group(trainer, storage)
    with store.best() as best:
        if best is None:
            raise Failure(f"{storage}: the training ended without a checkpoint")
        metrics = read_json(best / METRICS)
        if not (finished and (storage / BEST).exists(METRICS)):  # else what is recorded beside it would be lost
            storage.write_directory(BEST, partial(copy_files, best), last=METRICS)
        return metrics


def run_group(trainer: DataParallelTrainer, storage: Storage) -> None:
    """Runs a group of `train_worker` to its end; what failed for good is said in a line."""
    try:
        diverged = trainer.fit().return_value
        if diverged:
            raise TrainingDiverged(diverged)
    except ray.train.WorkerGroupError as error:
        causes = [getattr(failure, "_base_exc", failure) for failure in error.worker_failures.values()]
        ours = next((cause for cause in causes if isinstance(cause, (UserError, Failure))), None)
        if ours:
            raise ours from None
        reason = (str(causes[0]).strip().splitlines() or [type(causes[0]).__name__])[-1] if causes else "unknown"
        raise Failure(
            f"{storage}: the training failed: {reason}; go on from the last checkpoint with --resume"
        ) from error


def run_config(
    run: Storage, name: str, experiment: Experiment, callbacks: list[Any] | None = None
) -> ray.train.RunConfig:
    """A run that goes on by itself when workers are lost; the dashboard shows it by its name.

    Checkpoints are our own affair: see `CheckpointStore`.
    """
    # Ray Train writes the list of its checkpoints in place: killed just then, or on a full disk, the run could not be resumed.
    return ray.train.RunConfig(
        name=name,
        storage_path=(run / RAY).location,
        callbacks=callbacks,
        failure_config=ray.train.FailureConfig(max_failures=experiment.training.max_failures),
    )


def check_run(storage: Storage, experiment: Experiment, resume: bool) -> None:
    """Raises `UserError` unless `storage` is new, or with `resume` a run of the same experiment."""
    if not resume:
        refuse_existing(storage)
        return
    if not storage.exists(EXPERIMENT):
        raise UserError(f"{storage}: nothing to resume: it has no {EXPERIMENT}")
    where = f"{storage}/{EXPERIMENT}"
    before = build_experiment(parse_yaml(storage.read_text(EXPERIMENT), where), where)
    if changes := experiment.changes_from(before):
        raise UserError(*(f"{storage}: cannot resume: {change}" for change in changes))


def refuse_existing(storage: Storage) -> None:
    """Raises `UserError` where something is in the directory already."""
    if storage.names() or (storage.directory is not None and storage.directory.is_file()):
        raise UserError(f"{storage}: already there; go on with --resume, or choose another --out")


def train_worker(job: dict[str, Any]) -> str | None:
    """One worker of a Ray Train run: the training loop with this process's place in the group.

    Returns what went wrong where trying again would not help: Ray Train would try again after an exception.
    """
    entered = time.time()
    storage = Storage(job["run"])
    storage.check_visible(EXPERIMENT)
    try:
        with connected() as workers:
            store = CheckpointStore(storage / CHECKPOINTS, job.get("owner"))
            reporter = RayTrainReporter(store, job.get("reports"), entered) if workers.rank == 0 else Follower()
            fit(Experiment.model_validate(job["experiment"]), local_shards(job["shards"]), reporter, workers)
    except TrainingDiverged as diverged:  # on every worker: they have computed the same loss
        return str(diverged)
    return None


@contextmanager
def connected() -> Iterator[Workers]:
    """The workers of this Ray Train group, who can talk to each other inside the block: through NCCL where they have GPUs, else gloo."""
    if torch.cuda.is_available():
        torch.cuda.set_device(get_device())
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    if workers.count == 1:
        yield workers
        return
    if workers.rank == 0:
        # By itself it would listen on every address that the node has.
        here = ray.util.get_node_ip_address()
        listening = socket.create_server((here, 0), family=socket.AF_INET6 if ":" in here else socket.AF_INET)
        port = listening.getsockname()[1]
        store = dist.TCPStore(here, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())
        broadcast_from_rank_zero((here, port))
    else:
        store = dist.TCPStore(*broadcast_from_rank_zero(None))
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo", store=store, rank=workers.rank, world_size=workers.count
    )
    yield workers
    dist.destroy_process_group()  # not after an exception: NCCL would wait for a lost worker; Ray ends the process


class Follower:
    """The reporter of all workers but the first: it takes part in Ray Train's reports, and that is all."""

    def latest_checkpoint(self) -> AbstractContextManager[Path | None]:
        return nullcontext()

    def on_training_start(self) -> None:
        pass

    def report(self, result: EpochResult, snapshot: Snapshot) -> None:
        ray.train.report(result.to_dict())


class RayTrainReporter:
    """The first worker's reporter: keeps checkpoints, and puts each report into `reports` for the driver to show.

    What goes there is plain values: the queue's process would import torch to hold one of our classes.
    """

    def __init__(self, store: CheckpointStore, reports: Queue | None, entered: float) -> None:
        self.store = store
        self.reports = reports
        self.entered = entered

    def latest_checkpoint(self) -> AbstractContextManager[Path | None]:
        return self.store.latest()

    def on_training_start(self) -> None:
        if self.reports is not None:
            first = FirstStep(ray.train.get_context().get_world_size(), self.entered, time.time())
            self.reports.put({"first_step": asdict(first)})

    def report(self, result: EpochResult, snapshot: Snapshot) -> None:
        keep_checkpoint(self.store, result, snapshot)
        print(result.line(), flush=True)  # into the worker's log, which the dashboard shows
        ray.train.report(result.to_dict())
        if self.reports is not None:
            sent = result.traffic.line() if result.traffic else None
            self.reports.put({"line": result.line(), "sent": sent, "scalars": result.to_dict()})


def keep_checkpoint(store: CheckpointStore, result: EpochResult, snapshot: Snapshot) -> None:
    """Has an epoch's checkpoint written beside the training, the last one before the training ends."""
    store.write(result.epoch, result.best_epoch, snapshot().write)
    if result.finished:
        store.wait()


@dataclass(frozen=True)
class Start:
    """When a command was started, and when Ray was ready, in seconds of `time.time`."""

    began: float
    ray_ready: float


@dataclass(frozen=True)
class FirstStep:
    """How many workers begin to train, when the first of them entered the training function, and when its first step began."""

    workers: int
    entered: float
    began: float

    def line(self, start: Start | None) -> str:
        """The line that a person reads; `start` is None where the group was started again."""
        group = f"{self.workers} workers train" if self.workers > 1 else "1 worker trains"
        inside = f"model and data {self.began - self.entered:.1f} s"
        if start is None:
            return f"{group} again; {inside}"
        ready = f"Python and Ray {start.ray_ready - start.began:.1f} s, workers {self.entered - start.ray_ready:.1f} s"
        return f"{group} {self.began - start.began:.1f} s after the start: {ready}, {inside}"


@contextmanager
def _relay(reports: Queue, storage: Storage, say: Callable[[str], None], start: Start) -> Iterator[None]:
    """Shows the workers' reports while the block runs: a line each, TensorBoard's scalars, and the gauges."""
    ended = threading.Event()
    with Gauges(storage.name) as gauges:
        thread = threading.Thread(target=_show, args=(reports, storage, say, start, gauges, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=10)


def _show(
    reports: Queue,
    storage: Storage,
    say: Callable[[str], None],
    start: Start | None,
    gauges: Gauges,
    ended: threading.Event,
) -> None:
    sent = False
    with _tensorboard(storage) as writer:
        while True:
            stopping = ended.is_set()  # asked before the queue is emptied, so that the last report is not lost
            if reports.empty():  # asked, because a `get` that finds none is a failed task on the dashboard
                if stopping:
                    return
                ended.wait(0.5)
                continue
            news: dict[str, Any] = reports.get()
            if "first_step" in news:
                gauges.started(storage.name)
                say(FirstStep(**news["first_step"]).line(start))
                start = None
                continue
            say(news["line"])
            if news["sent"] and not sent:
                say(news["sent"])
                sent = True
            gauges.epoch(storage.name, news["scalars"])
            for name, value in news["scalars"].items():
                writer.add_scalar(name, float(value), news["scalars"]["epoch"])


@contextmanager
def _tensorboard(storage: Storage) -> Iterator[SummaryWriter]:
    """Writes TensorBoard's events into `storage`; into an object store when the block ends."""
    if storage.directory is not None:
        with SummaryWriter(str(storage.directory / TENSORBOARD)) as writer:
            yield writer
        return
    with tempfile.TemporaryDirectory(prefix="dreamprvr-tensorboard-") as folder:
        try:
            with SummaryWriter(folder) as writer:
                yield writer
        finally:
            storage.upload_directory(TENSORBOARD, Path(folder))
