"""A whole search: Ray Tune and Optuna around the trials, then what they found, trained anew or as it is, evaluated once on test.

A search's directory holds `search.yaml` (what decides its result), `optuna.journal` (the study, readable by Optuna's own tools),
`runs/` (a directory a trial, laid out as a training's), `leaderboard.json`, `final/` and `final.json` (`final`), and `best/`,
the winner's checkpoint. It may be on a disk, on a file system that all nodes share, or in an object store: see `working_copy`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import ray.tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_placement_groups

from dreamprvr_ray.checkpoints.checkpoint import METRICS
from dreamprvr_ray.data.cache import read_manifest
from dreamprvr_ray.errors import Failure, UserError, redact
from dreamprvr_ray.evaluation.test_record import test_once
from dreamprvr_ray.runtime.metrics import Gauges
from dreamprvr_ray.runtime.session import ray_session
from dreamprvr_ray.runtime.train_run import check_new
from dreamprvr_ray.search.candidates import choose_candidates
from dreamprvr_ray.search.epoch_log import Records
from dreamprvr_ray.search.final_evaluation import evaluate_candidates, final_checkpoint
from dreamprvr_ray.search.final_record import write_final_record
from dreamprvr_ray.search.finalists import retrain_candidates
from dreamprvr_ray.search.layout import BEST, FINAL_RUNS, JOURNAL, RUNS, SEARCH
from dreamprvr_ray.search.plan import TrialPlan, plan_trials
from dreamprvr_ray.search.progress import SearchProgress
from dreamprvr_ray.search.ray_tune import StudyScheduler, StudySearcher, SyncCallback, TrialStarted, run_tuner
from dreamprvr_ray.search.results import FinalResult, TrialRecord
from dreamprvr_ray.search.retention import Leaderboard
from dreamprvr_ray.search.settings import CHANGEABLE
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.search.study import SearchStudy, open_storage
from dreamprvr_ray.search.trial import SHARE, TrialJob, run_trial
from dreamprvr_ray.search.working_copy import WorkingCopy, working_copy
from dreamprvr_ray.storage.files import copy_files, write_text, writing
from dreamprvr_ray.storage.location import Storage, absolute
from dreamprvr_ray.training.loop import with_feature_sizes
from dreamprvr_ray.yaml_files import parse_yaml

Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome:
    """A finished search: its trials, best first, the final trainings if there were any, the winner's checkpoint and its evaluation on test."""

    entries: list[TrialRecord]
    final: FinalResult | None
    best: Storage
    test: dict[str, Any]


def run_search(search: Search, *, resume: bool, say: Callable[[str], None]) -> Outcome:
    """Runs a search to its end, or goes on with a killed one.

    Raises `UserError` where the shards are missing or the directory is in the way, `KeyboardInterrupt` where it was interrupted.
    """
    out, shards = Storage.of(search.settings.out), absolute(search.settings.shards)
    search = _with_feature_sizes(search)
    _check(out, search, resume)
    with (
        out.lock(),
        working_copy(out, say) as copy,
        ray_session(dashboard=True) as dashboard,
        Gauges(out.name) as gauges,
    ):
        if dashboard:
            say(
                f"Ray dashboard: {dashboard} (it asks for a token, which `{Path(sys.executable).parent / 'ray'} get-auth-token` prints)"
            )
        plan = plan_trials(search, say)
        say(f"search {search.name}: {search.settings.trials} trials, {plan}")
        if plan.group.workers > 1:
            _check_state_api()
        _check_store(
            search, copy.path
        )  # before anything is in a new search's directory: it would be in the way of the mended one
        write_text(copy.path / SEARCH, _recorded(search))
        copy.push()
        _check_shared(out)
        if out.directory is None:
            say(f"the study while it runs: {copy.path / JOURNAL}; kept in {out}")
        (copy.path / f"{JOURNAL}.lock").unlink(
            missing_ok=True
        )  # of a killed driver: Optuna would wait half a minute for it
        study = SearchStudy(search, copy.path, str(out))
        leaderboard = Leaderboard(study, search.settings.keep, out / RUNS)
        leaderboard.sweep()
        if not study.is_done():
            _run_trials(study, leaderboard, _trainable(search, plan, out, RUNS), plan, copy, gauges, say)
            leaderboard.sweep()
        entries = leaderboard.entries()
        if any(entry.state in ("running", "waiting") for entry in entries) or not (
            study.is_done() or search.settings.hours
        ):
            raise KeyboardInterrupt
        winner = next((entry for entry in entries if entry.checkpoint), None)
        kept = leaderboard.checkpoint(winner) if winner else None
        if winner is None or kept is None:
            reasons = sorted({entry.error for entry in entries if entry.error})
            raise Failure(f"{out}: no trial left a checkpoint: " + "; ".join(reasons))
        if search.settings.final is None:
            best = _keep_best(kept, winner.values, out)
            return Outcome(entries, None, best, _computed(plan, test_once, best, shards))
        candidates = choose_candidates(search, entries)
        retrain_candidates(search, candidates, _trainable(search, plan, out, FINAL_RUNS), plan, copy, gauges, say)
        final = _computed(plan, evaluate_candidates, search, candidates, out / FINAL_RUNS, shards)
        write_final_record(final, read_manifest(shards), copy.path)
        chosen = final_checkpoint(out / FINAL_RUNS, final.candidates[0], final.chosen)
        return Outcome(entries, final, _keep_best(chosen, final.candidates[0].values, out), final.chosen.test)


