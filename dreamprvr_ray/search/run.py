"""A whole search: Ray Tune and Optuna around the trials, then what they found, trained anew or as it is, evaluated once on test.

A search's directory holds `search.yaml` (what decides its result), `optuna.journal` (the study, readable by Optuna's own tools),
`runs/` (a directory a trial, laid out as a training's), `leaderboard.json`, `final/` and `final.json` (`final`), `best/`, the winner's
checkpoint, and `ray/` (Ray Tune's own records of each time that the search was taken up; nothing is read from them).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray.tune
from ray.util.state import list_placement_groups

from dreamprvr_ray.checkpoints import METRICS, copy_checkpoint, read_json, write_text
from dreamprvr_ray.config import parse_yaml
from dreamprvr_ray.data.cache import local_shards, read_manifest
from dreamprvr_ray.errors import Failure, UserError
from dreamprvr_ray.loop import fitted
from dreamprvr_ray.ray_session import ray_session
from dreamprvr_ray.search.final import FinalResult, candidates_of, run_final, test_candidates
from dreamprvr_ray.search.layout import JOURNAL, RUNS
from dreamprvr_ray.search.leaderboard import Entry, Leaderboard
from dreamprvr_ray.search.plan import TrialPlan, plan_trials
from dreamprvr_ray.search.progress import SearchProgress
from dreamprvr_ray.search.protocol import evaluate_checkpoint, recorded_test
from dreamprvr_ray.search.records import Records
from dreamprvr_ray.search.searcher import StudyScheduler, StudySearcher, quiet_tune
from dreamprvr_ray.search.space import CHANGEABLE, Search
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.search.trial import SHARE, TrialJob, run_name, run_trial
from dreamprvr_ray.storage import Storage, absolute
from dreamprvr_ray.workers import refuse_existing


@dataclass(frozen=True)
class Outcome:
    """A finished search: its trials, best first, the final trainings if there were any, the winner's checkpoint and its evaluation on test."""

    entries: list[Entry]
    final: FinalResult | None
    best: Path
    test: dict[str, Any]


def run_search(search: Search, *, resume: bool, say: Callable[[str], None]) -> Outcome:
    """Runs a search to its end, or goes on with a killed one.

    Raises `UserError` where the shards are missing or the directory is in the way, `KeyboardInterrupt` where it was interrupted.
    """
    out = Path(search.file.out).resolve()
    search = replace(search, experiment=fitted(search.experiment, read_manifest(search.file.shards)))
    _check(Storage.of(out), search, resume)
    with ray_session(dashboard=True) as dashboard:
        if dashboard:
            say(f"Ray dashboard: {dashboard} (it asks for a token, which `{Path(sys.executable).parent / 'ray'} get-auth-token` prints)")
        plan = plan_trials(search)
        say(f"search {search.name}: {search.file.trials} trials, {plan}")
        if plan.group.workers > 1:
            _check_state_api()
        write_text(out / "search.yaml", search.to_yaml())
        (out / f"{JOURNAL}.lock").unlink(missing_ok=True)  # of a killed driver: Optuna would wait half a minute for it
        study = SearchStudy(search, out)
        leaderboard = Leaderboard(study, search.file.keep)
        leaderboard.sweep()
        if not study.is_done():
            _run_trials(study, leaderboard, _trainable(search, plan, out / RUNS), plan, say)
            leaderboard.sweep()
        entries = leaderboard.entries()
        if any(entry.state in ("running", "waiting") for entry in entries) or not (study.is_done() or search.file.hours):
            raise KeyboardInterrupt
        winner = next((entry for entry in entries if entry.checkpoint), None)
        if winner is None or winner.checkpoint is None:
            reasons = sorted({entry.error for entry in entries if entry.error})
            raise Failure(f"{out}: no trial left a checkpoint: " + "; ".join(reasons))
        if search.file.final is None:
            best = _keep_best(Path(winner.checkpoint), winner.values, out)
            return Outcome(entries, None, best, recorded_test(best) or evaluate_checkpoint(best, local_shards(search.file.shards), "test"))
        trained = run_final(search, candidates_of(search, entries), _trainable(search, plan, out / "final"), plan, out, say)
    final = test_candidates(search, trained, out, local_shards(search.file.shards))
    chosen = final.chosen
    return Outcome(entries, final, _keep_best(Path(chosen.checkpoint), final.candidates[0].values, out), chosen.test)


def _trainable(search: Search, plan: TrialPlan, runs: Path) -> Any:
    """Ray Tune's function and what it gets, which may differ by trial."""
    group = plan.group
    job = TrialJob(search.experiment.model_dump(), absolute(search.file.shards), group, str(runs), search.file.against == "encode_ms")

    def resources(values: dict[str, Any]) -> ray.tune.PlacementGroupFactory:
        if group.workers > 1:
            # The driver of a nested run only waits: all CPUs are for its workers. Ray Tune wants it to ask for something.
            return ray.tune.PlacementGroupFactory([{"memory": 2**20}])
        share = values.get(SHARE, 1)
        cpus = min(share * group.cpus_per_worker, ray.cluster_resources()["CPU"])
        return ray.tune.PlacementGroupFactory([{"CPU": cpus, "GPU": min(1.0, share * group.gpus_per_worker)}])

    return ray.tune.with_resources(ray.tune.with_parameters(run_trial, job=job), resources)


def _run_trials(study: SearchStudy, leaderboard: Leaderboard, trainable: Any, plan: TrialPlan, say: Callable[[str], None]) -> None:
    searcher = StudySearcher(study, say, leaderboard.update, plan.can_have_more)
    quiet_tune()
    sessions = study.out / "ray"
    ray.tune.Tuner(
        trainable,
        tune_config=ray.tune.TuneConfig(
            num_samples=-1,  # the study says when there are enough
            max_concurrent_trials=plan.at_a_time,
            reuse_actors=plan.group.workers == 1,
            search_alg=searcher,
            scheduler=StudyScheduler(study, Records(leaderboard.runs), searcher),
            trial_dirname_creator=lambda trial: run_name(trial.config),
        ),
        run_config=ray.tune.RunConfig(
            name=f"session_{len(list(sessions.glob('session_*'))) + 1}",
            storage_path=str(sessions),
            verbose=0,
            callbacks=[SearchProgress(study, say)],
            failure_config=ray.tune.FailureConfig(max_failures=study.search.experiment.training.max_failures),
        ),
    ).fit()


def _keep_best(checkpoint: Path, values: dict[str, Any], out: Path) -> Path:
    """Copies the chosen checkpoint to OUT/best; one that is there already stays, with what is recorded beside it."""
    best = out / "best"
    if not best.exists() or read_json(best / METRICS) != read_json(checkpoint / METRICS):
        copy_checkpoint(checkpoint, best)
        write_text(best / "values.json", json.dumps(values, indent=1) + "\n")
    return best


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
            if before[part].get(key) != now[part][key] and key not in CHANGEABLE:
                raise UserError(f"{storage}: cannot resume: {key} was {before[part].get(key)!r} and is {now[part][key]!r} now")


def _check_state_api() -> None:
    try:
        list_placement_groups(limit=1)
    except Exception as error:  # requests' types and Ray's own alike
        raise UserError(
            "trial.workers above 1 needs Ray's State API, without which trials that are stopped keep their resources for ever; it does not"
            f" answer: {str(error).splitlines()[0]}. Start the cluster with its dashboard, or use trial.workers=1"
        ) from None
