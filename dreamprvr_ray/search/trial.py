"""One trial: an experiment with the proposed values, trained where it runs.

A trial of one worker trains in its own process, which Ray keeps warm for the next one; a trial of several is a nested Ray Train run.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from dreamprvr_ray.config import Experiment
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.loop import fit
from dreamprvr_ray.reporter import EpochReport
from dreamprvr_ray.search.searcher import TRIAL_NUMBER
from dreamprvr_ray.workers import WorkerGroup, run_config, train_worker


@dataclass(frozen=True)
class TrialJob:
    """What all trials of a search share."""

    experiment: dict[str, Any]
    shards: str
    group: WorkerGroup
    nested_runs: str  # where the Ray Train runs of trials of several workers keep their checkpoints


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
    if job.group.workers > 1:
        _train_nested(experiment, job, trial_name(values))
        return
    gc.collect()  # the process is kept for the next trial: give back what the one before held
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    torch.set_num_threads(max(1, int(job.group.cpus_per_worker)))
    fit(experiment, ShardSet.open(Path(job.shards)), TuneReporter())


def _train_nested(experiment: Experiment, job: TrialJob, name: str) -> None:
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"experiment": experiment.model_dump(), "shards": job.shards},
        scaling_config=job.group.scaling(),
        torch_config=TorchConfig(backend="nccl" if job.group.gpus_per_worker else "gloo"),
        run_config=run_config(Path(job.nested_runs), name, [TuneReportCallback()]),
    )
    trainer.fit()


class TuneReporter:
    """Reports to Ray Tune, with a checkpoint an epoch."""

    @contextmanager
    def latest_checkpoint(self) -> Iterator[Path | None]:
        checkpoint = tune.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as directory:
            yield Path(directory)

    def report(self, report: EpochReport, write: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory(prefix="dreamprvr-checkpoint-") as directory:
            write(Path(directory))
            tune.report(report.named(), checkpoint=tune.Checkpoint(directory))
