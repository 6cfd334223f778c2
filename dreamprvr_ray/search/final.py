"""What follows a search: the best trials' values and the paper's, each trained anew with several seeds, tested once and compared.

OUT/final/trial_005-seed_1/  a training's directory    OUT/final.json  what came out
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
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
from dreamprvr_ray.checkpoint_store import CheckpointStore
from dreamprvr_ray.checkpoints import write_text
from dreamprvr_ray.data.cache import local_shards
from dreamprvr_ray.data.shards import Manifest
from dreamprvr_ray.errors import Failure, shown
from dreamprvr_ray.monitoring import Gauges
from dreamprvr_ray.reporter import duration
from dreamprvr_ray.retrieval import RECALL_RANKS
from dreamprvr_ray.search.layout import CHECKPOINTS, FINAL, FINAL_RUNS, trial_name
from dreamprvr_ray.search.leaderboard import Entry
from dreamprvr_ray.search.plan import TrialPlan
from dreamprvr_ray.search.protocol import recorded_ranks, recorded_test, test_once
from dreamprvr_ray.search.records import Records
from dreamprvr_ray.search.searcher import GO_ON, NO_MORE, Began, KeepUp, StatelessSearcher
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.search.trial import FAILURE, RUN, TRIAL_NUMBER, run_name
from dreamprvr_ray.search.tuner import run_tuner
from dreamprvr_ray.search.working_copy import WorkingCopy
from dreamprvr_ray.storage import Storage

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class FinalRun:
    """One training of a candidate: what val chose, and the one reading of test. SumR in percent, summed over four ranks."""

    seed: int
    val_SumR: float
    best_epoch: int
    checkpoint: str
    test: dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """Values that were trained with several seeds; `mean` and `std` are of test SumR over the seeds."""

    name: str  # "trial 5", "trial 5 with the paper's model.registers", or "paper"
    trial: int
    values: dict[str, Any]
    best_epoch: int  # of its trial in the search
    runs: list[FinalRun] = field(default_factory=list)
    mean: float = float("nan")
    std: float = float("nan")
    ablated: str | None = None  # the one key whose value is the paper's in place of the trial's

    @property
    def val_mean(self) -> float:
        """Mean over the seeds of the best val SumR: what chooses among candidates."""
        return float(np.mean([run.val_SumR for run in self.runs]))


@dataclass(frozen=True)
class Comparison:
    """By how much test SumR of one candidate exceeds another's, and the interval that resampled videos and seeds leave for it."""

    better: str
    than: str
    difference: float
    interval: tuple[float, float]
    confidence: float = CONFIDENCE
    resamples: int = RESAMPLES


@dataclass(frozen=True)
class FinalResult:
    """All candidates, the one that val chose first.

    `comparison` is of the best one found with the paper's setting, None where none was; `ablations` are of a trial with itself, ablated.
    """

    candidates: list[Candidate]
    comparison: Comparison | None
    ablations: list[Comparison] = field(default_factory=list)
    with_val: bool = False  # val was learnt from: its SumR says nothing

    @property
    def chosen(self) -> FinalRun:
        """The first candidate's best training by val; its first one where val was learnt from."""
        runs = self.candidates[0].runs
        return runs[0] if self.with_val else max(runs, key=lambda run: run.val_SumR)

    def lines(self) -> list[str]:
        """For a person."""
        lines = []
        for each in self.candidates:
            seeds = f"{len(each.runs)} seeds" if len(each.runs) > 1 else "1 seed"
            val = "trained on val too" if self.with_val else f"val {each.val_mean:.1f}"
            lines.append(f"{each.name}: test SumR {each.mean:.1f} (standard deviation {each.std:.1f}, {seeds}), {val}")
        for told in ([self.comparison] if self.comparison else []) + self.ablations:
            low, high = told.interval
            lines.append(
                f"{told.better} against {told.than}: {told.difference:+.1f} test SumR"
                f" ({told.confidence:.0%} interval {low:+.1f} to {high:+.1f}, videos and seeds resampled)"
            )
        if self.candidates[0].name == "paper" and not self.with_val:
            lines.append("val prefers the paper's setting to what the search found")
        return lines

    def named(self) -> dict[str, Any]:
        """By the names of `final.json`."""
        return {
            "candidates": [asdict(each) for each in self.candidates],
            "comparison": asdict(self.comparison) if self.comparison else None,
            "ablations": [asdict(each) for each in self.ablations],
        }


