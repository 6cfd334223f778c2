"""Ray Train: the worker group around the training loop.

A run directory holds `experiment.yaml`, `checkpoints/` (Ray Train's: the best and the latest), `tensorboard/`, and, when the training
has ended, `best/`, a copy of the best checkpoint.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Empty, Queue
from tensorboardX import SummaryWriter

from dreamprvr_ray.checkpoints import copy_checkpoint, write_text
from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.distributed import Workers
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.loop import fit, fitted
from dreamprvr_ray.reporter import EpochReport

# Read by Ray's processes when they start. A report waits for the controller's next look at its workers: 2 s by default.
RAY_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1",  # seconds between snapshots of a search: what a kill may lose
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
# Read by the C library of every worker when it starts. glibc gives large blocks back to the system at once; fetching them anew, page by
# page, took a third of a training step on the CPU.
WORKER_ENVIRONMENT = RAY_ENVIRONMENT | {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**50),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}


FIRST_DASHBOARD_PORT = 8265  # Ray's own default


@dataclass(frozen=True)
class WorkerGroup:
    """How many workers train one model, and what each gets."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float

    def scaling(self) -> ray.train.ScalingConfig:
        """The same in Ray Train's words."""
        resources = {"CPU": self.cpus_per_worker} | ({"GPU": self.gpus_per_worker} if self.gpus_per_worker else {})
        return ray.train.ScalingConfig(num_workers=self.workers, use_gpu=self.gpus_per_worker > 0, resources_per_worker=resources)


@contextmanager
def ray_session(dashboard: bool) -> Iterator[str | None]:
    """Ray for the length of the block: the cluster that RAY_ADDRESS names or that runs on this machine, else a local one.

    Gives the dashboard's address where there is one. A Ray that is connected already is used and left alone.
    """
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield None
        return
    # It warns at every start that token authentication is on, as it should be.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    # Our own lines come through queues and callbacks; what workers print stays in Ray's logs and on the dashboard.
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "WARNING"}
    address = os.environ.get("RAY_ADDRESS", "auto")
    context = None
    if address != "local":
        try:
            context = ray.init(address=address, runtime_env={"env_vars": WORKER_ENVIRONMENT}, **options)
        except ConnectionError as error:
            if address != "auto":
                raise UserError(f"RAY_ADDRESS={address}: no Ray cluster answers there: {str(error).splitlines()[0]}") from None
    # Ray's State API looks for the one Ray of this machine unless it is told the address; there may be others.
    port = _free_port(FIRST_DASHBOARD_PORT)
    api = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"} if context is None and dashboard else {}
    if context is None:
        options |= {"include_dashboard": dashboard, "dashboard_port": port}
        context = ray.init(address="local", runtime_env={"env_vars": WORKER_ENVIRONMENT | api}, **options)
    os.environ.update(api)
    try:
        yield f"http://{context.dashboard_url}" if context.dashboard_url else None
    finally:
        ray.shutdown()
        for name in api:
            del os.environ[name]


def _free_port(first: int) -> int:
    """The first port from `first` on that nobody listens on here."""
    for port in range(first, 2**16):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise RuntimeError(f"no free port from {first} on")


