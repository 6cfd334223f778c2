"""One running search: the objects that all of its steps share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

import ray

from dreamprvr_ray.data.collections import open_manifest
from dreamprvr_ray.data.locations import Locations, absolute_locations
from dreamprvr_ray.runtime.metrics import Gauges
from dreamprvr_ray.runtime.session import ray_session
from dreamprvr_ray.search.journal import prepare_journal
from dreamprvr_ray.search.layout import JOURNAL
from dreamprvr_ray.search.plan import TrialPlan, plan_trials
from dreamprvr_ray.search.preconditions import (
    check_directory,
    check_shared,
    check_state_api,
    claim_directory,
    with_shard_sizes,
)
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.search.working_copy import WorkingCopy, working_copy
from dreamprvr_ray.storage.location import Storage

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class SearchSession:
    """A search that has been checked and planned, connected to Ray, with its directory locked."""

    search: Search
    storage: Storage  # the search's directory
    shards: Locations  # absolute paths or URIs
    plan: TrialPlan
    copy: WorkingCopy
    gauges: Gauges
    log: Callable[[str], None]  # receives progress messages, one or more lines each
    owner: str | None = None  # of the trials: see `SearchIdentity`; by default the directory

    @property
    def computes_here(self) -> bool:
        """Whether this process's node has the resources of a trial's worker, so that `compute` needs no other."""
        driver_node = ray.get_runtime_context().get_node_id()
        resources = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == driver_node)
        group = self.plan.group
        return bool(
            resources.get("CPU", 0) >= group.cpus_per_worker and resources.get("GPU", 0) >= group.gpus_per_worker
        )

    def compute(self, function: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
        """Call a function in this process, or on another node if this one lacks the resources of a trial's worker."""
        if self.computes_here:
            return function(*arguments, **options)
        cpus, gpus = self.plan.group.cpus_per_worker, self.plan.group.gpus_per_worker
        try:
            task = ray.remote(num_cpus=cpus, num_gpus=gpus)(function)
            result: R = ray.get(task.remote(*arguments, **options))
            return result
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None


@contextmanager
def open_session(search: Search, *, resume: bool, log: Callable[[str], None]) -> Iterator[SearchSession]:
    """Check and plan a search, and hold its lock, its working copy and a connection to Ray for the length of the block.

    Raises `UserError` if the shards are missing, the directory is in use, or the search does not fit the cluster.
    """
    storage = Storage.of(search.settings.out)
    search = with_shard_sizes(search)
    manifest = open_manifest(search.settings.shards, log)
    check_directory(storage, search, resume=resume, manifest=manifest)
    with storage.lock() as lease, working_copy(storage, log, lease.check) as copy:
        # Again, since another command may have used the directory before it was locked.
        identity = check_directory(storage, search, resume=resume, manifest=manifest)
        if identity.name != search.name:
            log(f"{storage}: resuming the study '{identity.name}', as the search file was called when it was started")
        search = replace(search, name=identity.name)
        prepare_journal(copy.path, log)
        with ray_session(dashboard=True, log=log) as dashboard, Gauges(storage.name) as gauges:
            if dashboard:
                ray_command = Path(sys.executable).parent / "ray"
                log(f"Ray dashboard: {dashboard} (`{ray_command} get-auth-token` prints the token that it asks for)")
            plan = plan_trials(search, log)
            kind, runs = ("ablations", "trainings") if search.table.rows else ("search", "trials")
            log(f"{kind} {search.name}: {search.settings.trials} {runs}, {plan}")
            if plan.group.workers > 1:
                check_state_api()
            claim_directory(search, copy, identity)
            check_shared(storage)
            if storage.directory is None:
                log(f"the study while the search runs: {copy.path / JOURNAL}; uploaded to {storage}")
            shards = absolute_locations(search.settings.shards)
            yield SearchSession(search, storage, shards, plan, copy, gauges, log, identity.owner)