def training_values(search: Search, candidate: Candidate, seed: int) -> dict[str, Any]:
    """The values by dotted key of one training of a candidate."""
    assert search.file.final
    values = candidate.values | {"training.seed": seed}
    if search.file.final.with_val:  # as long as val said is best, when it could still be asked
        values |= {"training.with_val": True, "training.epochs": candidate.best_epoch}
    return values


def candidates_of(search: Search, entries: Sequence[Entry]) -> list[Candidate]:
    """The values to train anew: of the best trials, of those that were trained to their end if there are any, ablated, and the paper's.

    A key that has the paper's value anyway is not ablated.
    """
    assert search.file.final
    others = [entry for entry in entries if entry.number != 0 and entry.best_sumr is not None]
    finished = [entry for entry in others if entry.state == "finished"] or others
    chosen = [Candidate(f"trial {entry.number}", entry.number, entry.values, entry.best_epoch or 1) for entry in finished[: search.file.final.top]]
    papers = search.experiment.flat()
    ablated = [
        replace(best, name=f"{best.name} with the paper's {key}", values=best.values | {key: papers[key]}, ablated=key)
        for best in chosen[:1]
        for key in search.file.final.ablate
        if best.values.get(key, papers[key]) != papers[key]
    ]
    own = next(entry for entry in entries if entry.number == 0)
    return [*chosen, *ablated, Candidate("paper", 0, search.paper_setting, own.best_epoch or search.experiment.training.epochs)]


def run_final(
    search: Search, candidates: Sequence[Candidate], trainable: Any, plan: TrialPlan, copy: WorkingCopy, gauges: Gauges, say: Callable[[str], None]
) -> list[Candidate]:
    """Trains every candidate with every seed, as many at a time as trials were; those that were trained before are left alone.

    Raises `Failure` where one cannot be trained.
    """
    assert search.file.final
    left = set(search.file.final.ablate) - {each.ablated for each in candidates}
    if left:
        say(f"final: not ablated, the best trial has the paper's value: {', '.join(sorted(left))}")
    jobs = {_run_name(each, seed): (each, seed) for each in candidates for seed in range(search.file.final.seeds)}
    runs = copy.storage / FINAL_RUNS
    waiting = [name for name in jobs if not _is_finished(runs / name)]
    if waiting:
        say(f"final: {len(waiting)} trainings of {', '.join(each.name for each in candidates)}, {plan.at_a_time} at a time")
        values = [training_values(search, each, seed) | {TRIAL_NUMBER: each.trial, RUN: name} for name, (each, seed) in jobs.items()]
        queue = FinalQueue(values, waiting)
        records = Records(copy.path / FINAL_RUNS, gauges)
        run_tuner(search, plan, trainable, queue, FinalScheduler(records, queue, say), [Began(records), KeepUp(copy)], copy)
        if queue.failures:
            raise Failure(f"{copy.storage}: " + "; ".join(f"{name} failed: {reason}" for name, reason in queue.failures.items()))
        if not all(_is_finished(runs / name) for name in jobs):
            raise KeyboardInterrupt
    return list(candidates)


def test_candidates(search: Search, candidates: Sequence[Candidate], trained: Storage, shards: str) -> FinalResult:
    """Evaluates the best checkpoint of every training in `trained` on test, unless that is recorded already."""
    assert search.file.final
    tested, ranks = [], {}
    for each in candidates:
        runs = [_tested(trained / _run_name(each, seed), seed, shards) for seed in range(search.file.final.seeds)]
        sumr = [run.test["SumR"] for run in runs]
        std = float(np.std(sumr, ddof=1)) if len(sumr) > 1 else float("nan")
        tested.append(replace(each, runs=runs, mean=float(np.mean(sumr)), std=std))
        ranks[each.name] = np.array([recorded_ranks(final_checkpoint(trained, each, run)) for run in runs])
    if not search.file.final.with_val:  # else it was learnt from: the search's order stands
        tested.sort(key=lambda each: -each.val_mean)
    owner = local_shards(shards).split("test").owner

    def against(one: Candidate, other: Candidate) -> Comparison:
        return compared(one.name, ranks[one.name], other.name, ranks[other.name], owner)

    paper = next(each for each in tested if each.name == "paper")
    found = next((each for each in tested if each is not paper), None)
    whole = {each.trial: each for each in tested if each.ablated is None}
    ablations = [against(whole[each.trial], each) for each in tested if each.ablated is not None]
    return FinalResult(tested, against(found, paper) if found else None, ablations, search.file.final.with_val)