def _with_feature_sizes(search: Search) -> Search:
    """The search with its shards' feature sizes. Raises `UserError` where a choice does not go with them."""
    manifest = read_manifest(search.settings.shards)
    for parameter in search.parameters:
        for choice in parameter.choices or ():
            with_feature_sizes(search.experiment.with_values({parameter.key: choice}), manifest)
    return replace(search, experiment=with_feature_sizes(search.experiment, manifest))


def _trainable(search: Search, plan: TrialPlan, out: Storage, room: str) -> Any:
    """Ray Tune's function and what it gets, which may differ by trial."""
    group = plan.group
    job = TrialJob(
        search.experiment.model_dump(),
        absolute(search.settings.shards),
        group,
        out.location,
        room,
        search.settings.against == "encode_ms",
    )

    def resources(values: dict[str, Any]) -> ray.tune.PlacementGroupFactory:
        if group.workers > 1:
            # The driver of a nested run only waits: all CPUs are for its workers. Ray Tune wants it to ask for something.
            return ray.tune.PlacementGroupFactory([{"memory": 2**20}])
        share = values.get(SHARE, 1)
        cpus = min(share * group.cpus_per_worker, plan.max_cpus)
        return ray.tune.PlacementGroupFactory([{"CPU": cpus, "GPU": min(1.0, share * group.gpus_per_worker)}])

    trainable = ray.tune.with_parameters(run_trial, job=job)
    trainable.__name__ = f"{out.name}-trial"  # which the dashboard shows of its processes
    return ray.tune.with_resources(trainable, resources)


def _run_trials(
    study: SearchStudy,
    leaderboard: Leaderboard,
    trainable: Any,
    plan: TrialPlan,
    copy: WorkingCopy,
    gauges: Gauges,
    say: Callable[[str], None],
) -> None:
    def ended() -> None:
        if not copy.keep_up():  # else checkpoints would go that the study, as the store knows it, counts on
            return
        try:
            leaderboard.update()
        except UserError as error:  # of the store's
            say(f"{error}; tried again when the next trial ends")
        copy.keep_up()

    searcher = StudySearcher(study, say, ended, plan.can_have_more)
    records = Records(copy.path / RUNS, gauges)
    progress = SearchProgress(study, say, gauges, lambda: leaderboard.kept_bytes)
    run_tuner(
        study.search,
        plan,
        trainable,
        searcher,
        StudyScheduler(study, records, searcher),
        [progress, TrialStarted(records), SyncCallback(copy)],
        copy,
    )
    if searcher.store_lost:
        raise Failure(f"{searcher.store_lost}; go on with --resume when it does")