def plan_group(workers: int, cpus_per_worker: float | None = None, gpus_per_worker: float | None = None) -> WorkerGroup:
    """The worker group on what Ray has: a GPU each where there are enough, else the CPUs divided.

    Raises `UserError` where the workers would wait for ever for resources that are not there.
    """
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    gpus_each = (1.0 if gpus >= workers else 0.0) if gpus_per_worker is None else gpus_per_worker
    cpus_each = float(max(1, int(cpus // workers))) if cpus_per_worker is None else cpus_per_worker
    if gpus_each:
        cpus_each = min(cpus_each, 8.0) if cpus_per_worker is None else cpus_each
    if workers * cpus_each > cpus or workers * gpus_each > gpus:
        wanted = f"{workers} workers of {cpus_each:g} CPU" + (f" and {gpus_each:g} GPU" if gpus_each else "")
        raise UserError(f"{wanted} do not fit: Ray has {cpus:g} CPU and {gpus:g} GPU")
    return WorkerGroup(workers, cpus_each, gpus_each)


def train(experiment: Experiment, shards: Path, out: Path, workers: int, *, resume: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Trains in Ray Train workers and copies the best checkpoint to `out/best`; returns that checkpoint's metrics.

    Raises `UserError` where `out` is in the way or does not fit what is to be resumed.
    """
    shard_set = ShardSet.open(shards)
    experiment = fitted(experiment, shard_set)
    check_run(out, experiment, resume)
    with ray_session(dashboard=True):
        group = plan_group(workers)
        write_text(out / "experiment.yaml", experiment.to_yaml())
        reports = Queue(actor_options={"num_cpus": 0})
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"experiment": experiment.model_dump(), "shards": str(shards.resolve()), "reports": reports},
            scaling_config=group.scaling(),
            torch_config=TorchConfig(backend="nccl" if group.gpus_per_worker else "gloo"),
            run_config=run_config(out.resolve(), "checkpoints"),
        )
        with _relay(reports, out / "tensorboard", say):
            result = trainer.fit()
    best = max(result.best_checkpoints or [], key=lambda pair: pair[1]["SumR"], default=None)
    if best is None:
        raise RuntimeError(f"{out}: the training ended without a checkpoint")
    return copy_checkpoint(Path(best[0].path), out / "best")


def run_config(storage: Path, name: str, callbacks: list[Any] | None = None) -> ray.train.RunConfig:
    """A run that keeps the best checkpoint by val SumR and the latest, and is tried again once when a worker is lost."""
    return ray.train.RunConfig(
        name=name,
        storage_path=str(storage),
        callbacks=callbacks,
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="SumR", checkpoint_score_order="max"),
        failure_config=ray.train.FailureConfig(max_failures=1),
    )


def check_run(out: Path, experiment: Experiment, resume: bool) -> None:
    """Raises `UserError` unless `out` is new, or with `resume` a run of the same experiment."""
    recorded = out / "experiment.yaml"
    if not resume:
        refuse_existing(out)
        return
    if not recorded.exists():
        raise UserError(f"{out}: nothing to resume: it has no experiment.yaml")
    before, now = load_experiment(recorded).flat(), experiment.flat()
    changed = [key for key in now if before[key] != now[key]]
    if changed:
        raise UserError(*(f"{out}: cannot resume: {key} was {before[key]!r} and is {now[key]!r} now" for key in changed))


def refuse_existing(out: Path) -> None:
    """Raises `UserError` where something is in `out` already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already there; go on with --resume, or choose another --out")


def train_worker(config: dict[str, Any]) -> None:
    """One worker of a Ray Train run: the training loop with this process's place in the group."""
    context = ray.train.get_context()
    fit(
        Experiment.model_validate(config["experiment"]),
        ShardSet.open(Path(config["shards"])),
        RayTrainReporter(config.get("reports") if context.get_world_rank() == 0 else None),
        Workers(context.get_world_rank(), context.get_world_size()),
    )


class RayTrainReporter:
    """Reports to Ray Train; the first worker writes the checkpoint, and puts its report into `reports` for the driver to show."""

    def __init__(self, reports: Queue | None) -> None:
        self.reports = reports

    @contextmanager
    def latest_checkpoint(self) -> Iterator[Path | None]:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as directory:
            yield Path(directory)

    def report(self, report: EpochReport, write: Callable[[Path], None]) -> None:
        if ray.train.get_context().get_world_rank() != 0:
            ray.train.report(report.named())
            return
        with tempfile.TemporaryDirectory(prefix="dreamprvr-checkpoint-") as directory:
            write(Path(directory))
            ray.train.report(report.named(), checkpoint=ray.train.Checkpoint(directory))
        if self.reports is not None:
            self.reports.put(report)


@contextmanager
def _relay(reports: Queue, tensorboard: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Shows the workers' reports while the block runs: a line each, and TensorBoard's scalars."""
    ended = threading.Event()

    def relay() -> None:
        with SummaryWriter(str(tensorboard)) as writer:
            while True:
                stopping = ended.is_set()  # asked before the queue is emptied, so that the last report is not lost
                try:
                    report: EpochReport = reports.get(timeout=0.5)
                except Empty:
                    if stopping:
                        return
                    continue
                say(report.line())
                for name, value in report.named().items():
                    writer.add_scalar(name, float(value), report.epoch)

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=10)