def final_checkpoint(trained: Storage, candidate: Candidate, run: FinalRun) -> Storage:
    """The checkpoint of one of the trainings in `trained`."""
    return CheckpointStore(trained / _run_name(candidate, run.seed) / CHECKPOINTS).at(run.best_epoch)


def write_final(result: FinalResult, manifest: Manifest, directory: Path) -> None:
    """Writes what came out into final.json, with what it takes to repeat it."""
    values = {"split": "test", "collection": manifest.collection, "protocol": manifest.protocol} | result.named()
    versions = {
        "dreamprvr_ray": dreamprvr_ray.__version__,
        "torch": torch.__version__,
        "ray": ray.__version__,
        "optuna": optuna.__version__,
        "python": platform.python_version(),
    }
    write_text(directory / FINAL, json.dumps(values | {"versions": versions, "commands": [_command()]}, indent=1, default=str) + "\n")


def compared(better: str, ranks: np.ndarray, than: str, other_ranks: np.ndarray, owner: np.ndarray) -> Comparison:
    """A paired bootstrap of the difference in SumR: ranks are (seeds, Q), `owner` (Q,) each query's video.

    A resample draws videos with all their queries, since queries of one video are not independent, and seeds; both sides get the same.
    """
    random = np.random.default_rng(0)
    hits = [(ranks <= k).astype(float) - (other_ranks <= k) for k in RECALL_RANKS]
    gained = 100.0 * np.sum(hits, axis=0)  # (seeds, Q)
    videos = int(owner.max()) + 1
    by_video = np.stack([np.bincount(owner, weights=row, minlength=videos) for row in gained])  # (seeds, V)
    queries = np.bincount(owner, minlength=videos)
    seeds = len(gained)
    differences = []
    for _ in range(RESAMPLES // 1000):
        drawn = random.multinomial(videos, np.full(videos, 1 / videos), 1000)  # how often each video is drawn
        drawn_seeds = random.multinomial(seeds, np.full(seeds, 1 / seeds), 1000)
        differences.append((drawn @ by_video.T * drawn_seeds).sum(1) / seeds / (drawn @ queries))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.concatenate(differences), [tail, 100 - tail])
    return Comparison(better, than, float(gained.mean()), (float(low), float(high)))


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
                self.say(f"final: {name}: val SumR {result['best_SumR']:.1f} at epoch {result['best_epoch']} of {result['epoch']}, {took}")
        return GO_ON

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        self.records.close(run_name(trial.config))

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        self.queue.failures[run_name(trial.config)] = str(trial.get_error() or "lost").strip().splitlines()[-1]
        self.records.close(run_name(trial.config))


def _run_name(candidate: Candidate, seed: int) -> str:
    name = "paper" if candidate.name == "paper" else trial_name(candidate.trial)
    return f"{name}{f'-paper_{candidate.ablated}' if candidate.ablated else ''}-seed_{seed}"


def _is_finished(run: Storage) -> bool:
    """Whether a training was trained to its end; where it was tested, too, only its best checkpoint is left."""
    checkpoints = CheckpointStore(run / CHECKPOINTS)
    metrics = checkpoints.metrics()
    return metrics is not None and (metrics["finished"] or recorded_test(checkpoints.at(metrics["best_epoch"])) is not None)


def _tested(run: Storage, seed: int, shards: str) -> FinalRun:
    checkpoints = CheckpointStore(run / CHECKPOINTS)
    metrics = checkpoints.metrics()
    assert metrics is not None
    best = checkpoints.at(metrics["best_epoch"])
    test = test_once(best, shards)
    checkpoints.keep_only(metrics["best_epoch"])
    return FinalRun(seed, metrics["best_SumR"], metrics["best_epoch"], str(best), test)


def _command() -> str:
    return shown(" ".join(["python", "-m", "dreamprvr_ray.tune", *sys.argv[1:]]))