def _computed(plan: TrialPlan, compute: Callable[..., Result], *arguments: Any) -> Result:
    """What `compute` returns, called in this process or, where this node has not what a trial's worker gets, on one that has."""
    here = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id())
    cpus, gpus = plan.group.cpus_per_worker, plan.group.gpus_per_worker
    if here.get("CPU", 0) >= cpus and here.get("GPU", 0) >= gpus:
        return compute(*arguments)
    try:
        result: Result = ray.get(ray.remote(num_cpus=cpus, num_gpus=gpus)(compute).remote(*arguments))
        return result
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _keep_best(checkpoint: Storage, values: dict[str, Any], out: Storage) -> Storage:
    """Copies the chosen checkpoint to OUT/best; one that is there already stays, with what is recorded beside it."""
    best = out / BEST
    if best.exists(METRICS) and best.read_text(METRICS) == checkpoint.read_text(METRICS):
        return best
    with checkpoint.local_directory() as source:

        def write(directory: Path) -> None:
            copy_files(source, directory)
            write_text(directory / "values.json", json.dumps(values, indent=1) + "\n")

        out.delete_directory(BEST, first=METRICS)  # with what is recorded of another checkpoint
        out.write_directory(BEST, write, last=METRICS)
    return best


def _recorded(search: Search) -> str:
    """What search.yaml holds: no keys that stand in the locations, which may change."""
    settings = search.settings.model_copy(
        update={"out": redact(search.settings.out), "shards": redact(search.settings.shards)}
    )
    return replace(search, settings=settings).to_yaml()


def _check_shared(out: Storage) -> None:
    """Raises `UserError` where another node that may run trials does not see a directory on this one's disk; a trial asks again."""
    if out.directory is None:
        return
    here = ray.get_runtime_context().get_node_id()
    others = [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU") and node["NodeID"] != here
    ]
    on_each = [NodeAffinitySchedulingStrategy(node, soft=False) for node in others]
    check = ray.remote(num_cpus=0)(Storage.check_visible)
    try:
        ray.get([check.options(scheduling_strategy=node).remote(out, SEARCH) for node in on_each])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _check(storage: Storage, search: Search, resume: bool) -> None:
    """Raises `UserError` unless `storage` is new, or with `resume` of the same search."""
    if not resume:
        check_new(storage)
        return
    if not storage.exists(SEARCH):
        raise UserError(f"{storage}: nothing to resume: it has no {SEARCH}")
    before, now = parse_yaml(storage.read_text(SEARCH), f"{storage}/{SEARCH}"), parse_yaml(search.to_yaml(), "search")
    kept = [
        (key, before[part].get(key), now[part][key])
        for part in ("experiment", "search")
        for key in now[part]
        if key not in CHANGEABLE
    ]
    if changes := [change for key, was, value in kept for change in _changes(key, was, value)]:
        raise UserError(*(redact(f"{storage}: cannot resume: {change}") for change in changes))


def _changes(key: str, was: Any, now: Any) -> list[str]:
    """What differs of a key's value, a line each; of a section or a space, what differs in it."""
    if isinstance(was, dict) and isinstance(now, dict):
        return [change for inner in was | now for change in _changes(f"{key}: {inner}", was.get(inner), now.get(inner))]
    return [] if was == now else [f"{key} was {was!r} and is {now!r} now"]


def _check_store(search: Search, directory: Path) -> None:
    """Raises `UserError` where the search's database cannot be used."""
    if search.settings.store is not None:
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)  # the database may be a file in it
        open_storage(search.settings.store, directory)


def _check_state_api() -> None:
    try:
        list_placement_groups(limit=1)
    except Exception as error:  # requests' types and Ray's own alike
        raise UserError(
            "trial.workers above 1 needs Ray's State API, without which trials that are stopped keep their resources for ever; it does not"
            f" answer: {str(error).splitlines()[0]}. Start the cluster with its dashboard, or use trial.workers=1"
        ) from None
