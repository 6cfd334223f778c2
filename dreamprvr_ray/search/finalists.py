"""What follows a search: the best trials' values and the paper's, each trained anew with several seeds, tested once and compared.

OUT/final/trial_005-seed_1/  a training's directory    OUT/final.json  what came out
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import ray
import torch
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

import dreamprvr_ray
from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.data.cache import local_shards
from dreamprvr_ray.data.shards import Manifest
from dreamprvr_ray.errors import Failure, redact
from dreamprvr_ray.evaluation.test_record import recorded_ranks, recorded_test, test_once
from dreamprvr_ray.runtime.metrics import Gauges
from dreamprvr_ray.search.comparison import compare_on_test
from dreamprvr_ray.search.epoch_log import Records
from dreamprvr_ray.search.layout import CHECKPOINTS, FINAL, FINAL_RUNS
from dreamprvr_ray.search.plan import TrialPlan
from dreamprvr_ray.search.ray_tune import GO_ON, NO_MORE, StatelessSearcher, SyncCallback, TrialStarted, run_tuner
from dreamprvr_ray.search.results import Candidate, Comparison, FinalRecord, FinalResult, FinalRun, TrialRecord
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.search.trial import FAILURE, RUN, TRIAL_NUMBER, run_name
from dreamprvr_ray.search.working_copy import WorkingCopy
from dreamprvr_ray.storage.files import write_text
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.reporter import duration


def training_values(search: Search, candidate: Candidate, seed: int) -> dict[str, Any]:
    """The values by dotted key of one training of a candidate."""
    assert search.settings.final
    values = candidate.values | {"training.seed": seed}
    if search.settings.final.with_val:  # as long as val said is best, when it could still be asked
        values |= {"training.with_val": True, "training.epochs": candidate.best_epoch}
    return values


def candidates_of(search: Search, entries: Sequence[TrialRecord]) -> list[Candidate]:
    """The values to train anew: of the best trials, of those that were trained to their end if there are any, ablated, and the paper's.

    A key that has the paper's value anyway is not ablated.
    """
    assert search.settings.final
    others = [entry for entry in entries if entry.number != 0 and entry.best_sumr is not None]
    finished = [entry for entry in others if entry.state == "finished"] or others
    chosen = [
        Candidate(f"trial {entry.number}", entry.number, entry.values, entry.best_epoch or 1)
        for entry in finished[: search.settings.final.top]
    ]
    papers = search.experiment.flat()
    ablated = [
        replace(best, name=f"{best.name} with the paper's {key}", values=best.values | {key: papers[key]}, ablated=key)
        for best in chosen[:1]
        for key in search.settings.final.ablate
        if best.values.get(key, papers[key]) != papers[key]
    ]
    own = next(entry for entry in entries if entry.number == 0)
    return [
        *chosen,
        *ablated,
        Candidate("paper", 0, search.paper_setting, own.best_epoch or search.experiment.training.epochs),
    ]


def run_final(
    search: Search,
    candidates: Sequence[Candidate],
    trainable: Any,
    plan: TrialPlan,
    copy: WorkingCopy,
    gauges: Gauges,
    say: Callable[[str], None],
) -> list[Candidate]:
    """Trains every candidate with every seed, as many at a time as trials were; those that were trained before are left alone.

    Raises `Failure` where one cannot be trained.
    """
    assert search.settings.final
    left = set(search.settings.final.ablate) - {each.ablated for each in candidates}
    if left:
        say(f"final: not ablated, the best trial has the paper's value: {', '.join(sorted(left))}")
    jobs = {each.run_name(seed): (each, seed) for each in candidates for seed in range(search.settings.final.seeds)}
    runs = copy.storage / FINAL_RUNS
    waiting = [name for name in jobs if not _is_finished(runs / name)]
    if waiting:
        say(
            f"final: {len(waiting)} trainings of {', '.join(each.name for each in candidates)}, {plan.at_a_time} at a time"
        )
        values = [
            training_values(search, each, seed) | {TRIAL_NUMBER: each.trial, RUN: name}
            for name, (each, seed) in jobs.items()
        ]
        queue = FinalQueue(values, waiting)
        records = Records(copy.path / FINAL_RUNS, gauges)
        run_tuner(
            search,
            plan,
            trainable,
            queue,
            FinalScheduler(records, queue, say),
            [TrialStarted(records), SyncCallback(copy)],
            copy,
        )
        if queue.failures:
            raise Failure(
                f"{copy.storage}: " + "; ".join(f"{name} failed: {reason}" for name, reason in queue.failures.items())
            )
        if not all(_is_finished(runs / name) for name in jobs):
            raise KeyboardInterrupt
    return list(candidates)


def test_candidates(search: Search, candidates: Sequence[Candidate], trained: Storage, shards: str) -> FinalResult:
    """Evaluates the best checkpoint of every training in `trained` on test, unless that is recorded already."""
    assert search.settings.final
    tested, ranks = [], {}
    for each in candidates:
        runs = [_tested(trained / each.run_name(seed), seed, shards) for seed in range(search.settings.final.seeds)]
        tested.append(replace(each, runs=tuple(runs)))
        ranks[each.name] = np.array([recorded_ranks(final_checkpoint(trained, each, run)) for run in runs])
    if not search.settings.final.with_val:  # else it was learnt from: the search's order stands
        tested.sort(key=lambda each: -(each.val_mean or 0.0))
    owner = local_shards(shards).split("test").owner

    def against(one: Candidate, other: Candidate) -> Comparison:
        return compare_on_test(one.name, ranks[one.name], other.name, ranks[other.name], owner)

    paper = next(each for each in tested if each.name == "paper")
    found = next((each for each in tested if each is not paper), None)
    whole = {each.trial: each for each in tested if each.ablated is None}
    ablations = tuple(against(whole[each.trial], each) for each in tested if each.ablated is not None)
    return FinalResult(
        tuple(tested), against(found, paper) if found else None, ablations, search.settings.final.with_val
    )


def final_checkpoint(trained: Storage, candidate: Candidate, run: FinalRun) -> Storage:
    """The checkpoint of one of the trainings in `trained`."""
    assert run.seed is not None and run.best_epoch is not None
    return CheckpointStore(trained / candidate.run_name(run.seed) / CHECKPOINTS).at(run.best_epoch)


def write_final(result: FinalResult, manifest: Manifest, directory: Path) -> None:
    """Writes what came out into final.json, with what it takes to repeat it."""
    versions = {
        "dreamprvr_ray": dreamprvr_ray.__version__,
        "torch": torch.__version__,
        "ray": ray.__version__,
        "optuna": optuna.__version__,
        "python": platform.python_version(),
    }
    record = FinalRecord("test", manifest.collection, manifest.protocol, result, versions, (_command(),))
    write_text(directory / FINAL, json.dumps(record.to_dict(), indent=1, default=str) + "\n")


class FinalQueue(StatelessSearcher):
    """Hands out the trainings that wait, one after the other."""

    def __init__(self, jobs: Sequence[dict[str, Any]], waiting: Sequence[str]) -> None:
        super().__init__()
        self._jobs: Iterator[dict[str, Any]] = iter([job for job in jobs if job[RUN] in waiting])
        self._names: dict[str, str] = {}
        self.failures: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        job = next(self._jobs, None)
        if job is None:
            return NO_MORE
        self._names[trial_id] = job[RUN]
        return job

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if error:
            self.failures.setdefault(self._names[trial_id], "lost")
        elif result and FAILURE in result:
            self.failures[self._names[trial_id]] = result[FAILURE]


class FinalScheduler(FIFOScheduler):
    """Records every epoch, and says how each training ended."""

    def __init__(self, records: Records, queue: FinalQueue, say: Callable[[str], None]) -> None:
        super().__init__()
        self.records, self.queue, self.say = records, queue, say

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        if FAILURE not in result:
            name = run_name(trial.config)
            self.records.add(name, result, trial.config)
            if result["finished"]:
                took = duration(result["time_total_s"])
                self.say(
                    f"final: {name}: val SumR {result['best_SumR']:.1f} at epoch {result['best_epoch']} of {result['epoch']}, {took}"
                )
        return GO_ON

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        self.records.close(run_name(trial.config))

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        self.queue.failures[run_name(trial.config)] = str(trial.get_error() or "lost").strip().splitlines()[-1]
        self.records.close(run_name(trial.config))


def _is_finished(run: Storage) -> bool:
    """Whether a training was trained to its end; where it was tested, too, only its best checkpoint is left."""
    checkpoints = CheckpointStore(run / CHECKPOINTS)
    metrics = checkpoints.metrics()
    return metrics is not None and (
        metrics["finished"] or recorded_test(checkpoints.at(metrics["best_epoch"])) is not None
    )


def _tested(run: Storage, seed: int, shards: str) -> FinalRun:
    checkpoints = CheckpointStore(run / CHECKPOINTS)
    metrics = checkpoints.metrics()
    assert metrics is not None
    best = checkpoints.at(metrics["best_epoch"])
    test = test_once(best, shards)
    checkpoints.keep_only(metrics["best_epoch"])
    return FinalRun(seed, metrics["best_SumR"], metrics["best_epoch"], str(best), test)


def _command() -> str:
    return redact(" ".join(["python", "-m", "dreamprvr_ray.tune", *sys.argv[1:]]))
