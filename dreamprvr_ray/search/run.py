"""A whole search: Ray Tune and Optuna around the trials, then the best checkpoint, evaluated once on test.

A search's directory holds `search.yaml` (what decides its result), `optuna.journal` (the study, readable by Optuna's own tools),
`trials/` (Ray Tune's records), `runs/` (a directory a trial, laid out as a training's), `leaderboard.json`, and `best/`, the winner's
checkpoint.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray.tune
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.util.state import list_placement_groups

from dreamprvr_ray.checkpoints import copy_checkpoint, write_text
from dreamprvr_ray.config import parse_yaml
from dreamprvr_ray.data.cache import local_shards, read_manifest
from dreamprvr_ray.data.shards import Manifest
from dreamprvr_ray.errors import Failure, UserError
from dreamprvr_ray.loop import fitted
from dreamprvr_ray.ray_session import ray_session
from dreamprvr_ray.search.leaderboard import Entry, entries_of, write_leaderboard
from dreamprvr_ray.search.plan import TrialPlan, plan_trials
from dreamprvr_ray.search.progress import SearchProgress
from dreamprvr_ray.search.protocol import evaluate_checkpoint, recorded_test
from dreamprvr_ray.search.searcher import TruthfulOptunaSearch
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.search.trial import TrialJob, run_trial, trial_name
from dreamprvr_ray.storage import Storage, absolute
from dreamprvr_ray.workers import refuse_existing

JOURNAL = "optuna.journal"


@dataclass(frozen=True)
class Outcome:
    """A finished search: its trials, best first, the winner's checkpoint, and its evaluation on test."""

    entries: list[Entry]
    best: Path
    test: dict[str, Any]


def run_search(search: Search, *, resume: bool, say: Callable[[str], None]) -> Outcome:
    """Runs a search to its end, or goes on with a killed one.

    Raises `UserError` where the shards are missing or the directory is in the way, `KeyboardInterrupt` where it was interrupted.
    """
    out = Path(search.file.out).resolve()
    manifest = read_manifest(search.file.shards)
    _check(Storage.of(out), search, resume)
    with ray_session(dashboard=True) as dashboard:
        if dashboard:
            say(f"Ray dashboard: {dashboard} (it asks for a token, which `{Path(sys.executable).parent / 'ray'} get-auth-token` prints)")
        plan = plan_trials(search)
        say(f"search {search.name}: {search.file.trials} trials, {plan}")
        if plan.group.workers > 1:
            _check_state_api()
        write_text(out / "search.yaml", search.to_yaml())
        results = _tuner(search, manifest, plan, out).fit()
        study = optuna.load_study(study_name=search.name, storage=_storage(out))
        _close_lost_proposals(study)
        entries = entries_of(results, {trial.number: trial.params for trial in study.trials}, out / "runs")
    write_leaderboard(out / "leaderboard.json", entries)
    if len(entries) < search.file.trials or any(entry.state == "running" for entry in entries):
        raise KeyboardInterrupt
    winner = next((entry for entry in entries if entry.checkpoint), None)
    if winner is None or winner.checkpoint is None:
        reasons = {entry.error for entry in entries if entry.error}
        raise Failure(f"{out}: no trial left a checkpoint: " + "; ".join(sorted(reasons)))
    best = out / "best"
    test = recorded_test(best)
    if test is None:
        copy_checkpoint(Path(winner.checkpoint), best)
        write_text(best / "values.json", json.dumps(winner.values, indent=1) + "\n")
        test = evaluate_checkpoint(best, local_shards(search.file.shards), "test")
    return Outcome(entries, best, test)


