"""The runs of the final stage: which training each one is, and in which directory it lies. Imports no Ray.

A run's directory is named after its candidate and seed, such as `OUT/final/trial_005-seed_1`. That a directory exists
says nothing about how its model was trained: `final.with_val`, for example, is not part of the name. A run is therefore
recognized by the configuration that its checkpoint records. If the directory holds another training, the run gets its
own directory, such as `trial_005-seed_1-version_2`; nothing is overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from dreamprvr_ray.checkpoints.checkpoint import EXPERIMENT, METRICS
from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.config import Experiment, build_experiment
from dreamprvr_ray.data.manifest import Manifest
from dreamprvr_ray.data.shards_record import shard_changes
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.test_record import recorded_test
from dreamprvr_ray.search.candidates import final_settings, run_values
from dreamprvr_ray.search.final_result import Candidate
from dreamprvr_ray.search.layout import CHECKPOINTS
from dreamprvr_ray.search.messages import TrialRequest
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.reporter import latest_result
from dreamprvr_ray.yaml_files import parse_yaml


@dataclass(frozen=True)
class PlannedRun:
    """One training of a candidate. `request.run` is the name of its directory."""

    candidate: str  # its name
    seed: int
    request: TrialRequest


def plan_runs(
    search: Search,
    candidates: Sequence[Candidate],
    manifest: Manifest,
    final_runs: Storage,
    log: Callable[[str], None],
) -> list[PlannedRun]:
    """Return a run for each candidate and seed, in a directory of `final_runs` that holds no other training.

    `manifest` is that of the shards to train on.

    The seeds are those that no trial has. Version 0.1.0 used others: a final stage that it finished is kept, and a
    message tells that its comparison is biased.
    """
    earlier_seeds = range(final_settings(search).seeds)
    earlier = _planned(search, candidates, earlier_seeds)
    own = _planned(search, candidates, search.final_seeds)

    def directory(run: PlannedRun) -> Storage:
        return final_runs / run.request.run

    def are_trained(runs: Sequence[PlannedRun]) -> bool:
        return all(
            is_trained(directory(run)) and not differences(directory(run), _experiment(search, run), manifest)
            for run in runs
        )

    if not are_trained(own) and are_trained(earlier):
        shared = ", ".join(str(seed) for seed in earlier_seeds if seed not in search.final_seeds)
        log(
            f"final: keeping the runs of an earlier version, which share seed {shared} with the search: the comparison"
            " favours the trial that the search selected; for an unbiased one, delete the runs with this seed in"
            f" {final_runs} and use --resume"
        )
        return earlier
    return [with_directory(run, _experiment(search, run), manifest, final_runs, log) for run in own]


def is_trained(run: Storage) -> bool:
    """Return whether a run has finished. A run that was tested has, although only its best checkpoint is left."""
    checkpoints = CheckpointStore(run / CHECKPOINTS)
    latest = latest_result(checkpoints)
    return latest is not None and (latest.finished or recorded_test(checkpoints.at(latest.best_epoch)) is not None)


def differences(run: Storage, experiment: Experiment, manifest: Manifest) -> list[str]:
    """Return in which settings the training that a directory holds differs, and in which shards, one line each.

    It is compared with a training of `experiment` on the shards with this manifest. An empty directory does not differ.
    """
    store = CheckpointStore(run / CHECKPOINTS)
    epochs = store.epochs()
    # The checkpoint knows what was trained. Version 0.1.0 may have rewritten the run's own file afterwards.
    holder = store.at(epochs[-1]) if epochs else run
    if not holder.exists(EXPERIMENT):
        return []
    where = f"{holder}/{EXPERIMENT}"
    if experiment.model.hidden_size == 0:  # what was trained has a number
        experiment = experiment.with_feature_sizes(manifest.video_size, manifest.text_size, where)
    try:
        recorded = build_experiment(parse_yaml(holder.read_text(EXPERIMENT), where), where)
    except UserError:
        return [f"{where} cannot be read"]
    try:
        metrics = store.metrics() if epochs else None
        shards = shard_changes(metrics, manifest) if metrics else []
    except (UserError, ValueError):
        return [f"{holder}/{METRICS} cannot be read"]
    return experiment.changes_from(recorded) + shards


def _planned(search: Search, candidates: Sequence[Candidate], seeds: Sequence[int]) -> list[PlannedRun]:
    runs = []
    for candidate in candidates:
        assert candidate.trial is not None
        for seed in seeds:
            values = run_values(search, candidate, seed)
            request = TrialRequest(candidate.trial, candidate.share, candidate.run_name(seed), values)
            runs.append(PlannedRun(candidate.name, seed, request))
    return runs


def _experiment(search: Search, run: PlannedRun) -> Experiment:
    return search.experiment.with_values(run.request.values, run.request.run)


def with_directory(
    run: PlannedRun, experiment: Experiment, manifest: Manifest, final_runs: Storage, log: Callable[[str], None]
) -> PlannedRun:
    """Return the run with the first directory of its name that is free or holds this very training."""
    for version in count(1):
        name = run.request.run if version == 1 else f"{run.request.run}-version_{version}"
        changes = differences(final_runs / name, experiment, manifest)
        if not changes:
            break
        log(f"final: {name} holds another training, which is left as it is: {'; '.join(changes)}")
    return PlannedRun(run.candidate, run.seed, _renamed(run.request, name))


def _renamed(request: TrialRequest, run: str) -> TrialRequest:
    return TrialRequest(request.number, request.share, run, request.values)
