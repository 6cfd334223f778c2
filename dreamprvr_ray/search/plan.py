"""What a search will do before it does anything: how the machines are divided among trials, and what a trial costs."""

from __future__ import annotations

from dataclasses import dataclass

import ray

from dreamprvr_ray.cost import Cost, estimate
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.workers import WorkerGroup, plan_group

MOST_AT_A_TIME = 4  # more trials at a time, and the sampler proposes them knowing too little


@dataclass(frozen=True)
class TrialPlan:
    """What each trial gets, and how many run at a time."""

    group: WorkerGroup
    at_a_time: int

    def __str__(self) -> str:
        group = self.group
        workers = "1 worker" if group.workers == 1 else f"{group.workers} workers"
        gpu = f" and {group.gpus_per_worker:g} GPU" if group.gpus_per_worker else ""
        return f"{self.at_a_time} at a time, {workers} a trial of {group.cpus_per_worker:g} CPU{gpu} each"


def plan_trials(search: Search) -> TrialPlan:
    """Divides what Ray has among the trials. Raises `UserError` where not even one fits."""
    wanted = search.file.trial
    total = ray.cluster_resources()
    cpus, gpus = int(total.get("CPU", 0)), total.get("GPU", 0.0)
    gpus_each = wanted.gpus_per_worker
    if gpus_each is None:
        gpus_each = 1.0 if gpus >= wanted.workers else 0.0
    most = int(gpus / gpus_each if gpus_each else cpus) // wanted.workers
    at_a_time = min(wanted.at_a_time or max(1, min(MOST_AT_A_TIME, most)), search.file.trials)
    cpus_each = wanted.cpus_per_worker or float(max(1, cpus // (wanted.workers * at_a_time)))
    group = plan_group(wanted.workers, cpus_each, gpus_each)
    fits = int(cpus / (wanted.workers * cpus_each))
    if gpus_each:
        fits = min(fits, int(gpus / (wanted.workers * gpus_each)))
    return TrialPlan(group, max(1, min(at_a_time, fits)))


def plan_lines(search: Search, plan: TrialPlan) -> tuple[list[str], Cost]:
    """The plan in lines for a person, and the cost of the first trial's values."""
    file, cost = search.file, estimate(search.experiment)
    pruning = "none"
    if file.pruning.enabled:
        pruning = f"ASHA from epoch {file.pruning.grace_epochs} on, the best 1/{file.pruning.reduction_factor} of the trials go on"
    lines = [
        f"search {search.name}: {file.trials} trials of at most {search.experiment.training.epochs} epochs, config {file.config}",
        f"shards: {file.shards}",
        f"out: {file.out}",
        f"resources: {plan}",
        f"pruning: {pruning}",
        "ranges, and the first trial's value:",
        *(f"  {space.key}: {space}; first {search.paper_setting[space.key]:g}" for space in search.ranges),
        "a trial with the first one's values:",
        *(f"  {line}" for line in cost.lines()),
    ]
    return lines, cost
