"""Measure what one checkpoint per epoch costs a training in a Ray Train worker.

    python -m benchmarks.checkpoints --shards SHARDS

Compares two times with the time of an epoch: each epoch's report (copying the state, handing it to the writer, Ray
Train's barrier, the line for the driver), and the CPU time of the writer, which runs in parallel with the training.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train

from dreamprvr_ray.checkpoints.checkpoint import EXPERIMENT, Checkpoint
from dreamprvr_ray.checkpoints.layout import CHECKPOINTS
from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.config import load_experiment, parse_overrides
from dreamprvr_ray.data.cache import local_shards, read_manifest
from dreamprvr_ray.runtime.ray_internals.trainers import Trainer
from dreamprvr_ray.runtime.reporting import RayTrainReporter
from dreamprvr_ray.runtime.resources import plan_group
from dreamprvr_ray.runtime.session import ray_session
from dreamprvr_ray.runtime.train_run import run_config, scaling_config
from dreamprvr_ray.runtime.worker import TrainJob
from dreamprvr_ray.storage.location import Storage, absolute
from dreamprvr_ray.training.loop import fit, with_feature_sizes
from dreamprvr_ray.training.reporter import EpochResult, Snapshot


@dataclass(frozen=True)
class TimedCheckpoint(Checkpoint):
    """A checkpoint that records the CPU time of writing it in `row`."""

    row: dict[str, float] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        started = time.thread_time()
        super().write(directory)
        self.row["writer_seconds"] = time.thread_time() - started


class TimedReporter(RayTrainReporter):
    """Records the time of each report and the CPU time of writing its checkpoint."""

    def __init__(self, store: CheckpointStore) -> None:
        super().__init__(store, None, 0.0)
        self.rows: list[dict[str, float]] = []

    def report(self, result: EpochResult, snapshot: Snapshot) -> None:
        row = {"epoch_seconds": result.seconds}

        def timed_snapshot() -> Checkpoint:
            checkpoint = snapshot()
            row["copied_after"] = time.perf_counter() - began
            return TimedCheckpoint(**vars(checkpoint), row=row)

        began = time.perf_counter()
        super().report(result, timed_snapshot)
        row["report_seconds"] = time.perf_counter() - began
        self.rows.append(row)


def work(values: dict[str, Any]) -> list[dict[str, float]]:
    """Train in one worker and return the measurements of each epoch."""
    job = TrainJob.from_dict(values)
    reporter = TimedReporter(CheckpointStore(Storage(job.run) / CHECKPOINTS))
    fit(job.experiment, local_shards(job.shards), reporter)
    reporter.store.wait()
    return reporter.rows


def main(arguments: list[str]) -> None:
    parser = Parser("checkpoints", "Measure what one checkpoint per epoch costs.", package="benchmarks")
    parser.add_argument("--shards", required=True, help="a directory or URI written by `convert`")
    parser.add_argument("--config", default="tvr")
    parser.add_overrides()
    options = parser.parse_args(arguments)
    experiment = load_experiment(
        options.config, {"model.hidden_size": 128, "training.epochs": 3} | parse_overrides(options.set)
    )
    experiment = with_feature_sizes(experiment, read_manifest(options.shards))
    with tempfile.TemporaryDirectory(prefix="dreamprvr-checkpoints-") as folder, ray_session(dashboard=False):
        storage, group = Storage.of(folder), plan_group(1)
        storage.write_text(EXPERIMENT, experiment.to_yaml())
        job = TrainJob(experiment, absolute(options.shards), storage.location)
        config = run_config(storage, "ray", experiment)
        trainer = Trainer(
            work, train_loop_config=job.to_dict(), scaling_config=scaling_config(group), run_config=config
        )
        result: ray.train.Result = trainer.fit()
        rows = result.return_value
    for number, row in enumerate(rows, start=1):
        print(
            f"epoch {number}: {row['epoch_seconds']:.1f} s, report {row['report_seconds'] * 1e3:.0f} ms"
            f" (copy {row['copied_after'] * 1e3:.0f} ms), writer {row['writer_seconds'] * 1e3:.0f} ms CPU time"
        )
    # The last report is left out: it waits for its checkpoint, because no epoch follows.
    shares = [(row["report_seconds"] + row["writer_seconds"]) / row["epoch_seconds"] for row in rows[:-1]]
    share = statistics.median(shares)
    print(f"a checkpoint costs {share:.2%} of an epoch (report and writer)")
    if options.json:
        print_json({"share": share, "epochs": rows})


if __name__ == "__main__":
    run(main)