def _tuner(search: Search, manifest: Manifest, plan: TrialPlan, out: Path) -> ray.tune.Tuner:
    experiment = fitted(search.experiment, manifest)
    job = TrialJob(experiment.model_dump(), absolute(search.file.shards), plan.group, str(out / "runs"))
    alone = plan.group.workers == 1
    # The driver of a nested run only waits: all CPUs are for its workers. Ray Tune wants it to ask for something.
    resources = {"CPU": plan.group.cpus_per_worker, "GPU": plan.group.gpus_per_worker} if alone else {"memory": 2**20}
    trainable = ray.tune.with_resources(ray.tune.with_parameters(run_trial, job=job), resources)
    state = out / "trials"
    if ray.tune.Tuner.can_restore(str(state)):
        (out / f"{JOURNAL}.lock").unlink(missing_ok=True)  # of a killed driver: Optuna would wait half a minute for it
        return ray.tune.Tuner.restore(str(state), trainable, resume_unfinished=True, restart_errored=False)
    (out / JOURNAL).unlink(missing_ok=True)  # of a run that was killed before Ray Tune's first snapshot
    shutil.rmtree(out / "runs", ignore_errors=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searcher = TruthfulOptunaSearch(
        search.suggest,
        metric="SumR",
        mode="max",
        points_to_evaluate=[search.paper_setting],
        sampler=optuna.samplers.TPESampler(seed=search.file.sampler.seed, n_startup_trials=search.file.sampler.startup_trials),
        study_name=search.name,
        storage=_storage(out),
    )
    return ray.tune.Tuner(
        trainable,
        tune_config=ray.tune.TuneConfig(
            num_samples=search.file.trials,
            max_concurrent_trials=plan.at_a_time,
            time_budget_s=search.file.hours and search.file.hours * 3600,
            reuse_actors=alone,
            search_alg=searcher,
            scheduler=_scheduler(search),
            trial_dirname_creator=lambda trial: trial_name(trial.config),
        ),
        run_config=ray.tune.RunConfig(
            name="trials",
            storage_path=str(out),
            verbose=0,
            callbacks=[SearchProgress(search.name, search.file.trials, [space.key for space in search.ranges])],
            checkpoint_config=ray.tune.CheckpointConfig(num_to_keep=1),
            # Once: Ray Tune cannot tell a lost machine from a trial whose values fail however often they are tried.
            failure_config=ray.tune.FailureConfig(max_failures=min(1, search.experiment.training.max_failures)),
        ),
    )


def _close_lost_proposals(study: optuna.Study) -> None:
    """Tells Optuna of proposals that a kill lost before Ray Tune had saved them: nothing is left to run."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)


def _storage(out: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(out / JOURNAL)))


def _scheduler(search: Search) -> TrialScheduler:
    pruning, epochs = search.file.pruning, search.experiment.training.epochs
    if not pruning.enabled or pruning.grace_epochs >= epochs:
        return FIFOScheduler()
    # One more than the epochs, or trials are stopped, and counted as pruned, when they finish.
    return ASHAScheduler(
        time_attr="epoch",
        metric="best_SumR",
        mode="max",
        max_t=epochs + 1,
        grace_period=pruning.grace_epochs,
        reduction_factor=pruning.reduction_factor,
    )


def _check(storage: Storage, search: Search, resume: bool) -> None:
    """Raises `UserError` unless `storage` is new, or with `resume` of the same search."""
    if not resume:
        refuse_existing(storage)
        return
    if not storage.exists("search.yaml"):
        raise UserError(f"{storage}: nothing to resume: it has no search.yaml")
    before, now = parse_yaml(storage.read_text("search.yaml"), f"{storage}/search.yaml"), parse_yaml(search.to_yaml(), "search")
    for part in ("experiment", "search"):
        for key in now[part]:
            if before[part].get(key) != now[part][key] and key not in ("out", "shards", "trial"):
                raise UserError(f"{storage}: cannot resume: {key} was {before[part].get(key)!r} and is {now[part][key]!r} now")


def _check_state_api() -> None:
    try:
        list_placement_groups(limit=1)
    except Exception as error:  # requests' types and Ray's own alike
        raise UserError(
            "trial.workers above 1 needs Ray's State API, without which trials that are stopped keep their resources for ever; it does not"
            f" answer: {str(error).splitlines()[0]}. Start the cluster with its dashboard, or use trial.workers=1"
        ) from None
