"""One trial: an experiment with the proposed values, trained where it runs.

A trial of one worker trains in its own process, which Ray keeps warm for the next one; a trial of several is a nested Ray Train run.
"""

from __future__ import annotations

import gc
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from dreamprvr_ray.checkpoint_store import CheckpointStore
from dreamprvr_ray.checkpoints import EXPERIMENT, METRICS, read_json
from dreamprvr_ray.config import Experiment
from dreamprvr_ray.data.cache import local_shards
from dreamprvr_ray.loop import fit
from dreamprvr_ray.reporter import EpochReport, Snapshot
from dreamprvr_ray.search.searcher import TRIAL_NUMBER
from dreamprvr_ray.storage import Storage
from dreamprvr_ray.workers import WorkerGroup, keep_checkpoint, run_config, run_group, train_worker


@dataclass(frozen=True)
class TrialJob:
    """What all trials of a search share."""

    experiment: dict[str, Any]
    shards: str
    group: WorkerGroup
    runs: str  # the directory in which each trial has one of its own, laid out as a training's


def trial_name(values: dict[str, Any]) -> str:
    """What a trial's directories and runs are called, from its values: trial_007."""
    return f"trial_{values[TRIAL_NUMBER]:03d}"


def number_of(name: str) -> int:
    """The number of the trial that is called `name`."""
    return int(name.removeprefix("trial_"))


def run_trial(values: dict[str, Any], job: TrialJob) -> None:
    """Ray Tune's function: trains the job's experiment with `values` by dotted key, from the trial's checkpoint if it has one."""
    settings = {key: value for key, value in values.items() if key != TRIAL_NUMBER}
    experiment = Experiment.model_validate(job.experiment).with_values(settings, trial_name(values))
    run = Storage(job.runs) / trial_name(values)
    run.write_text(EXPERIMENT, experiment.to_yaml())
    with CheckpointStore(run / "checkpoints").latest() as latest:
        ended = read_json(latest / METRICS) if latest else {}
    if ended.get("finished"):  # before a kill that Ray Tune's last snapshot did not see
        report_to_tune(ended)
        return
    if job.group.workers > 1:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"experiment": experiment.model_dump(), "shards": job.shards, "run": run.location},
            scaling_config=job.group.scaling(),
            torch_config=job.group.torch(),
            run_config=run_config(run.location, "ray", experiment, [TuneReportCallback()]),
        )
        run_group(trainer, run)
        return
    gc.collect()  # the process is kept for the next trial: give back what the one before held
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    torch.set_num_threads(max(1, int(job.group.cpus_per_worker)))
    fit(experiment, local_shards(job.shards), TuneReporter(CheckpointStore(run / "checkpoints")))


class TuneReporter:
    """Reports to Ray Tune, and keeps checkpoints."""

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store

    def latest_checkpoint(self) -> AbstractContextManager[Path | None]:
        return self.store.latest()

    def first_step(self) -> None:
        pass

    def report(self, report: EpochReport, snapshot: Snapshot) -> None:
        keep_checkpoint(self.store, report, snapshot)
        self.store.wait()  # the report may stop this trial, and with it what runs beside it
        report_to_tune(report.named())


def report_to_tune(metrics: dict[str, Any]) -> None:
    """Reports an epoch, with a checkpoint that holds nothing: without any, Ray Tune empties the records of a trial that it takes up again."""
    with tempfile.TemporaryDirectory(prefix="dreamprvr-trial-") as directory:
        tune.report(metrics, checkpoint=tune.Checkpoint(directory))
